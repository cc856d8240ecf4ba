"""Churn, restart and optimised grids, proven on walks: exact variances, moments, evaluations, and what they are for."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.time_maps import Flow, LinearBeta, LinearLogSnr
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import build, describe
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import Sampler, sample, trajectory
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.grid import Grid, Karras, LogSnr, Uniform
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.optimised import optimised
from diff_diffusion.samplers.single_step import Heun
from diff_diffusion.samplers.transforms import Churn, Restart, Truncate

WIDE = Gaussian(LinearLogSnr(12.0, -12.0))


def two_modes(process: Gaussian = WIDE) -> GaussianMixture:
    return GaussianMixture(process, [[-0.6], [0.9]], [0.09, 0.0625], [0.6, 0.4])


# ---- exact variance ------------------------------------------------------------------------------------------------


class Impulses:
    """Noise for a batch of samples of which sample i sees a 1 at the jump of step i and zeros at all others."""

    def __init__(self, step: int = 0) -> None:
        self.step = step

    def at(self, step: int, along: object = None) -> Impulses:
        return Impulses(step)

    def path(self, leg: int, clock: object) -> None:
        """Deterministic samplers draw nothing on their way down."""

    def normal(self, shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
        out = torch.zeros(tuple(shape), dtype=torch.float64)
        out[self.step] = 1.0
        return out


def variance_along(process: Gaussian, sampler: Sampler, times: list[float], variance: float) -> Tensor:
    """The exact variance of x at each of the times, for the exact denoiser of N(0, v): the sum of the squares of its
    responses to a unit of each noise that the walk draws."""
    denoiser = GaussianMixture(process, [[0.0]], [variance])
    start = process.prior((len(times), 1), Impulses(), times[0])  # type: ignore[arg-type]
    walk = trajectory(denoiser, sampler, times, start, noise=Impulses())  # type: ignore[arg-type]
    return torch.stack([(x**2).sum() for x in (start, *(step.x for step in walk))])


FINE = LogSnr(150, 12.0, -12.0)
UPS = {
    "churn": Churn(FINE, s_churn=20.0, s_min=0.01, s_max=50.0),
    "churn, all of it": Churn(FINE, s_churn=20.0, s_min=0.0, s_max=math.inf),
    "restart": Restart(FINE, repeats=3, inner=60),
    "restart from the prior": Restart(FINE, repeats=2, inner=80, low=0.5, high=1e6),
    "churned restart": Churn(Restart(FINE, repeats=2, inner=40), s_churn=20.0),
    "restart of a part": Truncate(0.7, Restart(FINE, repeats=2, inner=40)),
}


@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
@pytest.mark.parametrize("grid", UPS.values(), ids=UPS.keys())
def test_every_time_of_the_walk_has_its_marginal(grid: Grid, scaling: str) -> None:
    """Var x_t = α² v + σ² at all times, after steps up and down, within 1% (Heun; the flow at the prior is v = 1)."""
    process, variance = Gaussian(LinearLogSnr(12.0, -12.0), scaling), 1.0
    times = grid.times(process)
    assert any(s > t for t, s in pairwise(times))
    found = variance_along(process, Heun(), times, variance)
    expected = torch.tensor([alpha**2 * variance + sigma**2 for alpha, sigma in map(process.scales, times)]).double()
    expected[-1] = variance  # the data, at λ = ∞
    assert torch.allclose(found, expected, rtol=0.01, atol=0.0)


WHOLE = {name: grid for name, grid in UPS.items() if "part" not in name}
PAIRS = {f"heun, {name}": (Heun(), grid) for name, grid in WHOLE.items()}
# Not on churn: a multistep sampler forgets its past at every step up, so there it is DDIM.
PAIRS |= {f"multistep, {name}": (Multistep(2), grid) for name, grid in WHOLE.items() if "churn" not in name}


@pytest.mark.parametrize("variance", [0.25, 3.0])
@pytest.mark.parametrize(("sampler", "grid"), PAIRS.values(), ids=PAIRS.keys())
def test_samples_have_the_variance_of_other_data_too(sampler: Sampler, grid: Grid, variance: float) -> None:
    """Within 2%, although the prior of this walk has variance 1."""
    found = variance_along(WIDE, sampler, grid.times(WIDE), variance)[-1].item()
    assert found == pytest.approx(variance, rel=0.02)


# ---- Monte Carlo, evaluations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [Churn(Karras(32)), Restart().with_steps(40)], ids=["edm stochastic", "restart"])
def test_samples_have_the_moments_of_the_mixture(grid: Grid) -> None:
    """4,000 samples: mean, variance and third moment within 5 standard errors and 0.02 for the steps."""
    mixture, num = two_modes(), 4000
    x = sample(mixture, Heun(), grid, (1,), noise=Noise(range(num))).double()
    data = mixture.draw(Noise(range(10**6, 10**6 + 100_000)))
    for power in (1, 2, 3):
        error = 5.0 * (x**power).std().item() * math.sqrt(1 / num + 1e-5)
        assert (x**power).mean().item() == pytest.approx((data**power).mean().item(), abs=error + 0.02)


@pytest.mark.parametrize("num_steps", [5, 12, 33])
def test_going_up_costs_no_evaluation(num_steps: int) -> None:
    """num_steps with one evaluation a step; twice that less one with Heun, as on any grid of as many steps."""
    for grid in (Churn(), Restart(), Churn(Restart()), Truncate(0.5, Restart())):
        times = grid.with_steps(num_steps).times(WIDE)
        for sampler, expected in ((Ancestral(0.0), num_steps), (Multistep(2), num_steps), (Heun(), 2 * num_steps - 1)):
            *_, last = trajectory(two_modes(), sampler, times, torch.zeros(1, 1), noise=Noise([0]))
            assert last.nfe == expected


class Biased(Denoiser):
    """The exact denoiser of the two modes, off by `size` where λ is below -1: wrong about what is far away."""

    def __init__(self, size: float) -> None:
        self.process: Gaussian = WIDE
        self.size = size
        self.inner = two_modes()

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
        exact = self.inner(x_t, t)
        early = WIDE.time_map.log_snr(float(t)) < -1.0
        return GaussianPosterior(exact.mean + (self.size if early else 0.0), exact.tweedie)


def test_restart_forgets_errors_made_before_it() -> None:
    """Earth mover's distance to the data of a denoiser that is wrong at high noise: at 47 evaluations each, Heun on
    Restart halves at least what it makes on the grid alone, and churn lies between."""
    num = 4000
    data = two_modes().draw(Noise(range(10**6, 10**6 + num))).flatten().sort().values
    far = {}
    for name, grid in (("ode", Karras(24)), ("churn", Churn(Karras(24))), ("restart", Restart(Karras(12), 2, 6))):
        x = sample(Biased(0.2), Heun(), grid, (1,), noise=Noise(range(num))).double()
        far[name] = (x.flatten().sort().values - data).abs().mean().item()
    assert far["restart"] < 0.6 * far["ode"]
    assert far["restart"] < far["churn"] < far["ode"]


# ---- optimised -----------------------------------------------------------------------------------------------------

MAPS = {"linear in λ": WIDE, "flow": Gaussian(Flow(), "flow"), "linear betas": Gaussian(LinearBeta())}


@pytest.mark.parametrize("process", MAPS.values(), ids=MAPS.keys())
def test_an_optimised_grid_beats_the_others_at_few_steps(process: Gaussian) -> None:
    """Distance to the ODE's exact end (order 3 in 1,000 steps), at 6 to 12 steps, DDIM and DPM-Solver++(2M)."""
    mixture, noise = two_modes(process), Noise(range(1000, 1200))
    x = process.prior((200, 1), noise.at(0)).double()

    def end(sampler: Sampler, grid: Grid) -> Tensor:
        *_, last = trajectory(mixture, sampler, grid.times(process), x, noise=noise)
        return last.x

    exact = end(Multistep(3), LogSnr(1000, 14.0, -14.0))
    for name, sampler in (("ddim", Ancestral(0.0)), ("dpmpp_2m", Multistep(2))):
        found = optimised(mixture, (1,), sampler.order, noise=Noise(range(32)))
        for num_steps in (6, 8, 10, 12):
            grids: list[Grid] = [grid.with_steps(num_steps) for grid in (found, Uniform(), LogSnr(), Karras())]
            best, *others = [(end(sampler, grid) - exact).square().mean().sqrt().item() for grid in grids]
            print(
                f"{name:9} {num_steps:3}  optimised {best:.4f}  uniform, log_snr, karras", *(f"{o:.4f}" for o in others)
            )
            assert best < 0.96 * min(others), (name, num_steps, best, others)
            assert best < 0.7 * min(others[1:]), (name, num_steps, best, others)


