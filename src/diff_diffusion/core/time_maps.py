"""Time maps: how noisy time t is, as a log signal-to-noise ratio λ(t) = ln(α²/σ²).

t = 0 is data, t = 1 is noise. Every map is strictly decreasing, with its exact inverse, and works on Python floats and
on float64 CPU tensors. λ(0) may be +∞ (no noise left) and λ(1) may be -∞ (no signal left: zero terminal SNR).

To add one: a frozen dataclass with `log_snr` and `time`, registered as "time_map/name". tests/laws/test_time_maps.py
finds it by its registration.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.tensors import Real, maths


class TimeMap(ABC):
    """λ(t), strictly decreasing on [0, 1], and its inverse."""

    @abstractmethod
    def log_snr(self, t: Real) -> Real:
        """λ at time t in [0, 1]: float to float, float64 tensor to float64 tensor of the same shape."""

    @abstractmethod
    def time(self, log_snr: Real) -> Real:
        """The t at which λ(t) = log_snr; a λ outside the map's range gives the nearer end."""

    def slope(self, t: Tensor) -> Tensor:
        """dλ/dt < 0 at times in (0, 1): float64 tensor to float64 tensor. By differentiating `log_snr`."""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_snr(t).sum(), t)
        return slope


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@register("time_map/linear_beta")
@dataclass(frozen=True)
class LinearBeta(TimeMap):
    """DDPM's linear betas in continuous time.

    β grows linearly from `beta_start` to `beta_end` over `timesteps` steps; α² = exp(-B(t)) with
    B(t) = T (β_start t + (β_end - β_start) t² / 2), so λ(t) = -ln(e^B(t) - 1). The discrete chain, exactly, is
    `TabulatedBetas`.

    Source: Song et al., arXiv 2011.13456 (the VP SDE, with β_min = T β_start and β_max = T β_end).
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    timesteps: int = 1000

    def __post_init__(self) -> None:
        _check(
            0 < self.beta_start <= self.beta_end < 1,
            f"betas must satisfy 0 < beta_start <= beta_end < 1, not beta_start={self.beta_start}, "
            f"beta_end={self.beta_end}; DDPM uses 0.0001 and 0.02",
        )
        _check(1 <= self.timesteps <= 1_000_000, f"timesteps must be from 1 to 1,000,000, not {self.timesteps}")

    def log_snr(self, t: Real) -> Real:
        f = maths(t)
        total = self.timesteps * (self.beta_start * t + 0.5 * (self.beta_end - self.beta_start) * t * t)
        return -f.log(f.expm1(total))

    def time(self, log_snr: Real) -> Real:
        f = maths(log_snr)
        total = f.clip(f.softplus(-log_snr) / self.timesteps, 0.0, 1.0)  # at most beta_end on [0, 1]; not inf / inf
        # The root of the quadratic written so that nothing cancels near t = 0.
        root = self.beta_start + f.sqrt(self.beta_start**2 + 2 * (self.beta_end - self.beta_start) * total)
        return f.clip(2 * total / root, 0.0, 1.0)


@register("time_map/cosine")
@dataclass(frozen=True)
class Cosine(TimeMap):
    """The cosine map: α² = cos²(u) / cos²(u_0), u = (t + offset) / (1 + offset) · π/2. λ(1) = -∞.

    Source: Nichol & Dhariwal, "Improved DDPM", arXiv 2102.09672.
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        _check(0 <= self.offset <= 1, f"offset must be from 0 to 1, not {self.offset}; the paper uses 0.008")

    @property
    def _angle(self) -> float:
        return 0.5 * math.pi / (1.0 + self.offset)

    def log_snr(self, t: Real) -> Real:
        f = maths(t)
        # cos(u) as a sine of the angle left, and 1 - α² as a product of sines: exact at both ends.
        left = f.sin((1.0 - t) * self._angle)
        below = f.sin(t * self._angle) * f.sin((t + 2.0 * self.offset) * self._angle)
        return 2.0 * f.log(left) - f.log(below)

    def time(self, log_snr: Real) -> Real:
        f = maths(log_snr)
        start = self.offset * self._angle
        alpha2, sigma2 = f.sigmoid(log_snr), f.sigmoid(-log_snr)
        angle = f.atan2(f.sqrt(sigma2 + alpha2 * math.sin(start) ** 2), f.sqrt(alpha2) * math.cos(start))
        return f.clip(angle / self._angle - self.offset, 0.0, 1.0)


