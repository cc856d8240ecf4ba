"""What `train` says of copies when it ends: a warning or none, files beside the model, and the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diff_diffusion.evaluation import copies
from diff_diffusion.models import DiffusionModel

WORDS = ("--steps", 6, "--size", 8)


@pytest.fixture
def affordable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of six steps affords a search."""
    monkeypatch.setattr(copies, "SHARE", 1000.0)
    monkeypatch.setattr(copies, "STEPS", 2)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("少"), np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"图{i}.png")
    return folder


@pytest.fixture
def copying(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that learned half of the folder by heart."""
    files = sorted(few.iterdir())[:20]
    known = torch.stack([torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) for file in files])
    draw = DiffusionModel.sample

    def sample(self: DiffusionModel, num: int = 1, **options: object) -> torch.Tensor:
        draw(self, 1)  # it is a model that can draw
        return known[torch.arange(num) % 20].float()

    monkeypatch.setattr(DiffusionModel, "sample", sample)


@pytest.mark.usefixtures("affordable", "copying")
def test_a_model_that_copies_is_warned_of(
    cli: Callable[..., tuple[int, str, str]], few: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    code, out, err = cli("train", few, "--out", tmp_path / "记", *WORDS, *tiny)
    assert code == 0, err
    home = tmp_path / "记" / "evaluation"
    line = next(line for line in out.splitlines() if line.startswith("WARNING: this model copies its training set: "))
    assert line.endswith(f"; the closest pairs are {home / 'nearest.png'}")
    assert {path.name for path in home.iterdir()} == {"audit.json", "nearest.png"}
    assert out.index("done at step 6") < out.index(line) < out.index("now: diff-diffusion sample")


@pytest.mark.usefixtures("affordable")
def test_a_search_changes_nothing_of_the_run(
    cli: Callable[..., tuple[int, str, str]], few: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """Searched or not, or stopped by more steps in between, a run is the same to the last byte."""
    code, out, err = cli("train", few, "--out", tmp_path / "a", *WORDS, *tiny)
    assert code == 0, err
    assert "no sign that this model copies its training set: " in out
    assert "WARNING: " not in out
    _, out, _ = cli("train", few, "--out", tmp_path / "b", *WORDS, *tiny, "--no-audit")
    assert "copies its training set" not in out
    assert not (tmp_path / "b" / "evaluation").exists()
    cli("train", few, "--out", tmp_path / "c", *WORDS, *tiny, "--steps", 3)
    assert (tmp_path / "c" / "evaluation").exists()
    cli("train", few, "--out", tmp_path / "c", *WORDS, *tiny)
    weights = [
        (tmp_path / run / name).read_bytes()
        for name in ("model.safetensors", "train_state.safetensors")
        for run in "abc"
    ]
    assert weights[0] == weights[1] == weights[2]
    assert weights[3] == weights[4] == weights[5]
    before = (tmp_path / "a" / "evaluation" / "audit.json").stat().st_mtime_ns
    _, out, _ = cli("train", few, "--out", tmp_path / "a", *WORDS, *tiny)
    assert "is finished" in out
    assert (tmp_path / "a" / "evaluation" / "audit.json").stat().st_mtime_ns == before
    DiffusionModel.load(tmp_path / "a")


def test_a_short_run_is_not_searched(run: Path) -> None:
    """Thirty steps of 16 images afford no sample at all."""
    assert not (run / "evaluation").exists()


@pytest.mark.usefixtures("affordable")
def test_many_images_are_not_searched(
    cli: Callable[..., tuple[int, str, str]],
    few: Path,
    tmp_path: Path,
    tiny: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("diff_diffusion.cli.train.SMALL", 35)
    code, out, _ = cli("train", few, "--out", tmp_path / "a", *WORDS, *tiny)
    assert code == 0
    assert "copies its training set" not in out


@pytest.mark.usefixtures("affordable")
def test_a_run_is_not_lost_for_want_of_a_search(
    cli: Callable[..., tuple[int, str, str]], few: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    home = tmp_path / "a"
    cli("train", few, "--out", home, *WORDS, *tiny, "--steps", 3, "--no-audit")
    (home / "evaluation").write_text("")
    code, out, err = cli("train", few, "--out", home, *WORDS, *tiny)
    assert code == 0, err
    assert "not searched for copies of training images: " in out
    assert "now: diff-diffusion sample" in out


def test_no_audit_of_what_draws_nothing_is_refused(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, err = cli("train", "digits", "--out", tmp_path / "a", "--classifier", "--no-audit", "--steps", 1)
    assert code == 2
    assert "--no-audit" in err
