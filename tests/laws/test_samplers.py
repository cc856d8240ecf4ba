"""Laws of samplers, against exact denoisers: convergence order, exact moments, scalings, seeds, evaluations, noise.

A check of shape and finiteness proves nothing about a sampler. Three oracles do: the probability-flow ODE solved to
1e-12; the exact covariance of a linear model, read off as impulse responses; and Monte Carlo with stated bounds.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from law_examples import gaussians, parts, scalings
from scipy.integrate import solve_ivp
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.core.time_maps import Cosine, Flow, LinearLogSnr
from diff_diffusion.rng import Brownian, Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.sampler import Sampler, Step, sample, trajectory
from diff_diffusion.tensors import expand

EVERY = [p for p in parts("sampler") if issubclass(Gaussian, p.values[0].needs)] + [
    pytest.param(Ancestral(eta=0.5), id="eta-0.5")
]
every_sampler = pytest.mark.parametrize("sampler", EVERY)
deterministic = pytest.mark.parametrize(
    "sampler", [p for p in EVERY if p.values[0].deterministic and not p.values[0].adaptive]
)
stochastic = pytest.mark.parametrize(
    "sampler", [p for p in EVERY if not p.values[0].deterministic and p.values[0].bias == 0.0]
)

WIDE = Gaussian(LinearLogSnr(12.0, -12.0))
TWO_MODES = {"means": [[-0.6], [0.9]], "covariances": [0.09, 0.0625], "weights": [0.6, 0.4]}


class Linear(Denoiser):
    """The exact denoiser of data N(0, v), number by number, so that a batch cannot change a sample's rounding."""

    def __init__(self, process: Gaussian, variance: float) -> None:
        self.process: Gaussian = process
        self.variance = variance

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        if isinstance(t, Tensor):
            gains = torch.tensor([self.gain(time) for time in t.expand(len(x_t)).tolist()], dtype=x_t.dtype)
            return GaussianPosterior(x_t * expand(gains, x_t), 0.0)
        return GaussianPosterior(x_t * self.gain(t), 0.0)

    def gain(self, t: float) -> float:
        alpha, sigma = self.process.scales(t)
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2)


def walk(denoiser: Denoiser, sampler: Sampler, times: list[float], x: Tensor, noise: Any) -> list[Step]:
    return list(trajectory(denoiser, sampler, times, x, noise=noise))


# ---- order ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact() -> tuple[GaussianMixture, Tensor, Tensor]:
    """The mixture, eight points at λ = -12, and where the probability-flow ODE takes them.

    In u = ln(α/σ) the ODE is dz/du = x̂_0 - z with z = x/α; the walk's last step to the data holds x̂_0 at λ = 12.
    """
    mixture = GaussianMixture(WIDE, **TWO_MODES)
    x = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64)[:, None]

    def flow(u: float, z: Any) -> Any:
        alpha = math.sqrt(1.0 / (1.0 + math.exp(-2.0 * u)))
        mean = mixture(alpha * torch.from_numpy(z)[:, None], WIDE.time_map.time(2.0 * u)).mean[:, 0]
        return mean.numpy() - z

    start = (x / WIDE.scales(1.0)[0])[:, 0].numpy()
    solved = solve_ivp(flow, (-6.0, 6.0), start, method="DOP853", rtol=1e-12, atol=1e-13)
    at_data = WIDE.scales(0.0)[0] * torch.from_numpy(solved.y[:, -1])[:, None]
    return mixture, x, mixture(at_data, 0.0).mean


@deterministic
def test_the_error_falls_with_the_order_of_the_sampler(
    sampler: Sampler, exact: tuple[GaussianMixture, Tensor, Tensor]
) -> None:
    """Twice the steps, 2^order times less error: each slope from 64 to 512 steps is the order within 0.3.

    From 128 on for order 4, which is not yet in its asymptotic range before.
    """
    mixture, x, expected = exact
    errors = []
    for num_steps in (64, 128, 256, 512) if sampler.order < 4 else (128, 256, 512, 1024):
        times = grids.LogSnr(num_steps + 1, 12.0, -12.0).times(WIDE)
        errors.append((walk(mixture, sampler, times, x, Noise(range(8)))[-1].x - expected).norm().item())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([sampler.order] * 3, abs=0.3)


