"""A disk that fails, or a machine that stops, at any call of a save: the old state or the new one, never none."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import Disk

from diff_diffusion.errors import CheckpointError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.training import Record, checkpoint

Uninterrupted = Callable[..., Path]
BEFORE, AFTER = 9, 10  # the save under attack writes step 10, publishes it and removes step 8


def run(out: Path, **changes: Any) -> list[Record]:
    """The tiny run with the least network: these tests do it hundreds of times, and ask the disk, not the network."""
    return tiny.run(out, multipliers=[1], **changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped at steps 8 and 9; its next step ends with a save."""
    out = tmp_path_factory.mktemp("prepared")
    run(out, stop_at=8)
    run(out, stop_at=1)
    return out


@pytest.fixture(scope="module")
def states(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    """The weights before and after the step under attack, as a model loads them."""
    after = tmp_path_factory.mktemp("after")
    shutil.copytree(prepared, after, dirs_exist_ok=True)
    run(after, stop_at=1)
    found = {BEFORE: weights(prepared), AFTER: weights(after)}
    assert found[BEFORE] != found[AFTER]
    return found


def weights(folder: Path) -> dict[str, bytes]:
    model = DiffusionModel.load(folder)
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def calls_of_a_save(prepared: Path, scratch: Path) -> Disk:
    shutil.copytree(prepared, scratch)
    with Disk().failing() as disk:
        run(scratch, stop_at=1)
    return disk


def copied(prepared: Path, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(prepared, out)
    return out


def one_step(out: Path, at: int, code: int, lasting: bool = False) -> None:
    with Disk(at, code, lasting).failing():
        run(out, stop_at=1)


@pytest.mark.filterwarnings("ignore:.*was loaded instead:UserWarning")
def test_a_crash_at_any_call_of_a_save_leaves_the_old_or_the_new_state(
    prepared: Path, states: dict[int, dict[str, bytes]], tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    disk = calls_of_a_save(prepared, tmp_path / "count")
    assert {"open", "write", "fsync", "replace", "link", "mkdir", "unlink", "rmdir"} <= set(disk.called)
    assert tiny.finish(tiny.child(tiny.crash_each, prepared, tmp_path, disk.count), 120) == 0
    seen = set()
    for at, call in enumerate(disk.called, start=1):
        out = tmp_path / str(at)
        found = weights(out)
        assert found in states.values(), f"call {at}, {call}"
        seen.add(found == states[AFTER])
        run(out, steps=AFTER)
        assert tiny.ends(out) == tiny.ends(uninterrupted(steps=AFTER, multipliers=[1])), f"call {at}, {call}"
        assert tiny.told(out) == list(range(1, AFTER + 1))
        assert tiny.leftovers(out) == []
        assert len(checkpoint.checkpoints(out)) in (2, 3)  # the third where the crash came before it was removed
        shutil.rmtree(out)
    assert seen == {False, True}
    print(f"{disk.count} crashes")


@pytest.mark.parametrize(("code", "lasting"), [(errno.ENOSPC, True), (errno.EIO, False)], ids=["full", "one error"])
@pytest.mark.filterwarnings("ignore:.*was loaded instead:UserWarning")
def test_a_disk_that_refuses_is_one_line_and_loses_nothing(
    code: int,
    lasting: bool,
    prepared: Path,
    states: dict[int, dict[str, bytes]],
    tmp_path: Path,
    uninterrupted: Uninterrupted,
) -> None:
    disk, told = calls_of_a_save(prepared, tmp_path / "count"), []
    for at in range(1 + lasting, disk.count + 1, 2):  # the two cases together meet every call
        out = copied(prepared, tmp_path / "run")
        try:
            one_step(out, at, code, lasting)
        except CheckpointError as error:
            told.append(str(error))
        assert weights(out) in states.values(), f"call {at}, {disk.called[at - 1]}"
        run(out, steps=AFTER)
        assert tiny.ends(out) == tiny.ends(uninterrupted(steps=AFTER, multipliers=[1])), (
            f"call {at}, {disk.called[at - 1]}"
        )
        assert tiny.told(out) == list(range(1, AFTER + 1))
        assert tiny.leftovers(out) == []
    assert len(told) >= 10
    for line in told:
        assert line.startswith(f"could not write {tmp_path / 'run'}")
        assert "\n" not in line
    print(f"{disk.count // 2} failures, {len(told)} of them told")


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_run_on_a_disk_that_takes_nothing_is_refused(code: int, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^could not write .*run"):
        one_step(tmp_path / "run", 1, code, lasting=True)
    out = copied(prepared, tmp_path / "old")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"^could not write .*old"):
        one_step(out, 1, code, lasting=True)
    with Disk(1, code, lasting=True).failing(), pytest.raises(CheckpointError, match=r"^could not write .*model"):
        tiny.fresh(tiny.images()).save(tmp_path / "model")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "model").exists()


def test_a_finished_run_on_a_read_only_disk_is_still_finished(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    with Disk(1, errno.EROFS, lasting=True).failing():
        assert run(tmp_path, steps=2) == []


def test_a_file_where_the_run_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"^could not write .*file"):
        run(tmp_path / "file")


def test_a_picture_that_cannot_be_written_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Uninterrupted
) -> None:
    (tmp_path / "samples").write_text("a file where the folder should be")
    records = run(tmp_path, sample_interval=5)
    told = [record.step for record in records if any("no sample sheets" in note for note in record.notes)]
    assert told == [5, 10, 12]
    assert tiny.ends(tmp_path) == tiny.ends(uninterrupted(multipliers=[1]))


# ---- a saved model ---------------------------------------------------------------------------------------------------


def test_everything_is_on_disk_before_it_gets_its_name(tmp_path: Path) -> None:
    """Files, then the folder that lists them, then the rename, then the folder that the name is in."""
    with Disk().failing() as disk:
        tiny.fresh(tiny.images()).save(tmp_path / "model")
    file, folder = ["open", "write", "fsync"], ["fsync"]
    assert disk.called == ["mkdir", *4 * file, *folder, "replace", *folder]


@pytest.mark.filterwarnings("ignore:.*was loaded instead:UserWarning")
def test_a_crash_while_a_model_is_replaced_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    data = tiny.images()
    old, new = tiny.fresh(data, seed=0), tiny.fresh(data, seed=1)
    states = [{name: value.numpy().tobytes() for name, value in model.state_dict().items()} for model in (old, new)]
    folder, seen = tmp_path / "a [model]", []
    old.save(folder)
    with Disk().failing() as disk:
        new.save(folder)
    assert weights(folder) == states[1]
    for at in range(1, disk.count + 1):
        old.save(folder)
        assert tiny.finish(tiny.child(tiny.save_and_crash, folder, at)) == tiny.CRASHED
        seen.append(states.index(weights(folder)))
    assert set(seen) == {0, 1}
    assert seen == sorted(seen)
    new.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_disk_that_refuses_while_a_model_is_replaced_leaves_the_old_one(tmp_path: Path) -> None:
    data = tiny.images()
    old, new, folder = tiny.fresh(data, seed=0), tiny.fresh(data, seed=1), tmp_path / "model"
    old.save(folder)
    with Disk().failing() as disk:
        new.save(folder)
    states = [{name: value.numpy().tobytes() for name, value in model.state_dict().items()} for model in (old, new)]
    told = []
    for at in range(1, disk.count + 1):
        old.save(folder)
        try:
            with Disk(at, errno.EIO).failing():
                new.save(folder)
        except CheckpointError as error:
            told.append(str(error))
        assert folder.exists()
        assert weights(folder) in states
    assert len(told) > disk.count // 2
    assert all(line == f"could not write {folder}: {os.strerror(errno.EIO)}" for line in told)
    old.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_saving_never_deletes_what_is_not_a_model(tmp_path: Path) -> None:
    """A run's checkpoints, somebody's pictures: they stay, and the error names them."""
    run(tmp_path / "run", steps=2)
    before = tiny.ends(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run holds checkpoints, metrics.jsonl, samples, .*would be lost"):
        DiffusionModel.load(tmp_path / "run").save(tmp_path / "run")
    assert tiny.ends(tmp_path / "run") == before
    assert tiny.newest(tmp_path / "run") == "step-00000002"
