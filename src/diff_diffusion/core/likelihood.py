"""Likelihood: how probable a model says that data are, in nats for each sample.

Three ways to ask. `variational_bound` is the discrete chain's, term by term, as DDPM reports it; `continuous_bound` is
its limit, ½ ∫ ‖ε - ε̂‖² dλ, for every family of processes; `log_likelihood` follows the probability-flow ODE and is no
bound but the model's own density. For an exact denoiser all three meet the closed form (tests/laws/test_likelihood.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import LOG_SNR_LIMIT, Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.rng import Noise

EXACT_DIVERGENCE_UP_TO = 64
"""Numbers in a sample up to which the ODE's divergence is exact by default: it costs a backward pass for each."""


@dataclass(frozen=True)
class Bins:
    """What discrete data are in a latent's units: an 8-bit image has 256 bins for every number.

    Args:
        width: from one value to the next; broadcasts with a sample.
        low, high: the lowest and the highest value, whose bins reach to infinity.

    Source: Ho et al., arXiv 2006.11239, for the decoder of discrete data.
    """

    width: Tensor
    low: Tensor
    high: Tensor

    def log_probability(self, x_0: Tensor, mean: Tensor, std: float) -> Tensor:
        """ln of the mass that N(mean, std²) puts in x_0's bin, number by number."""
        half = 0.5 * self.width.to(x_0)
        above, below = (x_0 + half - mean) / std, (x_0 - half - mean) / std
        above = torch.where(x_0 > self.high.to(x_0) - half, torch.inf, above)
        below = torch.where(x_0 < self.low.to(x_0) + half, -torch.inf, below)
        # The mass between two points, on the side where a normal's tail does not cancel.
        flip = below > 0
        above, below = torch.where(flip, -below, above), torch.where(flip, -above, below)
        log_above, log_below = (torch.special.log_ndtr(edge.double()) for edge in (above, below))
        return log_above + torch.log1p(-torch.exp(log_below - log_above).clamp(max=1.0 - 1e-16))