# ---- exact moments of a linear model -------------------------------------------------------------------------------


class Impulses(Noise):
    """Noise for a linear walk: the i-th draw that is asked for anywhere is 1 for sample i and 0 for all others.

    A draw is a (stream, step); the Brownian path of the steps is the real one, made of such draws.
    """

    def __init__(self, count: int) -> None:
        super().__init__(range(count))
        object.__setattr__(self, "rows", {})

    def normal(self, shape: Any, like: Tensor | None = None) -> Tensor:
        if self._increment is not None:
            return super().normal(shape, like)
        out = torch.zeros(tuple(shape), dtype=torch.float64)
        rows: dict[tuple[str, int], int] = self.__dict__["rows"]
        out[rows.setdefault((self.stream, self.step), len(rows))] = 1.0
        return out


def variance_of_walk(denoiser: Denoiser, sampler: Sampler, times: list[float]) -> float:
    """The exact variance of the samples of a linear walk from the prior, without Monte Carlo: the sum of the squares
    of its responses to a unit of each number it draws."""
    jumps = sum(after > before for before, after in pairwise(times))
    noise = Impulses(1 + jumps if sampler.deterministic else 8 * len(times) + 64)
    assert isinstance(denoiser.process, Gaussian)
    start = denoiser.process.prior((len(noise), 1), noise, times[0])
    return (walk(denoiser, sampler, times, start, noise)[-1].x ** 2).sum().item()


def exact_variance(sampler: Sampler, variance: float, num_steps: int) -> float:
    """The variance of the samples for data N(0, v)."""
    return variance_of_walk(Linear(WIDE, variance), sampler, grids.LogSnr(num_steps, 12.0, -12.0).times(WIDE))


@every_sampler
@pytest.mark.parametrize("variance", [0.25, 1.0, 3.0])
def test_samples_have_the_variance_of_the_data(sampler: Sampler, variance: float) -> None:
    """The exact variance is within 5% at 512 steps (2% for order 2 and above), and nearer with more steps.

    Beyond the sampler's bias, that is. An adaptive one stays within its tolerance instead of coming nearer.
    """
    errors = [abs(exact_variance(sampler, variance, n) / variance - 1.0) for n in (128, 512)]
    beyond = [max(error - sampler.bias, 0.0) for error in errors]
    assert beyond[1] < (0.05 if sampler.order == 1 else 0.02)
    assert beyond[1] < beyond[0] / 2.0 or beyond[1] < 1e-4 or sampler.adaptive


@stochastic
@pytest.mark.parametrize("variance", [0.25, 3.0])
def test_the_error_of_the_variance_falls_with_the_weak_order(sampler: Sampler, variance: float) -> None:
    """Exactly, from p_t itself at λ = -12 to what holding x̂_0 at λ = 12 leaves: each slope within 0.3."""
    denoiser, errors = Linear(WIDE, variance), []
    for num_steps in (64, 128, 256, 512):
        times, noise = grids.LogSnr(num_steps + 1, 12.0, -12.0).times(WIDE), Impulses(8 * num_steps)
        (alpha, sigma), (alpha_0, sigma_0) = WIDE.scales(times[0]), WIDE.scales(times[-2])
        start = math.sqrt(alpha**2 * variance + sigma**2) * noise.normal((len(noise), 1))
        found = (walk(denoiser, sampler, times, start, noise)[-1].x ** 2).sum().item()
        kept = alpha_0**2 * variance / (alpha_0**2 * variance + sigma_0**2)
        errors.append(abs(found / (kept * variance) - 1.0))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([sampler.weak_order] * 3, abs=0.3)