@register("time_map/sigmoid")
@dataclass(frozen=True)
class Sigmoid(TimeMap):
    """The sigmoid map: α² falls from 1 to 0 as a logistic curve in t between `start` and `end`. λ(1) = -∞.

    Source: Jabri et al., "Scalable Adaptive Computation for Iterative Generation", arXiv 2212.11972.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        _check(self.start < self.end, f"start must be below end, not {self.start} and {self.end}")
        _check(self.tau > 0, f"tau must be above 0, not {self.tau}")
        _check(self._span <= 200, f"(end - start) / tau must be at most 200, not {self._span:g}")

    @property
    def _span(self) -> float:
        return (self.end - self.start) / self.tau

    @property
    def _offset(self) -> float:
        return math.log(math.cosh(0.5 * self.start / self.tau) / math.cosh(0.5 * self.end / self.tau))

    def log_snr(self, t: Real) -> Real:
        # Differences of sigmoids as sinh products, so that neither end cancels.
        f = maths(t)
        half = 0.5 * self._span
        return f.log(f.sinh((1.0 - t) * half)) - f.log(f.sinh(t * half)) + self._offset

    def time(self, log_snr: Real) -> Real:
        f = maths(log_snr)
        half = 0.5 * self._span
        ratio = f.exp(log_snr - self._offset)
        # ln((ratio + e^half) / (ratio + e^-half)) / (2 half), so that neither end cancels.
        return f.clip(f.log1p(2.0 * math.sinh(half) / (ratio + math.exp(-half))) / (2.0 * half), 0.0, 1.0)


@register("time_map/linear_log_snr")
@dataclass(frozen=True)
class LinearLogSnr(TimeMap):
    """λ falls linearly in t from `log_snr_max` at the data to `log_snr_min` at the noise.

    EDM's range of noise levels, σ/α from 0.002 to 80, is log_snr_max = 12.43 and log_snr_min = -8.76.

    Source: Kingma et al., arXiv 2107.00630 (the fixed linear map); Karras et al., arXiv 2206.00364 (the range).
    """

    log_snr_max: float = 12.0
    log_snr_min: float = -12.0

    def __post_init__(self) -> None:
        _check(
            -math.inf < self.log_snr_min < self.log_snr_max < math.inf,
            f"log_snr_min must be below log_snr_max, both finite, not {self.log_snr_min} and {self.log_snr_max}",
        )

    def log_snr(self, t: Real) -> Real:
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * t

    def time(self, log_snr: Real) -> Real:
        t = (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)
        return maths(log_snr).clip(t, 0.0, 1.0)


@register("time_map/flow")
@dataclass(frozen=True)
class Flow(TimeMap):
    """λ(t) = 2 ln((1 - t) / t): with the flow scaling, the straight path x_t = (1 - t) x_0 + t ε. λ(1) = -∞.

    Source: Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003.
    """

    def log_snr(self, t: Real) -> Real:
        f = maths(t)
        return 2.0 * (f.log(1.0 - t) - f.log(t))

    def time(self, log_snr: Real) -> Real:
        return maths(log_snr).sigmoid(-0.5 * log_snr)


@register("time_map/logistic")
@dataclass(frozen=True)
class Logistic(TimeMap):
    """λ(t) = ln((1 - t) / t): a token is kept with probability 1 - t; under vp, α² = 1 - t. λ(1) = -∞.

    Source: Sahoo et al., arXiv 2406.07524 (its log-linear schedule, α = 1 - t).
    """

    def log_snr(self, t: Real) -> Real:
        f = maths(t)
        return f.log(1.0 - t) - f.log(t)

    def time(self, log_snr: Real) -> Real:
        return maths(log_snr).sigmoid(-log_snr)


@register("time_map/tabulated_betas")
@dataclass(frozen=True)
class TabulatedBetas(TimeMap):
    """A discrete chain of betas, exactly: at t = i/T, α² = Π_{j<=i} (1 - β_j).

    Between the table's points λ is linear in t; before the first, σ² grows about linearly from 0 (λ(0) = +∞), as in
    a diffusion started at the data. A last beta of 1 is zero terminal SNR: there α falls about linearly to 0.

    Args:
        betas: T numbers in (0, 1), the first step's first; the last of several may be 1.

    Source: Ho et al., arXiv 2006.11239.
    """

    betas: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        _check(0 < len(self.betas) <= 1_000_000, f"a table has 1 to 1,000,000 betas, not {len(self.betas)}")
        inner = self.betas[:-1] if len(self.betas) > 1 and self.betas[-1] == 1 else self.betas
        bad = next((beta for beta in inner if not 0 < beta < 1), None)
        _check(bad is None, f"every beta must lie between 0 and 1, not {bad}; only the last of several may be 1")

    @cached_property
    def _table(self) -> list[float]:
        with np.errstate(divide="ignore"):  # a last beta of 1 is λ = -∞
            log_alpha2 = np.cumsum(np.log1p(-np.asarray(self.betas, np.float64)))
        table: list[float] = (log_alpha2 - np.log(-np.expm1(log_alpha2))).tolist()
        return table

    def log_snr(self, t: Real) -> Real:
        table, count = self._table, len(self.betas)
        place: Any = t * count
        left: Any = (1.0 - t) * count
        silent = table[-1] == -math.inf
        if isinstance(place, Tensor):
            knots: Any = torch.tensor(table[: count - silent], dtype=torch.float64)
            below = place.detach().long().clamp(1, max(len(knots) - 1, 1))
            above = below.clamp(max=len(knots) - 1)
            inner = knots[below - 1] + (place - below) * (knots[above] - knots[below - 1])
            # A branch not taken must be finite too: its gradient would be nan.
            found: Any = torch.where(place <= 1.0, knots[0] - torch.log(place.clamp(max=1.0)), inner)
            if silent:
                found = torch.where(place >= count - 1, knots[-1] + 2.0 * torch.log(left.clamp(max=1.0)), found)
            return found
        if place <= 1.0:
            return table[0] - maths(t).log(place)
        if silent and place >= count - 1:
            return table[-2] + 2.0 * maths(t).log(min(left, 1.0))
        low = min(int(place), count - 1)
        return table[low - 1] + (place - low) * (table[low] - table[low - 1])

    def time(self, log_snr: Real) -> Real:
        if isinstance(log_snr, Tensor):
            flat: list[Any] = [self.time(v) for v in log_snr.flatten().tolist()]
            return torch.tensor(flat, dtype=torch.float64).reshape(log_snr.shape)
        table, f = self._table, maths(log_snr)
        if log_snr >= table[0]:
            return f.exp(table[0] - log_snr) / len(table)
        if table[-1] == -math.inf and log_snr < table[-2]:
            return 1.0 - f.exp(0.5 * (log_snr - table[-2])) / len(table)
        high = bisect_left(table, -log_snr, key=lambda value: -value)
        if high == len(table):
            return 1.0
        return (high + (table[high - 1] - log_snr) / (table[high - 1] - table[high])) / len(table)


def zero_terminal_snr(betas: Sequence[float]) -> list[float]:
    """The betas whose α is that of `betas` moved and stretched to end at exactly 0, its first value kept.

    √ᾱ'_i = (√ᾱ_i - √ᾱ_T) √ᾱ_1 / (√ᾱ_1 - √ᾱ_T), and β'_i = 1 - ᾱ'_i / ᾱ'_(i-1).

    Args:
        betas: at least two numbers in (0, 1), the first step's first.

    Raises:
        ConfigError: fewer, or one out of range.

    Source: Lin et al., arXiv 2305.08891.
    """
    _check(len(betas) > 1, f"zero terminal SNR keeps the first of several betas, and {len(betas)} were given")
    bad = next((beta for beta in betas if not 0 < beta < 1), None)
    _check(bad is None, f"every beta must lie between 0 and 1, not {bad}")
    log_alpha = 0.5 * np.cumsum(np.log1p(-np.asarray(betas, np.float64)))
    # α_(i-1) - α_i = α_(i-1) (1 - √(1 - β_i)), so that 1 - (α'_i / α'_(i-1))² loses no digits to cancellation.
    falls = -np.exp(log_alpha[:-1]) * np.expm1(0.5 * np.log1p(-np.asarray(betas[1:], np.float64)))
    above = np.cumsum(falls[::-1])[::-1]  # α_(i-1) - α_T
    share = falls / above
    return [float(betas[0]), *(share * (2.0 - share)).tolist()]


@register("time_map/shifted")
@dataclass(frozen=True)
class Shifted(TimeMap):
    """Another map with λ lowered by 2 ln(scale): the same picture, noisier by `scale` in σ/α.

    One modifier for two papers: simple diffusion's resolution shift (scale = size / reference size) and Stable
    Diffusion 3's timestep shift.

    Source: Hoogeboom et al., arXiv 2301.11093; Esser et al., arXiv 2403.03206.
    """

    time_map: TimeMap
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(0 < self.scale < math.inf, f"a shift's scale must be above 0, not {self.scale}; 1 means none")

    def log_snr(self, t: Real) -> Real:
        return self.time_map.log_snr(t) - 2.0 * math.log(self.scale)

    def time(self, log_snr: Real) -> Real:
        return self.time_map.time(log_snr + 2.0 * math.log(self.scale))


@register("time_map/sub_vp")
@dataclass(frozen=True)
class SubVp(TimeMap):
    """λ + ln(1 + e^λ): the same α(t) as another map has under the vp scaling, with σ = 1 - α² in place of √(1 - α²).

    Under the sub_vp scaling that is the sub-VP SDE, whose variance is never above the VP SDE's.

    Source: Song et al., arXiv 2011.13456.
    """

    time_map: TimeMap

    def log_snr(self, t: Real) -> Real:
        log_snr = self.time_map.log_snr(t)
        return log_snr + maths(log_snr).softplus(log_snr)

    def time(self, log_snr: Real) -> Real:
        # e^λ is the positive root of y + y² = e^log_snr, divided by √(e^log_snr) so that neither end overflows.
        f = maths(log_snr)
        r = f.exp(-0.5 * log_snr)
        return self.time_map.time(0.5 * log_snr + math.log(2.0) - f.log(r + f.sqrt(r * r + 4.0)))


@register("time_map/truncated")
@dataclass(frozen=True)
class Truncated(TimeMap):
    """The part of another map with λ at least `log_snr_min`, stretched over [0, 1].

    Gives maps that end at λ = -∞ a finite end, which the eps and score targets need.
    """

    time_map: TimeMap
    log_snr_min: float = -20.0

    def __post_init__(self) -> None:
        _check(math.isfinite(self.log_snr_min), f"log_snr_min must be finite, not {self.log_snr_min}")
        _check(self._end > 0, f"no part of the map has λ >= {self.log_snr_min}")

    @cached_property
    def _end(self) -> float:
        return self.time_map.time(self.log_snr_min)

    def log_snr(self, t: Real) -> Real:
        return self.time_map.log_snr(t * self._end)

    def time(self, log_snr: Real) -> Real:
        return maths(log_snr).clip(self.time_map.time(log_snr) / self._end, 0.0, 1.0)
