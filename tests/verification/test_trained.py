"""`verify RUN`: a good run passes, and each way of spoiling one is a miss that names what is wrong."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diff_diffusion.cli import main
from diff_diffusion.cli import verify as command
from diff_diffusion.codecs.affine import Affine
from diff_diffusion.errors import CheckpointError
from diff_diffusion.models import DiffusionModel, NoisyClassifier
from diff_diffusion.sizing import describe_classifier
from diff_diffusion.training import train
from diff_diffusion.verification import Check, trained


def checks(folder: Path) -> dict[str, Check]:
    return {check.law: check for job in trained(folder) for check in job.run()}


def missed(folder: Path) -> set[str]:
    return {law for law, check in checks(folder).items() if not check.passed}


def test_a_good_run_passes(run: Path) -> None:
    found = checks(run)
    assert not [check for check in found.values() if not check.passed]
    assert found["EMA moved"].measured is not None
    assert found["EMA moved"].measured > 1e-5
    assert set(found) == {
        "damaged files", "not finite", "EMA moved", "decode(encode)", "signal at t = 1", "samples not finite",
        "channel mean", "channel std",
    }  # fmt: skip


def test_a_classifier_is_checked_for_all_but_its_samples(tmp_path: Path) -> None:
    import tiny

    data = tiny.images()
    judge = NoisyClassifier.from_description(describe_classifier(data))
    list(train(judge, data, tmp_path / "judge", tiny.settings(steps=2)))
    found = checks(tmp_path / "judge")
    assert not [check for check in found.values() if not check.passed]
    assert set(found) == {"damaged files", "not finite", "EMA moved", "decode(encode)"}


def averages_are_raw(tensors: dict[str, Tensor], model: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith("ema/")]:
        tensors[name] = tensors["raw/" + name.removeprefix("ema/")].clone()


def one_is_nan(tensors: dict[str, Tensor], model: dict[str, Any]) -> None:
    first = next(name for name in tensors if name.startswith("raw/"))
    tensors[first].flatten()[0] = torch.nan


def ends_early(tensors: dict[str, Tensor], model: dict[str, Any]) -> None:
    model["recipe"]["process"]["time_map"] = {"type": "time_map/linear_log_snr", "log_snr_max": 12, "log_snr_min": -5}


@pytest.mark.parametrize(
    ("change", "laws"),
    [
        (averages_are_raw, {"EMA moved"}),
        (one_is_nan, {"not finite", "EMA moved"}),
        (ends_early, {"signal at t = 1"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_spoiled_is_missed_and_nothing_else(sabotaged: Any, change: Any, laws: set[str]) -> None:
    assert missed(sabotaged(change)) == laws


def test_a_high_end_is_told_what_to_do(sabotaged: Any) -> None:
    note = checks(sabotaged(ends_early))["signal at t = 1"].note
    assert "λ(1) = -5" in note
    assert "ends lower" in note


def test_samples_away_from_the_data_are_missed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = DiffusionModel.sample
    for change, law in ((lambda x: x + 100.0, "channel mean"), (lambda x: 127.5 + 0.2 * (x - 127.5), "channel std")):
        monkeypatch.setattr(
            DiffusionModel, "sample", lambda model, *a, change=change, **o: change(sample(model, *a, **o))
        )
        assert law in missed(run)


def test_a_codec_that_does_not_invert_is_missed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Affine.decode
    monkeypatch.setattr(Affine, "decode", lambda codec, latent: decode(codec, latent) + 0.01)
    assert missed(run) == {"decode(encode)"}


def test_a_changed_file_is_missed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    facts = tmp_path / "copy" / "facts.json"
    content = facts.read_bytes()
    facts.unlink()  # it is a hard link into a checkpoint
    facts.write_bytes(content.replace(b"steps", b"stops"))
    found = checks(tmp_path / "copy")
    assert found["damaged files"].measured == 1
    assert "facts.json" in found["damaged files"].note


def test_a_saved_model_has_one_set_of_weights_and_is_not_asked_for_two(run: Path, tmp_path: Path) -> None:
    DiffusionModel.load(run).save(tmp_path / "model")
    found = checks(tmp_path / "model")
    assert found["EMA moved"].measured is None
    assert not [check for check in found.values() if not check.passed]


def test_the_command_says_which_check_of_the_run_was_missed(
    sabotaged: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(command, "installed", lambda: [])
    monkeypatch.setattr(sys, "argv", ["diff-diffusion", "verify", str(sabotaged(averages_are_raw))])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 7
    out = capfd.readouterr().out
    assert "MISS: run changed, EMA moved: 0" in out


def test_where_there_is_no_model_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model folder"):
        trained(tmp_path)
