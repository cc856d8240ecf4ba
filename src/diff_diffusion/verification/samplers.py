"""Samplers against closed forms: order, exact moments, Monte Carlo, scalings, the end of a walk, batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.consistency import Consistency
from diff_diffusion.samplers.grid import LogSnr
from diff_diffusion.samplers.sampler import Sampler, trajectory
from diff_diffusion.verification.check import Check
from diff_diffusion.verification.closed_forms import Impulses, Normal, TwoModes, distance_bound

WIDE = Gaussian(LinearLogSnr(12.0, -12.0))
NEAR = LinearLogSnr(9.0, -9.0)
ORDER_TOLERANCE = 0.3
VARIANCE_STEPS = (64, 128, 256)


def checks(name: str, sampler: Sampler, draws: int = 125) -> Iterator[Check]:
    """Every law of a sampler of Gaussian processes; Monte Carlo with 64 times `draws` numbers."""

    def check(law: str, measured: float, high: float, low: float = 0.0, note: str = "") -> Check:
        return Check("sampler", name, law, measured, high, low, note)

    ends = isinstance(sampler, Consistency)
    if sampler.adaptive:  # its steps depend on x, so a walk is not linear; its promise is a tolerance
        yield check("flow", flow_error(sampler, LogSnr(8, 12.0, -12.0).times(WIDE)), 0.05, note="two modes, in 8 steps")
    else:
        variances = [moments(sampler, LogSnr(n, 12.0, -12.0).times(WIDE), ends=ends) for n in VARIANCE_STEPS]
        if not (ends or sampler.bias):
            yield _order(check, sampler, [abs(error) for _, error in variances])
        mean, variance = (abs(error) for error in variances[-1])
        yield check("mean", mean, 1e-10, note="relative, of N(0.7, 0.25)")
        high = 1e-9 if ends else (0.06 if sampler.weak_order == 1 else 0.003) + sampler.bias
        note = "; answers are ends of the flow, with which it is exact" if ends else ""
        yield check("variance", variance, high, note=f"relative, exact, in {VARIANCE_STEPS[-1]} steps{note}")
    if hasattr(sampler, "eta"):
        gap = abs(fresh_noise(sampler) - sampler.eta)
        yield check("eta", gap, 0.01, note=f"fresh noise of a short step less the {sampler.eta:g} asked for")
    if not ends:
        draws = draws // 5 if sampler.adaptive else draws
        mixture, x = walked(sampler, Gaussian(NEAR, "flow"), 64, Noise(range(draws)), 64)
        high = distance_bound(x.numel()) + sampler.bias
        yield check("Monte Carlo", mixture.distance(x), high, note=f"{x.numel()} draws, 64 steps")
    yield check("scalings", parity(sampler), 1e-10, note=f"of {', '.join(SCALINGS)}")
    yield check("end", residue(sampler), 1e-10, note="what is left of the noise when the data are one point")
    yield check("batch", batch_gap(sampler), 0.0, note="samples alone and in a batch of 8")


def _order(check: Callable[..., Check], sampler: Sampler, variances: Sequence[float]) -> Check:
    """The measured order that is farthest from the declared: of the flow, or of the moments where noise is drawn."""
    if sampler.deterministic:
        counts = (64, 128, 256, 512) if sampler.order < 4 else (128, 256, 512, 1024)
        found, what, order = slopes(sampler, counts), "the flow of two modes", sampler.order
    else:
        found, what, order = [math.log2(a / b) for a, b in pairwise(variances)], "the variance", sampler.weak_order
    worst = max(found, key=lambda slope: abs(slope - order))
    note = f"of {what}; each doubling of the steps: {', '.join(f'{slope:.2f}' for slope in found)}"
    return check("order", worst, order + ORDER_TOLERANCE, order - ORDER_TOLERANCE, note)


def end(denoiser: Denoiser, sampler: Sampler, times: Sequence[float], x: Tensor, noise: Any) -> Tensor:
    """Where a walk ends."""
    for step in trajectory(denoiser, sampler, times, x, noise=noise):
        x = step.x
    return x


def uneven(num_steps: int) -> list[float]:
    """Times of WIDE from λ = -12 to 12 in steps of λ that are long and short in turn, 2 to 1, and one to the data.

    Even steps would hide a multistep rule that ignores where the past answers lie.
    """
    whole = 24.0 / num_steps
    levels = [-12.0 + whole * (i + (i % 2) / 3.0) for i in range(num_steps + 1)]
    return [1.0, *(max(WIDE.time_map.time(level), 1e-9) for level in levels[1:]), 0.0]


def slopes(sampler: Sampler, counts: Sequence[int]) -> list[float]:
    """log2 of how the error falls from each number of steps to the next, its double."""
    errors = [flow_error(sampler, uneven(count)) for count in counts]
    return [math.log2(a / b) for a, b in pairwise(errors)]


def flow_error(sampler: Sampler, times: Sequence[float]) -> float:
    """How far eight points of WIDE's two modes end from where the probability-flow ODE takes them, exactly."""
    mixture = TwoModes(WIDE)
    x = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64)[:, None]
    expected = mixture(mixture.carried(x, times[0], times[-2]), times[-2]).mean
    return float((end(mixture, sampler, times, x, Noise(range(8))) - expected).norm())


