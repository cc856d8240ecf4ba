"""Laws of guidance: scale 1 is none, 0 is unconditional, and on exact models it is the sharpened distribution."""

from __future__ import annotations

import pytest
import torch
from law_examples import scalings
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.errors import ConfigError
from diff_diffusion.guidance import ClassifierFree
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers import sample
from diff_diffusion.samplers.ancestral import Ancestral

every_scaling = pytest.mark.parametrize("process", scalings(LinearLogSnr(9.0, -9.0)), ids=SCALINGS)
PROCESS = Gaussian(LinearLogSnr(9.0, -9.0))
COND = Cond({"component": torch.tensor([0, 1, 1, 0])})


class Counted(Denoiser):
    """A denoiser that remembers how often and for how many samples it was asked."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        self.batches.append(len(x_t))
        return self.inner(x_t, t, cond)


def mixture(process: Gaussian = PROCESS) -> GaussianMixture:
    return GaussianMixture(process, [[-0.6, 0.2], [0.9, -0.4]], [0.09, 0.25], [0.6, 0.4])


def points() -> Tensor:
    return Noise(range(4)).normal((4, 2)).double()


TIMES = [0.4, torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)]


@pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])
def test_scale_1_is_the_conditional_model_asked_once(t: float | Tensor) -> None:
    inner = Counted(mixture())
    guided = ClassifierFree(inner, 1.0)(points(), t, COND)
    assert inner.batches == [4]
    assert torch.equal(guided.mean, mixture()(points(), t, COND).mean)


@pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])
def test_scale_0_is_the_unconditional_model_asked_once(t: float | Tensor) -> None:
    inner = Counted(mixture())
    guided = ClassifierFree(inner, 0.0)(points(), t, COND)
    assert inner.batches == [4]
    assert torch.equal(guided.mean, mixture()(points(), t, None).mean)


@every_scaling
@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.5, 3.0, 7.5])
@pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])
def test_a_scale_extrapolates_from_the_unconditional_mean(process: Gaussian, scale: float, t: float | Tensor) -> None:
    """In one call of twice the batch: x̂_0 = u + s (c - u)."""
    exact = mixture(process)
    inner = Counted(exact)
    guided = ClassifierFree(inner, scale)(points(), t, COND)
    assert inner.batches == [8]
    free, given = exact(points(), t).mean, exact(points(), t, COND).mean
    assert torch.allclose(guided.mean, free + scale * (given - free), rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.as_tensor(guided.tweedie), torch.as_tensor(exact(points(), t).tweedie))


@every_scaling
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_on_gaussians_it_is_the_score_of_the_sharpened_density(process: Gaussian, scale: float) -> None:
    """p_u^(1-s) p_c^s of two Gaussians is a Gaussian of precision (1-s)/V_u + s/V_c; x̂_0 is Tweedie's formula on it."""
    t, (m_u, v_u), (m_c, v_c) = 0.45, (0.3, 2.0), (-0.5, 0.4)
    alpha, sigma = process.scales(t)

    class Pair(Denoiser):
        """A model of N(m_c, v_c) with its condition, of N(m_u, v_u) without."""

        def __init__(self) -> None:
            self.process: Gaussian = process

        def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
            one, other = (GaussianMixture(process, [[m]], [v])(x_t, t).mean for m, v in ((m_c, v_c), (m_u, v_u)))
            assert cond is not None
            return GaussianPosterior(torch.where(cond.keep["component"][:, None], one, other), sigma**2 / alpha)

    big_u, big_c = alpha**2 * v_u + sigma**2, alpha**2 * v_c + sigma**2
    precision = (1 - scale) / big_u + scale / big_c
    centre = ((1 - scale) * alpha * m_u / big_u + scale * alpha * m_c / big_c) / precision
    x_t = points()[:, :1]
    expected = (x_t + sigma**2 * -precision * (x_t - centre)) / alpha
    assert torch.allclose(ClassifierFree(Pair(), scale)(x_t, t, COND).mean, expected, rtol=1e-10, atol=1e-10)


def test_samples_that_keep_no_condition_are_not_moved() -> None:
    cond = COND.drop(torch.tensor([False, True, False, True]))
    guided = ClassifierFree(mixture(), 4.0)(points(), 0.5, cond).mean
    free = mixture()(points(), 0.5).mean
    assert torch.allclose(guided[[1, 3]], free[[1, 3]], rtol=1e-12)
    assert not torch.allclose(guided[[0, 2]], free[[0, 2]])


def test_guidance_nests_and_walks() -> None:
    """It is a denoiser like any other: a walk with it ends at the component asked for."""
    cond = Cond({"component": torch.ones(200, dtype=torch.int64)})
    guided = ClassifierFree(mixture(), 2.0)
    assert guided.process is PROCESS
    x = sample(guided, Ancestral(1.0), grids.LogSnr(30), (2,), noise=Noise(range(200)), cond=cond)
    assert (x[:, 0] > 0).double().mean() > 0.95
    twice = ClassifierFree(ClassifierFree(mixture(), 1.0), 3.0)
    assert torch.equal(twice(points(), 0.5, COND).mean, ClassifierFree(mixture(), 3.0)(points(), 0.5, COND).mean)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("cond", [None, Cond()])
def test_a_scale_without_a_condition_is_refused(scale: float, cond: Cond | None) -> None:
    with pytest.raises(ConfigError, match="without a condition"):
        ClassifierFree(mixture(), scale)(points(), 0.5, cond)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="1 means none"):
        ClassifierFree(mixture(), scale)


def test_a_tilt_is_bayes_rule() -> None:
    """Evidence y = x_0 + noise of variance r on data N(0, v): the tilted mean is the conditional of all three."""
    v, r, y, t = 1.3, 0.4, 0.8, 0.4
    alpha, sigma = PROCESS.scales(t)
    x_t = points()[:, :1].requires_grad_()
    posterior = GaussianMixture(PROCESS, [[0.0]], [v])(x_t, t)
    # y given x_t is N(x̂_0, Var(x_0 | x_t) + r).
    spread = v * sigma**2 / (alpha**2 * v + sigma**2) + r
    (gradient,) = torch.autograd.grad((-0.5 * (y - posterior.mean) ** 2 / spread).sum(), x_t)
    precision = 1 / v + alpha**2 / sigma**2 + 1 / r
    expected = (alpha * x_t / sigma**2 + y / r) / precision
    assert torch.allclose(posterior.tilt(gradient).mean, expected, rtol=1e-10)
