"""Classifier guidance: with the exact classifier of a mixture it is the conditional model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture, TokenTable
from diff_diffusion.core.categorical import Absorbing
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.time_maps import Cosine, LinearLogSnr
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance import ClassifierFree, ClassifierGuided, Clipped
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers import sample
from diff_diffusion.samplers.ancestral import Ancestral

PROCESS = Gaussian(LinearLogSnr(9.0, -9.0))
COND = Cond({"component": torch.tensor([0, 1, 1, 0])})
X = Noise(range(4)).normal((4, 2)).double()
TIMES = [0.4, torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)]
both_times = pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])


def mixture(process: Gaussian = PROCESS) -> GaussianMixture:
    return GaussianMixture(process, [[-0.6, 0.2], [0.9, -0.4]], [0.09, 0.25], [0.6, 0.4])


class Exact:
    """ln p(component | x_t) of the mixture, up to a constant; it counts how often it was asked."""

    def __init__(self, process: Gaussian = PROCESS) -> None:
        self.exact, self.asked = mixture(process), 0

    def __call__(self, x_t: Tensor, log_snr: Tensor, cond: Cond) -> Tensor:
        self.asked += 1
        assert log_snr.shape == (len(x_t),)
        assert log_snr.dtype == x_t.dtype
        t = self.exact.process.time_map.time(log_snr)
        return self.exact.log_density(x_t, t, cond) - self.exact.log_density(x_t, t)


@both_times
@pytest.mark.parametrize("scaling", SCALINGS)
def test_with_the_exact_classifier_scale_1_is_the_conditional_model(scaling: str, t: float | Tensor) -> None:
    process = Gaussian(LinearLogSnr(9.0, -9.0), scaling)
    exact = mixture(process)
    for scale in (1.0, 2.5, -0.5):
        guided = ClassifierGuided(exact, Exact(process), scale)(X, t, COND).mean
        expected = exact(X, t).mean + scale * (exact(X, t, COND).mean - exact(X, t).mean)
        assert torch.allclose(guided, expected, rtol=1e-8, atol=1e-9)
        assert torch.allclose(guided, ClassifierFree(exact, scale)(X, t, COND).mean, rtol=1e-8, atol=1e-9)


@both_times
def test_scale_0_is_the_model_and_asks_no_classifier(t: float | Tensor) -> None:
    classifier = Exact()
    assert torch.equal(ClassifierGuided(mixture(), classifier, 0.0)(X, t, COND).mean, mixture()(X, t).mean)
    assert classifier.asked == 0
    ClassifierGuided(mixture(), classifier, 2.0)(X, t, COND)
    assert classifier.asked == 1


def test_samples_that_keep_no_condition_are_not_guided() -> None:
    cond = COND.drop(torch.tensor([False, True, False, True]))
    guided = ClassifierGuided(mixture(), lambda x, *_: -(x**2).sum(1), 2.0)(X, 0.4, cond).mean
    free = mixture()(X, 0.4).mean
    assert torch.equal(guided[[1, 3]], free[[1, 3]])
    assert not torch.allclose(guided[[0, 2]], free[[0, 2]])


def test_it_nests() -> None:
    """Guided without a classifier by a scale, it is guided by the classifier of that scale; and so on around it."""
    once = ClassifierFree(ClassifierGuided(mixture(), Exact(), 1.0), 2.5)(X, 0.4, COND).mean
    assert torch.allclose(once, ClassifierGuided(mixture(), Exact(), 2.5)(X, 0.4, COND).mean, rtol=1e-12)
    low, high = torch.tensor(-0.5), torch.tensor(0.5)
    assert torch.equal(Clipped(ClassifierGuided(mixture(), Exact(), 2.5), low, high)(X, 0.4, COND).mean,
                       ClassifierGuided(mixture(), Exact(), 2.5)(X, 0.4, COND).mean.clamp(-0.5, 0.5))  # fmt: skip


def test_a_walk_under_no_grad_ends_at_the_component_and_holds_no_graph() -> None:
    cond = Cond({"component": torch.ones(200, dtype=torch.int64)})
    guided = ClassifierGuided(mixture(), Exact(), 2.0)
    x = sample(guided, Ancestral(1.0), grids.LogSnr(30), (2,), noise=Noise(range(200)), cond=cond)
    assert (x[:, 0] > 0).double().mean() > 0.95
    assert not x.requires_grad
    assert not guided(X, 0.4, COND).mean.requires_grad


def test_it_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="0 means none here"):
        ClassifierGuided(mixture(), Exact(), math.inf)
    for cond in (None, Cond()):
        with pytest.raises(ConfigError, match="without a condition"):
            ClassifierGuided(mixture(), Exact())(X, 0.4, cond)
    with pytest.raises(ConfigError, match=r"one number for each of 4 samples, not shape \[4, 2\]"):
        ClassifierGuided(mixture(), lambda x, *_: x)(X, 0.4, COND)
    with pytest.raises(IncompatibleError, match="this model uses Absorbing, for which ClassifierFree fits"):
        ClassifierGuided(TokenTable(Absorbing(3), torch.ones(3)), Exact())
    unclear = ClassifierGuided(mixture(Gaussian(Cosine())), lambda x, *_: x.sum(1))
    with pytest.raises(IncompatibleError, match="no signal"):
        unclear(X, torch.ones(4, dtype=torch.float64), COND)
