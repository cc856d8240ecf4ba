"""The score view against closed forms: moments, papers' coefficients, Fokker-Planck, both reversals, score matching."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch import Tensor

from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.sde import diffusion, drift, probability_flow, reverse_drift, score
from diff_diffusion.core.tabulated_map import Tabulated
from diff_diffusion.core.targets import LinearTarget
from diff_diffusion.core.time_maps import (
    Cosine,
    Flow,
    LinearBeta,
    LinearLogSnr,
    Shifted,
    Sigmoid,
    SubVp,
    TabulatedBetas,
    TimeMap,
    Truncated,
)
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import sample
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.grid import LogSnr

MAPS: dict[str, TimeMap] = {
    "linear_beta": LinearBeta(),
    "cosine": Cosine(),
    "sigmoid": Sigmoid(),
    "linear_log_snr": LinearLogSnr(8.0, -8.0),
    "flow": Flow(),
    "shifted": Shifted(Flow(), 3.0),
    "sub_vp": SubVp(LinearBeta()),
    "truncated": Truncated(Cosine(), -6.0),
    "tabulated_betas": TabulatedBetas(np.linspace(0.01, 0.6, 8).tolist()),
    "tabulated": Tabulated([8.0, 1.0, -8.0], [0.0, 0.3, 1.0]),
}
PROCESSES = [
    pytest.param(Gaussian(time_map, scaling), id=f"{name}-{scaling}")
    for name, time_map in MAPS.items()
    for scaling in SCALINGS
    if scaling != "ve" or math.isfinite(time_map.log_snr(1.0))
]
every_process = pytest.mark.parametrize("process", PROCESSES)
every_scaling = pytest.mark.parametrize(
    "process", [Gaussian(LinearLogSnr(6.0, -6.0), s) for s in SCALINGS], ids=SCALINGS
)
MEANS, COVARIANCES = [[-1.0, 0.5], [1.2, -0.3]], [[[0.2, 0.05], [0.05, 0.1]], [[0.1, -0.03], [-0.03, 0.3]]]


def mixture(process: Gaussian) -> GaussianMixture:
    return GaussianMixture(process, MEANS, torch.tensor(COVARIANCES, dtype=torch.float64), [0.4, 0.6])


def points(process: Gaussian, t: float, count: int = 6) -> Tensor:
    """Points where the process at t has its mass."""
    alpha, sigma = process.scales(t)
    normal = Noise(range(count), "points").normal((count, 2)).double()
    return 1.3 * math.sqrt(alpha**2 + sigma**2) * normal


# ---- coefficients --------------------------------------------------------------------------------------------------


@every_process
def test_the_forward_sdes_moments_are_the_processes_scales(process: Gaussian) -> None:
    """dm/dt = f m and dP/dt = 2 f P + g², solved from t = 0.1, give α and σ² at later times."""
    places = [0.35, 0.6, 0.9]
    alpha, sigma = process.scales(0.1)

    def rates(t: float, moments: np.ndarray) -> list[float]:
        f = drift(process, t)
        return [f * moments[0], 2.0 * f * moments[1] + diffusion(process, t)]

    solved = np.empty((2, 0))
    start, now = [alpha, sigma**2], 0.1
    for place in places:  # in pieces, and small steps: some maps have corners
        found = solve_ivp(rates, (now, place), start, method="RK45", rtol=1e-8, atol=1e-12, max_step=0.02)
        start, now = found.y[:, -1].tolist(), place
        solved = np.concatenate([solved, found.y[:, -1:]], axis=1)
    expected = np.array([[a, s**2] for a, s in map(process.scales, places)]).T
    assert solved == pytest.approx(expected, rel=1e-5)


@every_process
def test_g2_is_the_growth_of_the_variance_that_the_drift_does_not_explain(process: Gaussian) -> None:
    """dσ²/dt - 2 f σ², σ² by a difference quotient, f by one of ln α."""
    for t in (0.123, 0.52, 0.87):
        (before_a, before_s), (after_a, after_s) = process.scales(t - 1e-6), process.scales(t + 1e-6)
        f = (math.log(after_a) - math.log(before_a)) / 2e-6
        growth = (after_s**2 - before_s**2) / 2e-6
        assert drift(process, t) == pytest.approx(f, rel=1e-6, abs=1e-6)
        assert diffusion(process, t) == pytest.approx(growth - 2.0 * f * process.scales(t)[1] ** 2, rel=1e-5)


@pytest.mark.parametrize("t", [1e-4, 0.02, 0.3, 0.7, 0.999])
def test_linear_beta_gives_the_papers_three_sdes(t: float) -> None:
    """β = 0.1 + 19.9 t. VP: f = -β/2, g² = β. Sub-VP: the same f, g² = β (1 - e^(-2 ∫β)). arXiv 2011.13456."""
    beta, total = 0.1 + 19.9 * t, 0.1 * t + 0.5 * 19.9 * t * t
    vp, sub_vp = Gaussian(LinearBeta()), Gaussian(SubVp(LinearBeta()), "sub_vp")
    assert drift(vp, t) == pytest.approx(-0.5 * beta, rel=1e-9)
    assert diffusion(vp, t) == pytest.approx(beta, rel=1e-9)
    assert sub_vp.scales(t) == pytest.approx((math.exp(-0.5 * total), -math.expm1(-total)), rel=1e-9)
    assert drift(sub_vp, t) == pytest.approx(-0.5 * beta, rel=1e-9)
    assert diffusion(sub_vp, t) == pytest.approx(-beta * math.expm1(-2.0 * total), rel=1e-9)


@pytest.mark.parametrize("t", [0.001, 0.4, 0.999])
def test_the_ve_sde_has_no_drift(t: float) -> None:
    """σ = σ_min (σ_max/σ_min)^t: f = 0 and g² = dσ²/dt = 2 σ² ln(σ_max/σ_min)."""
    process = Gaussian(LinearLogSnr(-2.0 * math.log(0.01), -2.0 * math.log(50.0)), "ve")
    sigma = 0.01 * 5000.0**t
    assert drift(process, t) == 0.0
    assert process.scales(t)[1] == pytest.approx(sigma, rel=1e-12)
    assert diffusion(process, t) == pytest.approx(2.0 * sigma**2 * math.log(5000.0), rel=1e-12)


def test_floats_and_tensors_agree() -> None:
    t = torch.tensor([[0.1, 0.5], [0.7, 0.9]], dtype=torch.float64)
    for param in PROCESSES:
        (process,) = param.values
        for function in (drift, diffusion):
            floats = [function(process, value) for value in t.flatten().tolist()]
            assert function(process, t).flatten().tolist() == pytest.approx(floats, rel=1e-12), param.id


# ---- the score -----------------------------------------------------------------------------------------------------


@every_scaling
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_score_is_the_gradient_of_the_log_density(process: Gaussian, t: float) -> None:
    exact, x = mixture(process), points(process, t).requires_grad_()
    (gradient,) = torch.autograd.grad(exact.log_density(x, t).sum(), x)
    found = score(exact(x.detach(), t), x.detach(), process, t)
    assert torch.allclose(found, gradient, rtol=1e-9, atol=1e-9)
    times = torch.full((len(x),), t, dtype=torch.float64)
    assert torch.allclose(score(exact(x.detach(), times), x.detach(), process, times), found, rtol=1e-12)


@every_scaling
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_the_mixtures_density_obeys_the_fokker_planck_equation(process: Gaussian, t: float) -> None:
    """∂_t p = -∇·(f x p) + ½ g² Δp, as ∂_t ln p = -d f - f x·s + ½ g² (∇·s + s·s), with s = ∇ ln p by autograd."""
    exact, x = mixture(process), points(process, t).requires_grad_()
    step = 1e-5
    change = (exact.log_density(x, t + step) - exact.log_density(x, t - step)).detach() / (2.0 * step)
    (s,) = torch.autograd.grad(exact.log_density(x, t).sum(), x, create_graph=True)
    divergence = sum(torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    s, x = s.detach(), x.detach()
    f, g2 = drift(process, t), diffusion(process, t)
    expected = -2.0 * f - f * (x * s).sum(1) + 0.5 * g2 * (divergence + (s * s).sum(1))
    assert expected.abs().min() > 1e-2  # not 0 = 0
    assert torch.allclose(change, expected, rtol=1e-6, atol=1e-6)


# ---- the way back --------------------------------------------------------------------------------------------------


@every_process
def test_probability_flow_is_alpha_prime_x_0_plus_sigma_prime_eps(process: Gaussian) -> None:
    exact = mixture(process)
    for t in (0.123, 0.52, 0.87):
        x = points(process, t)
        alpha, sigma = process.scales(t)
        mean = exact(x, t).mean
        eps = (x - alpha * mean) / sigma
        (before_a, before_s), (after_a, after_s) = process.scales(t - 1e-6), process.scales(t + 1e-6)
        expected = (after_a - before_a) / 2e-6 * mean + (after_s - before_s) / 2e-6 * eps
        assert torch.allclose(probability_flow(exact, x, t), expected, rtol=1e-5, atol=1e-5)
        times = torch.full((len(x),), t, dtype=torch.float64)
        assert torch.allclose(probability_flow(exact, x, times), probability_flow(exact, x, t), rtol=1e-10)


@every_process
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_small_reverse_step_is_a_step_of_the_reverse_sde(process: Gaussian, eta: float) -> None:
    """(x_t - E x_s) / h tends to the drift, and Var x_s / h to η² g², the same η."""

    class Silent(Noise):
        def normal(self, shape, like=None):  # type: ignore[no-untyped-def]
            return torch.zeros(shape, dtype=torch.float64)

    exact, t = mixture(process), 0.52
    x = points(process, t)
    mean = exact(x, t)

    def rate(step: float) -> Tensor:
        return (x - process.reverse(x, mean, t, t - step, eta=eta, noise=Silent(range(len(x))))) / step

    extrapolated = 2.0 * rate(1e-5) - rate(2e-5)
    assert torch.allclose(extrapolated, reverse_drift(exact, x, t, eta=eta), rtol=1e-5, atol=1e-5)
    noise = Noise(range(len(x)))
    fresh = process.reverse(x, mean, t, t - 1e-6, eta=eta, noise=noise) - (x - 1e-6 * rate(1e-6))
    expected = eta**2 * diffusion(process, t) * 1e-6 * noise.normal(x.shape).double() ** 2
    assert torch.allclose(fresh**2, expected, rtol=1e-3, atol=1e-15)


@every_scaling
def test_the_probability_flow_ends_where_ddim_tends_to(process: Gaussian) -> None:
    """DOP853 from t = 1 to the data's end, then the held x̂_0; DDIM at 1000 and 2000 steps, extrapolated."""
    exact = mixture(process)
    times = torch.linspace(-2, 2, 5, dtype=torch.float64)
    alpha, sigma = process.scales(1.0)
    start = math.hypot(alpha, sigma) * torch.stack([times, times.flip(0) * 0.7 + 0.1], 1)

    def flow(t: float, flat: np.ndarray) -> np.ndarray:
        return probability_flow(exact, torch.from_numpy(flat).reshape(-1, 2), t).flatten().numpy()

    solved = solve_ivp(flow, (1.0, 0.0), start.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-10)
    at_data = torch.from_numpy(solved.y[:, -1]).reshape(-1, 2)
    # λ(0) = 6 lies just above time 0, so a walk's last step holds the x̂_0 of that level.
    expected = GaussianMixture(process, MEANS, exact.covariances, [0.4, 0.6])(at_data, 1e-12).mean

    def ddim(num_steps: int) -> Tensor:
        x, grid = start, LogSnr(num_steps).times(process)
        for t, s in pairwise(grid):
            x = process.reverse(x, exact(x, t), t, s)
        return x

    assert torch.allclose(2.0 * ddim(800) - ddim(400), expected, rtol=0, atol=2e-4)
    assert not torch.allclose(ddim(20), expected, rtol=0, atol=1e-2)


