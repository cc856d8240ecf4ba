"""Targets, weights and densities of levels against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.process import Corrupted
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.objectives.denoising import Objective
from diff_diffusion.objectives.levels import Levels
from diff_diffusion.objectives.weights import Weight
from diff_diffusion.rng import Noise
from diff_diffusion.verification.check import Check
from diff_diffusion.verification.closed_forms import Given, Normal

LEVELS = LinearLogSnr(20.0, -20.0)
TIMES = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)  # λ = 20, 19, …, -20


# ---- targets -------------------------------------------------------------------------------------------------------


def target_checks(name: str, target: Any) -> Iterator[Check]:
    """decode(encode) is the identity on all scalings for λ in ±20, and `gain` makes any error one of ε̂."""
    meant = getattr(target, "target", target)  # a target of more outputs wraps what the first one means
    if not hasattr(meant, "encode"):
        yield Check("target", name, "decode(encode)", None, 0.0, note="it has no encode")
        return

    def padded(output: Tensor) -> Tensor:
        return torch.cat([output, *[torch.zeros_like(output)] * (getattr(target, "outputs", 1) - 1)], 1)

    decoded, gains = 0.0, 0.0
    x_0 = Noise(range(41), "data").normal((41, 3)).double()
    for scaling in SCALINGS:
        process = Gaussian(LEVELS, scaling)
        corrupted = process.marginal(x_0, TIMES, Noise(range(41)))
        output = meant.encode(x_0, corrupted.noise, process, TIMES)
        back = target.decode(padded(output), corrupted.x_t, process, TIMES).mean
        # x_t is rounded, and decoding magnifies that by at most σ/α.
        magnified = torch.exp(-0.5 * process.time_map.log_snr(TIMES)).clamp(min=1.0)
        decoded = max(decoded, ((back - x_0).abs().amax(1) / magnified).max().item())
        gains = max(gains, _gain_gap(target, padded(output + 0.3 * x_0 + 0.1), corrupted, process))
    yield Check("target", name, "decode(encode)", decoded, 1e-12, note="relative to the larger of 1 and σ/α, λ in ±20")
    yield Check("target", name, "gain", gains, 1e-6, note="relative, λ in ±20")


def _gain_gap(target: Any, output: Tensor, corrupted: Corrupted, process: Gaussian) -> float:
    alpha, sigma = (scale[:, None] for scale in process.scales(TIMES))
    eps = (corrupted.x_t - alpha * target.decode(output, corrupted.x_t, process, TIMES).mean) / sigma
    error, gain = target.error(output, corrupted, process)[:2]
    found, expected = gain * (error**2).sum(1), ((eps - corrupted.noise) ** 2).sum(1)
    return float((found / expected - 1.0).abs().max())


# ---- weights and measures ------------------------------------------------------------------------------------------

# Papers' weights on the squared error of ε̂, from the SNR. A weight with no row has the other laws.
FORMULAS: dict[str, Callable[[float], float]] = {
    "simple": lambda snr: 1.0,  # Ho et al., arXiv 2006.11239
    "vlb": lambda snr: 0.5,  # Kingma et al., arXiv 2107.00630
    "sigmoid": lambda snr: 1.0 / (1.0 + snr),  # Kingma & Gao, arXiv 2303.00848, bias 0
    "min_snr": lambda snr: min(1.0, 5.0 / snr),  # Hang et al., arXiv 2303.09556, gamma 5
    "soft_min_snr": lambda snr: 1.0 / (1.0 + snr / 4.0),  # Crowson et al., arXiv 2401.11605, gamma 4
    "p2": lambda snr: 1.0 / (1.0 + snr),  # Choi et al., arXiv 2204.00227, k 1 and gamma 1
    "edm": lambda snr: 1.0 + 1.0 / snr,  # Karras et al., arXiv 2206.00364, data of variance 1
}
VARIANCE, SPAN = 0.5, 40.0  # to λ = 20, above which no level is drawn


def weight_checks(name: str, weight: Weight) -> Iterator[Check]:
    """Finite and positive for λ in ±20; its paper's formula; and the loss of an exact denoiser in closed form."""

    def check(law: str, measured: float, high: float, note: str = "") -> Check:
        return Check("weight", name, law, measured, high, note=note)

    levels = LEVELS.log_snr(TIMES)
    values = weight.of(levels).detach()
    bad = int((~(torch.isfinite(values) & (values > 0.0))).sum())
    yield check("not positive", bad, 0.0, "or not finite, of 41 levels in ±20")
    if name in FORMULAS:
        expected = torch.tensor([FORMULAS[name](math.exp(level)) for level in levels.tolist()], dtype=torch.float64)
        yield check("formula", (values / expected - 1.0).abs().max().item(), 1e-10, "its paper's, relative")
    levels = torch.linspace(-12.0, 12.0, 49, dtype=torch.float64)
    snr = torch.exp(levels)
    # What the exact denoiser leaves of x_0's variance; the SNR makes it ε̂'s error.
    left = VARIANCE / (1.0 + VARIANCE * snr) * (1.0 if weight.own else snr)
    expected = weight.of(levels).detach() * left * (SPAN if weight.integral else 1.0)
    yield check("loss", (losses(weight, levels) / expected - 1.0).abs().max().item(), 1e-9, "of N(0, 0.5), relative")
    if bool((values == values[0]).all()) and not weight.own:
        yield check("information", _information_gap(weight, values[0].item()), 1e-6, "½ ∫ E‖ε - ε̂‖² dλ, in nats")


