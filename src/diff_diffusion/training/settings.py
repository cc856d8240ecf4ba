"""How a run trains: every number that decides its weights, checked before the first step."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diff_diffusion.errors import ConfigError, listed

Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainSettings(BaseModel):
    """Settings of a run. Stored with it; resuming with others that would change its weights is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(None, ge=1, description="optimizer steps; the run ends there")
    minutes: float | None = Field(None, gt=0, description="training time instead of steps")
    batch_size: int = Field(
        0, ge=0, description="samples per optimizer step; 0: 128 of images up to 16 pixels a side, 64 up to 32, or 32"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="samples per backward pass; the batch is accumulated over them"
    )
    lr: float = Field(1e-3, gt=0, description="learning rate of AdamW after warm-up")
    lr_schedule: Literal["constant", "cosine"] = Field("constant", description="after warm-up; cosine needs steps")
    warmup_steps: int = Field(100, ge=0, description="steps over which the learning rate rises to lr")
    betas: tuple[Decay, Decay] = Field((0.9, 0.99), description="AdamW's two decay rates")
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the whole gradient")
    ema_decay: float = Field(
        0.9999, ge=0, lt=1, description="cap of the averaging rate, which warms up as (1+n)/(10+n)"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto measures bf16 where the machine has it"
    )
    seed: int = Field(0, ge=0, lt=1 << 63)
    checkpoint_interval: int = Field(500, ge=1, description="steps between checkpoints")
    eval_interval: int = Field(250, ge=1, description="steps between held-out losses")
    sample_interval: int = Field(500, ge=1, description="steps between sample sheets")
    log_interval: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    keep_checkpoints: int = Field(2, ge=1, description="how many checkpoints stay on disk")

    @model_validator(mode="after")
    def _together(self) -> TrainSettings:
        if self.steps is not None and self.minutes is not None:
            raise ValueError("give steps or minutes, not both")
        if self.lr_schedule == "cosine" and self.steps is None:
            raise ValueError("lr_schedule 'cosine' needs steps: it must know where it ends")
        return self

    def sized(self, shape: Sequence[int]) -> TrainSettings:
        """With a batch size where none is said: of larger samples [C, H, W] fewer, so that steps stay short."""
        side = max(shape[1:])
        chosen = 128 if side <= 16 else 64 if side <= 32 else 32
        return self if self.batch_size else self.model_copy(update={"batch_size": chosen})

    def lr_at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, 0 the first: a pure function of it."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.lr_schedule == "constant" or self.steps is None:
            return self.lr * warm
        done = min(1.0, max(0, step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.lr * warm * 0.5 * (1.0 + math.cos(math.pi * done))

    def ema_rate(self, step: int) -> float:
        """The averaging rate after optimizer step `step`."""
        return min(self.ema_decay, (1.0 + step) / (10.0 + step))


# What may differ between a run and its continuation: none of it changes what a step computes.
FREE_TO_CHANGE = {
    *(
        "steps",
        "minutes",
        "checkpoint_interval",
        "eval_interval",
        "sample_interval",
        "log_interval",
        "keep_checkpoints",
    ),
    *("micro_batch",),
}


def make_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Settings from plain values.

    Raises:
        ConfigError: one line per value that is unknown or out of range.
    """
    try:
        return TrainSettings(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(_said(problem) for problem in error.errors())) from error


def _said(problem: Mapping[str, Any]) -> str:
    """One of pydantic's complaints in our words."""
    name = ".".join(map(str, problem["loc"]))
    if not name:  # about several settings together
        return str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = list(TrainSettings.model_fields)
        close = difflib.get_close_matches(name, known, n=1)
        return f"unknown setting train.{name}: " + (f"did you mean train.{close[0]}?" if close else listed(known, 40))
    return f"train.{name}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}"