@stochastic
def test_a_sample_converges_path_by_path(sampler: Sampler) -> None:
    """The same seeds on finer grids give nearer samples: the root mean square of what twice the steps change, exactly,
    over all the noise there is, falls with slope 1 within 0.2."""
    denoiser, rows, ends = Linear(WIDE, 0.25), Impulses(6000), []
    for num_steps in (64, 128, 256, 512):
        times = grids.LogSnr(num_steps + 1, 12.0, -12.0).times(WIDE)
        ends.append(walk(denoiser, sampler, times, rows.at(0).normal((len(rows), 1)), rows)[-1].x)
    errors = [(a - b).norm().item() for a, b in pairwise(ends)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([1.0] * 2, abs=0.2)


@stochastic
def test_a_sample_is_of_no_time_map_and_scaling(sampler: Sampler) -> None:
    """The same seeds and levels on other time maps in other scalings give the same samples."""
    ends = []
    for time_map, scaling in ((LinearLogSnr(9.0, -9.0), "vp"), (LinearLogSnr(12.0, -9.0), "ve"), (Flow(), "flow")):
        process = Gaussian(time_map, scaling)
        times = [*(time_map.time(-9.0 + 0.7 * i) for i in range(25)), 0.0]
        alpha, sigma = process.scales(times[0])
        start = math.hypot(alpha, sigma) * Noise(range(6)).normal((6, 1)).double()
        ends.append(walk(GaussianMixture(process, **TWO_MODES), sampler, times, start, Noise(range(6)))[-1].x)
    assert torch.allclose(ends[1], ends[0], rtol=0, atol=1e-5)  # the path's numbers are float32
    assert torch.allclose(ends[2], ends[0], rtol=0, atol=1e-5)


# ---- Monte Carlo ---------------------------------------------------------------------------------------------------

NEAR = Gaussian(LinearLogSnr(9.0, -9.0), "flow")
NUM, NUM_STEPS = 1200, 60


def drawn(mixture: GaussianMixture, sampler: Sampler) -> Tensor:
    """1,200 samples in 60 steps; 400 of an adaptive sampler, which finds its own."""
    num, num_steps = (400, 2) if sampler.adaptive else (NUM, NUM_STEPS)
    return sample(mixture, sampler, grids.LogSnr(num_steps), (2,), noise=Noise(range(num))).double()


@every_sampler
def test_samples_have_the_mean_and_covariance_of_a_correlated_gaussian(sampler: Sampler) -> None:
    """Samples in 60 steps: within 5 standard errors, and 15% of the covariance for 60 steps of order 1."""
    mean = torch.tensor([0.4, -0.3], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    mixture = GaussianMixture(NEAR, mean[None], covariance[None])
    x = drawn(mixture, sampler)
    variances = covariance.diagonal()
    error = 5.0 * (variances / len(x)).sqrt()
    assert ((x.mean(0) - mean).abs() <= error + 0.02).all()
    # Var of a sample covariance: (C_ii C_jj + C_ij²) / n.
    spread = ((variances[:, None] * variances[None, :] + covariance**2) / len(x)).sqrt()
    assert ((x.T.cov() - covariance).abs() <= 5.0 * spread + (0.15 + sampler.bias) * covariance.abs()).all()


@pytest.mark.parametrize("sampler", [p for p in EVERY if p.values[0].bias < 0.1])
def test_samples_fall_on_the_modes_in_their_shares(sampler: Sampler) -> None:
    """Samples of two modes 13 deviations apart, shares 0.3 and 0.7: within 5 standard errors and 0.02."""
    mixture = GaussianMixture(NEAR, [[-1.0, 0.5], [1.2, -0.3]], [0.03, 0.03], [0.3, 0.7])
    x = drawn(mixture, sampler)
    near = torch.cdist(x, mixture.means).argmin(1)
    assert (near == 0).double().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / len(x)) + 0.02)
    for k in (0, 1):
        own = x[near == k]
        assert torch.allclose(own.mean(0), mixture.means[k], atol=5 * math.sqrt(0.03 / len(own)) + 0.02)
        assert own.var(0).mean().item() == pytest.approx(0.03, rel=0.25 + sampler.bias)