def losses(weight: Weight, levels: Tensor) -> Tensor:
    """E of the loss of the exact denoiser of N(0, VARIANCE) at each level, exactly, less what a weight adds to it.

    The loss is a quadratic form in (x_0, ε), so its mean over the four signs of (√VARIANCE, 1) is its expectation. The
    levels are uniform over a range of λ that is SPAN long.
    """
    process = Gaussian(LinearLogSnr(0.5 * SPAN, -0.5 * SPAN))
    x_0, eps = (torch.tensor(row, dtype=torch.float64) for row in ((1.0, 1.0, -1.0, -1.0), (1.0, -1.0, 1.0, -1.0)))
    times = process.time_map.time(levels).repeat_interleave(4)
    noise: Any = Given(eps.repeat(len(levels))[:, None])
    data = math.sqrt(VARIANCE) * x_0.repeat(len(levels))[:, None]
    loss = Objective(weight=weight).at(Normal(process, 0.0, VARIANCE), data, times, None, noise)
    return (loss.per_sample - weight.penalty(loss.log_snr)).detach().reshape(-1, 4).mean(1)


def _information_gap(weight: Weight, constant: float) -> float:
    """I-MMSE: against ½ ln((1 + v SNR_max) / (1 + v SNR_min)) over λ in ±10, in which the bound is weight ½ dλ."""
    levels = torch.linspace(-10.0, 10.0, 4001, dtype=torch.float64)
    scale = 2.0 * constant * (SPAN if weight.integral else 1.0)
    found = torch.trapezoid(losses(weight, levels), levels).item() / scale
    return abs(found - 0.5 * math.log((1.0 + VARIANCE * math.exp(10.0)) / (1.0 + VARIANCE * math.exp(-10.0))))


def measure_checks(name: str, measure: Any) -> Iterator[Check]:
    """No error costs nothing, a larger one more, and only error · √gain counts (error · gain where errors are nats)."""
    sizes = torch.linspace(0.0, 4.0, 41, dtype=torch.float64)[:, None]
    ones = torch.ones(41, dtype=torch.float64)
    costs = measure.of(sizes, ones)
    falls = int((costs.diff() <= 0.0).sum()) + int(costs[0].item() != 0.0)
    yield Check("measure", name, "out of order", falls, 0.0, note="of 41 errors from 0 to 4")
    gain = 4.0 if issubclass(Gaussian, measure.needs) else 2.0
    apart = (measure.of(2.0 * sizes, ones) - measure.of(sizes, gain * ones)).abs().max().item()
    yield Check("measure", name, "gain", apart, 1e-10, note="a gain in place of a larger error")


# ---- densities of levels -------------------------------------------------------------------------------------------


def levels_checks(name: str, density: Levels) -> Iterator[Check]:
    """Quantiles in order, `share` their inverse, and a density that integrates to what lies in its range."""
    process = Gaussian(LinearLogSnr(18.0, -18.0))
    shares = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    times = density.draw(shares, process).detach()
    bad = int(((times < 0.0) | (times > 1.0) | ~torch.isfinite(times)).sum()) + int((times.diff() <= 0.0).sum())
    yield Check("levels", name, "out of order", bad, 0.0, note="of 200 quantiles")
    back = (density.share(times, process) - shares).abs().max().item()
    yield Check("levels", name, "share(quantile)", back, 1e-9)
    inner = torch.linspace(times[0], times[-1], 4001, dtype=torch.float64)
    mass = torch.trapezoid(density.density(inner, process), -process.time_map.log_snr(inner)).abs().item()
    expected = (shares[-1] - shares[0]).item()
    yield Check("levels", name, "density", abs(mass - expected), 1e-4, note="its integral over λ")
