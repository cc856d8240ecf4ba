"""Bounds on the guess: x̂_0 kept where data can be."""

from __future__ import annotations

from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.posterior import GaussianPosterior, Posterior


class Clipped(Denoiser):
    """A denoiser whose x̂_0 is clipped to [low, high], as DDPM does.

    An eps network divides its error by α to say x_0. Where hardly any signal is left that error is thousands of times
    the data's range, and a sampler with few steps carries it along; clipped, it is a wrong guess like any other.

    Args:
        denoiser: any.
        low, high: the data's range in latent units, shapes that broadcast with x.

    Source: Ho et al., arXiv 2006.11239, whose sampler clips x̂_0 to the range of its images.
    """

    def __init__(self, denoiser: Denoiser, low: Tensor, high: Tensor) -> None:
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