def test_an_optimised_grid_makes_equal_errors() -> None:
    """Each step alone, from the marginal: errors of one DDIM step against a fine walk of it, all but the first within
    a factor 4, where even steps in λ differ by more than 100."""
    mixture = two_modes()

    def local_errors(grid: Grid) -> list[float]:
        times, errors = grid.times(WIDE), []
        noise = Noise(range(400))
        for t, s in pairwise(times[1:]):
            alpha, sigma = WIDE.scales(t)
            x = alpha * mixture.draw(noise.fork("data")) + sigma * noise.normal((400, 1)).double()
            low = WIDE.time_map.log_snr(s) if s > 0.0 else 14.0
            levels = torch.linspace(WIDE.time_map.log_snr(t), min(low, 11.9), 81).tolist()
            fine = [t, *(WIDE.time_map.time(level) for level in levels[1:]), 0.0]
            *_, before, last = trajectory(mixture, Heun(), fine, x, noise=noise)
            exact = before.x if s > 0.0 else last.x
            error = (WIDE.reverse(x, mixture(x, t), t, s) - exact).square().mean().sqrt().item()
            errors.append(WIDE.scales(s)[0] * error)  # what is left of it in the sample
        return errors

    found = local_errors(optimised(mixture, (1,), 1, noise=Noise(range(64)), num_steps=12))
    even = local_errors(LogSnr(12))
    assert max(found) < 4.0 * min(found), found
    assert max(even) > 100.0 * min(even), even


def test_an_optimised_grid_is_stored_as_a_table() -> None:
    grid = optimised(two_modes(), (1,), 2, noise=Noise(range(8)), num_steps=9)
    assert build(json.loads(json.dumps(describe(grid)))) == grid
    assert grid.num_steps == 9
    assert optimised(two_modes(), (1,), 2, noise=Noise(range(8)), num_steps=9) == grid


def test_what_cannot_be_optimised_is_said() -> None:
    with pytest.raises(ConfigError, match=r"order 1, 2 or 3.*not 4 and 64"):
        optimised(two_modes(), (1,), 4, noise=Noise([0]))
    with pytest.raises(ConfigError, match="at least 8 knots, not 1 and 7"):
        optimised(two_modes(), (1,), noise=Noise([0]), knots=7)
