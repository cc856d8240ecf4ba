"""Guidance that depends on where in the walk it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.categorical import TokenPosterior
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance.scale import ClassifierFree


class Interval(Denoiser):
    """One denoiser for the levels low ≤ λ < high, another for all others: guidance only where it helps.

    At high noise guidance decides too early what the sample will be, at low noise it hardly changes it. Outside, the
    cost is that of the plain denoiser. The upper end is open, so that a step from there on down is not guided.

    Args:
        inside: the guided denoiser.
        outside: the plain one, of the same process.
        low, high: λ; infinite for no bound. For the paper's (σ_lo, σ_hi] these are -2 ln σ_hi and -2 ln σ_lo.

    Raises:
        ConfigError: low not below high.
        IncompatibleError: two processes.

    Source: Kynkäänniemi et al., arXiv 2404.07724, equations 5 and 6.
    """

    def __init__(self, inside: Denoiser, outside: Denoiser, low: float, high: float) -> None:
        if not low < high:
            raise ConfigError(f"an interval of levels needs low < high, not {low} and {high}")
        if inside.process != outside.process:
            raise IncompatibleError(
                f"the denoisers inside and outside of an interval must have one process, not {inside.process} and "
                f"{outside.process}"
            )
        self.inside, self.outside = inside, outside
        self.process = inside.process
        self.low, self.high = low, high

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        log_snr = self.process.log_snr(t)
        if not isinstance(log_snr, Tensor):
            return (self.inside if self.low <= log_snr < self.high else self.outside)(x_t, t, cond)
        within = (log_snr >= self.low) & (log_snr < self.high)
        if bool(within.all()):
            return self.inside(x_t, t, cond)
        if not bool(within.any()):
            return self.outside(x_t, t, cond)
        return _chosen(within, self.inside(x_t, t, cond), self.outside(x_t, t, cond))


class ClassifierFreePP(Denoiser):
    """CFG++ for DDIM: x_s = α_s (x̂_u + ω (x̂_c - x̂_u)) + σ_s ε̂_u. The noise put back is the unconditional one.

    Collecting x̂_c - x̂_u, this is classifier-free guidance of the scale ω / (1 - ρ), where ρ = (σ_s/α_s) / (σ_t/α_t) is
    the share of the noise that the step keeps. So it stays a denoiser; but one for a grid, since the scale is a step's,
    and grows without bound as steps are made smaller. On a grid even in λ it is one number but for the last step.

    Args:
        denoiser: a model of a Gaussian process, trained with conditions dropped some of the time.
        blend: ω, at least 0: 0 is unconditional, 1 holds x̂_c. No `scale`: there is no ω that means none.
        times: the decreasing grid that `Ancestral(eta=0)` will walk. No other sampler takes these steps.
        negative: as in `ClassifierFree`.

    Raises:
        ConfigError: a blend below 0 or not finite; times that do not decrease; at the call, a time that no step starts
            at, as solvers of higher order ask for.
        IncompatibleError: a process that is not Gaussian.

    Source: Chung et al., arXiv 2406.08070.
    """

    def __init__(self, denoiser: Denoiser, blend: float, times: Sequence[float], negative: Cond | None = None) -> None:
        if not 0.0 <= blend < math.inf:
            raise ConfigError(f"blend must be a number of at least 0, usually at most 1, not {blend}")
        if not isinstance(denoiser.process, Gaussian):
            raise IncompatibleError(
                f"CFG++ needs a Gaussian process; this model uses {type(denoiser.process).__name__}: use ClassifierFree"
            )
        rising = next((f"{t} to {s}" for t, s in pairwise(times) if s >= t), None)
        if rising is not None:
            raise ConfigError(f"CFG++ needs a grid that decreases, and this one goes from {rising}")
        self.denoiser = denoiser
        self.process: Gaussian = denoiser.process
        self.blend = blend
        self.times = tuple(times)
        self.negative = negative
        self._next = dict(pairwise(self.times))

    def scale(self, t: float) -> float:
        """ω / (1 - ρ): the scale of plain guidance that makes the same step from t."""
        if t not in self._next:
            raise ConfigError(
                f"no step of CFG++'s grid starts at {t}: give it the grid that is walked, and walk it by "
                "Ancestral(eta=0)"
            )
        return self.blend / (1.0 - self.process.decay(t, self._next[t]))

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        if isinstance(t, Tensor):
            raise ConfigError("CFG++ guides the steps of one grid, and times of their own for samples are on none")
        return ClassifierFree(self.denoiser, self.scale(t), self.negative)(x_t, t, cond)


def _chosen(where: Tensor, one: Posterior, other: Posterior) -> Posterior:
    """`one` where `where` (a prefix of x's shape) is true, else `other`."""
    if isinstance(one, TokenPosterior) and isinstance(other, TokenPosterior):
        return TokenPosterior(torch.where(_mask(where, one.logits), one.logits, other.logits))
    if not isinstance(one, GaussianPosterior) or not isinstance(other, GaussianPosterior):
        raise IncompatibleError(f"an interval of levels needs one time for the batch with a {type(one).__name__}")
    mean = torch.where(_mask(where, one.mean), one.mean, other.mean)
    if one.share is None or other.share is None:
        return GaussianPosterior(mean, one.tweedie)
    return GaussianPosterior(mean, one.tweedie, torch.where(_mask(where, mean), one.share, other.share))


def _mask(where: Tensor, x: Tensor) -> Tensor:
    return where.reshape(*where.shape, *[1] * (x.ndim - where.ndim)).to(x.device)
