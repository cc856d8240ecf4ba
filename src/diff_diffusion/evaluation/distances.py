"""Distances between sets of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from diff_diffusion.errors import DataError


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features, [N, D] and [M, D] float64.

    ‖μ_a - μ_b‖² + tr(C_a + C_b - 2 (C_a C_b)^½). Biased upward at small n: compare with real data against real data at
    the same n, and only with distances on the same features.

    Raises:
        DataError: fewer than two samples, or values that are not finite.

    Source: Heusel et al., arXiv 1706.08500, equation 6.
    """
    if len(a) < 2 or len(b) < 2 or a.shape[1:] != b.shape[1:]:
        raise DataError(f"a Fréchet distance needs two sets of at least 2, not {list(a.shape)} and {list(b.shape)}")
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise DataError("features hold values that are not finite")
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


def nearest(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample its nearest reference image: root mean square difference per value [N], and which [N].

    Both in data units, [N, C, H, W] and [M, C, H, W].
    """
    flat, others = samples.flatten(1).double(), reference.flatten(1).double()
    distances, which = zip(*((d.min(1)) for d in (torch.cdist(part, others) for part in flat.split(256))), strict=True)
    return torch.cat(distances) / flat.shape[1] ** 0.5, torch.cat(which)
