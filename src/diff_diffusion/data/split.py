"""Which images of a set are kept from training."""

from __future__ import annotations

import numpy as np


def held_out(labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Which images to hold out, bool [N]: about `count` of them at random, every class in proportion.

    No class loses its last image to the held-out set, unless every class has only one. At least one image is held out.

    Args:
        labels: int [N], N at least 2; all zero where there are no classes.
        count: how many of them, from 1; fewer where classes would be emptied.
        generator: where the choice comes from.
    """
    sizes = np.bincount(labels)
    # Rounding the running total, not each share, is what makes the shares add up to `count`.
    ends = np.rint(np.cumsum(sizes) * (count / len(labels))).astype(int)
    shares = np.minimum(np.diff(ends, prepend=0), np.maximum(sizes - 1, 0))
    if shares.sum() == 0:
        shares[np.argmax(sizes)] = 1
    shuffled = generator.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    chosen = np.zeros(len(labels), bool)
    for first, share in zip(np.cumsum(sizes) - sizes, shares, strict=True):
        chosen[by_class[first : first + share]] = True
    return chosen