def test_the_reverse_sde_draws_the_data() -> None:
    """2,000 Euler-Maruyama paths of 200 steps, η = 1, λ from -6 to 6: mean and variance within 5 errors and 3%."""
    process = Gaussian(LinearLogSnr(6.0, -6.0))
    exact = GaussianMixture(process, [[0.7]], [0.25])
    count, steps = 2000, 200
    noise = Noise(range(count))
    alpha, sigma = process.scales(1.0)
    x = alpha * 0.7 + math.sqrt(alpha**2 * 0.25 + sigma**2) * noise.normal((count, 1)).double()
    for i in range(steps):
        t = 1.0 - (i + 0.5) / steps
        fresh = math.sqrt(diffusion(process, t) / steps) * noise.at(i + 1).normal((count, 1)).double()
        x = x - reverse_drift(exact, x, t) / steps + fresh
    alpha, sigma = process.scales(0.0)
    variance = alpha**2 * 0.25 + sigma**2
    assert x.mean().item() == pytest.approx(alpha * 0.7, abs=5 * math.sqrt(variance / count) + 0.01)
    assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count) + 0.03)


# ---- score matching ------------------------------------------------------------------------------------------------


@every_scaling
@pytest.mark.parametrize("t", [0.3, 0.7])
def test_denoising_score_matching_is_explicit_score_matching_and_a_constant(process: Gaussian, t: float) -> None:
    """E‖m - y‖² = E‖m - ∇ ln p_t‖² + C for any model m, y the score target -ε/σ; so its minimiser is ∇ ln p_t.

    In one dimension by quadrature over (x_0, ε), for three models m(x). C = E y² - E s² depends on none of them.
    """
    exact = GaussianMixture(process, [[-0.8], [1.1]], [0.09, 0.25], [0.35, 0.65])
    alpha, sigma = process.scales(t)
    nodes = np.linspace(-8.0, 8.0, 401)  # the trapezoidal rule converges exponentially for these
    mass = np.exp(-0.5 * nodes**2)
    mass = mass / mass.sum()
    target, gaps = LinearTarget("score"), []
    clean = torch.from_numpy(np.stack([-0.8 + 0.3 * nodes, 1.1 + 0.5 * nodes]).reshape(-1))
    share = torch.from_numpy(np.stack([0.35 * mass, 0.65 * mass]).reshape(-1))
    x_0, eps = (grid.reshape(-1, 1) for grid in torch.meshgrid(clean, torch.from_numpy(nodes), indexing="ij"))
    joint = (share[:, None] * torch.from_numpy(mass)).reshape(-1)
    x_t = alpha * x_0 + sigma * eps
    y = target.encode(x_0, eps, process, t)
    s = score(exact(x_t, t), x_t, process, t)
    models = {"zero": 0.0 * x_t, "linear": -0.7 * x_t / (alpha**2 + sigma**2) + 0.1, "exact": s, "bent": s.tanh()}
    for model in models.values():
        dsm, esm = (float(joint @ ((model - other) ** 2)[:, 0]) for other in (y, s))
        gaps.append(dsm - esm)
    assert gaps == pytest.approx([gaps[0]] * len(models), rel=1e-9)
    constant = float(joint @ (y**2 - s**2)[:, 0])
    assert gaps[0] == pytest.approx(constant, rel=1e-9)
    assert constant > 0.0


