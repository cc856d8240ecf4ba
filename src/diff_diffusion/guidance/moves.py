"""Ways to move away from a reference that cost no evaluation: what a large scale spoils, held back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.errors import ConfigError, IncompatibleError


@dataclass(frozen=True)
class Rescale:
    """Extrapolated, then the contrast of x̂_0 pulled back to what it was: x̂ (1 - φ + φ std(x̂_cond) / std(x̂)).

    The deviation is over all numbers of a sample. The paper rescales the network's output, v in its models; here it is
    x̂_0, which is the same for every target and process. Where there is no signal v = -x̂_0, and the two are one.

    Args:
        phi: from 0, no change, to 1, exactly the conditional deviation.

    Raises:
        ConfigError: phi outside [0, 1].
        IncompatibleError: at the call, a posterior of tokens.

    Source: Lin et al., arXiv 2305.08891, equations 13 to 16, who advise phi 0.7 at scale 7.5.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 <= self.phi <= 1.0:
            raise ConfigError(f"phi must be from 0 (no rescaling) to 1 (all the way), not {self.phi}")

    def __call__(self, posterior: Posterior, reference: Posterior, scale: float) -> Posterior:
        here, there = _gaussian(self, posterior), _gaussian(self, reference)
        moved = here.extrapolate(there, scale)
        was, now = (_per_sample(mean.flatten(1).std(1, correction=0), mean) for mean in (here.mean, moved.mean))
        ratio = torch.where(now > 0, was / now, 1.0)
        return GaussianPosterior(moved.mean * (1.0 + self.phi * (ratio - 1.0)), moved.tweedie, moved.share)


@dataclass(frozen=True)
class Project:
    """Adaptive projected guidance: the part of the move that only makes x̂_0 larger is weighed by eta.

    With d = x̂_cond - x̂_ref, made no longer than `threshold`, and d∥ its part along x̂_cond:
    x̂ = x̂_cond + (scale - 1) (d - d∥ + eta d∥). So eta 1 without a threshold is plain extrapolation.

    The paper's momentum is not here: it is a memory of the steps before, and a denoiser that remembered would answer
    according to who had asked it last, in another walk, batch or stage of a solver.

    Args:
        eta: the weight of the parallel part.
        threshold: the largest norm of d over a sample; infinite for none. It grows as the root of a sample's size.

    Raises:
        ConfigError: an eta that is not finite or a threshold that is not above 0.
        IncompatibleError: at the call, a posterior of tokens.

    Source: Sadat et al., arXiv 2410.02416.
    """

    eta: float = 0.0
    threshold: float = math.inf

    def __post_init__(self) -> None:
        if not math.isfinite(self.eta):
            raise ConfigError(f"eta must be a finite number, not {self.eta}; 1 means no projection")
        if not self.threshold > 0.0:
            raise ConfigError(f"the threshold of the norm must be above 0, not {self.threshold}; inf means none")

    def __call__(self, posterior: Posterior, reference: Posterior, scale: float) -> Posterior:
        here, there = _gaussian(self, posterior), _gaussian(self, reference)
        away = here.mean - there.mean
        norm = _per_sample(away.flatten(1).norm(dim=1), away)
        away = away * (self.threshold / norm).clamp(max=1.0)
        axis = torch.nn.functional.normalize(here.mean.flatten(1), dim=1).view_as(away)
        along = _per_sample((away * axis).flatten(1).sum(1), away) * axis
        return here.moved((scale - 1.0) * (away - along + self.eta * along))


def _gaussian(move: object, posterior: Posterior) -> GaussianPosterior:
    if not isinstance(posterior, GaussianPosterior):
        raise IncompatibleError(
            f"{type(move).__name__} needs the posterior of a Gaussian process, and this is a "
            f"{type(posterior).__name__}: it is guided by plain extrapolation, move=None"
        )
    return posterior


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] ready to multiply [B, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))
