"""Bounds on the guess: x̂_0 kept where data can be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.errors import ConfigError, IncompatibleError


class Clipped(Denoiser):
    """A denoiser whose x̂_0 is clipped to [low, high], as DDPM does.

    An eps network divides its error by α to say x_0. Where hardly any signal is left that error is thousands of times
    the data's range, and a sampler with few steps carries it along; clipped, it is a wrong guess like any other.

    Args:
        denoiser: any.
        low, high: the data's range in latent units, shapes that broadcast with x.

    Raises:
        IncompatibleError: a denoiser of tokens.

    Source: Ho et al., arXiv 2006.11239, whose sampler clips x̂_0 to the range of its images.
    """

    def __init__(self, denoiser: Denoiser, low: Tensor, high: Tensor) -> None:
        _check(denoiser)
        self.denoiser = denoiser
        self.process = denoiser.process
        one, other = low.flatten()[0], high.flatten()[0]
        # The same for every number, as it often is? Clamping to floats costs a third of clamping to tensors.
        self.floats = (one.item(), other.item()) if (low == one).all() and (high == other).all() else None
        self.low, self.high = low, high

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        posterior = self.denoiser(x_t, t, cond)
        assert isinstance(posterior, GaussianPosterior)
        mean = posterior.mean
        mean = mean.clamp(*self.floats or (self.low.to(mean), self.high.to(mean)))
        return GaussianPosterior(mean, posterior.tweedie, posterior.share)


class DynamicallyClipped(Denoiser):
    """A denoiser whose x̂_0 is clipped to the range that most of it fits in, and that range shrunk to the data's.

    In units where the data's range is [-1, 1], s is the given quantile of a sample's |x̂_0|, at least 1, and
    x̂_0 becomes clip(x̂_0, -s, s) / s. Clipped alone, guidance by a large scale leaves whole regions at the edge; this
    pushes them inwards. Nothing changes for samples within the range.

    Args:
        denoiser: of a Gaussian process.
        low, high: the data's range in latent units, finite, shapes that broadcast with x.
        quantile: in (0, 1]; 1 shrinks without clipping.

    Raises:
        ConfigError: a range that is not finite, or empty; a quantile outside (0, 1].
        IncompatibleError: a denoiser of tokens.

    Source: Saharia et al., arXiv 2205.11487.
    """

    def __init__(self, denoiser: Denoiser, low: Tensor, high: Tensor, quantile: float = 0.995) -> None:
        _check(denoiser)
        if not bool((low < high).all() & torch.isfinite(high - low).all()):
            raise ConfigError(f"dynamic clipping needs a finite range of data, not {low} to {high}")
        if not 0.0 < quantile <= 1.0:
            raise ConfigError(f"the quantile must be above 0 and at most 1, not {quantile}")
        self.denoiser = denoiser
        self.process = denoiser.process
        self.low, self.high = low, high
        self.quantile = quantile

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        posterior = self.denoiser(x_t, t, cond)
        assert isinstance(posterior, GaussianPosterior)
        mean = posterior.mean
        centre, half = (0.5 * (self.low + self.high)).to(mean), (0.5 * (self.high - self.low)).to(mean)
        unit = (mean - centre) / half
        flat = unit.abs().flatten(1)
        # kthvalue and not torch.quantile, which takes no half precision: the least value with such a share at or below.
        limit = flat.kthvalue(max(1, math.ceil(self.quantile * flat.shape[1])), dim=1).values
        limit = limit.view(-1, *[1] * (mean.ndim - 1))
        inner = torch.where(limit > 1.0, centre + half * (unit / limit), mean)
        return GaussianPosterior(inner.clamp(self.low.to(mean), self.high.to(mean)), posterior.tweedie, posterior.share)


def _check(denoiser: Denoiser) -> None:
    if not isinstance(denoiser.process, Gaussian):
        raise IncompatibleError(
            f"clipping keeps numbers in their range, and {type(denoiser.process).__name__} has tokens: leave it out"
        )