@every_scaling
def test_the_best_output_for_the_score_target_is_the_score(process: Gaussian) -> None:
    """E[y | x_t] of the score row, decoded: y = ∇ ln p_t(x_t) stands for exactly the exact posterior mean."""
    exact, t = mixture(process), 0.4
    x = points(process, t)
    posterior = exact(x, t)
    decoded = LinearTarget("score").decode(score(posterior, x, process, t), x, process, t)
    assert torch.allclose(decoded.mean, posterior.mean, rtol=1e-12, atol=1e-12)


def test_e_y_given_x_t_by_quadrature_is_the_score() -> None:
    """∫ (-ε/σ) p(x_0) q(x_t | x_0) dx_0 / p_t(x_t), without Tweedie's formula."""
    process, t = Gaussian(Flow(), "flow"), 0.4
    exact = GaussianMixture(process, [[-0.8], [1.1]], [0.09, 0.25], [0.35, 0.65])
    alpha, sigma = process.scales(t)

    def normal(x: float, mean: float, variance: float) -> float:
        return math.exp(-0.5 * (x - mean) ** 2 / variance) / math.sqrt(2.0 * math.pi * variance)

    for x in (-1.0, 0.0, 0.9):

        def joint(x_0: float, x: float = x) -> float:
            return (0.35 * normal(x_0, -0.8, 0.09) + 0.65 * normal(x_0, 1.1, 0.25)) * normal(x, alpha * x_0, sigma**2)

        def target(x_0: float, x: float = x) -> float:
            return float(
                LinearTarget("score").encode(torch.tensor(x_0), torch.tensor((x - alpha * x_0) / sigma), process, t)
            )

        best = quad(lambda x_0: joint(x_0) * target(x_0), -6, 6)[0] / quad(joint, -6, 6)[0]
        x_t = torch.tensor([[x]], dtype=torch.float64)
        assert score(exact(x_t, t), x_t, process, t).item() == pytest.approx(best, rel=1e-6)


def test_sampling_by_name_and_by_the_ode_agree() -> None:
    """What `sample` draws with ddim is where the flow, closed-form for one Gaussian, takes the prior's draw."""
    process = Gaussian(LinearLogSnr(6.0, -6.0))
    exact = GaussianMixture(process, [[0.4]], [0.5])
    drawn = sample(exact, Ancestral(), LogSnr(2000), (1,), noise=Noise(range(3))).double()
    prior = process.prior((3, 1), Noise(range(3)).at(0), 1.0).double()
    alpha, sigma = process.scales(1.0)
    alpha_0, sigma_0 = process.scales(0.0)
    # The flow is the affine map of the marginals; the last step then holds x̂_0.
    spread = [math.sqrt(a * a * 0.5 + s * s) for a, s in ((alpha, sigma), (alpha_0, sigma_0))]
    moved = alpha_0 * 0.4 + (prior - alpha * 0.4) * spread[1] / spread[0]
    assert torch.allclose(drawn, exact(moved, 0.0).mean, atol=5e-3)