# ---- the same picture ----------------------------------------------------------------------------------------------


@every_sampler
def test_a_sample_is_the_same_in_a_batch_of_1_and_of_8(sampler: Sampler) -> None:
    """Bit by bit, noise of every step included."""
    denoiser, grid = Linear(NEAR, 0.7), grids.LogSnr(12)
    eight = sample(denoiser, sampler, grid, (3, 2), noise=Noise(range(40, 48)))
    assert torch.equal(eight, sample(denoiser, sampler, grid, (3, 2), noise=Noise(range(40, 48))))
    for i in (0, 3, 7):
        assert torch.equal(sample(denoiser, sampler, grid, (3, 2), noise=Noise([40 + i]))[0], eight[i])
    assert len({tuple(row.flatten().tolist()) for row in eight}) == 8


@every_sampler
def test_another_seed_gives_another_sample(sampler: Sampler) -> None:
    denoiser, grid = Linear(NEAR, 0.7), grids.LogSnr(12)
    one, other = (sample(denoiser, sampler, grid, (4,), noise=Noise([seed])) for seed in (1, 2))
    assert not torch.allclose(one, other)


@every_sampler
@pytest.mark.parametrize(
    "grid", [grids.LogSnr(20), grids.Karras(20), grids.Uniform(20)], ids=["log", "karras", "uniform"]
)
def test_the_three_scalings_give_the_same_samples(sampler: Sampler, grid: grids.Grid) -> None:
    """From the same noise, in float64, to 1e-10: a scaling is a choice of units."""
    ends = []
    for process in scalings(LinearLogSnr(9.0, -9.0)):
        mixture = GaussianMixture(process, **TWO_MODES)
        times, noise = grid.times(process), Noise(range(6))
        alpha, sigma = process.scales(times[0])
        start = math.sqrt(alpha**2 + sigma**2) * noise.at(0).normal((6, 1)).double()
        ends.append(walk(mixture, sampler, times, start, noise)[-1].x)
    for process, end in zip(SCALINGS, ends, strict=True):
        assert torch.allclose(end, ends[0], rtol=0, atol=1e-10), process


@every_sampler
def test_a_walk_along_any_process_is_finite_and_near_the_data(sampler: Sampler) -> None:
    """Every time map in every scaling; samples of N(0, 0.25) stay within 8 standard deviations."""
    for param in gaussians():
        (process,) = param.values
        times = grids.LogSnr(4 if sampler.adaptive else 25).times(process)
        start = process.prior((4, 1), Noise(range(4)), times[0]).double()
        x = walk(Linear(process, 0.25), sampler, times, start, Noise(range(4)))[-1].x
        assert x.abs().max() < 4.0, param.id


# ---- the ends ------------------------------------------------------------------------------------------------------


@every_sampler
def test_no_noise_is_left_in_a_sample(sampler: Sampler) -> None:
    """The last step returns x̂_0 itself; data at one point come out at that point."""
    mixture = GaussianMixture(NEAR, [[0.37, -2.5]], [0.0])
    for num_steps in (1, 2, 3, 10):
        times = grids.LogSnr(num_steps).times(NEAR)
        start = NEAR.prior((5, 2), Noise(range(5)), 1.0).double()
        last = walk(mixture, sampler, times, start, Noise(range(5)))[-1]
        assert last.x_0 is not None
        assert torch.equal(last.x, last.x_0)
        assert torch.allclose(last.x, mixture.means.expand(5, 2), rtol=1e-12, atol=1e-12)


