"""Distances between sets of samples: each takes two sets of features, [N, D] and [M, D] float64, and gives a number.

0 is two equal distributions. None of them is 0 for two finite sets of real images, so a distance is read beside its
floor, real against real at the same n.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from diff_diffusion.errors import ConfigError, DataError
from diff_diffusion.rng import generator

DIRECTIONS = 128
"""Of a sliced distance, at least."""


def checked(what: str, a: Tensor, b: Tensor, least: int = 2) -> None:
    """That two sets of features can be compared.

    Raises:
        DataError: fewer than `least` samples, other widths, or values that are not finite.
    """
    if len(a) < least or len(b) < least or a.ndim != 2 or a.shape[1:] != b.shape[1:]:
        raise DataError(f"a {what} needs two sets of at least {least}, not {list(a.shape)} and {list(b.shape)}")
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise DataError("features hold values that are not finite")


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features, [N, D] and [M, D] float64.

    ‖μ_a - μ_b‖² + tr(C_a + C_b - 2 (C_a C_b)^½). Biased upward at small n: compare with real data against real data at
    the same n, and only with distances on the same features.

    Raises:
        DataError: fewer than two samples, or values that are not finite.

    Source: Heusel et al., arXiv 1706.08500, equation 6.
    """
    checked("Fréchet distance", a, b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    size = a.shape[1]
    cov_a, cov_b = (
        torch.cov(a.T).reshape(size, size),
        torch.cov(b.T).reshape(size, size),
    )  # of one feature it is a scalar
    # tr (C_a C_b)^½ = tr (C_a^½ C_b C_a^½)^½, whose argument is symmetric: no matrix square root that can turn complex.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float(((mean_a - mean_b) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * overlap)


def kernel_distance(a: Tensor, b: Tensor, *, subsets: int | None = None, size: int = 1000, seed: int = 0) -> float:
    """KID, the squared maximum mean discrepancy with the kernel (x·y / D + 1)³, without bias at any n; may be below 0.

    mean k(a_i, a_j) over i ≠ j, and the same of b, less twice mean k(a_i, b_j). The kernel has a scale of its own: it
    fits features of about 1, and of much larger ones it sees the third moment of the longest alone.

    Args:
        subsets: the mean over so many random subsets of both, as the paper has it for large sets; None for all pairs,
            the estimate that it is the expectation of.
        size: of a subset.
        seed: of the subsets.

    Raises:
        ConfigError: subsets that cannot be drawn.
        DataError: fewer than two samples, or values that are not finite.

    Source: Bińkowski et al., arXiv 1801.01401.
    """
    checked("kernel distance", a, b)
    if subsets is None:
        return _mmd(a, b)
    if subsets < 1 or not 2 <= size <= min(len(a), len(b)):
        raise ConfigError(
            f"{subsets} subsets of {size} cannot be drawn: at least 1, of 2 to {min(len(a), len(b))} samples"
        )
    rng, total = generator(seed, "kernel distance"), 0.0
    for _ in range(subsets):
        chosen_a, chosen_b = (torch.from_numpy(rng.permutation(len(x))[:size]) for x in (a, b))
        total += _mmd(a[chosen_a], b[chosen_b])
    return total / subsets


def _mmd(a: Tensor, b: Tensor) -> float:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1.0) ** 3

    def within(x: Tensor) -> Tensor:
        pairs = kernel(x, x)
        return (pairs.sum() - pairs.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2.0 * kernel(a, b).mean())


def sliced_wasserstein(a: Tensor, b: Tensor, *, seed: int = 0) -> float:
    """The root of the mean, over directions θ, of the squared Wasserstein-2 distance between θ·a and θ·b.

    Between sets on a line the distance is exact, also for sets of unlike size. The directions are whole orthonormal
    bases, so that a shift by m gives ‖m‖ / √D, the root mean square shift of a feature, up to D = 128 exactly.

    Args:
        seed: of the directions.

    Raises:
        DataError: no samples, or values that are not finite.

    Source: Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures" (2015).
    """
    checked("sliced Wasserstein distance", a, b, least=1)
    directions = _directions(a.shape[1], seed)
    lines_a, lines_b = ((x @ directions).sort(0).values for x in (a, b))
    # Both quantile functions are steps: between the ends of either's steps they are constant.
    ends = torch.cat([torch.arange(1, len(x) + 1, dtype=torch.float64) / len(x) for x in (a, b)]).unique()
    widths = ends.diff(prepend=torch.zeros(1, dtype=torch.float64))
    middles = ends - widths / 2
    steps_a, steps_b = ((middles * len(x)).long().clamp(max=len(x) - 1) for x in (a, b))
    squared = (lines_a[steps_a] - lines_b[steps_b]) ** 2
    return float((widths @ squared).mean().sqrt())


@lru_cache(maxsize=4)
def _directions(width: int, seed: int) -> Tensor:
    """Unit vectors as columns [D, K]: orthonormal bases until there are DIRECTIONS, or DIRECTIONS orthonormal ones."""
    bases: list[Tensor] = []
    rng = generator(seed, "directions")
    while sum(basis.shape[1] for basis in bases) < DIRECTIONS:
        drawn = torch.from_numpy(rng.standard_normal((width, min(width, DIRECTIONS))))
        bases.append(torch.linalg.qr(drawn).Q)
    return torch.cat(bases, 1)


def diversity(features: Tensor) -> float:
    """The mean distance between two different samples, over all pairs of [N, D].

    Raises:
        DataError: fewer than two samples, or values that are not finite.
    """
    checked("mean pairwise distance", features, features)
    total = sum(float(torch.cdist(part, features).sum()) for part in features.split(1024))
    return total / (len(features) * (len(features) - 1))


def nearest(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample its nearest reference image: root mean square difference per value [N], and which [N].

    Both in data units, [N, C, H, W] and [M, C, H, W].
    """
    flat, others = samples.flatten(1).double(), reference.flatten(1).double()
    distances, which = zip(*((d.min(1)) for d in (torch.cdist(part, others) for part in flat.split(256))), strict=True)
    return torch.cat(distances) / flat.shape[1] ** 0.5, torch.cat(which)
