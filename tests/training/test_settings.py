"""The settings: pure functions of the step, and one clear error for what cannot be."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import tiny

from diff_diffusion.errors import ConfigError
from diff_diffusion.training import TrainSettings, train
from diff_diffusion.training.settings import FREE_TO_CHANGE, make_settings


def test_warm_up_rises_in_equal_steps_to_lr() -> None:
    settings = TrainSettings(steps=100, lr=0.5, warmup_steps=4)
    assert [settings.lr_at(step) for step in range(6)] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert TrainSettings(steps=100, lr=0.5, warmup_steps=0).lr_at(0) == 0.5


def test_cosine_falls_from_lr_to_0_after_the_warm_up() -> None:
    settings = TrainSettings(steps=104, lr=2.0, warmup_steps=4, lr_schedule="cosine")
    rates = [settings.lr_at(step) for step in range(105)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    for step in range(4, 105):
        assert rates[step] == pytest.approx(1.0 + math.cos(math.pi * (step - 4) / 100), abs=1e-12)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[103] < 1e-3
    assert rates[104] == settings.lr_at(10_000) == 0.0


@pytest.mark.parametrize("warmup", [0, 1, 50, 200])
def test_the_learning_rate_is_a_function_of_the_step(warmup: int) -> None:
    settings = TrainSettings(steps=100, warmup_steps=warmup, lr_schedule="cosine")
    steps = list(range(100))
    expected = [settings.lr_at(step) for step in steps]
    random.Random(0).shuffle(steps)
    again = TrainSettings(**settings.model_dump())
    assert {step: again.lr_at(step) for step in steps} == dict(enumerate(expected))
    assert all(0 < rate <= settings.lr for rate in expected)


def test_a_step_uses_the_learning_rate_it_tells() -> None:
    """The move of the first AdamW step is lr · sign(g), so it shows the rate that was used."""
    records = tiny.run(None, lr=0.125, warmup_steps=5, steps=7)
    assert [record.lr for record in records] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.125, 0.125, 0.125])
    data = tiny.images()
    model = tiny.fresh(data)
    bias = model.network.leave.bias  # type: ignore[union-attr]
    before = bias.detach().clone()  # type: ignore[operator]
    moved = []
    for _ in train(model, data, None, tiny.settings(lr=0.125, warmup_steps=5, ema_decay=0.0)):
        moved.append(float((bias.detach() - before).abs()))  # type: ignore[operator]
        break
    assert moved == pytest.approx([0.025], rel=1e-3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 5, "minutes": 1.0}, "give steps or minutes, not both"),
        ({"minutes": 1.0, "lr_schedule": "cosine"}, "'cosine' needs steps"),
        ({"steps": 0}, "train.steps: .*greater than or equal to 1, not 0"),
        ({"minutes": 0}, "minutes: .*greater than 0"),
        ({"minutes": math.inf}, "minutes: .*finite"),
        ({"steps": 5, "batch_size": -1}, "batch_size"),
        ({"steps": 5, "micro_batch": 0}, "micro_batch"),
        ({"steps": 5, "lr": 0}, "lr"),
        ({"steps": 5, "lr": math.inf}, "lr: .*finite"),
        ({"steps": 5, "lr": math.nan}, "lr"),
        ({"steps": 5, "lr": "fast"}, "lr: .*number.*not 'fast'"),
        ({"steps": 5, "betas": (1.5, 0.9)}, "betas.0"),
        ({"steps": 5, "betas": (0.9, 1.0)}, "betas.1"),
        ({"steps": 5, "betas": (0.9,)}, "betas.1"),
        ({"steps": 5, "ema_decay": 1.0}, "ema_decay"),
        ({"steps": 5, "grad_clip": 0}, "grad_clip"),
        ({"steps": 5, "weight_decay": -0.1}, "weight_decay"),
        ({"steps": 5, "weight_decay": math.inf}, "weight_decay"),
        ({"steps": 5, "precision": "fp16"}, "precision: .*'auto', 'fp32' or 'bf16', not 'fp16'"),
        ({"steps": 5, "lr_schedule": "linear"}, "lr_schedule"),
        ({"steps": 5, "seed": -1}, "seed"),
        ({"steps": 5, "seed": 1 << 63}, "seed"),
        ({"steps": 5, "keep_checkpoints": 0}, "keep_checkpoints"),
        ({"steps": 5, "learning_rate": 0.1}, "unknown setting train.learning_rate: "),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be_is_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as e:
        make_settings(values)
    assert "\n" not in str(e.value)


def test_every_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_settings({"steps": 0, "lr": -1, "colour": "red"})
    assert all(name in str(caught.value) for name in ("steps", "lr", "colour"))


def test_how_long_must_be_said() -> None:
    data = tiny.images()
    with pytest.raises(ConfigError, match="steps or minutes"):
        next(train(tiny.fresh(data), data, None, TrainSettings()))


def test_minutes_end_a_run() -> None:
    records = tiny.run(None, steps=None, minutes=0.5 / 60)
    assert 1 <= len(records) < 1000
    assert records[0].eta_seconds is not None
    assert records[-1].eta_seconds is not None
    assert records[0].eta_seconds > records[-1].eta_seconds
    assert records[-1].eta_seconds <= 0.1


def test_what_is_free_to_change_is_a_setting() -> None:
    assert set(TrainSettings.model_fields) >= FREE_TO_CHANGE


@pytest.mark.parametrize(("side", "expected"), [(8, 128), (16, 128), (17, 64), (32, 64), (33, 32), (256, 32)])
def test_a_batch_size_that_is_not_said_follows_the_images(side: int, expected: int) -> None:
    assert TrainSettings(steps=1).sized((3, 4, side)).batch_size == expected
    assert TrainSettings(steps=1).sized((3, side, 4)).batch_size == expected
    assert TrainSettings(steps=1, batch_size=5).sized((3, side, side)).batch_size == 5


def test_a_run_trains_on_the_batch_size_that_follows(tmp_path: Path) -> None:
    data = tiny.images(side=20)
    records = list(train(tiny.fresh(data), data, tmp_path, TrainSettings(steps=1, precision="fp32")))
    assert len(records) == 1
    assert json.loads((tmp_path / "train_state.json").read_text())["settings"]["batch_size"] == 64
