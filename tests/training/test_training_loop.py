"""What a step sees and does, what is measured along the way, and what training leaves alone."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch

from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.data.loader import Batch, Batches, order
from diff_diffusion.models import DiffusionModel, held_out
from diff_diffusion.models.held_out import held_out_loss
from diff_diffusion.objectives.denoising import Loss, Objective
from diff_diffusion.training import loop, runtime, train
from diff_diffusion.training.runtime import choose_precision, stop_signals


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """The images and the noise levels that training asks for, in order."""
    found: dict[str, list[Any]] = {"indices": [], "levels": []}

    class Told(Batches):
        def __iter__(self) -> Iterator[Batch]:
            for batch in super().__iter__():
                found["indices"].append(batch.indices)
                yield batch

    call = Objective.__call__

    def told(self: Objective, *args: Any, **options: Any) -> Loss:
        loss = call(self, *args, **options)
        found["levels"].append(loss.log_snr)
        return loss

    monkeypatch.setattr(loop, "Batches", Told)
    monkeypatch.setattr(Objective, "__call__", told)
    return found


# ---- data and noise are functions of (seed, step) --------------------------------------------------------------------


def test_a_run_sees_the_images_in_their_order(seen: dict[str, list[Any]], tmp_path: Path) -> None:
    expected = order(20, seed=4, first=0, count=12 * 8)
    for stop_at in (1, 6, None):  # stopped twice
        tiny.run(tmp_path, stop_at=stop_at, seed=4)
    assert np.concatenate(seen["indices"]).tolist() == expected.tolist()
    assert sorted(expected[:20]) == list(range(20))


@pytest.mark.parametrize("micro", [1, 3, 8, 100])
def test_a_micro_batch_changes_nothing_but_rounding(
    micro: int, seen: dict[str, list[Any]], tmp_path: Path, uninterrupted: Any
) -> None:
    def first_step(out: Path, micro_batch: int | None) -> tuple[float, torch.Tensor, torch.Tensor]:
        seen["levels"].clear()
        changes = {"steps": 1, "grad_clip": 1e6, "betas": (0.5, 0.5), "micro_batch": micro_batch}
        loss = tiny.run(out, **changes)[0].loss
        moments = safetensors.torch.load_file(out / "train_state.safetensors")
        gradient = [2.0 * moments[name].flatten() for name in sorted(moments) if name.endswith("exp_avg")]
        return loss, torch.cat(gradient), torch.cat(seen["levels"])

    loss, gradient, levels = first_step(tmp_path / "whole", None)
    micro_loss, micro_gradient, micro_levels = first_step(tmp_path / "parts", micro)
    assert levels.shape == (8,)
    assert torch.equal(micro_levels, levels)
    assert gradient.abs().max() > 1e-2
    torch.testing.assert_close(micro_gradient, gradient, rtol=0, atol=1e-6)
    assert micro_loss == pytest.approx(loss, abs=1e-6)


def test_noise_levels_are_stratified_over_the_batch_and_never_repeat(seen: dict[str, list[Any]]) -> None:
    tiny.run(None)
    times = torch.sigmoid(-torch.stack(seen["levels"]) / 2)  # λ ~ N(0, 2²), so its quantile rises with the time
    quantile = 0.5 * (1 + torch.erf(torch.logit(times) / 2**0.5))
    assert torch.equal((quantile * 8).floor(), torch.arange(8.0, dtype=torch.float64).expand(12, 8))
    assert len(set(times.flatten().tolist())) == 12 * 8


def test_training_leaves_global_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
    first = tiny.run(tmp_path / "a", sample_interval=5, precision="auto")
    again = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
    assert torch.equal(states[0], again[0])
    assert states[1:] == again[1:]
    torch.manual_seed(4)
    assert [record.loss for record in tiny.run(tmp_path / "b")][:3] == [record.loss for record in first][:3]


def test_the_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    told = tiny.run(tmp_path, steps=1, grad_clip=0.01, betas=(0.5, 0.5))[0].grad_norm
    moments = safetensors.torch.load_file(tmp_path / "train_state.safetensors")
    used = torch.cat([2.0 * value.flatten() for name, value in moments.items() if name.endswith("exp_avg")]).norm()
    assert used.item() == pytest.approx(0.01, rel=1e-3)
    assert told > 0.1  # before clipping


def test_dropout_differs_between_steps_and_micro_batches() -> None:
    data = tiny.images()
    model, dropped = tiny.fresh(data, dropout=0.5), []

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        dropped.append((output == 0).flatten().tolist())

    model.network.down[0][0][0].dropout.register_forward_hook(look)  # type: ignore[union-attr,index]
    list(train(model, data, None, tiny.settings(steps=2, micro_batch=4)))
    assert len(dropped) == 4
    assert all(0.4 < sum(mask) / len(mask) < 0.6 for mask in dropped)
    assert len({tuple(mask) for mask in dropped}) == 4


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_image_dataset("digits")


def losses(data: ImageDataset, steps: int, **changes: Any) -> list[float]:
    settings = tiny.settings(steps=steps, batch_size=16, lr=4e-3, warmup_steps=5, **changes)
    return [record.loss for record in train(tiny.fresh(data), data, None, settings)]


def test_bf16_learns_as_fp32_does(digits: ImageDataset) -> None:
    full, half = losses(digits, 60), losses(digits, 60, precision="bf16")
    assert full != half
    assert np.mean(full[-20:]) < 0.75 * np.mean(full[:5])
    assert np.mean(half[-20:]) == pytest.approx(np.mean(full[-20:]), rel=0.05)
    assert half[-1] == pytest.approx(full[-1], rel=0.05)


def test_a_record_and_the_facts_say_what_was_done(tmp_path: Path) -> None:
    data = tiny.images()
    model, settings = tiny.fresh(data), tiny.settings(eval_interval=4, checkpoint_interval=6, steps=9)
    records = list(train(model, data, tmp_path / "name", settings, held_out=data))
    assert [record.step for record in records] == list(range(1, 10))
    assert [record.step for record in records if record.held_out] == [4, 8, 9]
    assert [record.step for record in records if record.saved] == [6, 9]
    assert records[5].saved == str(tmp_path / "name" / "checkpoints" / "step-00000006")
    assert all(record.images_per_second > 0 and 0 <= record.data_wait <= 1 for record in records)
    assert records[-1].eta_seconds == 0
    facts = DiffusionModel.load(tmp_path / "name").facts
    assert records[-1].held_out == held_out_loss(model, data)  # of the averaged weights, which it holds now
    assert records[-1].held_out is not None
    expected = {
        "name": "name",
        "data": "arrays",
        "train images": 20,
        "precision": "fp32",
        "seed": 0,
        "steps": 9,
        "images seen": 72,
        "held-out loss": records[-1].held_out["mean"],
        "parameters": model.num_parameters,
    }
    assert facts.items() >= expected.items()


# ---- held-out loss ---------------------------------------------------------------------------------------------------


def test_the_held_out_loss_depends_on_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.images(count=50)
    model = tiny.fresh(data, dropout=0.5).train()
    torch.manual_seed(1)
    first = held_out_loss(model, data)
    torch.manual_seed(2)
    model.loss(data.batch(range(8)))
    assert held_out_loss(model, data) == first
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    monkeypatch.setattr(held_out, "BATCH", 7)
    parts = held_out_loss(model, data)
    assert parts["mean"] == pytest.approx(first["mean"], rel=1e-6)
    np.testing.assert_allclose(parts["levels"], first["levels"], rtol=1e-5)
    with torch.no_grad():
        model.network.leave.bias += 0.1  # type: ignore[union-attr,operator]
    assert held_out_loss(model, data)["mean"] != parts["mean"]


def test_the_held_out_loss_is_told_per_noise_level() -> None:
    data = tiny.images(count=50)
    told = held_out_loss(tiny.fresh(data), data)
    levels, values = zip(*told["levels"], strict=True)
    assert len(levels) == 8
    assert list(levels) == sorted(levels, reverse=True)
    counts = [7, 7, 6, 6, 6, 6, 6, 6]  # of 50 images, level k has those with number k mod 8
    assert told["mean"] == pytest.approx(np.average(values, weights=counts))


def test_few_held_out_images_are_enough() -> None:
    data = tiny.images()
    model = tiny.fresh(data)
    assert len(held_out_loss(model, tiny.images(count=3))["levels"]) == 3


def test_the_held_out_loss_uses_labels_where_there_are_any() -> None:
    data = tiny.images()
    model = tiny.fresh(data)
    list(train(model, data, None, tiny.settings(steps=3)))  # a fresh network's output is 0, whatever the label
    other = ImageDataset.from_arrays(data.batch(range(20)), 2 - data.labels, data.class_names)  # type: ignore[operator]
    assert held_out_loss(model, other)["mean"] != held_out_loss(model, data)["mean"]


def test_sheets_are_written_when_due_and_depend_on_the_weights_alone(tmp_path: Path) -> None:
    tiny.run(tmp_path / "a", sample_interval=5)
    names = [f"step-{step:08d}-{kind}.png" for step in (5, 10, 12) for kind in ("ema", "raw")]
    assert sorted(path.name for path in (tmp_path / "a" / "samples").iterdir()) == names
    tiny.run(tmp_path / "b", stop_at=10)
    again, once = tmp_path / "b" / "samples", tmp_path / "a" / "samples"
    for kind in ("ema", "raw"):
        name = f"step-00000010-{kind}.png"
        assert (again / name).read_bytes() == (once / name).read_bytes()
    assert (once / names[2]).read_bytes() != (once / names[3]).read_bytes()


# ---- precision and signals -------------------------------------------------------------------------------------------


def test_bf16_is_chosen_only_where_it_exists_and_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(runtime, "has_bf16", lambda device: False)
    assert choose_precision(cpu, lambda precision: pytest.fail("measured")) == ("fp32", 1.0)
    monkeypatch.setattr(runtime, "has_bf16", lambda device: True)
    for cost, chosen in [({"fp32": 3.0, "bf16": 2.0}, "bf16"), ({"fp32": 2.2, "bf16": 2.0}, "fp32")]:
        now = [0.0]
        monkeypatch.setattr(runtime.time, "perf_counter", lambda now=now: now[0])

        def step(precision: str, now: list[float] = now, cost: dict[str, float] = cost) -> None:
            now[0] += cost[precision]

        precision, ratio = choose_precision(cpu, step)
        assert precision == chosen
        assert ratio == pytest.approx(cost["fp32"] / cost["bf16"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_network_that_has_no_name_trains_in_memory() -> None:
    """Only what is written, or compared between processes, needs a description."""

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor, log_snr: torch.Tensor, cond: object = None) -> torch.Tensor:
            return self.weight * x

    data = tiny.images(classes=0)
    model = tiny.fresh(data)
    own = DiffusionModel(Own(), model.codec, model.recipe)
    assert [record.step for record in train(own, data, None, tiny.settings(steps=2))] == [1, 2]
