"""Every distance between samples and real images on one feature network, as records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diff_diffusion.evaluation import manifolds
from diff_diffusion.evaluation.distances import frechet, kernel_distance, sliced_wasserstein
from diff_diffusion.evaluation.feature_networks import FeatureNetwork
from diff_diffusion.evaluation.records import GROUPS, Record, Setting, jackknife
from diff_diffusion.evaluation.score import interval

LEAST = GROUPS
"""Samples below which nothing is measured."""

DISTANCES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "FD": frechet,
    "KID": kernel_distance,
    "SW": sliced_wasserstein,
}
SHARES: dict[str, Callable[[manifolds.Between], float]] = {
    "precision": manifolds.precision_of,
    "recall": manifolds.recall_of,
    "density": manifolds.density_of,
    "coverage": manifolds.coverage_of,
}
METRICS = (*DISTANCES, *SHARES)


def described(network: FeatureNetwork, n: int, setting: Setting) -> dict[str, Any]:
    """What is known of all records on a network before any is measured."""
    resized = network.filter if network.size is not None else None
    about = {"features": network.name, "sha256": network.sha256, "size": network.size, "filter": resized}
    return about | {"n": n, "setting": setting}


def measured(
    network: FeatureNetwork,
    samples: Tensor,
    held_out: Tensor,
    reference: Tensor,
    setting: Setting,
    only: Sequence[str] = METRICS,
    strata: Tensor | None = None,
) -> tuple[Record, ...]:
    """The metrics of n samples and, as floors, of n held-out images in their place.

    A Fréchet distance takes all of the reference, since more real images make its floor lower; the others compare n
    with n, as their papers do. KID is of features divided by the root mean square of the reference's.

    Args:
        network: what made the features, for the records.
        samples, held_out: features, float64 [n, D] each, in random order.
        reference: of training images, float64 [M, D], M at least n, in random order.
        only: some of METRICS.
        strata: int64 [n], the class that each sample was asked to be, if any.
    """
    n = len(samples)
    about = described(network, n, setting)
    # The kernel of KID was made for features of about 1, which those of another network need not be.
    unit = float((reference**2).mean().sqrt()) or 1.0
    records = []

    def add(metric: str, value: float, floor: float, half: float, size: int) -> None:
        low, high = value - half, value + half
        if metric in ("precision", "recall", "coverage"):
            # A share of 0 or 1 has no spread to be seen, and is not known for certain all the same.
            least, most = interval(value * n, n)
            low, high = max(0.0, min(low, least)), min(1.0, max(high, most))
        elif metric != "KID":  # the one distance that may lie below 0
            low = max(0.0, low)
        name = f"{metric}-{setting.data}-{about['features']}, n={n}"
        records.append(Record(name, metric, value, (low, high), floor, metric in SHARES, reference=size, **about))

    for metric, distance in DISTANCES.items():
        if metric in only:
            real = reference if metric == "FD" else reference[:n]
            scale = unit if metric == "KID" else 1.0
            drawn, true, real = samples / scale, held_out / scale, real / scale

            def left(rows: Tensor, of: Any = distance, drawn: Tensor = drawn, real: Tensor = real) -> float:
                return float(of(drawn[rows], real))

            add(metric, distance(drawn, real), distance(true, real), jackknife(left, n, strata), len(real))
    if set(only) & set(SHARES):
        found, real_found = (manifolds.between(some, reference[:n]) for some in (samples, held_out))
        for metric, share in SHARES.items():
            if metric in only:

                def kept(rows: Tensor, of: Any = share) -> float:
                    return float(of(found.kept(rows)))

                add(metric, share(found), share(real_found), jackknife(kept, n, strata), n)
    return tuple(records)
