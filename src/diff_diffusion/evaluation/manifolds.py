"""Quality and variety apart: how much of each of two sets lies within the other, by balls to the k-th neighbour.

Each function takes features of samples and of real data, [N, D] and [M, D] float64, and gives a share (a density may
exceed 1). Around every point of a set lies a ball that reaches to its k-th nearest neighbour in its own set; the
union of the balls stands for where the set is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diff_diffusion.errors import ConfigError
from diff_diffusion.evaluation.distances import checked

K = 3
"""Neighbours of precision and recall, as in their paper."""
K_DENSE = 5
"""Neighbours of density and coverage, as in theirs."""


class Between(NamedTuple):
    """All distances that these numbers are made of: samples to real [N, M], among samples [N, N], among real [M, M]."""

    across: Tensor
    samples: Tensor
    real: Tensor

    def kept(self, rows: Tensor) -> Between:
        """Of these samples alone."""
        return Between(self.across[rows], self.samples[rows][:, rows], self.real)


def between(samples: Tensor, real: Tensor) -> Between:
    """The distances between and within two sets.

    Raises:
        DataError: fewer than two samples, or values that are not finite.
    """
    checked("ball to neighbours", samples, real)
    centre = real.mean(0)  # distances are differences of squared norms, and small norms lose fewer digits
    a, b = samples - centre, real - centre
    return Between(torch.cdist(a, b), torch.cdist(a, a), torch.cdist(b, b))


def precision_of(found: Between, k: int = K) -> float:
    return float(_inside(found.across, _radii(found.real, k)).any(1).double().mean())


def recall_of(found: Between, k: int = K) -> float:
    return float(_inside(found.across.T, _radii(found.samples, k)).any(1).double().mean())


def density_of(found: Between, k: int = K_DENSE) -> float:
    return float(_inside(found.across, _radii(found.real, k)).double().sum(1).mean() / k)


def coverage_of(found: Between, k: int = K_DENSE) -> float:
    return float(_inside(found.across, _radii(found.real, k)).any(0).double().mean())


def precision(samples: Tensor, real: Tensor, k: int = K) -> float:
    """The share of samples that lie in the ball of a real image: how many look real.

    Source: Kynkäänniemi et al., arXiv 1904.06991.
    """
    return precision_of(between(samples, real), k)


def recall(samples: Tensor, real: Tensor, k: int = K) -> float:
    """The share of real images that lie in the ball of a sample: how much of the data can be drawn.

    Source: Kynkäänniemi et al., arXiv 1904.06991.
    """
    return recall_of(between(samples, real), k)


def density(samples: Tensor, real: Tensor, k: int = K_DENSE) -> float:
    """In how many balls of real images a sample lies, divided by k: precision that an outlier's large ball does not
    lift. Its expectation is 1 for two sets of one distribution.

    Source: Naeem et al., arXiv 2002.09797.
    """
    return density_of(between(samples, real), k)


def coverage(samples: Tensor, real: Tensor, k: int = K_DENSE) -> float:
    """The share of real images with a sample in their ball: recall in which samples, which may be wild, have no balls.

    Source: Naeem et al., arXiv 2002.09797.
    """
    return coverage_of(between(samples, real), k)


def _radii(within: Tensor, k: int) -> Tensor:
    """The distance to the k-th neighbour of each; the point itself, at distance 0, is the first of k + 1."""
    if not 1 <= k < len(within):
        raise ConfigError(f"k = {k} neighbours of {len(within)} samples: it must be from 1 to {len(within) - 1}")
    others = within + torch.diag(torch.full((len(within),), -1.0, dtype=within.dtype, device=within.device))
    return others.kthvalue(k + 1, 1).values.clamp(min=0)


def _inside(across: Tensor, radii: Tensor) -> Tensor:
    # Distances through products are exact to some 1e-8 of the norms, so a ball's own boundary needs that much room.
    return across <= radii * (1.0 + 1e-9) + 1e-7 * float(radii.median())
