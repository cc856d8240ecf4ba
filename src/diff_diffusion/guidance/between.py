"""Between two conditions: x̂_0 on the straight way from one's answer to the other's."""

from __future__ import annotations

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.errors import ConfigError, listed
from diff_diffusion.tensors import expand


class Between(Denoiser):
    """A denoiser of what lies between two conditions: x̂_0 = (1 - s) x̂_0(cond) + s x̂_0(other), s of each sample.

    Share 0 is the condition that it is asked with, 1 the other. The score is then that of p(x_t | cond)^(1-s)
    p(x_t | other)^s: of two Gaussians of one covariance, the Gaussian between them. Both are asked in one batched call.

    Args:
        denoiser: of a Gaussian process; guidance goes inside.
        other: a row for each sample, with the names that the condition of the call has.
        shares: [B], each in [0, 1].

    Raises:
        ConfigError: a share outside [0, 1], or at the call conditions of other names.

    Source: Liu et al., "Composable Diffusion Models", arXiv 2206.01714, for products of conditions' densities.
    """

    def __init__(self, denoiser: Denoiser, other: Cond, shares: Tensor) -> None:
        if not bool(((shares >= 0) & (shares <= 1)).all()):
            raise ConfigError(f"a share of the way is from 0 to 1, not {shares.tolist()}")
        self.denoiser = denoiser
        self.process = denoiser.process
        self.other = other
        self.shares = shares

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        names = set(cond.values) if cond else set()
        if not cond or names != set(self.other.values):
            raise ConfigError(
                f"between two conditions both must be named alike, not {listed(sorted(names)) or 'nothing'} and "
                f"{listed(sorted(self.other.values))}"
            )
        twice = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        both = self.denoiser(torch.cat([x_t, x_t]), twice, cond.cat(self.other))
        one, other = both[: len(x_t)], both[len(x_t) :]
        assert isinstance(one, GaussianPosterior)
        return one.moved(expand(self.shares, x_t) * (other.mean - one.mean))
