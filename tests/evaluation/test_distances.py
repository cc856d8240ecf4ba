"""Distances and shares between sets against closed forms, brute force, scipy, and cases done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from diff_diffusion.errors import ConfigError, DataError
from diff_diffusion.evaluation import manifolds
from diff_diffusion.evaluation.distances import diversity, kernel_distance, sliced_wasserstein


def normal(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1.0, (count, width)))


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


# ---- kernel distance -------------------------------------------------------------------------------------------------


def test_the_kernel_distance_of_two_and_two_points_is_done_by_hand() -> None:
    """k(0, 1) = 1, k(2, 3) = 343, and the mean of k over the four pairs across is (1 + 1 + 27 + 64) / 4."""
    assert kernel_distance(line(0, 1), line(2, 3)) == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)


def test_the_kernel_distance_has_the_closed_form_of_gaussians_and_no_bias() -> None:
    """In one dimension Σ_j C(3, j) (E x^j - E y^j)²; of N(0, 1) and N(½, 1) the moments are 0, 1, 0 and ½, 1¼, 1⅝.

    At n = 12 a biased estimate would be off by much more than the bound, five standard errors.
    """
    expected = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    for shift, closed in ((0.0, 0.0), (0.5, expected)):
        found = torch.tensor(
            [kernel_distance(normal(12, 1, 2 * i), normal(12, 1, 2 * i + 1, shift)) for i in range(3000)]
        )
        error = float(found.std()) / math.sqrt(len(found))
        assert float(found.mean()) == pytest.approx(closed, abs=5 * error)
        assert error < 0.25


def test_subsets_estimate_what_all_pairs_do() -> None:
    a, b = normal(120, 4, 0), normal(120, 4, 1, 0.4)
    whole = kernel_distance(a, b)
    assert kernel_distance(a, b, subsets=1, size=120) == pytest.approx(whole, rel=1e-9)
    assert kernel_distance(a, b, subsets=400, size=30) == pytest.approx(whole, rel=0.1)
    with pytest.raises(ConfigError, match="3 subsets of 121 cannot be drawn"):
        kernel_distance(a, b, subsets=3, size=121)


# ---- sliced Wasserstein ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 64])
def test_a_shift_is_its_root_mean_square(width: int) -> None:
    a = normal(50, width, 0)
    shift = torch.linspace(-1.0, 2.0, width, dtype=torch.float64)
    assert sliced_wasserstein(a, a + shift) == pytest.approx(float((shift**2).mean().sqrt()), rel=1e-9)


def test_on_a_line_it_is_the_best_assignment() -> None:
    """Of sets of one size by scipy; a set repeated is the same distribution, whatever the sizes."""
    a, b = normal(40, 1, 0), normal(40, 1, 1) * 2 + 1
    costs = ((a - b.T) ** 2).numpy()
    best = costs[scipy.optimize.linear_sum_assignment(costs)].mean() ** 0.5
    assert sliced_wasserstein(a, b) == pytest.approx(best, rel=1e-9)
    assert sliced_wasserstein(a.repeat(3, 1), b) == pytest.approx(best, rel=1e-9)
    assert sliced_wasserstein(a.repeat(3, 1), a.repeat(2, 1)) == pytest.approx(0.0, abs=1e-9)


def test_sets_of_unlike_size_are_done_by_hand() -> None:
    """{0, 3} against {0, 0, 3}: of the second's mass at 0 a sixth goes to 3."""
    assert sliced_wasserstein(line(0, 3), line(0, 0, 3)) == pytest.approx(math.sqrt(9 / 6))


def test_directions_beyond_the_width_are_orthonormal() -> None:
    """Of 300 features 128 directions see a shift by their share: E (θ·m)² = ‖m‖²/300."""
    a, shift = normal(20, 300, 0), normal(1, 300, 1)
    found = sliced_wasserstein(a, a + shift)
    assert found == pytest.approx(float((shift**2).mean().sqrt()), rel=0.2)
    assert found == sliced_wasserstein(a, a + shift)
    assert found != sliced_wasserstein(a, a + shift, seed=1)


# ---- diversity -------------------------------------------------------------------------------------------------------


def test_diversity_is_the_mean_over_pairs() -> None:
    assert diversity(line(0, 1, 3)) == pytest.approx((1 + 2 + 3) / 3)
    points = normal(1500, 2, 0)  # in more than one part; the distance of two is Rayleigh, √2 √(π/2)
    assert diversity(points) == pytest.approx(math.sqrt(math.pi), rel=0.05)
    assert diversity(torch.ones(9, 2, dtype=torch.float64)) == 0.0


@pytest.mark.parametrize("distance", [kernel_distance, sliced_wasserstein, manifolds.precision, manifolds.coverage])
def test_sets_without_a_number_are_refused(distance) -> None:  # type: ignore[no-untyped-def]
    good = torch.zeros(9, 3, dtype=torch.float64)
    for bad in (good[:0], good[:, :2], torch.full_like(good, math.nan)):
        with pytest.raises(DataError):
            distance(bad, good)


