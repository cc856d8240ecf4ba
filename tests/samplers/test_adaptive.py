"""Steps of the sampler's own choice: the error obeys the tolerance, at fewer evaluations than a fixed grid's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.time_maps import Flow, LinearLogSnr
from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.adaptive import Adaptive
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.sampler import Sampler, Step, trajectory
from diff_diffusion.samplers.single_step import Heun
from diff_diffusion.samplers.unipc import UniPC

PROCESS = Gaussian(LinearLogSnr(12.0, -12.0))
MIXTURE = GaussianMixture(PROCESS, [[-0.6], [0.9]], [0.09, 0.0625], [0.6, 0.4])
START = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64)[:, None]
FREE = grids.LogSnr(2).times(PROCESS)


def last(sampler: Sampler, times: list[float], x: Tensor = START, mixture: GaussianMixture = MIXTURE) -> Step:
    *_, step = trajectory(mixture, sampler, times, x, noise=Noise(range(len(x))))
    return step


@pytest.fixture(scope="module")
def exact() -> Tensor:
    """Where the flow takes START: by 1,500 steps of order 4, right to 1e-8."""
    return last(UniPC(3), grids.LogSnr(1500).times(PROCESS)).x


def test_the_error_falls_with_the_tolerance(exact: Tensor) -> None:
    """Ten times the tolerance, about ten times the error: slope 1 within 0.2 over three decades, and below 2 of it."""
    tolerances = [1e-2, 1e-3, 1e-4, 1e-5]
    steps = [last(Adaptive(tolerance, 0.1 * tolerance), FREE) for tolerance in tolerances]
    errors = [(step.x - exact).abs().max().item() for step in steps]
    assert all(error < 2.0 * tolerance for error, tolerance in zip(errors, tolerances, strict=True))
    assert math.log10(errors[0] / errors[-1]) / 3.0 == pytest.approx(1.0, abs=0.2)
    evaluations = [step.nfe for step in steps]
    assert evaluations == sorted(evaluations)


def test_it_asks_less_than_fixed_steps_for_the_same_error(exact: Tensor) -> None:
    """Against even steps of λ, the best of the common grids here, counting the slowest sample of the batch."""
    adaptive = last(Adaptive(1e-3, 1e-4), FREE)
    error = (adaptive.x - exact).abs().max().item()
    for sampler, num_steps in ((Heun(), 80), (Multistep(2), 80)):
        fixed = last(sampler, grids.LogSnr(num_steps).times(PROCESS))
        assert fixed.nfe > 1.2 * adaptive.nfe
        assert (fixed.x - exact).abs().max().item() > error


def test_a_sample_has_steps_of_its_own() -> None:
    """An easy sample beside a hard one is the same as alone, bit by bit, and asks less."""
    together = last(Adaptive(), FREE)
    alone = [last(Adaptive(), FREE, x[None]) for x in START]
    assert torch.equal(together.x, torch.cat([step.x for step in alone]))
    counts = {step.nfe for step in alone}
    assert len(counts) > 1
    assert together.nfe == max(counts)


def test_conditions_stay_with_their_samples() -> None:
    """Each sample goes to the component that it is asked for, though the batch shrinks as samples finish."""
    cond = Cond({"component": torch.tensor([0, 1] * 4)})
    mixture = GaussianMixture(PROCESS, [[-3.0], [3.0]], [0.01, 0.2])
    *_, step = trajectory(mixture, Adaptive(), FREE, START, cond=cond, noise=Noise(range(8)))
    assert torch.equal((step.x > 0).flatten(), torch.tensor([False, True] * 4))


@pytest.mark.parametrize("scaling", ["vp", "flow"])
def test_a_start_without_signal_is_no_leap(scaling: str) -> None:
    """From λ = -∞, x̂_0 is held to λ = -12 only: the samples are those of the walk from there, to 1e-3."""
    process = Gaussian(Flow(), scaling)
    mixture = GaussianMixture(process, [[-0.6], [0.9]], [0.09, 0.0625], [0.6, 0.4])
    x = Noise(range(6)).normal((6, 1)).double()
    found = last(Adaptive(1e-4, 1e-5), [1.0, process.time_map.time(12.0), 0.0], x, mixture).x
    fine = last(UniPC(), [1.0, *(process.time_map.time(-12.0 + 0.1 * i) for i in range(241)), 0.0], x, mixture).x
    assert torch.allclose(found, fine, rtol=0, atol=1e-3)


def test_a_grid_of_more_steps_is_kept() -> None:
    """The walk stops at the grid's times, so that edits and pictures of a walk have them."""
    times = [1.0, 0.6, 0.3, 0.0]
    steps = list(trajectory(MIXTURE, Adaptive(), times, START, noise=Noise(range(8))))
    assert [(step.t, step.s) for step in steps] == [(1.0, 0.6), (0.6, 0.3), (0.3, 0.0)]
    assert steps[1].x_0 is not None
    assert torch.equal(steps[1].x_0, MIXTURE(steps[0].x, 0.6).mean)


def test_giving_up_says_how_far_it_came() -> None:
    with pytest.raises(ConfigError, match=r"8 of 8 samples did not come from time 1 to .* max_evaluations=5"):
        last(Adaptive(max_evaluations=5), FREE)

    class Broken(GaussianMixture):
        def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
            return GaussianPosterior(torch.full_like(x_t, math.nan), 0.0)

    broken = Broken(PROCESS, [[0.0]], [1.0])
    with pytest.raises(ConfigError, match="whether the model's answers are finite"):
        last(Adaptive(), FREE, START, broken)


@pytest.mark.parametrize("bad", [{"rtol": 0.0}, {"atol": -1.0}, {"max_evaluations": 0}])
def test_bad_tolerances_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Adaptive(**bad)  # type: ignore[arg-type]