def moments(
    sampler: Sampler, times: Sequence[float], mean: float = 0.7, variance: float = 0.25, ends: bool = False
) -> tuple[float, float]:
    """How far (mean, variance) of WIDE's samples of N(mean, variance) are from exact, both relative.

    Exact: the walk starts at p_t itself, and its last step holds x̂_0, which shrinks the spread by a known share (unless
    the denoiser answers with `ends` of the flow).
    """
    count = 2 * len(times) + 2
    denoiser, noise = Normal(WIDE, mean, variance, ends), Impulses(count)
    (alpha, sigma), (alpha_0, sigma_0) = WIDE.scales(times[0]), WIDE.scales(times[-2])
    spread = math.sqrt(alpha**2 * variance + sigma**2)
    start = alpha * mean + spread * noise.at(0).normal((count, 1))
    x = end(denoiser, sampler, times, start, noise)[:, 0]
    left = 1.0 if ends else alpha_0**2 * variance / (alpha_0**2 * variance + sigma_0**2)
    found = ((x[:-1] - x[-1]) ** 2).sum().item()
    return x[-1].item() / mean - 1.0, found / (left * variance) - 1.0


def fresh_noise(sampler: Sampler) -> float:
    """How much fresh noise a short step adds, as a share of what the reverse SDE adds: σ_s √(1 - ρ²)."""
    t, s = WIDE.time_map.time(0.0), WIDE.time_map.time(0.02)
    noise: Any = Impulses(8)
    along = (noise.path(0, lambda t: 1.0 - t), t, s)
    x = sampler.step(Normal(WIDE, 0.0, 1.0), torch.zeros(8, 1).double(), t, s, None, None, noise.at(1, along))[0]
    return float(x.norm()) / (WIDE.scales(s)[1] * math.sqrt(1.0 - WIDE.decay(t, s) ** 2))


def walked(sampler: Sampler, process: Gaussian, num_steps: int, noise: Noise, size: int) -> tuple[TwoModes, Tensor]:
    """The two modes and samples of them, [len(noise), size] float64, from N(0, α² + σ²); every number is one draw."""
    mixture, times = TwoModes(process), LogSnr(num_steps).times(process)
    alpha, sigma = process.scales(times[0])
    start = math.sqrt(alpha**2 + sigma**2) * noise.at(0).normal((len(noise), size)).double()
    return mixture, end(mixture, sampler, times, start, noise)


def parity(sampler: Sampler) -> float:
    """The largest difference between samples in different scalings, from the same noise."""
    ends = [walked(sampler, Gaussian(NEAR, scaling), 20, Noise(range(6)), 2)[1] for scaling in SCALINGS]
    return max((x - ends[0]).abs().max().item() for x in ends)


def residue(sampler: Sampler) -> float:
    """How far samples of data at one point are from it, in walks of 1, 2 and 7 steps."""
    process, worst = Gaussian(NEAR), 0.0
    for num_steps in (1, 2, 7):
        times, noise = LogSnr(num_steps).times(process), Noise(range(4))
        start = process.prior((4, 2), noise.at(0), times[0]).double()
        x = end(Normal(process, 0.37, 0.0), sampler, times, start, noise)
        worst = max(worst, (x - 0.37).abs().max().item())
    return worst


def batch_gap(sampler: Sampler) -> float:
    """The largest difference between samples alone and in a batch."""
    process = Gaussian(NEAR)
    denoiser, times = Normal(process, 0.3, 0.7), LogSnr(12).times(process)

    def samples(seeds: Sequence[int]) -> Tensor:
        noise = Noise(seeds)
        return end(denoiser, sampler, times, process.prior((len(seeds), 3), noise.at(0), 1.0), noise)

    together = samples(range(40, 48))
    return max((samples([40 + i])[0] - together[i]).abs().max().item() for i in (0, 3, 7))
