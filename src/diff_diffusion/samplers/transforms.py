"""Grids made from grids: up again and down again, or part of the way. They serve every sampler of every process.

A step to a noisier time applies the forward kernel and costs no evaluation, so papers that interleave noise with a
solver are only grids here. σ below is the noise-to-signal ratio σ/α, whatever the process's scaling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

from diff_diffusion.core.process import Process
from diff_diffusion.core.time_maps import Truncated
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.samplers.grid import Grid, Karras, check_num_steps

KARRAS = Karras()
"""What a transform transforms when it is named alone."""
RESTARTED = Karras(34)
"""So that a restart has 50 steps too."""


class _Transform(Grid):
    """A grid with the steps of another, `grid`."""

    grid: Grid

    @property
    def num_steps(self) -> int:  # type: ignore[override]
        return self.grid.num_steps

    def with_steps(self, num_steps: int) -> Grid:
        return cast(Grid, replace(cast(Any, self), grid=self.grid.with_steps(num_steps)))


@register("grid/churn")
@dataclass(frozen=True)
class Churn(_Transform):
    """Before each step from σ in [s_min, s_max], up to σ (1 + γ), γ = min(s_churn / num_steps, √2 - 1), but not above
    time 1. With Heun this is EDM's stochastic sampler.

    A multistep sampler forgets its past at each step up, so that on this grid it is DDIM: use heun, dpm2 or dpmpp_2s.
    The paper's S_noise is 1 here: with more noise than the forward process adds, x_t is nothing a model was trained on.

    Args:
        grid: the steps down.
        s_churn: how much, over the whole walk; 0 is none.
        s_min, s_max: the σ between which noise is added.

    Raises:
        ConfigError: a negative s_churn, or a range that is none.

    Source: Karras et al., arXiv 2206.00364, algorithm 2; the defaults are its ImageNet-64 setting.
    """

    grid: Grid = KARRAS
    s_churn: float = 40.0
    s_min: float = 0.05
    s_max: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.s_churn < math.inf and 0 <= self.s_min <= self.s_max):
            raise ConfigError(
                f"churn needs s_churn >= 0 and 0 <= s_min <= s_max, not s_churn={self.s_churn}, s_min={self.s_min}, "
                f"s_max={self.s_max}"
            )

    def times(self, process: Process) -> list[float]:
        up = 2.0 * math.log1p(min(self.s_churn / self.num_steps, math.sqrt(2.0) - 1.0))
        time_map, walk = process.time_map, []
        for t, s in pairwise(self.grid.times(process)):
            walk.append(t)
            log_snr = time_map.log_snr(t)
            if s < t and self.s_min <= _ratio(log_snr) <= self.s_max:
                higher = time_map.time(log_snr - up)
                walk += [higher] if higher > t else []
        return [*walk, 0.0]


@register("grid/restart")
@dataclass(frozen=True)
class Restart(_Transform):
    """Down to σ = low; then `repeats` times up to σ = high and down again in `inner` steps; then on to the data.

    The noise drowns part of the errors made before, and the short way down makes few new ones; what the denoiser gets
    wrong between `low` and `high` it gets wrong again each time. `low` is moved to the nearest of the grid's times (in
    λ) below `high`, `high` into the process's range; the inner steps are even in λ.

    num_steps counts all steps down, the inner ones too; another number of steps is shared out in proportion.

    Args:
        grid: the main walk, of at least 2 steps.
        repeats: how often; the paper's K.
        inner: steps of each repeat.
        low, high: the σ between which it is repeated.

    Raises:
        ConfigError: numbers below 1, or a range that is none, alone or on the process.

    Source: Xu et al., "Restart Sampling for Improving Generative Processes", arXiv 2306.14878.
    """

    grid: Grid = RESTARTED
    repeats: int = 1
    inner: int = 16
    low: float = 0.1
    high: float = 2.0

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.inner < 1 or self.grid.num_steps < 2:
            raise ConfigError(
                f"restart needs repeats and inner of at least 1 and a grid of at least 2 steps, not {self.repeats}, "
                f"{self.inner} and {self.grid.num_steps}"
            )
        if not 0 < self.low < self.high < math.inf:
            raise ConfigError(f"restart needs 0 < low < high, not low={self.low}, high={self.high}")
        super().__post_init__()

    @property
    def num_steps(self) -> int:  # type: ignore[override]
        return self.grid.num_steps + self.repeats * self.inner

    def with_steps(self, num_steps: int) -> Restart:
        check_num_steps(num_steps)
        room = (num_steps - 2) // self.repeats
        if room < 1:
            raise ConfigError(
                f"restart with {self.repeats} repeats needs at least {self.repeats + 2} steps, one for each repeat "
                f"and two for the walk, not {num_steps}"
            )
        inner = min(max(self.inner * num_steps // self.num_steps, 1), room)
        return replace(self, grid=self.grid.with_steps(num_steps - self.repeats * inner), inner=inner)

    def times(self, process: Process) -> list[float]:
        time_map, main = process.time_map, self.grid.times(process)
        wanted, top = -2.0 * math.log(self.low), time_map.time(-2.0 * math.log(self.high))
        below = [place for place in range(1, len(main) - 1) if main[place] < top]
        if not below:
            raise ConfigError(
                f"restart from σ = {self.low:g} up to {self.high:g} has no part of this walk of {len(main) - 1} steps, "
                f"whose last time before the data has σ = {_ratio(time_map.log_snr(main[-2])):g}: change low and high"
            )
        place = min(below, key=lambda i: abs(time_map.log_snr(main[i]) - wanted))
        bottom = main[place]
        start, end = max(time_map.log_snr(top), -2.0 * math.log(self.high)), time_map.log_snr(bottom)
        between = [start + (end - start) * i / self.inner for i in range(1, self.inner)]
        repeat = [top, *(time_map.time(log_snr) for log_snr in between), bottom]
        return [*main[: place + 1], *repeat * self.repeats, *main[place + 1 :]]


@register("grid/truncate")
@dataclass(frozen=True)
class Truncate(_Transform):
    """All the steps of a grid on the part of the process below time `start`, for data that are already there in part.

    SDEdit starts from data noised to that time; its strength is this start.

    Args:
        start: the first time, in (0, 1].
        grid: the grid, which sees a process that ends at `start`.

    Raises:
        ConfigError: a start outside (0, 1].

    Source: Meng et al., "SDEdit", arXiv 2108.01073.
    """

    start: float
    grid: Grid = KARRAS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.start <= 1.0:
            raise ConfigError(f"a truncated grid starts at a time above 0 and at most 1, not {self.start}")

    def times(self, process: Process) -> list[float]:
        if self.start == 1.0:
            return self.grid.times(process)
        part = Truncated(process.time_map, process.time_map.log_snr(self.start))
        shortened = process.with_time_map(part)
        return [t * self.start for t in self.grid.times(shortened)]


def _ratio(log_snr: float) -> float:
    """σ/α, which may be infinite or 0."""
    return math.exp(min(-0.5 * log_snr, 700.0))
