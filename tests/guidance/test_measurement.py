"""Measurements: ΠGDM with the exact variance is the exact conditional of a Gaussian; DPS's bias has a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture, TokenTable
from diff_diffusion.core.categorical import Absorbing
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.core.time_maps import Cosine, LinearLogSnr
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance import DPS, ClassifierFree, ClassifierGuided, Clipped, PiGDM
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers import sample, trajectory
from diff_diffusion.samplers.multistep import Multistep

PROCESS = Gaussian(LinearLogSnr(12.0, -12.0))
FACTOR = torch.tensor(
    [[0.9, 0.0, 0.0, 0.0], [0.5, 0.7, 0.0, 0.0], [-0.3, 0.4, 0.8, 0.0], [0.2, -0.6, 0.3, 0.5]], dtype=torch.float64
)
PRIOR_MEAN, PRIOR = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64), FACTOR @ FACTOR.T
A = torch.tensor([[1.0, 0.5, -0.3, 0.0], [0.0, 0.7, 0.2, -1.0]], dtype=torch.float64)
Y = torch.tensor([[0.8, -1.1]], dtype=torch.float64)
NOISE = 0.4
X = Noise(range(5)).normal((5, 4)).double()
TIMES = [0.45, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)]
both_times = pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])


def gaussian(process: Gaussian = PROCESS, covariance: Tensor = PRIOR) -> GaussianMixture:
    return GaussianMixture(process, PRIOR_MEAN[None], covariance[None])


def measure(x: Tensor) -> Tensor:
    return x @ A.T.to(x)


def known(covariance: Tensor = PRIOR, matrix: Tensor = A, y: Tensor = Y, noise: float = NOISE) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x_0 given y alone."""
    gain = (
        covariance
        @ matrix.T
        @ torch.linalg.inv(matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=torch.float64))
    )
    return PRIOR_MEAN + gain @ (y[0] - matrix @ PRIOR_MEAN), covariance - gain @ matrix @ covariance


def given_both(x_t: Tensor, t: float | Tensor, process: Gaussian = PROCESS) -> Tensor:
    """E[x_0 | x_t, y], a sample at a time, by the information form of Gaussian conditioning."""
    means = []
    for x, time in zip(x_t, torch.as_tensor(t, dtype=torch.float64).expand(len(x_t)), strict=True):
        alpha, sigma = process.scales(float(time))
        eye = torch.eye(4, dtype=torch.float64)
        precision = torch.linalg.inv(PRIOR) + alpha**2 / sigma**2 * eye + A.T @ A / NOISE**2
        said = torch.linalg.solve(PRIOR, PRIOR_MEAN) + alpha / sigma**2 * x + A.T @ Y[0] / NOISE**2
        means.append(torch.linalg.solve(precision, said))
    return torch.stack(means)


@both_times
@pytest.mark.parametrize("scaling", SCALINGS)
def test_pigdm_with_the_exact_variance_is_the_exact_conditional_mean(scaling: str, t: float | Tensor) -> None:
    process = Gaussian(LinearLogSnr(12.0, -12.0), scaling)
    guided = PiGDM(gaussian(process), measure, Y, NOISE, "jacobian")(X, t).mean
    assert torch.allclose(guided, given_both(X, t, process), rtol=1e-8, atol=1e-8)


