"""What a denoiser knows about the clean data given the noisy data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diff_diffusion.tensors import expand


class Posterior(ABC):
    """p(x_0 | x_t) in the form that its family of processes needs.

    Guidance moves a posterior along its natural parameter, which for a Gaussian is the mean.
    """

    mean: Tensor
    """E[x_0 | x_t], [B, ...]."""

    @abstractmethod
    def extrapolate(self, reference: Posterior, scale: float) -> Posterior:
        """From `reference` through this posterior by `scale`: 0 is the reference, 1 is this one, above goes beyond.

        Classifier-free guidance, negative prompts and autoguidance are this, with different references.
        """

    @abstractmethod
    def __getitem__(self, rows: slice) -> Posterior:
        """The posterior of some samples of the batch."""

    @abstractmethod
    def tilt(self, gradient: Tensor) -> Posterior:
        """This posterior after also seeing evidence y, given `gradient` = ∇ log p(y | x_t) with respect to x_t."""


@dataclass(slots=True)  # frozen, each would cost a third of a microsecond more, and every evaluation makes one
class GaussianPosterior(Posterior):
    """The posterior of a Gaussian process, known by its mean.

    Args:
        mean: E[x_0 | x_t], [B, ...].
        tweedie: σ²/α of the time it was asked at; a float, or a tensor whose shape is a prefix of the mean's.
        share: a learned variance for a stochastic step, as a share in [0, 1] of the way from ln β̃ to ln β, like the
            mean; None for β̃ itself.
    """

    mean: Tensor
    tweedie: float | Tensor
    share: Tensor | None = None

    def moved(self, by: Tensor) -> GaussianPosterior:
        """The mean moved by a correction, as higher-order solvers do."""
        return GaussianPosterior(self.mean + by, self.tweedie, self.share)

    def extrapolate(self, reference: Posterior, scale: float) -> GaussianPosterior:
        mean = torch.add(reference.mean, self.mean - reference.mean, alpha=scale)
        return GaussianPosterior(mean, self.tweedie, self.share)

    def __getitem__(self, rows: slice) -> GaussianPosterior:
        per_sample = isinstance(self.tweedie, Tensor) and self.tweedie.ndim > 0
        tweedie = self.tweedie[rows] if per_sample else self.tweedie  # type: ignore[index]
        return GaussianPosterior(self.mean[rows], tweedie, None if self.share is None else self.share[rows])

    def tilt(self, gradient: Tensor) -> GaussianPosterior:
        """Tweedie's formula for the evidence: E[x_0 | x_t, y] = E[x_0 | x_t] + (σ²/α) ∇ log p(y | x_t)."""
        return self.moved(expand(self.tweedie, gradient) * gradient)
