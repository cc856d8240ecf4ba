"""The adapted time map: levels drawn where the measured loss varies most.

Drawing t uniformly is drawing λ with the density p(λ) = -dt/dλ. A table of (λ, t) is a piecewise constant density, and
`adapted` makes the one that a loss, measured level by level, asks for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.core.time_maps import TimeMap
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.tensors import Real, maths


@register("time_map/tabulated")
@dataclass(frozen=True)
class Tabulated(TimeMap):
    """λ through the points (times[i], log_snrs[i]), linear between them.

    Args:
        log_snrs: at least two finite numbers, decreasing.
        times: as many, increasing from exactly 0 to exactly 1.

    Raises:
        ConfigError: numbers that are not so.

    >>> Tabulated([8.0, 0.0, -8.0], [0.0, 0.25, 1.0]).log_snr(0.5)
    -2.6666666666666665
    """

    log_snrs: Sequence[float]
    times: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("log_snrs", "times"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if not 2 <= len(self.log_snrs) == len(self.times) <= 1_000_000:
            raise ConfigError(
                f"a table has 2 to 1,000,000 log_snrs and as many times, not {len(self.log_snrs)} and {len(self.times)}"
            )
        if (self.times[0], self.times[-1]) != (0.0, 1.0) or not all(a < b for a, b in pairwise(self.times)):
            raise ConfigError("a table's times must increase from exactly 0 to exactly 1")
        if not all(math.isfinite(v) for v in self.log_snrs) or not all(a > b for a, b in pairwise(self.log_snrs)):
            raise ConfigError("a table's log_snrs must be finite and decrease, the data's first")

    def log_snr(self, t: Real) -> Real:
        return _interpolate(self.times, self.log_snrs, t)

    def time(self, log_snr: Real) -> Real:
        rising = tuple(-value for value in self.log_snrs)
        return _interpolate(rising, self.times, -log_snr)


def _interpolate(places: Sequence[float], values: Sequence[float], at: Real) -> Real:
    """The line through (places, values), places rising; beyond them the value at the nearer end."""
    knots: Any
    levels: Any
    above: Any
    at = maths(at).clip(at, places[0], places[-1])
    if isinstance(at, Tensor):
        knots, levels = (torch.tensor(numbers, dtype=torch.float64) for numbers in (places, values))
        above = torch.searchsorted(knots, at.detach()).clamp(min=1)
    else:
        knots, levels, above = places, values, max(bisect_left(places, at), 1)
    share = (at - knots[above - 1]) / (knots[above] - knots[above - 1])
    return levels[above - 1] * (1.0 - share) + levels[above] * share


def adapted(log_snrs: Sequence[float], second_moments: Sequence[float]) -> Tabulated:
    """The map whose uniform t draws λ with the density ∝ √E[ℓ²] of a measured loss: the adaptive diffusion process.

    ∫ ℓ(λ) dλ is estimated by ℓ(λ)/p(λ) with λ drawn from p, whose second moment ∫ E[ℓ²]/p dλ is least, by the
    Cauchy-Schwarz inequality, for p ∝ √E[ℓ²]. Among densities constant on each interval this one is exactly the best.

    Args:
        log_snrs: the edges of n intervals of λ, n + 1 finite numbers, decreasing.
        second_moments: E[ℓ²] over each interval, n positive numbers; ℓ is the integrand of the bound at a level, with
            its weight.

    Raises:
        ConfigError: lengths that do not match, or a moment that is not a positive number.

    Source: Kingma et al., arXiv 2107.00630 (a noise schedule learned to minimise the variance of the bound); Nichol &
    Dhariwal, arXiv 2102.09672 (importance sampling of timesteps with probability ∝ √E[L_t²]).

    >>> adapted([6.0, 0.0, -6.0], [9.0, 1.0]).times
    (0.0, 0.75, 1.0)
    """
    edges, moments = np.asarray(log_snrs, np.float64), np.asarray(second_moments, np.float64)
    if edges.ndim != 1 or moments.shape != (len(edges) - 1,):
        raise ConfigError(f"n second moments need the n + 1 edges of their levels, not {len(moments)} and {len(edges)}")
    if not (np.isfinite(moments).all() and (moments > 0).all()):
        raise ConfigError("every second moment must be a positive number: join a level that was never seen to the next")
    share = np.concatenate([[0.0], np.cumsum(-np.diff(edges) * np.sqrt(moments))])
    return Tabulated(edges.tolist(), (share / share[-1]).tolist())