@deterministic
@pytest.mark.parametrize("process", [Gaussian(Flow(), "flow"), Gaussian(Cosine(), "vp")], ids=["flow", "cosine"])
def test_a_first_step_from_no_signal_holds_x_0(sampler: Sampler, process: Gaussian) -> None:
    """At α = 0 x_t is ε: x_s = α_s x̂_0 + σ_s x_t, in one evaluation, and nothing divides by 0 after it."""
    mixture = GaussianMixture(process, **TWO_MODES)
    x = Noise(range(5)).normal((5, 1)).double()
    steps = walk(mixture, sampler, [1.0, 0.7, 0.5, 0.3, 0.0], x, Noise(range(5)))
    alpha, sigma = process.scales(0.7)
    assert torch.allclose(steps[0].x, alpha * mixture(x, 1.0).mean + sigma * x, rtol=1e-12)
    assert steps[0].nfe == 1
    assert all(torch.isfinite(step.x).all() for step in steps)


NFE = {name: lambda num_steps: 2 * num_steps - 1 for name in ("Heun", "Midpoint", "StochasticMidpoint", "Corrected")}


@pytest.mark.parametrize("sampler", [p for p in EVERY if not p.values[0].adaptive])
def test_evaluations_are_as_declared(sampler: Sampler) -> None:
    """One a step; Heun two, but one to the data."""
    declared = NFE.get(type(sampler).__name__, lambda num_steps: num_steps)
    for num_steps in (1, 2, 7):
        steps = walk(Linear(NEAR, 1.0), sampler, grids.LogSnr(num_steps).times(NEAR), torch.zeros(1, 1), Noise([0]))
        assert steps[-1].nfe == declared(num_steps)
        assert len(steps) == num_steps


# ---- steps to more noise -------------------------------------------------------------------------------------------

JUMPS = [1.0, 0.6, 0.3, 0.55, 0.2, 0.9, 0.5, 0.0]


@every_sampler
def test_a_step_to_more_noise_is_the_forward_kernel(sampler: Sampler) -> None:
    noise = Noise(range(4))
    denoiser = Linear(NEAR, 0.5)
    steps = walk(denoiser, sampler, JUMPS, NEAR.prior((4, 2), noise).double(), noise)
    for before, after in pairwise(steps):
        if after.s > after.t:
            expected = NEAR.renoise(before.x, after.t, after.s, noise.at(after.index + 1))
            assert torch.equal(after.x, expected)
            assert after.nfe == before.nfe
            assert after.x_0 is None
        else:
            assert after.x_0 is not None


@every_sampler
def test_a_sampler_forgets_at_a_jump(sampler: Sampler) -> None:
    """What comes after a jump is a walk begun there: past answers are of another path."""
    noise, denoiser = Noise(range(4)), GaussianMixture(NEAR, **TWO_MODES)
    steps = walk(denoiser, sampler, JUMPS, NEAR.prior((4, 1), noise).double(), noise)
    middle = steps[4]  # 0.2 -> 0.9
    assert (middle.t, middle.s) == (0.2, 0.9)

    class Later(Noise):
        """The same noise, five steps and two jumps on."""

        def at(self, step: int, along: Any = None) -> Noise:
            return noise.at(step + 5, along)

        def path(self, leg: int, clock: Any) -> Brownian:
            return noise.path(leg + 2, clock)

    again = walk(denoiser, sampler, JUMPS[5:], middle.x, Later(range(4)))
    assert torch.equal(again[-1].x, steps[-1].x)


@every_sampler
def test_going_back_and_forth_keeps_the_marginal(sampler: Sampler) -> None:
    """Exact variance by impulses: a fine walk with three restarts from λ = 3 to λ = -1 still ends at the data's."""
    process, variance = WIDE, 0.5
    down = grids.LogSnr(400, 12.0, -12.0).times(process)
    near, far = process.time_map.time(3.0), process.time_map.time(-1.0)
    high = [t for t in down if t > near]
    again = [near, *([far, *(t for t in down if near < t < far), near] * 3)]
    times = high + again + [t for t in down if t < near]
    assert variance_of_walk(Linear(process, variance), sampler, times) == pytest.approx(
        variance, rel=0.06 + sampler.bias
    )