@dataclass(frozen=True)
class Bound:
    """The parts of a variational bound on -ln p(x_0), in nats, float64.

    Attributes:
        prior: [B], what the end of the forward process still tells of the data.
        terms: [B, n], what each level costs, from noise to data.
        log_snr: [n], the λ of each term.
        reconstruction: [B], what is left to say at the last level.
        size: how many numbers a sample has.
    """

    prior: Tensor
    terms: Tensor
    log_snr: Tensor
    reconstruction: Tensor
    size: int

    @property
    def nats(self) -> Tensor:
        """The bound, [B]."""
        return self.prior + self.terms.sum(1) + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits for each number of a sample, [B]."""
        return self.nats / (self.size * math.log(2.0))


def _check_batch(x_0: Tensor) -> None:
    if len(x_0) == 0:
        raise ConfigError("a likelihood is of at least one sample, and x_0 has none")


def _summed(values: Tensor) -> Tensor:
    return values.double().flatten(1).sum(1)


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    x_0: Tensor,
    times: Sequence[float],
    noise: Noise,
    *,
    cond: Cond | None = None,
    bins: Bins | None = None,
) -> Bound:
    """The bound of the chain that walks `times`, each term estimated with one draw of x_t.

    KL(q(x_T | x_0) ‖ p(x_T)) + Σ KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)) - ln p(x_0 | x_1). With the posterior variance,
    a term is ½ (SNR_s - SNR_t) ‖x_0 - x̂_0‖²; with a learned one, the whole divergence of two Gaussians.

    Args:
        x_0: clean data [B, ...].
        times: a grid's times, falling from noise to exactly 0.
        noise: one key per sample.
        bins: what the data's values are; None for continuous data.

    Raises:
        IncompatibleError: the process is not Gaussian: use `continuous_bound`.
        ConfigError: times that do not fall to 0.

    Source: Ho et al., arXiv 2006.11239; Kingma et al., arXiv 2107.00630, for the terms as differences of SNR.
    """
    process = _gaussian(denoiser.process, "variational_bound")
    _check_batch(x_0)
    if len(times) < 2 or times[-1] != 0.0 or any(t <= s for t, s in pairwise(times)):
        raise ConfigError(f"a bound's times must fall from noise to exactly 0, at least two of them, not {list(times)}")
    terms, reconstruction = [], torch.zeros(len(x_0), dtype=torch.float64)
    for index, (t, s) in enumerate(pairwise(times)):
        x_t = process.marginal(x_0, torch.full((len(x_0),), t, dtype=torch.float64), noise.at(index + 1)).x_t
        posterior = denoiser(x_t, t, cond)
        if s == 0.0:
            reconstruction = process.reconstruction(x_0, posterior, t, bins).cpu()
        else:
            terms.append(_summed(process.divergence(x_0, posterior, t, s)).cpu())
    log_snr = torch.tensor([process.time_map.log_snr(t) for t in times[:-2]], dtype=torch.float64)
    stacked = torch.stack(terms, 1) if terms else torch.zeros(len(x_0), 0, dtype=torch.float64)
    return Bound(process.prior_gap(x_0, times[0]).cpu(), stacked, log_snr, reconstruction, x_0[0].numel())


@torch.no_grad()
def continuous_bound(
    denoiser: Denoiser,
    x_0: Tensor,
    noise: Noise,
    *,
    num_levels: int = 128,
    cond: Cond | None = None,
    bins: Bins | None = None,
    log_snr_max: float = LOG_SNR_LIMIT,
) -> Bound:
    """The continuous-time bound, the integral over λ estimated with a random level in each of `num_levels` strata.

    Unbiased, for any family: ½ ∫ ‖ε - ε̂‖² dλ for a Gaussian process, ∫ nats dλ for tokens. Levels run from the
    process's own end, at least λ = -20, to `log_snr_max`, where the data are read off.

    Source: Kingma et al., arXiv 2107.00630; Sahoo et al., arXiv 2406.07524, for masks.
    """
    process, count = denoiser.process, len(x_0)
    _check_batch(x_0)
    if num_levels < 1:
        raise ConfigError(f"num_levels must be at least 1, not {num_levels}")
    low = max(process.time_map.log_snr(1.0), -LOG_SNR_LIMIT)
    high = min(process.time_map.log_snr(0.0), log_snr_max)
    if not low < high:
        raise ConfigError(f"log_snr_max must be above the process's lowest level {low:g}, not {log_snr_max:g}")
    width = (high - low) / num_levels
    terms = []
    for index in range(num_levels):
        level = low + width * (index + noise.fork("level").at(index).uniform((count,)))
        corrupted = process.marginal(x_0, process.time_map.time(level), noise.at(index + 1))
        error = process.error(corrupted, denoiser(corrupted.x_t, corrupted.t, cond))
        terms.append(width * _summed(process.nats(error)).cpu())
    # A map with a finite λ(0) has that level just above time 0, where x_t can still be asked about.
    t = max(process.time_map.time(high), 1e-9)
    x_t = process.marginal(x_0, torch.full((count,), t, dtype=torch.float64), noise.at(0)).x_t
    reconstruction = process.reconstruction(x_0, denoiser(x_t, t, cond), t, bins).cpu()
    middles = low + width * (torch.arange(num_levels, dtype=torch.float64) + 0.5)
    return Bound(process.prior_gap(x_0, 1.0).cpu(), torch.stack(terms, 1), middles, reconstruction, x_0[0].numel())


def log_likelihood(
    denoiser: Denoiser,
    x_0: Tensor,
    *,
    num_steps: int = 64,
    probes: Noise | None = None,
    num_probes: int = 1,
    cond: Cond | None = None,
    log_snr_max: float = LOG_SNR_LIMIT,
) -> Tensor:
    """ln p(x_0) by the probability-flow ODE, in nats, float64 [B]: the density of what deterministic samplers draw.

    For y of unit scale, y = x_t / √(α² + σ²), and u = λ/2 the flow is dy/du = a (x̂_0 - a y) with a² = sigmoid(λ), and
    d ln p/du is minus its divergence. Integrated by the classical Runge-Kutta method, `num_steps` steps even in λ, four
    evaluations each, from the data at `log_snr_max` to the prior.

    Args:
        x_0: clean data [B, ...]. Discrete data need noise added to them first, see `bins` of the bounds.
        num_steps: doubling it should not change the answer; if it does, double it.
        probes: one key per sample for Hutchinson's estimate of the divergence, unbiased, with signs ±1. None is the
            exact divergence, a backward pass for every number of a sample, up to 64 of them.
        num_probes: how many are averaged.
        log_snr_max: where the data are taken to be; the density is that of data with this much noise.

    Raises:
        IncompatibleError: the process is not Gaussian.
        ConfigError: a sample is too large for the exact divergence.

    Source: Song et al., arXiv 2011.13456; Grathwohl et al., arXiv 1810.01367, for Hutchinson's estimate.
    """
    process = _gaussian(denoiser.process, "log_likelihood")
    _check_batch(x_0)
    size = x_0[0].numel()
    if probes is None and size > EXACT_DIVERGENCE_UP_TO:
        raise ConfigError(
            f"the exact divergence of {size} numbers would cost {size} backward passes an evaluation, and is kept to "
            f"{EXACT_DIVERGENCE_UP_TO}: pass probes=Noise(seeds), one seed per sample, to estimate it"
        )
    high = 0.5 * min(process.time_map.log_snr(0.0), log_snr_max)
    low = 0.5 * max(process.time_map.log_snr(1.0), -LOG_SNR_LIMIT)
    draw = None if probes is None else _signs(probes, x_0, num_probes)

    def flow(y: Tensor, u: float) -> tuple[Tensor, Tensor]:
        """dy/du and its divergence."""
        t = process.time_map.time(2.0 * u)
        t = min(max(t, 1e-9), 1.0)  # the map's ends are its ends, whichever way they round
        alpha, sigma = process.scales(t)
        a = alpha / math.sqrt(alpha**2 + sigma**2)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            mean = denoiser(math.sqrt(alpha**2 + sigma**2) * y, t, cond).mean
            trace = _trace(mean, y, draw)
        return (a * (mean - a * y)).detach(), a * trace - a * a * size

    h = (low - high) / num_steps
    y = x_0.detach() * math.sqrt(1.0 / (1.0 + math.exp(-2.0 * high)))
    gained = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    for index in range(num_steps):
        u = high + index * h
        k1, d1 = flow(y, u)
        k2, d2 = flow(y + 0.5 * h * k1, u + 0.5 * h)
        k3, d3 = flow(y + 0.5 * h * k2, u + 0.5 * h)
        k4, d4 = flow(y + h * k3, u + h)
        y = y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        gained = gained + h / 6.0 * (d1 + 2.0 * d2 + 2.0 * d3 + d4)
    prior = -0.5 * _summed(y**2) - 0.5 * size * math.log(2.0 * math.pi)
    # ln p falls by the divergence on the way to the noise; and y is a times smaller than x_0.
    return prior + gained + 0.5 * size * -math.log1p(math.exp(-2.0 * high))


def _signs(probes: Noise, x: Tensor, num_probes: int) -> list[Tensor]:
    """±1 for every number of x, [B, ...], num_probes times: held through the walk, as the ODE's solver needs."""
    return [2.0 * (probes.at(index).uniform(x.shape) < 0.5).to(x.device, x.dtype) - 1.0 for index in range(num_probes)]


def _trace(mean: Tensor, y: Tensor, probes: Sequence[Tensor] | None) -> Tensor:
    """tr ∂mean/∂y, float64 [B]."""
    vjp: Callable[[Tensor], Tensor] = lambda v: torch.autograd.grad(mean, y, v, retain_graph=True)[0]  # noqa: E731
    if probes is not None:
        return torch.stack([_summed(vjp(probe) * probe) for probe in probes]).mean(0)
    flat = torch.zeros(len(y), y[0].numel(), dtype=y.dtype, device=y.device)
    total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for i in range(flat.shape[1]):
        one = flat.clone()
        one[:, i] = 1.0
        total = total + vjp(one.reshape(y.shape)).flatten(1)[:, i].double()
    return total


def _gaussian(process: Process, what: str) -> Gaussian:
    if not isinstance(process, Gaussian):
        raise IncompatibleError(
            f"{what} needs a Gaussian process, not {type(process).__name__}; continuous_bound takes any"
        )
    return process
