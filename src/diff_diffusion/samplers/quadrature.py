"""Quadrature: the one idea behind every multistep solver.

A step integrates something against a known density over the step. Knowing it at a few places only (past answers, and
for correctors the newest), take the polynomial through them and integrate that exactly: a weighted mean of the answers.
The weights depend on the places and on the density's moments alone, and sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

_POINTS = 16


@lru_cache(maxsize=1)
def gauss_legendre() -> tuple[tuple[float, float], ...]:
    """(place, weight) of the rule that integrates over [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(_POINTS)
    return tuple((0.5 * (1.0 + float(x)), 0.5 * float(w)) for x, w in zip(places, weights, strict=True))


def weights(nodes: Sequence[float], density: Callable[[float], float]) -> list[float]:
    """Weights w_j, of sum 1, such that Σ w_j f(nodes[j]) = ∫ f density / ∫ density over [0, 1] for polynomials f.

    Exact for degrees below the number of nodes, which lie anywhere: past answers have negative places.

    >>> [round(w, 12) for w in weights([0.0, 1.0], lambda r: 1.0)]  # the trapezoidal rule
    [0.5, 0.5]
    """
    table = [(r, w * density(r)) for r, w in gauss_legendre()]
    mass = math.fsum(w for _, w in table)
    found = []
    for j, here in enumerate(nodes):
        others = [node for i, node in enumerate(nodes) if i != j]
        scale = math.prod(here - other for other in others) * mass
        found.append(math.fsum(w * math.prod(r - other for other in others) for r, w in table) / scale)
    return found
