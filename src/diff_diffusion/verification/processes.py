"""Time maps, grids and Gaussian processes against what they promise.

Kernels are linear in what they are given, so their coefficients are read off with zeros and ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.time_maps import TimeMap
from diff_diffusion.errors import ConfigError
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.grid import Grid
from diff_diffusion.samplers.sampler import check_times
from diff_diffusion.verification.check import Check
from diff_diffusion.verification.closed_forms import Given
from diff_diffusion.verification.samplers import WIDE, moments

PAIRS = ((1e-4, 1.0), (0.01, 0.02), (0.1, 0.3), (0.3, 0.8), (0.4, 0.95), (0.5, 0.500002), (0.9, 1.0))
ONE, ZERO = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
UNIT: Any = Given(ONE)


def gap(found: float, expected: float) -> float:
    """A difference relative to what is expected, and to 1e-3 where that is small."""
    return abs(found - expected) / (abs(expected) + 1e-3)


# ---- time maps -----------------------------------------------------------------------------------------------------


def time_map_checks(name: str, time_map: TimeMap, count: int = 400) -> Iterator[Check]:
    """Strictly decreasing, its own inverse, the same on floats and tensors, its slope its derivative."""

    def check(law: str, measured: float, high: float, note: str = "") -> Check:
        return Check("time_map", name, law, measured, high, note=note)

    times = [0.0, 1e-9, 1e-6, 1e-3, *((i + 0.37) / count for i in range(count)), 1.0 - 1e-6, 1.0 - 1e-9, 1.0]
    times.sort()
    levels = [time_map.log_snr(t) for t in times]
    rises = [t for t, (a, b) in zip(times, pairwise(levels), strict=False) if not a > b]
    yield check("rises", len(rises), 0.0, f"at t = {rises[:3]}" if rises else f"on {len(times)} times")
    yield check("inverse", max(abs(time_map.time(v) - t) for t, v in zip(times, levels, strict=True)), 1e-9)
    inside = [v for v in (-20.0 + 0.1 * i for i in range(401)) if levels[-1] <= v <= levels[0]]
    yield check("levels back", max((_level_gap(time_map, v) for v in inside), default=0.0), 1e-9)
    tensor = time_map.log_snr(torch.tensor(times, dtype=torch.float64))
    back = time_map.time(torch.tensor(inside, dtype=torch.float64))
    apart = [0.0 if a == b else abs(a - b) / max(1.0, abs(a)) for a, b in zip(levels, tensor.tolist(), strict=True)]
    apart += [abs(time_map.time(a) - b) for a, b in zip(inside, back.tolist(), strict=True)]
    yield check("tensors", max(apart), 1e-11)
    # Off any table's knots, where a slope jumps.
    probes = [0.0010307, 0.031413, 0.500117, 0.770039, 0.999931]
    slopes = time_map.slope(torch.tensor(probes, dtype=torch.float64)).tolist()
    yield check("slope", max(abs(a / _quotient(time_map, t) - 1.0) for t, a in zip(probes, slopes, strict=True)), 1e-4)


def _quotient(time_map: TimeMap, t: float, step: float = 1e-7) -> float:
    return (time_map.log_snr(t + step) - time_map.log_snr(t - step)) / (2.0 * step)


def _level_gap(time_map: TimeMap, log_snr: float) -> float:
    """|λ(time(λ)) - λ|, less what one rounding of t moves λ: near t = 1 of a steep map a float cannot say more."""
    t = time_map.time(log_snr)
    step = min(1e-6, 0.1 * t + 1e-12, 0.1 * (1.0 - t) + 1e-12)
    low, high = max(t - step, 0.0), min(t + step, 1.0)
    rounding = 4e-16 * abs(time_map.log_snr(low) - time_map.log_snr(high)) / (high - low)
    return max(abs(time_map.log_snr(t) - log_snr) - rounding, 0.0) / max(abs(log_snr), 1.0)


# ---- grids ---------------------------------------------------------------------------------------------------------


def grid_checks(name: str, grid: Grid, maps: Mapping[str, TimeMap], counts: Sequence[int]) -> Iterator[Check]:
    """Valid times for every number of steps on every map, as many down as asked; and DDIM walks them to the data."""
    bad, refused, total = [], [], len(maps) * len(counts)
    for count in counts:
        for where, time_map in maps.items():
            process = Gaussian(time_map)
            try:
                asked = grid.with_steps(count)
                times = asked.times(process)
            except ConfigError as error:  # a grid may need more steps, or another process
                refused.append(str(error))
                continue
            try:
                check_times(times)
            except ConfigError as error:
                bad.append(f"{count} steps on {where}: {error}")
                continue
            down = sum(t > s for t, s in pairwise(times))
            if down != count:
                bad.append(f"{count} steps on {where}: {down} go down")
    note = f"; {len(refused)} refused: {refused[0]}" if refused else ""
    yield Check("grid", name, "invalid", len(bad), 0.0, note=(bad[0] if bad else f"of {total}") + note)
    yield Check("grid", name, "refused", len(refused) / total, 0.1, note=f"share of {total}{note}")
    yield from grid_walks(name, grid)


def grid_walks(name: str, grid: Grid) -> Iterator[Check]:
    """DDIM along the grid keeps the mean, and its variance comes nearer with more steps."""
    found = [moments(Ancestral(), grid.with_steps(count).times(WIDE)) for count in (64, 256)]
    yield Check("grid", name, "mean", abs(found[1][0]), 1e-10, note="relative, of N(0.7, 0.25) by DDIM in 256 steps")
    yield Check("grid", name, "variance", abs(found[1][1]), 0.1, note=f"relative; {found[0][1]:.2g} in 64 steps")


# ---- processes -----------------------------------------------------------------------------------------------------


def gaussian_checks(name: str, processes: Sequence[Gaussian]) -> Iterator[Check]:
    """Forward kernels compose and the reverse kernel undoes them, on every map; the largest of each residual."""
    worst: dict[str, float] = {}
    for process in processes:
        for law, residual in _residuals(process):
            # nan first: it must not lose against a number.
            worst[law] = residual if not residual <= worst.get(law, -1.0) else worst[law]
    for law, high in (
        ("scales", 1e-12), ("prior", 1e-12), ("marginal", 1e-12), ("Chapman-Kolmogorov", 1e-9),
        ("reverse", 1e-9), ("posterior", 1e-6), ("end", 0.0),
    ):  # fmt: skip
        yield Check("process", name, law, worst[law], high, note=f"on {len(processes)} time maps")


def renoise_coefficients(process: Gaussian, s: float, t: float) -> tuple[float, float]:
    """x_t = k x_s + a n: (k, a)."""
    added = process.renoise(ZERO, s, t, UNIT).item()
    return process.renoise(ONE, s, t, UNIT).item() - added, added


def reverse_coefficients(process: Gaussian, t: float, s: float, eta: float) -> tuple[float, float, float]:
    """x_s = A x_t + B x̂_0 + C n: (A, B, C)."""

    def step(x_t: torch.Tensor, x_0: torch.Tensor) -> float:
        return process.reverse(x_t, GaussianPosterior(x_0, 0.0), t, s, eta=eta, noise=UNIT).item()

    fresh = step(ZERO, ZERO)
    return step(ONE, ZERO) - fresh, step(ZERO, ONE) - fresh, fresh


def _residuals(process: Gaussian) -> Iterator[tuple[str, float]]:
    for t in (1e-4, 0.02, 0.3, 0.5, 0.8, 0.99):
        alpha, sigma = process.scales(t)
        log_snr = process.time_map.log_snr(t)
        yield "scales", gap(2.0 * math.log(alpha / sigma), log_snr)
        yield "prior", gap(process.prior((1, 1), UNIT, t).item(), math.hypot(alpha, sigma))
        there = process.marginal(3.0 * ONE, torch.tensor([t], dtype=torch.float64), UNIT)
        yield "marginal", gap(there.x_t.item(), 3.0 * alpha + sigma)
    for s, t in PAIRS:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = process.scales(s), process.scales(t)
        kept, added = renoise_coefficients(process, s, t)
        yield "Chapman-Kolmogorov", gap(kept * alpha_s, alpha_t)
        yield "Chapman-Kolmogorov", gap((kept * sigma_s) ** 2 + added**2, sigma_t**2)
        for eta in (0.0, 0.5, 1.0):
            from_x, from_mean, fresh = reverse_coefficients(process, t, s, eta)
            yield "reverse", gap(from_x * alpha_t + from_mean, alpha_s)
            yield "reverse", gap((from_x * sigma_t) ** 2 + fresh**2, sigma_s**2)
        # η = 1 by Bayes' rule, from q(x_s | x_0) and the forward kernel; from_x, from_mean, fresh are now those of 1.
        yield "posterior", gap(from_x, kept * sigma_s**2 / sigma_t**2)
        yield "posterior", gap(from_mean, alpha_s * (added / sigma_t) ** 2)
        yield "posterior", gap(fresh**2, (added * sigma_s / sigma_t) ** 2)
    to_data = process.reverse(ZERO, GaussianPosterior(ONE, 0.0), 0.3, 0.0, eta=1.0, noise=UNIT)
    yield "end", abs(to_data.item() - 1.0)
