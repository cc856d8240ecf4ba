"""Gaussian diffusion: x_t = α x_0 + σ ε, in four scalings of one process.

DDPM, DDIM, score SDEs, EDM and flow matching differ in the time map and in the row of the table below; the row only
changes units, so a sampler gives the same samples in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.core.process import Corrupted, Error, Moment, Process
from diff_diffusion.core.time_maps import TimeMap
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import Real, expand, maths, mixed


def _variance_preserving(f: Any, log_snr: Any) -> Any:
    return f.sqrt(f.sigmoid(log_snr)), f.sqrt(f.sigmoid(-log_snr))


def _variance_exploding(f: Any, log_snr: Any) -> Any:
    return torch.ones_like(log_snr) if isinstance(log_snr, Tensor) else 1.0, f.exp(-0.5 * log_snr)


def _flow(f: Any, log_snr: Any) -> Any:
    return f.sigmoid(0.5 * log_snr), f.sigmoid(-0.5 * log_snr)


def _sub_variance_preserving(f: Any, log_snr: Any) -> Any:
    # With r = σ/α, α is the positive root of α² + r α = 1 and σ = r α; each as a sum of positive terms.
    r, snr = f.exp(-0.5 * log_snr), f.exp(log_snr)
    return 2.0 / (r + f.sqrt(r * r + 4.0)), 2.0 / (1.0 + f.sqrt(1.0 + 4.0 * snr))


SCALINGS: dict[str, Callable[[Any, Any], Any]] = {
    "vp": _variance_preserving,  # α² + σ² = 1
    "ve": _variance_exploding,  # α = 1
    "flow": _flow,  # α + σ = 1
    "sub_vp": _sub_variance_preserving,  # α² + σ = 1
}


@register("process/gaussian")
@dataclass(frozen=True)
class Gaussian(Process):
    """x_t = α(t) x_0 + σ(t) ε with ln(α²/σ²) given by the time map.

    Args:
        time_map: λ(t).
        scaling: "vp" (variance preserving), "ve" (variance exploding), "flow" (α + σ = 1) or "sub_vp" (α² + σ = 1).

    Raises:
        ConfigError: an unknown scaling.
        IncompatibleError: "ve" with a map that ends at λ = -∞, where σ would be infinite.

    >>> from diff_diffusion.core.time_maps import Flow
    >>> Gaussian(Flow(), "flow").scales(0.5)
    (0.5, 0.5)
    """

    time_map: TimeMap
    scaling: str = "vp"

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise ConfigError(f"unknown scaling {self.scaling!r}: it is one of {', '.join(map(repr, SCALINGS))}")
        if self.scaling == "ve" and math.isinf(self.time_map.log_snr(1.0)):
            raise IncompatibleError(
                f"scaling 've' has infinite noise where λ = -∞, and {type(self.time_map).__name__} ends there: "
                "use another scaling, or wrap the map in Truncated"
            )

    def scales(self, t: Real) -> tuple[Real, Real]:
        """(α, σ) at t: floats for a float, float64 tensors of t's shape for a tensor."""
        if isinstance(t, Moment) and t.process is self:
            if t.scales is None:
                t.scales = self._scales(t.log_snr)
            return t.scales
        return self._scales(self.time_map.log_snr(t))

    def _scales(self, log_snr: Any) -> Any:
        if isinstance(log_snr, float) and math.isinf(log_snr):
            return (1.0, 0.0) if log_snr > 0 else (0.0, 1.0)
        return SCALINGS[self.scaling](maths(log_snr), log_snr)

    def decay(self, t: float, s: float) -> float:
        """ρ = (σ_s/α_s) / (σ_t/α_t) = e^-h, the share of the noise-to-signal ratio that a step from t to s keeps.

        0 where the step must hold x̂_0: it ends at the data, or starts with no signal at all.
        """
        if s == 0.0:
            return 0.0
        return maths(t).exp(0.5 * (self.log_snr(t) - self.log_snr(s)))

    def marginal(self, x_0: Tensor, t: Tensor, noise: Noise) -> Corrupted:
        if not x_0.is_floating_point():
            raise ConfigError(f"a Gaussian process needs floating-point data, not {x_0.dtype}: encode them first")
        alpha, sigma = self.scales(t.to("cpu", torch.float64))
        eps = noise.normal(x_0.shape, like=x_0)
        return Corrupted(expand(alpha, x_0) * x_0 + expand(sigma, x_0) * eps, x_0, eps, t)

    def renoise(self, x_s: Tensor, s: float, t: float, noise: Noise) -> Tensor:
        alpha_s, sigma_s = self.scales(s)
        alpha_t, sigma_t = self.scales(t)
        kept = alpha_t / alpha_s
        added = math.sqrt(max(sigma_t**2 - (kept * sigma_s) ** 2, 0.0))
        return kept * x_s + added * noise.normal(x_s.shape, like=x_s)

    def reverse(
        self, x_t: Tensor, posterior: Posterior, t: float, s: float, *, eta: float = 0.0, noise: Noise | None = None
    ) -> Tensor:
        """x_s = α_s x̂_0 + √(σ_s² - c²) ε̂ + c n, with ε̂ = (x_t - α_t x̂_0) / σ_t and c = η σ_s √(1 - ρ²).

        η = 0 is DDIM: Euler's step on the probability-flow ODE in σ/α, and DPM-Solver-1. η = 1 is DDPM with its
        posterior variance β̃, or with a learned one between that and β, which other η leave alone.

        Source: Song et al., arXiv 2010.02502, equations 12 and 16, in terms of (α, σ).
        """
        if s == 0.0:
            return posterior.mean
        alpha_t, sigma_t = self.scales(t)
        alpha_s, sigma_s = self.scales(s)
        kept = sigma_s / sigma_t
        if eta > 0.0:
            decay = self.decay(t, s)
            kept *= math.sqrt(1.0 - eta**2 + (eta * decay) ** 2)  # √(σ_s² - c²) / σ_t, uncancelled
        x_s = mixed(kept, x_t, alpha_s - kept * alpha_t, posterior.mean)
        if eta > 0.0:
            if noise is None:
                raise ConfigError(f"a step with eta={eta} draws noise, and none was given: pass noise=Noise(seeds)")
            fresh = eta * sigma_s * math.sqrt(max(1.0 - decay**2, 0.0))
            drawn = noise.normal(x_s.shape, like=x_s)
            if eta == 1.0 and isinstance(posterior, GaussianPosterior) and posterior.share is not None:
                drawn = drawn * torch.exp((0.5 * self.log_ratio(t, s)) * posterior.share)
            x_s.add_(drawn, alpha=fresh)
        return x_s

    def error(self, corrupted: Corrupted, posterior: Posterior) -> Error:
        """x̂_0 - x_0, and the SNR, which makes its square that of ε̂'s error."""
        return Error(posterior.mean - corrupted.x_0, torch.exp(self.time_map.log_snr(corrupted.t)))

    def nats(self, error: Error) -> Tensor:
        """½ ‖ε - ε̂‖²."""
        return error.value**2 * expand(0.5 * error.gain, error.value)

    def reconstruction(self, x_0: Tensor, posterior: Posterior, t: float, bins: Any | None = None) -> Tensor:
        """-ln N(x_0; x̂_0, σ²/α²), or of the mass that this puts in x_0's bin."""
        alpha, sigma = self.scales(t)
        if alpha == 0.0:
            raise ConfigError(f"nothing can be read off at time {t:g}, where no signal is left: give more steps")
        std = sigma / alpha
        if bins is not None:
            return -bins.log_probability(x_0, posterior.mean, std).flatten(1).sum(1)
        deviation = (x_0.double() - posterior.mean.double()) / std
        return (0.5 * deviation**2 + math.log(std) + 0.5 * math.log(2.0 * math.pi)).flatten(1).sum(1)

    def shown(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """x_t / √(α² + σ²)."""
        if self.scaling == "vp":
            return x_t
        alpha, sigma = self.scales(t)
        return expand((alpha**2 + sigma**2) ** -0.5, x_t) * x_t

    def prior_gap(self, x_0: Tensor, t: float) -> Tensor:
        alpha, sigma = self.scales(t)
        total = alpha**2 + sigma**2
        spread = sigma**2 / total
        square = (x_0.double() ** 2).flatten(1).sum(1)
        return 0.5 * (square * (alpha**2 / total) + x_0[0].numel() * (spread - 1.0 - math.log(spread)))

    def divergence(self, x_0: Tensor, posterior: Posterior, t: float | Tensor, s: float | Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)) of the stochastic step (η = 1), nats for each number of x_0, s > 0.

        ½ (SNR_s - SNR_t) (x_0 - x̂_0)², and with a learned variance r^v times the least, where r = β / β̃:
        ½ (v ln r - 1 + r^-v (1 + (SNR_s - SNR_t) (x_0 - x̂_0)²)).
        """
        assert isinstance(posterior, GaussianPosterior)
        gained = maths(t).exp(self.log_snr(s)) - maths(t).exp(self.log_snr(t))
        missed = expand(gained, x_0) * (x_0 - posterior.mean) ** 2
        if posterior.share is None:
            return 0.5 * missed
        log_ratio = posterior.share * expand(self.log_ratio(t, s), x_0)
        return 0.5 * (log_ratio - 1.0 + torch.exp(-log_ratio) * (1.0 + missed))

    def log_ratio(self, t: float | Tensor, s: float | Tensor) -> float | Tensor:
        """ln(β / β̃) of a step: its variance for data of variance 1, over that for data already known."""
        softplus = maths(t).softplus
        return softplus(self.log_snr(s)) - softplus(self.log_snr(t))

    def prior(self, shape: Sequence[int], noise: Noise, t: float = 1.0) -> Tensor:
        """N(0, α² + σ²): the process at t for data of mean 0 and variance 1."""
        alpha, sigma = self.scales(t)
        return math.sqrt(alpha**2 + sigma**2) * noise.normal(shape)
