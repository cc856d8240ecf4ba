"""The exact denoiser is exact: it is the ground truth of every other law, so it has three oracles of its own."""

from __future__ import annotations

import math

import pytest
import torch
from law_examples import scalings

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.time_maps import Flow, LinearLogSnr
from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise

every_scaling = pytest.mark.parametrize("process", scalings(LinearLogSnr(8.0, -8.0)), ids=SCALINGS)

MEANS = [[-1.0, 0.5], [1.2, -0.3], [0.1, 2.0]]
COVARIANCES = torch.tensor(
    [[[0.2, 0.05], [0.05, 0.1]], [[0.1, -0.03], [-0.03, 0.3]], [[0.04, 0.0], [0.0, 0.0]]], dtype=torch.float64
)
WEIGHTS = [0.3, 0.5, 0.2]


def points(count: int, size: int) -> torch.Tensor:
    return 1.5 * Noise(range(count), "points").normal((count, size)).double()


@every_scaling
@pytest.mark.parametrize("t", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("given", [False, True], ids=["all", "conditional"])
def test_the_mean_is_tweedies_formula_on_the_density(process: Gaussian, t: float, given: bool) -> None:
    """E[x_0 | x_t] = (x_t + σ² ∇ log p_t(x_t)) / α, the gradient by autograd."""
    mixture = GaussianMixture(process, MEANS, COVARIANCES, WEIGHTS)
    alpha, sigma = process.scales(t)
    x_t = (alpha * points(6, 2)).requires_grad_()
    keep = torch.tensor([True, True, True, True, False, False])
    cond = Cond({"component": torch.tensor([0, 1, 2, 0, 1, 2])}, {"component": keep}) if given else None
    (score,) = torch.autograd.grad(mixture.log_density(x_t, t, cond).sum(), x_t)
    posterior = mixture(x_t.detach(), t, cond)
    assert torch.allclose(posterior.mean, (x_t + sigma**2 * score) / alpha, rtol=1e-9, atol=1e-9)
    assert torch.as_tensor(posterior.tweedie).item() == pytest.approx(sigma**2 / alpha, rel=1e-12)


@every_scaling
@pytest.mark.parametrize("t", [0.1, 0.4, 0.8])
def test_mean_and_density_equal_numerical_integration(process: Gaussian, t: float) -> None:
    """One dimension: ∫ x_0 p(x_0) q(x_t | x_0) dx_0 / p_t(x_t) on 40,001 points."""
    mixture = GaussianMixture(process, [[-0.8], [1.1]], [0.09, 0.25], [0.35, 0.65])
    alpha, sigma = process.scales(t)
    x_0 = torch.linspace(-8.0, 8.0, 40_001, dtype=torch.float64)

    def normal(x: torch.Tensor, mean: torch.Tensor | float, variance: float) -> torch.Tensor:
        return torch.exp(-0.5 * (x - mean) ** 2 / variance) / math.sqrt(2 * math.pi * variance)

    prior = 0.35 * normal(x_0, -0.8, 0.09) + 0.65 * normal(x_0, 1.1, 0.25)
    x_t = alpha * torch.linspace(-2.0, 2.5, 7, dtype=torch.float64)[:, None]
    joint = prior * normal(x_t, alpha * x_0, sigma**2)
    density = torch.trapezoid(joint, x_0)
    expected = torch.trapezoid(joint * x_0, x_0) / density
    assert torch.allclose(mixture(x_t, t).mean[:, 0], expected, rtol=1e-8)
    assert torch.allclose(mixture.log_density(x_t, t), density.log(), rtol=1e-8, atol=1e-8)


@every_scaling
def test_one_gaussian_is_the_linear_formula(process: Gaussian) -> None:
    """μ + α C (α² C + σ² I)^-1 (x_t - α μ)."""
    mean, covariance = torch.tensor([0.3, -0.7], dtype=torch.float64), COVARIANCES[0]
    mixture = GaussianMixture(process, mean[None], covariance[None])
    for t in (0.1, 0.5, 1.0):
        alpha, sigma = process.scales(t)
        x_t = points(5, 2)
        total = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        expected = mean + (alpha * covariance @ torch.linalg.solve(total, (x_t - alpha * mean).T)).T
        assert torch.allclose(mixture(x_t, t).mean, expected, rtol=1e-10, atol=1e-12)


@every_scaling
def test_a_condition_restricts_to_one_component(process: Gaussian) -> None:
    whole = GaussianMixture(process, MEANS, COVARIANCES, WEIGHTS)
    x_t = points(4, 2)
    cond = Cond({"component": torch.tensor([1, 1, 1, 1])}, {"component": torch.tensor([True, True, True, False])})
    asked = whole(x_t, 0.5, cond).mean
    alone = GaussianMixture(process, MEANS[1:2], COVARIANCES[1:2])
    assert torch.allclose(asked[:3], alone(x_t, 0.5).mean[:3], rtol=1e-12)
    assert torch.allclose(asked[3], whole(x_t, 0.5).mean[3], rtol=1e-12)
    assert torch.allclose(whole.log_density(x_t, 0.5, cond)[:3], alone.log_density(x_t, 0.5)[:3], rtol=1e-12)


def test_times_per_sample_and_odd_shapes() -> None:
    mixture = GaussianMixture(Gaussian(Flow(), "flow"), points(2, 6), [0.1, 0.2])
    x_t = points(3, 6)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    together = mixture(x_t.reshape(3, 1, 2, 3), t).mean
    assert together.shape == (3, 1, 2, 3)
    for i in range(3):
        alone = mixture(x_t[i : i + 1], t[i].item()).mean
        assert torch.allclose(together[i].flatten(), alone[0], rtol=1e-12)


def test_at_pure_noise_the_mean_is_the_datas() -> None:
    mixture = GaussianMixture(Gaussian(Flow(), "flow"), MEANS, COVARIANCES, WEIGHTS)
    expected = torch.tensor(WEIGHTS, dtype=torch.float64) @ torch.tensor(MEANS, dtype=torch.float64)
    assert torch.allclose(mixture(points(4, 2), 1.0).mean, expected.expand(4, 2), rtol=1e-10)


def test_draws_have_the_mixtures_moments() -> None:
    """20,000 draws: shares, means and covariances within 5 standard errors."""
    count = 20_000
    mixture = GaussianMixture(Gaussian(Flow(), "flow"), MEANS, COVARIANCES, WEIGHTS)
    drawn = mixture.draw(Noise(range(count)))
    mean = mixture.weights @ mixture.means
    centred = mixture.means - mean
    covariance = (mixture.weights[:, None, None] * (COVARIANCES + centred[:, :, None] * centred[:, None, :])).sum(0)
    assert torch.allclose(drawn.mean(0), mean, atol=5 * covariance.max().sqrt().item() / count**0.5)
    assert torch.allclose(drawn.T.cov(), covariance, atol=5 * 3 * covariance.max().item() / count**0.5)
    only = mixture.draw(Noise(range(2000)), Cond({"component": torch.full((2000,), 2)}))
    assert torch.allclose(only[:, 1], torch.full((2000,), 2.0).double())
    assert only[:, 0].std().item() == pytest.approx(0.2, rel=5 / (2 * 2000) ** 0.5)
    near = torch.cdist(drawn, mixture.means).argmin(1)
    shares = near.bincount(minlength=3) / count
    assert torch.allclose(shares.double(), mixture.weights, atol=0.03)  # a component's tail is nearer another's mean


def test_its_error_is_that_of_x_0_with_the_snr_as_gain() -> None:
    mixture = GaussianMixture(Gaussian(Flow(), "flow"), MEANS, COVARIANCES, WEIGHTS)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    corrupted = mixture.process.marginal(points(2, 2), t, Noise([1, 2]))
    error, gain, _ = mixture.error(corrupted, None)
    assert torch.equal(error, mixture(corrupted.x_t, t).mean - corrupted.x_0)
    assert torch.allclose(gain, ((1 - t) / t) ** 2, rtol=1e-10)


def test_shapes_that_do_not_match_are_refused() -> None:
    process = Gaussian(Flow(), "flow")
    with pytest.raises(ConfigError, match=r"\[K, d\]"):
        GaussianMixture(process, torch.zeros(2), [1.0, 1.0])
    with pytest.raises(ConfigError, match=r"\[2, 3, 3\]"):
        GaussianMixture(process, torch.zeros(2, 3), [1.0, 1.0, 1.0])
