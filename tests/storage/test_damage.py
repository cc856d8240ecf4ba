"""Damaged files: a CheckpointError or a good state, bit for bit; never another exception, never silently different."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch

from diff_diffusion.errors import CheckpointError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.registry import describe
from diff_diffusion.training import checkpoint, loop

FILES = ("config.json", "facts.json", "model.safetensors")  # what a model is loaded from
STATE = ("train_state.json", "train_state.safetensors")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "choose_device", lambda: torch.device("cpu"))


State = tuple[str, dict[str, bytes], str]


def state_of(model: DiffusionModel) -> State:
    """All that a loaded model is: what it says of itself, its weights, its facts."""
    weights = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    return json.dumps(describe(model)), weights, json.dumps(model.facts)


def opened(folder: Path) -> State | None:
    """The state that a folder loads as; None for a CheckpointError. Anything else is the test's failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return state_of(DiffusionModel.load(folder))
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 4 and 8."""
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "choose_device", lambda: torch.device("cpu"))
        tiny.run(out, stop_at=8)
    assert [home.name for home in checkpoint.checkpoints(out)] == ["step-00000008", "step-00000004"]
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, its published files linked to the newest checkpoint's as they are in the original."""
    out = tmp_path / "run"
    shutil.copytree(run, out)
    for file in checkpoint.checkpoints(out)[0].iterdir():
        (out / file.name).unlink()
        os.link(file, out / file.name)
    return out


def replaced(path: Path, content: bytes) -> None:
    """The file anew: links to the old one keep the old content."""
    path.unlink()
    path.write_bytes(content)


