"""Grids by a density of steps over λ: as much of it between any two neighbours."""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from statistics import NormalDist

from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.samplers.grid import Grid, times_at

MAX_KNOTS = 10_000


class _EqualMasses(Grid):
    """t = 1, the λ that cut the density within the process's range into num_steps equal masses, and the data."""

    @abstractmethod
    def mass_below(self, log_snr: float) -> float:
        """The density's integral up to λ, which may be infinite."""

    @abstractmethod
    def log_snr_at(self, mass: float) -> float:
        """The λ with that much of the density below it."""

    def times(self, process: Process) -> list[float]:
        data, end = process.time_map.log_snr(0.0), process.time_map.log_snr(1.0)
        first, final = self.mass_below(end), self.mass_below(data)
        if not final - first > 1e-9 * self.mass_below(math.inf):
            raise ConfigError(
                f"the grid's density has nothing in this process, whose λ falls from {data:g} to {end:g}: "
                "change the density's range"
            )
        share = (final - first) / self.num_steps
        return times_at(process, [end, *(self.log_snr_at(first + share * i) for i in range(1, self.num_steps))])


@register("grid/normal")
@dataclass(frozen=True)
class Normal(_EqualMasses):
    """Steps as dense in λ as a normal density: many around `mean`, few at the ends.

    A model trained with `levels/normal` has learned most where this grid steps most.

    Args:
        num_steps: number of steps.
        mean, std: of the density of λ.

    Raises:
        ConfigError: std not above 0.
    """

    num_steps: int = 50
    mean: float = 0.0
    std: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ConfigError(f"a normal grid needs a finite mean and std > 0, not {self.mean} and {self.std}")

    def mass_below(self, log_snr: float) -> float:
        return NormalDist(self.mean, self.std).cdf(log_snr)

    def log_snr_at(self, mass: float) -> float:
        return NormalDist(self.mean, self.std).inv_cdf(mass)


@register("grid/quantile")
@dataclass(frozen=True)
class Quantile(_EqualMasses):
    """Steps as dense in λ as a table says; between its knots the density is linear, outside them it is 0.

    `optimised` measures such a table.

    Args:
        log_snrs: 2 to 10,000 knots, rising.
        density: at the knots; any scale, nowhere below 0.
        num_steps: number of steps.

    Raises:
        ConfigError: knots that do not rise, or a density that is negative, not finite or 0 everywhere.
    """

    log_snrs: Sequence[float]
    density: Sequence[float]
    num_steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("log_snrs", "density"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        knots = len(self.log_snrs)
        if not 2 <= knots <= MAX_KNOTS or knots != len(self.density):
            raise ConfigError(
                f"a quantile grid has from 2 to {MAX_KNOTS:,} knots with a density at each, not {knots} and "
                f"{len(self.density)}"
            )
        if not all(a < b for a, b in pairwise(self.log_snrs)) or not all(map(math.isfinite, self.log_snrs)):
            raise ConfigError(f"the knots of a quantile grid rise and are finite, unlike {list(self.log_snrs)[:8]}")
        if not all(0.0 <= value < math.inf for value in self.density) or not self._masses[-1] > 0.0:
            raise ConfigError(
                f"a density is finite, nowhere below 0 and somewhere above it, unlike {list(self.density)[:8]}"
            )

    @cached_property
    def _masses(self) -> list[float]:
        """The density's integral up to each knot."""
        widths = [b - a for a, b in pairwise(self.log_snrs)]
        means = [0.5 * (a + b) for a, b in pairwise(self.density)]
        return [0.0, *accumulate(width * mean for width, mean in zip(widths, means, strict=True))]

    def _slope(self, cell: int) -> float:
        return (self.density[cell + 1] - self.density[cell]) / (self.log_snrs[cell + 1] - self.log_snrs[cell])

    def mass_below(self, log_snr: float) -> float:
        if log_snr >= self.log_snrs[-1]:
            return self._masses[-1]
        cell = bisect_right(self.log_snrs, log_snr) - 1
        if cell < 0:
            return 0.0
        along = log_snr - self.log_snrs[cell]
        return self._masses[cell] + along * (self.density[cell] + 0.5 * self._slope(cell) * along)

    def log_snr_at(self, mass: float) -> float:
        cell = min(bisect_right(self._masses, mass), len(self._masses) - 1) - 1
        left, start = mass - self._masses[cell], self.density[cell]
        # The root of start·x + slope·x²/2 = left, written so that nothing cancels.
        root = math.sqrt(max(start**2 + 2.0 * self._slope(cell) * left, 0.0))
        along = 2.0 * left / (start + root) if left > 0.0 else 0.0
        return min(self.log_snrs[cell] + along, self.log_snrs[cell + 1])
