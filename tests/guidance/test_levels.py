"""Guidance by level: an interval of them, and CFG++ against its own loop."""

from __future__ import annotations

import math
from itertools import pairwise

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
from diff_diffusion.guidance import ClassifierFree, ClassifierFreePP, Clipped, Interval
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers import trajectory
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.single_step import Heun

PROCESS = Gaussian(LinearLogSnr(9.0, -9.0))
COND = Cond({"component": torch.tensor([0, 1, 1, 0])})
X = Noise(range(4)).normal((4, 2)).double()


def mixture(process: Gaussian = PROCESS) -> GaussianMixture:
    return GaussianMixture(process, [[-0.6, 0.2], [0.9, -0.4]], [0.09, 0.25], [0.6, 0.4])


class Counted(Denoiser):
    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        self.batches.append(len(x_t))
        return self.inner(x_t, t, cond)


def test_an_interval_guides_within_and_costs_one_plain_evaluation_outside() -> None:
    """λ falls from 9 to -9; the low end belongs to the interval, the high one does not."""
    inner = Counted(mixture())
    interval = Interval(ClassifierFree(inner, 3.0), inner, -4.5, 4.5)
    for t, guided in (
        (0.1, False),
        (0.25, False),
        (0.26, True),
        (0.5, True),
        (0.75, True),
        (0.76, False),
        (0.9, False),
    ):
        inner.batches.clear()
        mean = interval(X, t, COND).mean
        assert inner.batches == [8 if guided else 4], t
        own = ClassifierFree(mixture(), 3.0) if guided else mixture()
        assert torch.equal(mean, own(X, t, COND).mean)
        every = torch.full((4,), t, dtype=torch.float64)
        inner.batches.clear()
        assert torch.allclose(interval(X, every, COND).mean, mean, rtol=1e-12)
        assert inner.batches == [8 if guided else 4], t


def test_an_interval_of_everything_is_guidance_and_times_of_their_own_are_each_samples() -> None:
    guided = ClassifierFree(mixture(), 3.0)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    everywhere = Interval(guided, mixture(), -math.inf, math.inf)
    assert torch.equal(everywhere(X, t, COND).mean, guided(X, t, COND).mean)
    within = Interval(guided, mixture(), -4.5, 4.5)
    expected = torch.where(
        torch.tensor([False, True, True, False])[:, None], guided(X, t, COND).mean, mixture()(X, t, COND).mean
    )
    assert torch.equal(within(X, t, COND).mean, expected)
    low, high = torch.tensor(-0.25), torch.tensor(0.25)
    assert torch.equal(Clipped(within, low, high)(X, t, COND).mean, expected.clamp(-0.25, 0.25))
    twice = Interval(Interval(guided, mixture(), 0.0, 9.0), mixture(), -9.0, 4.5)  # nested: levels from 0 to 4.5
    assert torch.equal(twice(X, 0.3, COND).mean, guided(X, 0.3, COND).mean)
    assert torch.equal(twice(X, 0.6, COND).mean, mixture()(X, 0.6, COND).mean)


class Constant(Denoiser):
    def __init__(self, value: float, share: float) -> None:
        self.value, self.share, self.process = value, share, PROCESS

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        return GaussianPosterior(torch.full_like(x_t, self.value), 0.1, torch.full_like(x_t, self.share))


def test_an_interval_keeps_a_learned_variance_and_takes_tokens() -> None:
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    posterior = Interval(Constant(1.0, 0.2), Constant(2.0, 0.7), -4.5, 4.5)(X, t)
    assert isinstance(posterior, GaussianPosterior)
    assert posterior.share is not None
    assert posterior.mean[:, 0].tolist() == [2.0, 1.0, 1.0, 2.0]
    assert posterior.share[:, 0].tolist() == [0.7, 0.2, 0.2, 0.7]
    process = Absorbing(3, LinearLogSnr(9.0, -9.0))
    one, other = (TokenTable(process, torch.tensor(p)) for p in ([0.5, 0.3, 0.2], [0.1, 0.1, 0.8]))
    masked = torch.full((4, 1), 3)
    mean = Interval(one, other, -4.5, 4.5)(masked, t).mean
    assert torch.equal(mean[1:3], one(masked, t).mean[1:3])
    assert torch.equal(mean[[0, 3]], other(masked, t).mean[[0, 3]])