def mutations(content: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """Flipped bits, other digits, zeroed, doubled, swapped and lost stretches, tails cut and grown."""
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    for number in range(count):
        data, place, length = bytearray(content), rng.randrange(len(content)), rng.choice([1, 8, 64, 512])
        kind = number % 8
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            place = rng.choice(digits)
            data[place] = ord(rng.choice([d for d in "0123456789" if d != chr(content[place])]))
        elif kind == 2:
            data[place] = rng.randrange(256)
        elif kind == 3:
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            del data[place : place + length]
        elif kind == 6:
            other = rng.randrange(len(content))
            data[place], data[other] = data[other], data[place]
        else:
            data += rng.randbytes(length)
        yield bytes(data)


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_model_is_refused(file: str, tmp_path: Path) -> None:
    tiny.fresh(tiny.images()).save(tmp_path / "model")
    path = tmp_path / "model" / file
    whole = path.read_bytes()
    good = opened(tmp_path / "model")
    lengths = {*range(0, 24), *(len(whole) * i // 40 for i in range(40)), *range(len(whole) - 9, len(whole))}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        # Without its last line end it is the same JSON.
        allowed = {None} if length < len(whole) - 1 or file != "config.json" else {None, "good"}
        found = opened(tmp_path / "model")
        assert (found if found is None else "good" if found == good else "other") in allowed, length
    path.write_bytes(whole)
    assert opened(tmp_path / "model") == good


@pytest.mark.parametrize("file", FILES)
def test_a_mutated_model_is_refused_or_the_same(file: str, tmp_path: Path) -> None:
    tiny.fresh(tiny.images()).save(tmp_path / "model")
    path, rng = tmp_path / "model" / file, random.Random(file)
    whole, good, refused, same = path.read_bytes(), opened(tmp_path / "model"), 0, 0
    for content in mutations(whole, 100, rng):
        path.write_bytes(content)
        found = opened(tmp_path / "model")
        if content == whole:
            continue
        if found is None:
            refused += 1
        else:
            assert found == good
            same += 1  # spaces between JSON's words say nothing
    assert refused >= 80
    assert same == 0 or file == "config.json"


@pytest.mark.parametrize("linked", [True, False], ids=["in place", "replaced"])
def test_a_mutated_run_loads_as_one_of_its_states(linked: bool, run: Path, copy: Path) -> None:
    """In place, damage reaches the newest checkpoint too, which shares the file; the one before it is left."""
    states = [opened(home) for home in (run, *checkpoint.checkpoints(run))]
    assert states[0] == states[1] != states[2]
    rng, loaded = random.Random(0), set()
    for file in FILES:
        path = copy / file
        whole = path.read_bytes()
        for content in (*mutations(whole, 16, rng), b"", whole[: len(whole) // 2], whole):
            if linked:
                path.write_bytes(content)
            else:
                replaced(path, content)
            found = opened(copy)
            assert found in states
            loaded.add(states.index(found))
            path.write_bytes(whole)
    assert loaded == ({0, 2} if linked else {0})


@pytest.mark.parametrize("file", [*FILES, *STATE])
def test_a_run_goes_on_from_its_newest_whole_checkpoint(
    file: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.run(tmp_path / "whole")
    path = copy / file  # the newest checkpoint's, too
    path.write_bytes(next(mutations(path.read_bytes(), 1, random.Random(1))))
    records = tiny.run(copy)
    assert records[0].step == 5
    assert "resumed at step 4" in records[0].notes
    assert any(note.startswith(f"passed over: {copy / 'checkpoints' / 'step-00000008'}") for note in records[0].notes)
    assert tiny.ends(copy) == tiny.ends(tmp_path / "whole")
    assert tiny.leftovers(copy) == []
    lines = [json.loads(line)["step"] for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 13))


def test_damaged_checkpoints_do_not_push_out_whole_ones(copy: Path) -> None:
    """A run resumed before a damaged checkpoint keeps what it saves, though the damaged one has a later step."""
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    records = tiny.run(copy, stop_at=2, checkpoint_interval=1, keep_checkpoints=1)
    assert [record.step for record in records] == [5, 6]
    assert "step-00000006" in [home.name for home in checkpoint.checkpoints(copy)]
    assert tiny.run(copy, stop_at=1)[0].step == 7


def test_a_run_without_a_whole_checkpoint_is_not_started_over(copy: Path) -> None:
    for home in checkpoint.checkpoints(copy):
        path = home / "train_state.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"^no checkpoint of .*run is whole: .*train_state.safetensors is damaged"
    ):
        tiny.run(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_falling_back_is_told(copy: Path) -> None:
    replaced(copy / "model.safetensors", b"")
    home = checkpoint.checkpoints(copy)[0]
    with pytest.warns(UserWarning, match=f"{copy / 'model.safetensors'} is damaged.*{home} was loaded instead"):
        DiffusionModel.load(copy)


@pytest.mark.parametrize("file", [*FILES, "README.md", *STATE])
def test_a_file_that_is_gone(file: str, run: Path, copy: Path) -> None:
    good, older = opened(copy), opened(checkpoint.checkpoints(copy)[1])
    (copy / file).unlink()
    assert opened(copy) == good
    for home in checkpoint.checkpoints(copy):
        (home / file).unlink()
    assert opened(copy) == (None if file in FILES else good)
    assert older != good


@pytest.mark.parametrize("file", FILES)
def test_a_folder_in_a_files_place(file: str, tmp_path: Path) -> None:
    tiny.fresh(tiny.images()).save(tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    (tmp_path / "model" / file).mkdir()
    assert opened(tmp_path / "model") is None


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    data = tiny.images()
    for seed in (0, 1):
        tiny.fresh(data, seed=seed).save(tmp_path / str(seed))
    shutil.copy(tmp_path / "1" / "model.safetensors", tmp_path / "0")
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: its sha256"):
        DiffusionModel.load(tmp_path / "0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"a":' * 100_000, "damaged"),
        ("null", "damaged"),
        ("5", "damaged"),
        ("[]", "damaged"),
        ('"config"', "damaged"),
        ("{}", "damaged"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "sha256": []}', "damaged"),
        ('{"format": 1, "sha256": "config.json"}', "damaged"),
        ('{"format": 1, "sha256": {"config.json": null}}', "damaged"),
        ('{"format": 1, "sha256": {}, "model": NaN}', "damaged"),
        ('{"format": 1, "sha256": {"config.json": "0"}, "model": NaN}', "damaged"),
        ('{"format": 1, "sha256": {"config.json": "0"}, "model": "\\ud800"}', "damaged"),
        ('{"format": 1, "sha256": {"config.json": "0"}, "model": ' + "[" * 500 + "]" * 500 + "}", "damaged"),
        ('{"format": 1, "n": ' + "9" * 5000 + "}", "damaged"),
        ('{"format": 2}', "has format 2; this version reads format 1"),
        ('{"format": "1"}', "has format '1'"),
        ('{"format": {}}', "has format {}"),
    ],
    ids=range(20),
)
def test_a_manifest_that_is_none(text: str, said: str, tmp_path: Path) -> None:
    tiny.fresh(tiny.images()).save(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said) as caught:
        DiffusionModel.load(tmp_path / "model")
    assert len(str(caught.value)) < 1000


def test_a_manifest_in_no_encoding(tmp_path: Path) -> None:
    tiny.fresh(tiny.images()).save(tmp_path / "model")
    for content in (b"\xff\xfe\x00", os.urandom(999), b"\x00" * 99):
        (tmp_path / "model" / "config.json").write_bytes(content)
        assert opened(tmp_path / "model") is None


def test_what_is_no_model_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cat.png").write_text("")
    (tmp_path / "file").write_text("")
    for name, said in [
        ("nothing", "it does not exist"),
        ("empty", "it is empty"),
        ("other", r"it holds cat.png"),
        ("file", "is a file; a model is a folder"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            DiffusionModel.load(tmp_path / name)
