"""NaN and Inf: a step that meets them changes nothing, a run that stays in them stops, and no file ever holds one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tiny
import torch

from diff_diffusion.errors import CheckpointError, DiffusionError, TrainingError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.objectives.denoising import Loss, Objective
from diff_diffusion.pictures import sheet, to_picture, write_png
from diff_diffusion.registry import describe
from diff_diffusion.storage import folder as storage
from diff_diffusion.training import checkpoint, loop, train
from diff_diffusion.training.loop import MAX_SKIPS

PLACE = "denoiser.network.middle.0.0.conv_out"


def break_loss(monkeypatch: pytest.MonkeyPatch, value: float, steps: set[int]) -> None:
    """The loss of these steps, from 1, is `value`; its gradient is finite all the same."""
    call, count = Objective.__call__, iter(range(1, 1000))

    def broken(self: Objective, *args: Any, **options: Any) -> Loss:
        loss = call(self, *args, **options)
        return replace(loss, mean=loss.mean + value) if next(count) in steps else loss

    monkeypatch.setattr(Objective, "__call__", broken)


def break_gradient(model: DiffusionModel, value: float, steps: set[int], place: str = PLACE) -> None:
    """One element of one gradient of these steps, from 1, is `value`."""
    count = iter(range(1, 1000))

    def broken(gradient: torch.Tensor) -> torch.Tensor:
        if next(count) not in steps:
            return gradient
        gradient = gradient.clone()
        gradient[(0,) * gradient.ndim] = value
        return gradient

    model.get_submodule(place).weight.register_hook(broken)  # type: ignore[union-attr,operator]


def strict_json(text: str) -> Any:
    def refuse(number: str) -> None:
        raise AssertionError(f"{number} is not JSON")

    return json.loads(text, parse_constant=refuse)


def check_all_files_are_finite(out: Path) -> None:
    seen = set()
    for path in out.rglob("*"):
        seen.add(path.name)
        if path.suffix == ".json":
            strict_json(path.read_text())
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                strict_json(line)
        elif path.suffix == ".safetensors":
            for name, value in safetensors.numpy.load_file(path).items():
                assert np.isfinite(value).all(), f"{path}: {name}"
        elif path.suffix == ".md":
            assert "nan" not in path.read_text().split("## Facts")[1].lower()
    assert {"metrics.jsonl", "facts.json", "model.safetensors", "train_state.safetensors"} <= seen


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(
    where: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.images()
    model = tiny.fresh(data)
    if where == "loss":
        break_loss(monkeypatch, value, {5})
    else:
        break_gradient(model, value, {5})
    settings = tiny.settings(steps=7, checkpoint_interval=1, keep_checkpoints=9, eval_interval=1)
    records = list(train(model, data, tmp_path, settings, held_out=data))

    assert [record.step for record in records if record.skipped] == [5]
    assert math.isfinite(records[4].loss) == (where == "gradient")
    # Weights, averages and both moments are in these files.
    states = [tiny.ends(tmp_path / "checkpoints" / f"step-{step:08d}") for step in range(8)]
    for step in range(1, 8):
        assert (states[step] == states[step - 1]) == (step == 5)
    rows = [strict_json(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped", False) for row in rows] == [step == 5 for step in range(1, 8)]
    assert ("loss" in rows[4]) == (where == "gradient")
    check_all_files_are_finite(tmp_path)


def test_a_micro_batch_that_is_not_finite_skips_the_whole_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_loss(monkeypatch, math.nan, {3 * 4 + 2})  # the second of three parts of step 5
    changes = {"micro_batch": 3, "steps": 6, "checkpoint_interval": 1, "keep_checkpoints": 9}
    assert [record.step for record in tiny.run(tmp_path, **changes) if record.skipped] == [5]
    states = [tiny.ends(tmp_path / "checkpoints" / f"step-{step:08d}") for step in (4, 5, 6)]
    assert states[0] == states[1] != states[2]


def test_a_run_that_stays_not_finite_stops_at_its_last_good_state(tmp_path: Path) -> None:
    data = tiny.images()
    model = tiny.fresh(data)
    break_gradient(model, math.nan, set(range(4, 1000)))
    records, settings = [], tiny.settings(steps=100, checkpoint_interval=3, keep_checkpoints=9)
    with pytest.raises(TrainingError) as caught:
        records.extend(train(model, data, tmp_path, settings, held_out=data))
    home = tmp_path / "checkpoints" / f"step-{3 + MAX_SKIPS:08d}"
    for part in (f"{MAX_SKIPS} steps in a row", f"is {PLACE}.", str(home), "smaller lr"):
        assert part in str(caught.value)
    good = tiny.ends(tmp_path / "checkpoints" / "step-00000003")
    assert tiny.ends(tmp_path) == tiny.ends(home) == good
    check_all_files_are_finite(tmp_path)
    # The model in hand is the averaged one, and the run goes on once the cause is mended.
    loaded = DiffusionModel.load(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    assert next(train(tiny.fresh(data), data, tmp_path, settings)).step == 3 + MAX_SKIPS + 1


@pytest.mark.parametrize(
    "place", ["denoiser.network.enter", "denoiser.network.leave", "denoiser.conditioner.each.0.table"]
)
def test_the_module_is_named(place: str) -> None:
    data = tiny.images()
    model = tiny.fresh(data)
    break_gradient(model, math.nan, set(range(1, 1000)), place)
    with pytest.raises(TrainingError, match=f"not finite is {place}[.]"):
        list(train(model, data, None, tiny.settings(steps=100)))


def test_fewer_skips_are_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {*range(2, 2 + MAX_SKIPS - 1), *range(2 + MAX_SKIPS, 1 + 2 * MAX_SKIPS)}
    break_loss(monkeypatch, math.inf, bad)
    records = tiny.run(None, steps=25)
    assert [record.step for record in records if record.skipped] == sorted(bad)
    assert records[-1].step == 25


def test_weights_that_a_finite_step_broke_are_not_saved(tmp_path: Path) -> None:
    """An absurd learning rate takes the weights to infinity in a step whose loss and gradient were finite."""
    with pytest.raises(TrainingError) as caught:
        tiny.run(tmp_path, steps=50, lr=1e39, warmup_steps=0, checkpoint_interval=1000)
    assert str(tmp_path / "checkpoints" / "step-00000000") in str(caught.value)
    check_all_files_are_finite(tmp_path)
    with pytest.raises(CheckpointError, match=r"not finite: .*denoiser"):
        tiny.run(tmp_path, steps=50, lr=1e39, warmup_steps=0, checkpoint_interval=1)
    assert DiffusionModel.load(tmp_path).facts["train images"] == 20


def test_a_held_out_loss_that_is_not_finite_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "held_out_loss", lambda *_: {"mean": math.inf, "levels": [[0.0, math.inf]]})
    data = tiny.images()
    records = list(train(tiny.fresh(data), data, tmp_path, tiny.settings(steps=3), held_out=data))
    assert records[-1].held_out is not None
    assert "held-out loss" not in DiffusionModel.load(tmp_path).facts
    check_all_files_are_finite(tmp_path)


def test_moments_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = tiny.fresh(tiny.images())
    for value in (math.nan, math.inf):
        moments = {"good/exp_avg": torch.ones(2), "bad/exp_avg": torch.tensor([1.0, value])}
        with pytest.raises(CheckpointError, match="not finite: bad/exp_avg"):
            checkpoint.save(tmp_path, model, checkpoint.TrainState(1, 0.0, {}, {}, moments), 2)
    assert list(tmp_path.iterdir()) == []


# ---- models and pictures ---------------------------------------------------------------------------------------------


@pytest.fixture(params=[math.nan, math.inf])
def broken(request: pytest.FixtureRequest) -> DiffusionModel:
    model = tiny.fresh(tiny.images()).eval()
    with torch.no_grad():
        model.network.leave.weight[0, 0, 0, 0] = request.param  # type: ignore[union-attr,index]
    return model


def test_a_model_that_is_not_finite_is_not_saved(broken: DiffusionModel, tmp_path: Path) -> None:
    tiny.fresh(tiny.images()).save(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"not finite: .*network.leave.weight"):
        broken.save(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def forged(model: DiffusionModel, folder: Path) -> Path:
    """What another program might write: a whole folder of weights that are not finite."""
    weights = {f"{kind}/{name}": value.clone() for kind in ("ema", "raw") for name, value in model.state_dict().items()}
    files = {
        "model.safetensors": storage.to_safetensors(weights),
        "facts.json": b"{}",
        "README.md": b"",
    }
    storage.write_folder(folder, files, {"version": "0", "model": describe(model)})
    return folder


def test_samples_that_are_not_finite_are_an_error(broken: DiffusionModel, tmp_path: Path) -> None:
    with pytest.raises(DiffusionError, match="3 of 3 samples hold values that are not finite"):
        broken.sample(3, cond=0)
    model = forged(broken, tmp_path / "model")
    process = tiny.child(
        tiny.command, ["sample", str(model), "-n", "2", "--out", str(tmp_path / "out")], tmp_path / "log"
    )
    assert tiny.finish(process) == 1
    assert (tmp_path / "log").read_text().startswith("error: 2 of 2 samples hold values that are not finite")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_picture_that_is_not_finite_is_never_black(tmp_path: Path) -> None:
    sample = torch.full((1, 4, 4), 128.0)
    write_png(tmp_path / "fine.png", sheet(sample[None], 1))
    sample[0, 1, 1] = math.nan
    with pytest.raises(DiffusionError, match="not finite"):
        to_picture(sample)
    with pytest.raises(DiffusionError, match="not finite"):
        write_png(tmp_path / "broken.png", sheet(sample[None], 1))
    assert [path.name for path in tmp_path.iterdir()] == ["fine.png"]


def test_sheets_of_a_diverged_run_do_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(self: DiffusionModel, *args: object, **options: object) -> torch.Tensor:
        raise DiffusionError("2 of 20 samples hold values that are not finite")

    monkeypatch.setattr(DiffusionModel, "sample", sample)
    assert any("no sample sheets" in note for note in tiny.run(tmp_path, steps=2)[-1].notes)
    DiffusionModel.load(tmp_path)
