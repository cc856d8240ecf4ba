"""Consistency sampling: exact for a consistency function, in any number of steps; and what a denoiser makes of it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.registry import build
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.consistency import Consistency
from diff_diffusion.samplers.sampler import trajectory


class Answer(Denoiser):
    """Data N(0, v): the end of the ODE's path from x_t, or the mean of x_0 given x_t."""

    def __init__(self, process: Gaussian, variance: float, *, consistent: bool) -> None:
        self.process: Gaussian = process
        self.variance, self.consistent = variance, consistent

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
        alpha, sigma = self.process.scales(float(t))
        total = alpha**2 * self.variance + sigma**2
        # The ODE keeps x_t / √(its variance), so its end is that times √v.
        gain = math.sqrt(self.variance / total) if self.consistent else alpha * self.variance / total
        return GaussianPosterior(gain * x_t, 0.0)


class Draws(Noise):
    """Each step's number is a direction of its own."""

    def normal(self, shape: object, like: Tensor | None = None) -> Tensor:
        # The increments of steps are independent and standard normal, however the path makes them.
        out = torch.zeros(len(self.seeds), 1, dtype=torch.float64)
        out[self.step] = 1.0
        return out


def variance(denoiser: Answer, num_steps: int) -> float:
    """The variance of the samples, exactly: the sum of the squares of the responses to each number drawn."""
    times, noise = grids.LogSnr(num_steps, 12.0, -12.0).times(denoiser.process), Draws(range(num_steps + 1))
    alpha, sigma = denoiser.process.scales(times[0])
    start = math.sqrt(alpha**2 * denoiser.variance + sigma**2) * noise.normal(())
    *_, last = trajectory(denoiser, Consistency(), times, start, noise=noise)
    return (last.x**2).sum().item()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 5, 40])
def test_a_consistency_function_gives_the_data_in_any_number_of_steps(scaling: str, num_steps: int) -> None:
    process = Gaussian(LinearLogSnr(12.0, -12.0), scaling)
    found = variance(Answer(process, 0.4, consistent=True), num_steps)
    assert found == pytest.approx(0.4, rel=1e-12)


def test_a_denoisers_answer_loses_half_the_variance() -> None:
    """c = m² (c + σ²/α²) with m = α² v / (α² v + σ²) has c = v m / (1 + m): v / 2 at the data, to first order in h."""
    process = Gaussian(LinearLogSnr(12.0, -12.0))
    losses = [0.5 - variance(Answer(process, 0.4, consistent=False), n) / 0.4 for n in (64, 128, 256)]
    assert losses[2] == pytest.approx(0.0, abs=2e-2)
    assert [math.log2(a / b) for a, b in pairwise(losses)] == pytest.approx([1.0, 1.0], abs=0.1)


def test_lcm_is_its_name_and_it_draws_noise() -> None:
    assert build({"type": "sampler/lcm"}) == Consistency()
    assert not Consistency().deterministic