def flow(denoiser: Denoiser, steps: int, size: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of samples of an affine walk, without drawing any: it takes 0 and the unit vectors along."""
    x = torch.cat([torch.zeros(1, size), torch.eye(size)]).double()
    times = grids.LogSnr(steps).times(denoiser.process)
    for step in trajectory(denoiser, Multistep(2), times, x, noise=Noise(range(size + 1))):
        x = step.x
    columns = x[1:] - x[0]
    return x[0], columns.T @ columns


def test_a_walk_with_pigdm_has_the_exact_conditional_mean_and_covariance() -> None:
    mean, covariance = flow(PiGDM(gaussian(), measure, Y, NOISE, "jacobian"), 200, 4)
    exact_mean, exact_covariance = known()
    assert torch.allclose(mean, exact_mean, atol=4e-3)  # α(1) = 0.0025: what the prior forgets of the mean
    assert torch.allclose(covariance, exact_covariance, atol=1e-3)


def test_samples_with_pigdm_have_them_within_monte_carlo_error() -> None:
    count = 3000
    guided = PiGDM(gaussian(), measure, Y, NOISE, "jacobian")
    # 60 steps of order 3 are 0.02 % of the covariance off: what is left is the samples' number.
    x = sample(guided, Multistep(3), grids.LogSnr(60), (4,), noise=Noise(range(count))).double()
    exact_mean, exact_covariance = known()
    variances = exact_covariance.diagonal()
    mean_error = (x.mean(0) - exact_mean) / (variances / count).sqrt()
    deviation = ((torch.outer(variances, variances) + exact_covariance**2) / count).sqrt()
    assert float(mean_error.abs().max()) < 4.5
    assert float(((torch.cov(x.T) - exact_covariance) / deviation).abs().max()) < 4.5


@both_times
def test_the_unit_variance_is_exact_for_data_of_unit_variance(t: float | Tensor) -> None:
    exact = gaussian(covariance=torch.eye(4, dtype=torch.float64))
    unit, jacobian = (PiGDM(exact, measure, Y, NOISE, name)(X, t).mean for name in ("unit", "jacobian"))
    assert torch.allclose(unit, jacobian, rtol=1e-9, atol=1e-10)
    other = [PiGDM(gaussian(), measure, Y, NOISE, name)(X, t).mean for name in ("unit", "jacobian")]
    assert not torch.allclose(*other, rtol=1e-2)


def test_the_unit_variance_is_the_papers_formula() -> None:
    """J^T A^T (r² A A^T + noise² I)⁻¹ (y - A x̂_0), r² = σ²/(α² + σ²), times σ²/α."""
    t, eye = 0.45, torch.eye(2, dtype=torch.float64)
    for scaling in SCALINGS:
        process = Gaussian(LinearLogSnr(12.0, -12.0), scaling)
        alpha, sigma = process.scales(t)
        jacobian = alpha * PRIOR @ torch.linalg.inv(alpha**2 * PRIOR + sigma**2 * torch.eye(4, dtype=torch.float64))
        free = gaussian(process)(X, t).mean
        r_square = sigma**2 / (alpha**2 + sigma**2)
        solved = torch.linalg.solve(r_square * A @ A.T + NOISE**2 * eye, (Y - free @ A.T).T)
        expected = free + sigma**2 / alpha * (jacobian.T @ A.T @ solved).T
        assert torch.allclose(PiGDM(gaussian(process), measure, Y, NOISE)(X, t).mean, expected, rtol=1e-9)


@pytest.mark.parametrize("variance", ["unit", "jacobian"])
def test_an_exact_measurement_holds_exactly_even_where_it_says_things_twice(variance: str) -> None:
    """noise 0, and a matrix of rank 2 with three rows: the pseudoinverse. A x̂_0 = y, if C is the data's variance."""
    matrix = torch.cat([A, A[:1] + A[1:]])
    y = torch.cat([Y, Y[:, :1] + Y[:, 1:]], 1)
    exact = gaussian(covariance=PRIOR if variance == "jacobian" else torch.eye(4, dtype=torch.float64))
    mean = PiGDM(exact, lambda x: x @ matrix.T, y, 0.0, variance)(X, 0.45).mean
    assert torch.allclose(mean @ matrix.T, y.expand(5, 3), rtol=1e-7)


def test_two_measurements_nest_to_the_joint_one() -> None:
    """The inner one's answer is a posterior mean of the data given its y, and Tweedie holds for those data too."""
    inner = PiGDM(gaussian(), lambda x: x @ A[:1].T, Y[:, :1], NOISE, "jacobian")
    both = PiGDM(inner, lambda x: x @ A[1:].T, Y[:, 1:], NOISE, "jacobian")(X, 0.45)
    assert torch.allclose(both.mean, given_both(X, 0.45), rtol=1e-7, atol=1e-8)
    assert not both.mean.requires_grad


def test_a_measurement_differentiates_through_the_gradient_of_a_classifier() -> None:
    """ln p = -x_t²/10 moves x̂_0 by -(σ²/α) x_t / 5, and so its Jacobian by -σ²/α / 5."""
    evidence = _Given(ClassifierGuided(gaussian(), lambda x, *_: -0.1 * (x**2).sum(1)))
    alpha, sigma = PROCESS.scales(0.45)
    eye = torch.eye(4, dtype=torch.float64)
    jacobian = alpha * PRIOR @ torch.linalg.inv(alpha**2 * PRIOR + sigma**2 * eye) - 0.2 * sigma**2 / alpha * eye
    spread = sigma**2 / alpha * jacobian
    gain = spread @ A.T @ torch.linalg.inv(A @ spread @ A.T + NOISE**2 * torch.eye(2, dtype=torch.float64))
    free = gaussian()(X, 0.45).mean - 0.2 * sigma**2 / alpha * X
    guided = PiGDM(evidence, measure, Y, NOISE, "jacobian")(X, 0.45).mean
    assert torch.allclose(guided, free + (Y - free @ A.T) @ gain.T, rtol=1e-8)


class _Given(Denoiser):
    """A denoiser with a condition of its own."""

    COND = Cond({"component": torch.zeros(5, dtype=torch.int64)})

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        return self.inner(x_t, t, self.COND)


@pytest.mark.parametrize("variance", ["unit", "jacobian"])
def test_pictures_are_measured_as_they_are_and_a_sample_alone_is_the_same(variance: str) -> None:
    """A sample of shape [1, 2, 2], of which two by one averages are seen; each row has a measurement of its own."""
    flat = gaussian()
    average = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
    y = Noise(range(5)).normal((5, 2)).double()
    pictures = PiGDM(
        flat, lambda x: torch.nn.functional.avg_pool2d(x, (1, 2)), y.view(5, 1, 2, 1), NOISE, variance
    )(X.view(5, 1, 2, 2), 0.45).mean  # fmt: skip
    rows = PiGDM(flat, lambda x: x @ average.T, y, NOISE, variance)
    assert torch.allclose(pictures.flatten(1), rows(X, 0.45).mean, rtol=1e-9)
    for i in range(5):
        alone = PiGDM(flat, lambda x: x @ average.T, y[i : i + 1], NOISE, variance)(X[i : i + 1], 0.45).mean
        assert torch.allclose(alone, rows(X, 0.45).mean[i : i + 1], rtol=1e-12)


class Counted(Denoiser):
    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        self.batches.append(len(x_t))
        return self.inner(x_t, t, cond)


def test_a_measurement_asks_the_model_once_and_nests_with_other_guidance() -> None:
    two = GaussianMixture(PROCESS, [[-0.6, 0.2], [0.9, -0.4]], [0.09, 0.25], [0.6, 0.4])
    cond = Cond({"component": torch.tensor([0, 1, 1, 0, 1])})
    x, y = X[:, :2], torch.tensor([[0.3]], dtype=torch.float64)
    for guidance in (lambda d: PiGDM(d, lambda v: v[:, :1], y, 0.3), lambda d: DPS(d, lambda v: v[:, :1], y, 0.3)):
        inner = Counted(two)
        guided = guidance(ClassifierFree(inner, 2.0))(x, 0.45, cond).mean
        assert inner.batches == [10]
        outer = Clipped(guidance(ClassifierFree(two, 2.0)), torch.tensor(-0.25), torch.tensor(0.25))
        assert torch.equal(outer(x, 0.45, cond).mean, guided.clamp(-0.25, 0.25))
        assert not torch.allclose(guided, ClassifierFree(two, 2.0)(x, 0.45, cond).mean)
        with torch.no_grad():
            assert torch.equal(guidance(ClassifierFree(two, 2.0))(x, 0.45, cond).mean, guided)


class Shared(Denoiser):
    def __init__(self) -> None:
        self.process = PROCESS

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        return GaussianPosterior(0.5 * x_t, 0.5, x_t.sigmoid())


def test_a_learned_variance_is_kept_without_its_graph() -> None:
    for guided in (PiGDM(Shared(), measure, Y, NOISE), DPS(Shared(), measure, Y, NOISE)):
        posterior = guided(X, 0.45)
        assert isinstance(posterior, GaussianPosterior)
        assert posterior.share is not None
        assert torch.equal(posterior.share, X.sigmoid())
        assert not posterior.share.requires_grad


@both_times
def test_dps_is_the_gradient_of_its_likelihood_for_any_differentiable_measurement(t: float | Tensor) -> None:
    """A(x) = (x_1 x_2, x_3³): (σ²/α) J^T A'^T (y - A(x̂_0)) / noise², with J of the Gaussian by hand."""
    alphas, sigmas = PROCESS.scales(torch.as_tensor(t, dtype=torch.float64).expand(5))
    free, rows = gaussian()(X, t).mean, []
    for x, alpha, sigma in zip(free, alphas, sigmas, strict=True):
        jacobian = alpha * PRIOR @ torch.linalg.inv(alpha**2 * PRIOR + sigma**2 * torch.eye(4, dtype=torch.float64))
        slope = torch.tensor([[x[1], x[0], 0.0, 0.0], [0.0, 0.0, 3 * x[2] ** 2, 0.0]], dtype=torch.float64)
        missed = Y[0] - torch.stack([x[0] * x[1], x[2] ** 3])
        rows.append(sigma**2 / alpha * jacobian.T @ slope.T @ missed / NOISE**2)
    for scale in (1.0, 0.3):
        guided = DPS(gaussian(), lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 2] ** 3], 1), Y, NOISE, scale)(X, t)
        assert torch.allclose(guided.mean, free + scale * torch.stack(rows), rtol=1e-8, atol=1e-9)
    inner = DPS(gaussian(), measure, Y, NOISE, 0.0)
    assert torch.equal(inner(X, t).mean, gaussian()(X, t).mean)


