"""The walk itself: what it refuses, what it leaves alone, what it reports."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Process
from diff_diffusion.core.time_maps import Flow, LinearLogSnr
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import Sampler, sample, trajectory
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.single_step import Heun, StochasticMidpoint

PROCESS = Gaussian(Flow(), "flow")
MIXTURE = GaussianMixture(PROCESS, [[-0.6], [0.9]], [0.09, 0.0625])
NOISE = Noise(range(3))
TIMES = [1.0, 0.5, 0.2, 0.0]


class Foreign(Process):
    """A process of another family, of which nothing else will be asked."""

    def __init__(self) -> None:
        self.time_map = Flow()


Foreign.__abstractmethods__ = frozenset()  # whatever processes must be able to do by now


class Foreigner(GaussianMixture):
    def __init__(self) -> None:
        super().__init__(PROCESS, [[0.0]], [1.0])
        self.process = Foreign()  # type: ignore[assignment]


@pytest.mark.parametrize("sampler", [Heun(), Multistep(2)])
def test_a_sampler_for_another_process_is_refused_with_those_that_fit(sampler: Sampler) -> None:
    with pytest.raises(IncompatibleError) as caught:
        next(trajectory(Foreigner(), sampler, TIMES, torch.zeros(3, 1), noise=NOISE))
    message = str(caught.value)
    assert message.startswith(f"{type(sampler).__name__} needs a Gaussian process; this model uses Foreign")
    fits = message.split("Samplers that fit: ")[1].split(", ")
    assert "ancestral" in fits
    assert "heun" not in fits


def test_times_that_are_no_grid_are_refused_before_any_evaluation() -> None:
    with pytest.raises(ConfigError, match="exactly 0"):
        next(trajectory(MIXTURE, Heun(), [1.0, 0.5], torch.zeros(3, 1), noise=NOISE))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_callers_gradient_mode_is_the_callers(enabled: bool) -> None:
    x = torch.zeros(3, 1, requires_grad=True)
    with torch.set_grad_enabled(enabled):
        for step in trajectory(MIXTURE, Heun(), TIMES, x, noise=NOISE):
            assert torch.is_grad_enabled() is enabled
            assert not step.x.requires_grad
        assert torch.is_grad_enabled() is enabled
    walk = trajectory(MIXTURE, Heun(), TIMES, x, noise=NOISE)
    next(walk)
    walk.close()  # left half-way
    assert torch.is_grad_enabled()


def test_the_start_is_not_changed() -> None:
    x = torch.ones(3, 1)
    list(trajectory(MIXTURE, Ancestral(1.0), TIMES, x, noise=NOISE))
    assert torch.equal(x, torch.ones(3, 1))


def test_steps_say_where_they_are() -> None:
    x = PROCESS.prior((3, 1), NOISE)
    steps = list(trajectory(MIXTURE, Ancestral(0.0), TIMES, x, noise=NOISE))
    assert [(step.index, step.t, step.s, step.nfe) for step in steps] == [
        (0, 1.0, 0.5, 1),
        (1, 0.5, 0.2, 2),
        (2, 0.2, 0.0, 3),
    ]
    assert steps[0].x_0 is not None
    assert torch.equal(steps[0].x_0, MIXTURE(x, 1.0).mean)


def test_the_first_guess_of_a_step_is_reported() -> None:
    """Heun asks twice; x_0 is the answer at time t, not the one at s."""
    x = PROCESS.prior((3, 1), NOISE)
    for step in trajectory(MIXTURE, Heun(), TIMES, x, noise=NOISE):
        assert step.x_0 is not None
        assert torch.equal(step.x_0, MIXTURE(x, step.t).mean)
        x = step.x


def test_sample_is_the_end_of_the_walk_from_the_prior() -> None:
    grid = grids.LogSnr(6)
    times = grid.times(PROCESS)
    x = PROCESS.prior((3, 1), NOISE.at(0), times[0])
    *_, last = trajectory(MIXTURE, Ancestral(1.0), times, x, noise=NOISE)
    assert torch.equal(sample(MIXTURE, Ancestral(1.0), grid, (1,), noise=NOISE), last.x)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ConfigError, match="from 0"):
        Ancestral(eta)


def test_bad_multistep_orders_are_refused() -> None:
    with pytest.raises(ConfigError, match="1, 2 and 3, not 4"):
        Multistep(4)


@pytest.mark.parametrize("sampler", [Ancestral(1.0), Multistep(2, 1.0), StochasticMidpoint()], ids=["1", "2m", "2s"])
def test_samples_of_an_sde_converge_as_the_grid_is_refined(sampler: Sampler) -> None:
    """150 seeds on a mixture: what twice the steps change in the median sample halves, from 32 to 512 steps, within a
    slope of 0.3; with noise drawn afresh it would not fall."""
    noise, process = Noise(range(150)), Gaussian(LinearLogSnr(12.0, -12.0))
    mixture = GaussianMixture(process, [[-0.6], [0.9]], [0.09, 0.0625], [0.6, 0.4])
    x, ends = process.prior((150, 1), noise).double(), []
    for num_steps in (32, 64, 128, 256, 512):
        times = grids.LogSnr(num_steps + 1, 12.0, -12.0).times(process)
        *_, last = trajectory(mixture, sampler, times, x, noise=noise)
        ends.append(last.x)
    changes = [(one - other).abs().median().item() for one, other in pairwise(ends)]
    assert math.log2(changes[0] / changes[-1]) / 3.0 == pytest.approx(1.0, abs=0.3)