# ---- precision, recall, density, coverage ----------------------------------------------------------------------------


def test_shares_of_six_points_are_done_by_hand() -> None:
    """Balls of {0, 1, 3} to the nearest: [-1, 1], [0, 2], [1, 5]; of {½, 4½, 6.1}: [-3½, 4½], [2.9, 6.1], [4½, 7.7]."""
    samples, real = line(0.5, 4.5, 6.1), line(0, 1, 3)
    assert manifolds.precision(samples, real, k=1) == pytest.approx(2 / 3)
    assert manifolds.recall(samples, real, k=1) == 1.0
    assert manifolds.recall(line(4.5, 4.7, 6.1), real, k=1) == 0.0
    assert manifolds.density(samples, real, k=1) == pytest.approx((2 + 1 + 0) / 3)
    assert manifolds.coverage(samples, real, k=1) == 1.0
    assert manifolds.coverage(line(0.5, 0.6), real, k=1) == pytest.approx(2 / 3)


def test_shares_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(45, 3)) * 1.3 + 0.3

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(float(np.linalg.norm(points[i] - other)) for j, other in enumerate(points) if j != i)[k - 1]

    def inside(some: np.ndarray, balls: np.ndarray, k: int) -> np.ndarray:
        reach = [radius(balls, i, k) for i in range(len(balls))]
        return np.array([[np.linalg.norm(p - q) <= r for q, r in zip(balls, reach, strict=True)] for p in some])

    a, b = torch.from_numpy(x), torch.from_numpy(y)
    for k in (1, 4):
        assert manifolds.precision(a, b, k) == pytest.approx(inside(x, y, k).any(1).mean())
        assert manifolds.recall(a, b, k) == pytest.approx(inside(y, x, k).any(1).mean())
        assert manifolds.density(a, b, k) == pytest.approx(inside(x, y, k).sum(1).mean() / k)
        assert manifolds.coverage(a, b, k) == pytest.approx(inside(x, y, k).any(0).mean())


def test_a_set_covers_itself_and_nothing_far_away() -> None:
    """A point is in its own ball and in those of k others: density (k + 1) / k."""
    a = normal(200, 4, 0)
    assert (manifolds.precision(a, a), manifolds.recall(a, a), manifolds.coverage(a, a)) == (1.0, 1.0, 1.0)
    k = manifolds.K_DENSE
    assert manifolds.density(a, a) == pytest.approx((k + 1) / k, abs=1e-12)
    far = a + 100.0
    for share in (manifolds.precision, manifolds.recall, manifolds.density, manifolds.coverage):
        assert share(a, far) == 0.0


def test_density_of_one_distribution_is_one() -> None:
    found = [manifolds.density(normal(150, 3, 2 * i), normal(150, 3, 2 * i + 1)) for i in range(20)]
    assert np.mean(found) == pytest.approx(1.0, abs=5 * float(np.std(found)) / math.sqrt(20))
    assert np.std(found) < 0.1


def test_a_dropped_mode_is_seen_by_recall_and_coverage_alone() -> None:
    real = torch.cat([normal(150, 3, 0), normal(150, 3, 1) + 50.0])
    whole = torch.cat([normal(150, 3, 2), normal(150, 3, 3) + 50.0])
    half = normal(300, 3, 4)
    for share in (manifolds.precision, manifolds.recall, manifolds.coverage):
        assert share(whole, real) > 0.85
    assert manifolds.precision(half, real) > 0.85
    assert manifolds.recall(half, real) < 0.51
    assert manifolds.coverage(half, real) < 0.51


def test_an_outlier_lifts_precision_and_not_density() -> None:
    """The ball of one real image far off reaches around everything near it."""
    real = torch.cat([normal(100, 2, 0), torch.full((1, 2), 60.0, dtype=torch.float64)])
    samples = torch.full((100, 2), 30.0, dtype=torch.float64) + normal(100, 2, 1)
    assert manifolds.precision(samples, real) == 1.0
    assert manifolds.density(samples, real) == pytest.approx(1 / manifolds.K_DENSE)


def test_leaving_samples_out_is_having_fewer() -> None:
    samples, real, rows = normal(30, 3, 0), normal(40, 3, 1), torch.tensor([2, 3, 5, 7, 11, 13, 17, 29])
    kept, fewer = manifolds.between(samples, real).kept(rows), manifolds.between(samples[rows], real)
    for some, others in zip(kept, fewer, strict=True):
        torch.testing.assert_close(some, others, rtol=1e-7, atol=1e-6)


def test_neighbours_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="k = 5 neighbours of 4 samples: it must be from 1 to 3"):
        manifolds.coverage(normal(9, 2, 0), normal(4, 2, 1))