@pytest.mark.parametrize("noise", [1.0, 0.5])
def test_the_bias_of_dps_is_the_one_that_theory_says(noise: float) -> None:
    """For data N(0, 1) and y = x_0 + noise, its flow is dx/dα = (y - α x) / noise² from α = 0 to 1.

    So its samples have the variance e^(-1/noise²) in place of noise²/(1 + noise²), and the mean
    (y/noise²) ∫ exp(-(1 - α²) / (2 noise²)) dα in place of y/(1 + noise²). ΠGDM has the right ones.
    """
    y, process = 1.0, Gaussian(LinearLogSnr(16.0, -16.0))
    exact = GaussianMixture(process, [[0.0]], [1.0])
    told = torch.tensor([[y]], dtype=torch.float64)
    mean, variance = flow(DPS(exact, lambda x: x, told, noise), 400, 1)
    alpha = torch.linspace(0, 1, 2001, dtype=torch.float64)
    integral = float(torch.trapezoid(torch.exp(-(1 - alpha**2) / (2 * noise**2)), alpha))
    assert math.isclose(float(mean), y / noise**2 * integral, rel_tol=2e-3)
    assert math.isclose(float(variance), math.exp(-1 / noise**2), rel_tol=2e-3)
    right_mean, right_variance = flow(PiGDM(exact, lambda x: x, told, noise), 400, 1)
    assert math.isclose(float(right_mean), y / (1 + noise**2), rel_tol=2e-3)
    assert math.isclose(float(right_variance), noise**2 / (1 + noise**2), rel_tol=2e-3)
    assert float(mean) > 1.4 * float(right_mean)
    assert float(variance) < 0.75 * float(right_variance)


