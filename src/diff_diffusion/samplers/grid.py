"""Time grids: where a sampler stops on its way from noise to data.

`times(process)` is a list of floats from the noise to exactly 0 in which num_steps steps go down, so that a sampler
with one evaluation a step costs num_steps evaluations. The grids of this module fall all the way, from 1; others start
later (spacing.py) or also go up (transforms.py). To add one: a frozen dataclass registered as "grid/name".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, cast

from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register


def check_num_steps(num_steps: int) -> None:
    """Nothing, or a ConfigError for a number of steps outside [1, 1,000,000]."""
    if not 1 <= num_steps <= 1_000_000:
        raise ConfigError(f"the number of steps must be from 1 to 1,000,000, not {num_steps}")


class Grid(ABC):
    """A list of times for a process."""

    num_steps: int

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)

    def with_steps(self, num_steps: int) -> Grid:
        """The same grid with another number of steps."""
        return cast(Grid, replace(cast(Any, self), num_steps=num_steps))

    @abstractmethod
    def times(self, process: Process) -> list[float]:
        """The times: the first in (0, 1], exactly 0 last, num_steps steps down. A step up is the forward kernel's."""


def _finite_ends(process: Process, log_snr_max: float, log_snr_min: float) -> tuple[float, float]:
    """The process's range of λ, clipped to what a grid should resolve: (at the data, at the noise)."""
    data, end = process.time_map.log_snr(0.0), process.time_map.log_snr(1.0)
    high, low = min(data, log_snr_max), max(end, log_snr_min)
    if not low < high:
        raise ConfigError(
            f"a grid over λ from {log_snr_max:g} down to {log_snr_min:g} has no part of this process, whose λ falls "
            f"from {data:g} to {end:g}: change the grid's range"
        )
    return high, low


def times_at(process: Process, log_snrs: list[float]) -> list[float]:
    """Times of decreasing noise at the given λ, the first moved to t = 1, and 0 after them."""
    # Time 0 means the data. A map whose λ(0) is finite has that λ just above time 0.
    inner = [max(process.time_map.time(log_snr), 1e-9) for log_snr in log_snrs[1:]]
    return [1.0, *inner, 0.0]


@register("grid/uniform")
@dataclass(frozen=True)
class Uniform(Grid):
    """t = 1, 1 - 1/n, …, 1/n, 0."""

    num_steps: int = 50

    def times(self, process: Process) -> list[float]:
        return [1.0 - i / self.num_steps for i in range(self.num_steps)] + [0.0]


@register("grid/quadratic")
@dataclass(frozen=True)
class Quadratic(Grid):
    """t = (1 - i/n)²: steps that shrink towards the data. DDIM's quadratic subsequence of its chain.

    Source: Song et al., arXiv 2010.02502.
    """

    num_steps: int = 50

    def times(self, process: Process) -> list[float]:
        return [(1.0 - i / self.num_steps) ** 2 for i in range(self.num_steps)] + [0.0]


@register("grid/log_snr", exponential={})
@dataclass(frozen=True)
class LogSnr(Grid):
    """Uniform in λ between the process's ends, clipped to [log_snr_min, log_snr_max], then one step to the data.

    Uniform in λ is uniform in ln(σ/α), which k-diffusion calls exponential. The grid that multistep samplers want: on a
    uniform-t grid of the flow map their order is not reached.

    Source: Lu et al., "DPM-Solver", arXiv 2206.00927.
    """

    num_steps: int = 50
    log_snr_max: float = 12.0
    log_snr_min: float = -12.0

    def times(self, process: Process) -> list[float]:
        high, low = _finite_ends(process, self.log_snr_max, self.log_snr_min)
        last = max(self.num_steps - 1, 1)
        return times_at(process, [low + (high - low) * i / last for i in range(self.num_steps)])


@register("grid/karras")
@dataclass(frozen=True)
class Karras(Grid):
    """Noise-to-signal ratios σ/α whose rho-th roots are evenly spaced, then one step to the data.

    Source: Karras et al., arXiv 2206.00364, equation 5; rho = 7, σ from 80 to 0.002 there.
    """

    num_steps: int = 50
    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.sigma_min < self.sigma_max and self.rho > 0):
            raise ConfigError(
                f"karras needs 0 < sigma_min < sigma_max and rho > 0, not sigma_min={self.sigma_min}, "
                f"sigma_max={self.sigma_max}, rho={self.rho}"
            )

    def times(self, process: Process) -> list[float]:
        high, low = _finite_ends(process, -2.0 * math.log(self.sigma_min), -2.0 * math.log(self.sigma_max))
        first, final = math.exp(-0.5 * low) ** (1 / self.rho), math.exp(-0.5 * high) ** (1 / self.rho)
        last = max(self.num_steps - 1, 1)
        roots = [first + (final - first) * i / last for i in range(self.num_steps)]
        return times_at(process, [-2.0 * self.rho * math.log(root) for root in roots])
