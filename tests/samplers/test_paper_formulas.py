"""Each sampler's step against its paper's formula, derived here again in the paper's own terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.core.time_maps import Cosine, LinearBeta, LinearLogSnr, TabulatedBetas, Truncated
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.sampler import Sampler, Step, clock, trajectory
from diff_diffusion.samplers.single_step import Heun, StochasticMidpoint

MODES = {"means": [[-0.6], [0.9]], "covariances": [0.09, 0.0625], "weights": [0.6, 0.4]}
NOISE = Noise(range(5))
UNEVEN = [1.0, 0.83, 0.71, 0.52, 0.4, 0.17, 0.05, 0.0]
every_scaling = pytest.mark.parametrize("scaling", SCALINGS)


def steps_of(denoiser: Denoiser, sampler: Sampler, times: list[float]) -> tuple[Tensor, list[Step]]:
    """The start and the steps of a walk of five points, in float64."""
    assert isinstance(denoiser.process, Gaussian)
    x = denoiser.process.prior((5, 1), NOISE.at(0), times[0]).double()
    return x, list(trajectory(denoiser, sampler, times, x, noise=NOISE))


def noise_of(process: Gaussian, times: list[float]) -> list[Tensor]:
    """The normal numbers that each step along `times` draws."""
    path = NOISE.path(0, clock(process))
    return [NOISE.at(i + 1, (path, t, s)).normal((5, 1)).double() for i, (t, s) in enumerate(pairwise(times))]


def eps_hat(denoiser: Denoiser, x_t: Tensor, t: float) -> Tensor:
    assert isinstance(denoiser.process, Gaussian)
    alpha, sigma = denoiser.process.scales(t)
    return (x_t - alpha * denoiser(x_t, t).mean) / sigma


def test_ddpm_is_the_textbook_step_at_every_i() -> None:
    """x_{i-1} = (x_i - β_i / √(1 - ᾱ_i) ε̂) / √(1 - β_i) + √β̃_i z, β̃_i = β_i (1 - ᾱ_{i-1}) / (1 - ᾱ_i): algorithm 2
    of arXiv 2006.11239 with its posterior variance, on the discrete chain."""
    betas = np.linspace(1e-4, 0.02, 200)
    alpha_bars = np.cumprod(1.0 - betas)
    mixture = GaussianMixture(Gaussian(TabulatedBetas(betas.tolist())), **MODES)
    x, steps = steps_of(mixture, Ancestral(eta=1.0), grids.Uniform(200).times(mixture.process))
    drawn = noise_of(mixture.process, grids.Uniform(200).times(mixture.process))
    for step, i in zip(steps, range(200, 0, -1), strict=True):
        beta, alpha_bar = betas[i - 1], alpha_bars[i - 1]
        previous = alpha_bars[i - 2] if i > 1 else 1.0
        mean = (x - beta / math.sqrt(1 - alpha_bar) * eps_hat(mixture, x, i / 200)) / math.sqrt(1 - beta)
        z = drawn[step.index]
        expected = mean + math.sqrt(beta * (1 - previous) / (1 - alpha_bar)) * z
        assert torch.allclose(step.x, expected, rtol=1e-9, atol=1e-9), i
        x = step.x


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_equation_12(eta: float) -> None:
    """x_s = √ᾱ_s x̂_0 + √(1 - ᾱ_s - c²) ε̂ + c z, c = η √((1 - ᾱ_s) / (1 - ᾱ_t)) √(1 - ᾱ_t / ᾱ_s): arXiv 2010.02502."""
    mixture = GaussianMixture(Gaussian(LinearBeta()), **MODES)
    times = grids.Uniform(20).times(mixture.process)
    x, steps = steps_of(mixture, Ancestral(eta=eta), times)
    drawn = noise_of(mixture.process, times)
    for step in steps[:-1]:
        bar_t, bar_s = (mixture.process.scales(time)[0] ** 2 for time in (step.t, step.s))
        eps = eps_hat(mixture, x, step.t)
        x_0 = (x - math.sqrt(1 - bar_t) * eps) / math.sqrt(bar_t)
        c = eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s)
        z = drawn[step.index]
        expected = math.sqrt(bar_s) * x_0 + math.sqrt(1 - bar_s - c**2) * eps + c * z
        assert torch.allclose(step.x, expected, rtol=1e-9, atol=1e-9)
        x = step.x


@every_scaling
def test_heun_is_algorithm_1(scaling: str) -> None:
    """In z = x/α and σ_E = σ/α: d = (z - D) / σ_E, an Euler step, then the mean of the two slopes: arXiv 2206.00364."""
    process = Gaussian(LinearLogSnr(10.0, -8.0), scaling)
    mixture = GaussianMixture(process, **MODES)
    x, steps = steps_of(mixture, Heun(), UNEVEN)

    def ratio(t: float) -> float:
        return math.exp(-0.5 * process.time_map.log_snr(t))

    def slope(z: Tensor, t: float) -> Tensor:
        return (z - mixture(process.scales(t)[0] * z, t).mean) / ratio(t)

    for step in steps[:-1]:
        z, length = x / process.scales(step.t)[0], ratio(step.s) - ratio(step.t)
        first = slope(z, step.t)
        second = slope(z + length * first, step.s)
        expected = process.scales(step.s)[0] * (z + length * 0.5 * (first + second))
        assert torch.allclose(step.x, expected, rtol=1e-9, atol=1e-9)
        x = step.x


def scales(process: Gaussian, t: float, s: float) -> tuple[float, float, float, float, float]:
    """(α_t, σ_t, α_s, σ_s, h) for a step from t to s, h the gain in ln(α/σ)."""
    return (*process.scales(t), *process.scales(s), 0.5 * (process.time_map.log_snr(s) - process.time_map.log_snr(t)))


@every_scaling
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_multistep_2_is_dpm_solver_2m(scaling: str, eta: float) -> None:
    """D = (1 + 1/(2r)) D_0 - 1/(2r) D_1, r = h_before / h. The ODE: x_s = σ_s/σ_t x - α_s (e^-h - 1) D; the SDE:
    x_s = σ_s/σ_t e^-h x + α_s (1 - e^-2h) D + σ_s √(1 - e^-2h) z. arXiv 2211.01095, algorithm 2 and appendix."""
    process = Gaussian(LinearLogSnr(10.0, -8.0), scaling)
    mixture = GaussianMixture(process, **MODES)
    x, steps = steps_of(mixture, Multistep(2, eta), UNEVEN)
    drawn = noise_of(process, UNEVEN)
    answers: list[Tensor] = []
    before = math.nan
    for step in steps[:-1]:
        _, sigma_t, alpha_s, sigma_s, h = scales(process, step.t, step.s)
        answers.insert(0, mixture(x, step.t).mean)
        d = answers[0]
        if len(answers) > 1:
            r = before / h
            d = (1 + 1 / (2 * r)) * answers[0] - 1 / (2 * r) * answers[1]
        if eta == 0.0:
            expected = sigma_s / sigma_t * x - alpha_s * (math.exp(-h) - 1) * d
        else:
            z = drawn[step.index]
            expected = sigma_s / sigma_t * math.exp(-h) * x + alpha_s * (1 - math.exp(-2 * h)) * d
            expected = expected + sigma_s * math.sqrt(1 - math.exp(-2 * h)) * z
        assert torch.allclose(step.x, expected, rtol=1e-9, atol=1e-9)
        x, before = step.x, h


@every_scaling
def test_multistep_3_integrates_the_interpolating_parabola(scaling: str) -> None:
    """x_s = σ_s/σ_t x + α_s ∫_0^h e^-(h-u) D(u) du, D the parabola through the last three answers, by quadrature.

    dpm-solver and k-diffusion print this with half the curvature; that is a method of order 2.
    """
    process = Gaussian(LinearLogSnr(10.0, -8.0), scaling)
    mixture = GaussianMixture(process, **MODES)
    x, steps = steps_of(mixture, Multistep(3), UNEVEN)
    places: list[float] = []
    answers: list[Tensor] = []
    for step in steps[:-1]:
        _, sigma_t, alpha_s, sigma_s, h = scales(process, step.t, step.s)
        places.insert(0, 0.5 * process.time_map.log_snr(step.t))
        answers.insert(0, mixture(x, step.t).mean)
        if len(answers) >= 3:
            integral = torch.zeros_like(x)
            for k in range(3):
                share, _ = quad(lagrange([place - places[0] for place in places[:3]], k, h), 0.0, h, epsabs=1e-13)
                integral = integral + share * answers[k]
            assert torch.allclose(step.x, sigma_s / sigma_t * x + alpha_s * integral, rtol=1e-9, atol=1e-9)
        x = step.x


@every_scaling
@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_multistep_3_with_noise_integrates_the_reverse_sde(scaling: str, eta: float) -> None:
    """dz = (1 + e²)(D - z) du + e √2 ς dB in z = x/α, u = ln(α/σ): D's density over a step is e^-(1+e²)(h-u), by
    quadrature; the noise that the step adds is ς_s² (1 - e^(-2 e² h)). DDIM's η is the e with 1 - e^(-2 e² h) =
    η² (1 - e^-2h); both are 1 together.

    k-diffusion's sample_dpmpp_3m_sde has the same with half the curvature.
    """
    process = Gaussian(LinearLogSnr(10.0, -8.0), scaling)
    mixture = GaussianMixture(process, **MODES)
    x, steps = steps_of(mixture, Multistep(3, eta), UNEVEN)
    drawn = noise_of(process, UNEVEN)
    places: list[float] = []
    answers: list[Tensor] = []
    for step in steps[:-1]:
        _, sigma_t, alpha_s, sigma_s, h = scales(process, step.t, step.s)
        fresh = eta**2 * (1.0 - math.exp(-2.0 * h))
        e2 = -math.log(1.0 - fresh) / (2.0 * h)
        places.insert(0, 0.5 * process.time_map.log_snr(step.t))
        answers.insert(0, mixture(x, step.t).mean)
        if len(answers) >= 3:
            expected = sigma_s / sigma_t * math.exp(-e2 * h) * x + sigma_s * math.sqrt(fresh) * drawn[step.index]
            for k in range(3):
                rule = lagrange([place - places[0] for place in places[:3]], k, h, 1.0 + e2)
                expected = expected + alpha_s * (1.0 + e2) * quad(rule, 0.0, h, epsabs=1e-13)[0] * answers[k]
            assert torch.allclose(step.x, expected, rtol=1e-9, atol=1e-9)
        x = step.x


@every_scaling
@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_the_stochastic_midpoint_is_sde_dpm_solver_2s(scaling: str, eta: float) -> None:
    """In σ_E = σ/α and z = x/α, up = η σ_s √(1 - σ_s²/σ_t²), down = √(σ_s² - up²): z_mid with the path's increment to
    the middle, then z_s = down/σ_t z + (1 - down/σ_t) D(z_mid) + up n with that of the whole step."""
    process = Gaussian(LinearLogSnr(10.0, -8.0), scaling)
    mixture = GaussianMixture(process, **MODES)
    x, steps = steps_of(mixture, StochasticMidpoint(eta), UNEVEN)
    path = NOISE.path(0, clock(process))
    log_snr = process.time_map.log_snr

    def take(z: Tensor, answer: Tensor, t: float, s: float, n: Tensor) -> Tensor:
        from_, to = (math.exp(-0.5 * log_snr(time)) for time in (t, s))
        up = eta * to * math.sqrt(1.0 - (to / from_) ** 2)
        down = math.sqrt(to**2 - up**2)
        return down / from_ * z + (1.0 - down / from_) * answer + up * n

    for step in steps[:-1]:
        z = x / process.scales(step.t)[0]
        middle = process.time_map.time(0.5 * (log_snr(step.t) + log_snr(step.s)))
        whole = NOISE.at(0, (path, step.t, step.s))
        part, all_ = whole.until(middle).normal((5, 1)).double(), whole.normal((5, 1)).double()
        z_middle = take(z, mixture(x, step.t).mean, step.t, middle, part)
        answer = mixture(process.scales(middle)[0] * z_middle, middle).mean
        expected = process.scales(step.s)[0] * take(z, answer, step.t, step.s, all_)
        assert torch.allclose(step.x, expected, rtol=1e-9, atol=1e-9)
        x = step.x


def lagrange(nodes: list[float], k: int, h: float, rate: float = 1.0) -> Callable[[float], float]:
    """e^-rate(h-u) times the polynomial that is 1 at node k and 0 at the others."""

    def value(u: float) -> float:
        share = math.exp(rate * (u - h))
        for j, node in enumerate(nodes):
            if j != k:
                share *= (u - node) / (nodes[k] - node)
        return share

    return value


def test_orders_rise_as_answers_come_in() -> None:
    """Step 1 of every order is DDIM; step 2 of order 3 is step 2 of order 2."""
    mixture = GaussianMixture(Gaussian(LinearLogSnr(10.0, -8.0)), **MODES)
    ddim, one, two, three = (
        steps_of(mixture, sampler, UNEVEN)[1] for sampler in (Ancestral(0.0), Multistep(1), Multistep(2), Multistep(3))
    )
    assert torch.allclose(ddim[-1].x, one[-1].x, rtol=1e-12)
    assert torch.equal(one[0].x, two[0].x)
    assert torch.equal(two[1].x, three[1].x)
    assert not torch.allclose(two[2].x, three[2].x)
    assert not torch.allclose(one[1].x, two[1].x)


class Polynomial(Denoiser):
    """x̂_0 = a polynomial in u = ln(α/σ), whatever x: the integral of a step is then known in closed form."""

    def __init__(self, process: Gaussian, coefficients: list[float]) -> None:
        self.process: Gaussian = process
        self.coefficients = coefficients

    def value(self, u: float) -> float:
        return sum(c * u**k for k, c in enumerate(self.coefficients))

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        return GaussianPosterior(torch.full_like(x_t, self.value(0.5 * self.process.time_map.log_snr(float(t)))), 0.0)


@pytest.mark.parametrize("coefficients", [[0.3], [0.3, -0.2], [0.3, -0.2, 0.1]], ids=["0", "1", "2"])
def test_multistep_3_is_exact_for_parabolas(coefficients: list[float]) -> None:
    process = Gaussian(LinearLogSnr(10.0, -8.0))
    denoiser = Polynomial(process, coefficients)
    x, steps = steps_of(denoiser, Multistep(3), UNEVEN)
    for step in steps[:-1]:
        _, sigma_t, alpha_s, sigma_s, h = scales(process, step.t, step.s)
        u = 0.5 * process.time_map.log_snr(step.t)
        integral, _ = quad(lambda w, u=u, h=h: math.exp(w - h) * denoiser.value(u + w), 0.0, h, epsabs=1e-13)  # type: ignore[misc]
        if step.index >= 2:
            assert torch.allclose(step.x, sigma_s / sigma_t * x + alpha_s * integral, rtol=0, atol=1e-9)
        x = step.x


def test_past_answers_at_no_signal_are_not_used() -> None:
    """A walk from λ = -∞ gives the same whether or not it remembers its first answer: ln(α/σ) was infinite there."""
    mixture = GaussianMixture(Gaussian(Cosine()), **MODES)
    times = [1.0, 0.8, 0.5, 0.0]
    _, two = steps_of(mixture, Multistep(2), times)
    _, one = steps_of(mixture, Multistep(1), times)
    assert torch.equal(two[1].x, one[1].x)
    assert torch.isfinite(two[2].x).all()


def test_grids_and_samplers_agree_on_a_foreign_chain() -> None:
    """A walk over every second step of a 100-step chain is DDPM on the chain of the products of pairs."""
    betas = np.linspace(1e-3, 0.1, 100)
    pairs = (1 - (1 - betas[::2]) * (1 - betas[1::2])).tolist()
    full, short = (GaussianMixture(Gaussian(TabulatedBetas(b)), **MODES) for b in (betas.tolist(), pairs))
    times = grids.Uniform(50).times(full.process)
    ends = [steps_of(mixture, Ancestral(1.0), times)[1][-1].x for mixture in (full, short)]
    assert torch.allclose(ends[0], ends[1], rtol=1e-9, atol=1e-9)
    assert all(t > s for t, s in pairwise(times))


def test_a_truncated_map_walks_the_same_levels() -> None:
    """The same λ at every step gives the same samples, whatever time calls it."""
    ends = []
    for time_map in (Truncated(Cosine(), -10.0), LinearLogSnr(30.0, -10.0)):
        mixture = GaussianMixture(Gaussian(time_map), **MODES)
        ends.append(steps_of(mixture, Multistep(2), grids.LogSnr(15, 12.0, -10.0).times(mixture.process))[1][-1].x)
    assert torch.allclose(ends[0], ends[1], rtol=1e-7, atol=1e-7)