@pytest.mark.parametrize("variance", ["unit", "jacobian"])
def test_a_sample_that_agrees_already_is_left_alone_whatever_the_others_need(variance: str) -> None:
    free = gaussian()(X, 0.45).mean
    y = measure(free) + torch.tensor([0.0, 1.0, 0.0, -1.0, 2.0]).double()[:, None]
    guided = PiGDM(gaussian(), measure, y, 0.0, variance)(X, 0.45).mean
    assert torch.equal(guided[[0, 2]], free[[0, 2]])
    assert bool(torch.isfinite(guided).all())
    assert bool((guided[[1, 3, 4]] != free[[1, 3, 4]]).any(1).all())


def test_a_jacobian_that_is_no_covariance_is_not_followed() -> None:
    """A network may answer against its input somewhere, x̂_0 = -x_t. No posterior does, so no evidence counts there."""

    class Against(Denoiser):
        def __init__(self) -> None:
            self.process = PROCESS

        def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
            return GaussianPosterior(-x_t, 0.5)

    assert torch.equal(PiGDM(Against(), measure, Y, 0.1, "jacobian")(X, 0.45).mean, -X)
    assert not torch.equal(PiGDM(Against(), measure, Y, 0.1, "unit")(X, 0.45).mean, -X)


def test_they_say_what_they_need() -> None:
    exact = gaussian()
    with pytest.raises(ConfigError, match="PiGDM takes exact measurements"):
        DPS(exact, measure, Y, 0.0)
    with pytest.raises(ConfigError, match="0 means none here"):
        DPS(exact, measure, Y, NOISE, math.nan)
    with pytest.raises(ConfigError, match="at least 0"):
        PiGDM(exact, measure, Y, -1.0)
    with pytest.raises(ConfigError, match="one of unit, jacobian, not 'exact'"):
        PiGDM(exact, measure, Y, NOISE, "exact")
    with pytest.raises(ConfigError, match="at least 1 iteration"):
        PiGDM(exact, measure, Y, NOISE, iterations=0)
    tokens = TokenTable(Absorbing(3), torch.ones(3))
    for cls in (DPS, PiGDM):
        with pytest.raises(IncompatibleError, match="needs a Gaussian process"):
            cls(tokens, measure, Y, NOISE)
        for y in (Y[:, :1], Y.expand(3, 2)):
            with pytest.raises(ConfigError, match="y needs the same, or one row"):
                cls(exact, measure, y, NOISE)(X, 0.45)
        with pytest.raises(IncompatibleError, match="without no_grad or detach"):
            cls(_Deaf(), measure, Y, NOISE)(X, 0.45)
        with pytest.raises(IncompatibleError, match="no signal"):
            cls(gaussian(Gaussian(Cosine())), measure, Y, NOISE)(X, torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("bent", [torch.abs, torch.square, torch.tanh, lambda x: x + 1.0, torch.relu])
def test_pigdm_refuses_a_measurement_that_is_not_linear(bent) -> None:
    with pytest.raises(ConfigError, match="DPS takes any other"):
        PiGDM(gaussian(), lambda x: bent(measure(x)), Y, NOISE)(X, 0.45)


class _Deaf(Denoiser):
    def __init__(self) -> None:
        self.process = PROCESS

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        return GaussianPosterior(0.5 * x_t.detach(), 0.5)
