"""A number, and several numbers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.cond import Embedded
from diff_diffusion.conditions.condition import Condition, chosen
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register

WAVES = 16
MAX_LENGTH = 65536
BEYOND = 0.05
"""How far beyond the trained range a number may lie, as a share of it: rounding, and no extrapolation."""


@register("condition/number")
class Number(Condition):
    """A number, such as an age, an angle or a dose.

    It is embedded as sines and cosines of (value - low) / (high - low) at 16 frequencies from half a turn to 16 turns
    over the range, then an MLP.

    Args:
        low, high: the range that the model is trained on.
        width: the embedding's size.

    Raises:
        ConfigError: a range that is empty or not finite; at `encode`, a value that lies outside of it.
    """

    def __init__(self, low: float, high: float, width: int) -> None:
        super().__init__()
        if not (math.isfinite(high - low) and low < high):
            raise ConfigError(f"a number's range must be finite and not empty, not {low} to {high}")
        self.low, self.high, self.width = float(low), float(high), width
        self.mlp = nn.Sequential(nn.Linear(2 * WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(torch.zeros(width))

    def encode(self, values: Sequence[Any]) -> Tensor:
        """The share of the range, float32 [B]: a difference that float32 could not tell at a date's own size."""
        return torch.tensor([self._share(value) for value in values], dtype=torch.float32)

    def _share(self, value: Any) -> float:
        if value is None:
            return 0.0
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{value!r} is not a number, from {self.low:g} to {self.high:g}") from None
        margin = BEYOND * (self.high - self.low)
        if not self.low - margin <= number <= self.high + margin:
            raise ConfigError(f"{number:g} is outside of what this model was trained on, {self.low:g} to {self.high:g}")
        return (number - self.low) / (self.high - self.low)

    def embed(self, values: Tensor | None, keep: Tensor, x_t: Tensor) -> Embedded:
        if values is None:
            return Embedded(self.null.expand(len(x_t), -1))
        turns = torch.logspace(-1, math.log2(WAVES), WAVES, base=2.0, device=values.device)
        angles = 2 * math.pi * values[:, None] * turns
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return Embedded(chosen(keep, self.mlp(waves.to(self.null.dtype)), self.null))

    def summary(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


@register("condition/vector")
class Vector(Condition):
    """Several numbers at once: coordinates, measurements, an embedding made elsewhere.

    Args:
        mean, std: of each number in the training data, which the model sees as (value - mean) / std.
        width: the embedding's size.

    Raises:
        ConfigError: lists of different lengths, or a std that is not above 0; at `encode`, another number of numbers.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], width: int) -> None:
        super().__init__()
        self.mean, self.std, self.width = tuple(map(float, mean)), tuple(map(float, std)), width
        if not 1 <= len(self.mean) == len(self.std) <= MAX_LENGTH:
            raise ConfigError(
                f"a vector has 1 to {MAX_LENGTH:,} numbers, each with a mean and a std, not {len(self.mean)} means and "
                f"{len(self.std)} stds"
            )
        if not all(math.isfinite(m) and 0.0 < s < math.inf for m, s in zip(self.mean, self.std, strict=True)):
            raise ConfigError("a vector's means must be finite and its stds above 0")
        self.mlp = nn.Sequential(nn.Linear(len(self.mean), width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(torch.zeros(width))

    def encode(self, values: Sequence[Any]) -> Tensor:
        """In standard units, float32 [B, K]."""
        rows = []
        for value in values:
            row = torch.as_tensor(self.mean if value is None else value, dtype=torch.float64).cpu()
            if row.shape != (len(self.mean),) or not bool(torch.isfinite(row).all()):
                raise ConfigError(
                    f"this vector has {len(self.mean)} finite numbers, and one of shape {list(row.shape)} was given"
                )
            rows.append(row)
        mean, std = (torch.tensor(units, dtype=torch.float64) for units in (self.mean, self.std))
        return ((torch.stack(rows) - mean) / std).float()

    def is_one(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return all(isinstance(number, int | float) for number in value)
        return getattr(value, "ndim", 0) == 1

    def embed(self, values: Tensor | None, keep: Tensor, x_t: Tensor) -> Embedded:
        if values is None:
            return Embedded(self.null.expand(len(x_t), -1))
        return Embedded(chosen(keep, self.mlp(values.to(self.null.dtype)), self.null))

    def summary(self) -> str:
        return f"{len(self.mean)} numbers"