def test_an_interval_says_what_it_needs() -> None:
    for low, high in ((1.0, 1.0), (2.0, -2.0), (math.nan, 1.0)):
        with pytest.raises(ConfigError, match="low < high"):
            Interval(mixture(), mixture(), low, high)
    with pytest.raises(IncompatibleError, match="one process"):
        Interval(mixture(), mixture(Gaussian(Cosine())), -1.0, 1.0)


def cfg_pp(process: Gaussian, times: list[float], x: Tensor, blend: float) -> Tensor:
    """CFG++ for DDIM as the paper writes it: Tweedie with the blended noise, renoised with the unconditional one."""
    exact = mixture(process)
    for t, s in pairwise(times):
        alpha, sigma = process.scales(t)
        alpha_s, sigma_s = process.scales(s) if s else (1.0, 0.0)
        eps_c, eps_u = ((x - alpha * exact(x, t, cond).mean) / sigma for cond in (COND, None))
        eps = eps_u + blend * (eps_c - eps_u)
        x = alpha_s * (x - sigma * eps) / alpha + sigma_s * eps_u
    return x


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("blend", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("grid", [grids.LogSnr(9), grids.Uniform(7), grids.Karras(8)], ids=["log_snr", "t", "karras"])
def test_cfg_pp_is_its_own_ddim_loop(scaling: str, blend: float, grid: grids.Grid) -> None:
    process = Gaussian(LinearLogSnr(9.0, -9.0), scaling)
    times = grid.times(process)
    x = process.prior((4, 2), Noise(range(4)), times[0]).double()
    guided = ClassifierFreePP(mixture(process), blend, times)
    *_, last = trajectory(guided, Ancestral(0.0), times, x, cond=COND, noise=Noise(range(4)))
    assert torch.allclose(last.x, cfg_pp(process, times, x, blend), rtol=1e-9, atol=1e-9)
    plain = mixture(process)
    *_, free = trajectory(plain, Ancestral(0.0), times, x, noise=Noise(range(4)))
    assert torch.equal(last.x, free.x) == (blend == 0.0)


def test_cfg_pp_is_one_scale_on_a_grid_even_in_log_snr() -> None:
    times = grids.LogSnr(9).times(PROCESS)
    guided = ClassifierFreePP(mixture(), 0.6, times)
    scales = [guided.scale(t) for t in times[:-1]]
    step = PROCESS.log_snr(times[1]) - PROCESS.log_snr(times[0])
    assert all(math.isclose(scale, 0.6 / (1 - math.exp(-step / 2)), rel_tol=1e-7) for scale in scales[:-1])
    assert scales[-1] == 0.6
    inner = Counted(mixture())
    ClassifierFreePP(inner, 0.6, times)(X, times[2], COND)
    assert inner.batches == [8]


def test_cfg_pp_starts_without_signal() -> None:
    guided = ClassifierFreePP(mixture(Gaussian(Cosine())), 0.6, [1.0, 0.5, 0.0])
    assert guided.scale(1.0) == 0.6


def test_cfg_pp_says_what_it_needs() -> None:
    times = grids.LogSnr(5).times(PROCESS)
    with pytest.raises(ConfigError, match="at least 0"):
        ClassifierFreePP(mixture(), -0.1, times)
    with pytest.raises(ConfigError, match=r"goes from 0\.3 to 0\.5"):
        ClassifierFreePP(mixture(), 0.5, [1.0, 0.3, 0.5, 0.0])
    with pytest.raises(IncompatibleError, match="needs a Gaussian process"):
        ClassifierFreePP(TokenTable(Absorbing(3), torch.ones(3)), 0.5, times)
    guided = ClassifierFreePP(mixture(), 0.5, times)
    with pytest.raises(ConfigError, match="Ancestral"):
        list(trajectory(guided, Heun(), grids.LogSnr(6).times(PROCESS), X, cond=COND, noise=Noise(range(4))))
    with pytest.raises(ConfigError, match="one grid"):
        guided(X, torch.full((4,), times[0], dtype=torch.float64), COND)
    with pytest.raises(ConfigError, match="without a condition"):
        guided(X, times[0])
