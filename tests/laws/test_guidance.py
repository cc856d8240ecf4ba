"""Laws of guidance: scale 1 is none, 0 is unconditional, and on exact models it is the sharpened distribution."""

from __future__ import annotations

import pytest
import torch
from law_examples import scalings
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture, TokenTable
from diff_diffusion.core.categorical import Absorbing, TokenPosterior, UniformTokens
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance import Autoguided, ClassifierFree, Clipped
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


class Negated(Denoiser):
    """A model with two conditions, whose x̂_0 says which it kept: 1 for a kept component, 10 more for a kept style."""

    def __init__(self) -> None:
        self.process: Gaussian = PROCESS

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        assert cond is not None
        said = [(factor * cond.values[name]).where(cond.keep[name], 0) for name, factor in (("a", 1.0), ("b", 10.0))]
        return GaussianPosterior((said[0] + said[1])[:, None].expand(x_t.shape).double(), 0.5)


def test_a_negative_condition_takes_the_nulls_place() -> None:
    """Away from component 1 and not from the mixture, in one call; scale 1 does not know of it, 0 is it."""
    exact, one = mixture(), Cond({"component": torch.tensor([1])})
    against = exact(points(), 0.4, Cond({"component": torch.ones(4, dtype=torch.int64)})).mean
    given = exact(points(), 0.4, COND).mean
    for negative in (one, Cond({"component": torch.ones(4, dtype=torch.int64)})):
        for scale, batches in ((1.0, [4]), (0.0, [4]), (2.5, [8])):
            inner = Counted(exact)
            guided = ClassifierFree(inner, scale, negative)(points(), 0.4, COND).mean
            assert inner.batches == batches
            assert torch.allclose(guided, against + scale * (given - against), rtol=1e-12, atol=1e-12)
    assert torch.equal(ClassifierFree(exact, 1.0, one)(points(), 0.4, COND).mean, given)
    assert torch.equal(ClassifierFree(exact, 0.0, one)(points(), 0.4, COND).mean, against)


def test_a_name_that_the_negative_leaves_out_or_does_not_keep_is_null_there() -> None:
    cond = Cond({"a": torch.full((4,), 3), "b": torch.full((4,), 5)})
    named = Cond({"b": torch.tensor([7])})
    dropped = Cond({"a": torch.tensor([2]), "b": torch.tensor([7])}, {"a": torch.tensor([False])})
    for negative in (named, dropped):
        guided = ClassifierFree(Negated(), 2.0, negative)(points(), 0.4, cond).mean
        assert torch.equal(guided, torch.full_like(guided, 70.0 + 2.0 * (53.0 - 70.0)))


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        (Cond({"style": torch.tensor([1])}), "has style, and samples have component"),
        (Cond({"component": torch.tensor([1, 0, 1])}), "1 row or one for each of 4 samples, not 3"),
    ],
)
def test_a_negative_condition_that_does_not_match_is_refused(negative: Cond, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifierFree(mixture(), 2.0, negative)(points(), 0.4, COND)


def test_guidance_is_the_same_for_a_sample_alone() -> None:
    negative = Cond({"component": torch.tensor([1])})
    guided = ClassifierFree(mixture(), 3.0, negative)
    whole = guided(points(), TIMES[1], COND).mean
    alone = torch.cat([guided(points()[i : i + 1], TIMES[1][i : i + 1], COND[i : i + 1]).mean for i in range(4)])
    assert torch.allclose(whole, alone, rtol=1e-13, atol=1e-13)


def test_a_learned_variance_is_the_conditional_models() -> None:
    class Shared(Denoiser):
        def __init__(self) -> None:
            self.process: Gaussian = PROCESS

        def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
            assert cond is not None
            share = torch.where(cond.keep["component"], 0.25, 0.75)[:, None].expand(x_t.shape)
            return GaussianPosterior(x_t, 0.5, share)

    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    for guided in (ClassifierFree(Shared(), 2.0), Clipped(ClassifierFree(Shared(), 2.0), low, high)):
        posterior = guided(points(), 0.4, COND)
        assert isinstance(posterior, GaussianPosterior)
        assert posterior.share is not None
        assert bool((posterior.share == 0.25).all())


class TokenPair(Denoiser):
    """An exact model of pairs of tokens: one table with the condition, another without."""

    def __init__(self, process: Absorbing | UniformTokens) -> None:
        self.process = process
        self.given = TokenTable(process, torch.tensor([[0.5, 0.1, 0.1], [0.1, 0.05, 0.05], [0.05, 0.05, 0.0]]))
        self.free = TokenTable(process, torch.tensor([[0.1, 0.2, 0.1], [0.2, 0.1, 0.1], [0.1, 0.1, 0.0]]))

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> TokenPosterior:
        free = self.free(x_t, t)
        if cond is None:
            return free
        return TokenPosterior(
            torch.where(cond.keep["component"][:, None, None], self.given(x_t, t).logits, free.logits)
        )


@pytest.mark.parametrize("process", [Absorbing(3), UniformTokens(3)], ids=["absorbing", "uniform"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_tokens_are_guided_by_powers_of_their_probabilities(process: Absorbing | UniformTokens, scale: float) -> None:
    """p_c^s p_u^(1-s), normalised; what is impossible stays so."""
    pair = TokenPair(process)
    x_t = torch.tensor([[0, 1], [2, 0], [1, 1], [0, 2]])
    inner = Counted(pair)
    guided = ClassifierFree(inner, scale)(x_t, 0.4, COND)
    assert inner.batches == [4 if scale in (0.0, 1.0) else 8]
    power = pair.given(x_t, 0.4).mean ** scale * pair.free(x_t, 0.4).mean ** (1 - scale)
    power = torch.where(pair.given(x_t, 0.4).mean > 0, power, 0.0)
    assert torch.allclose(guided.mean, power / power.sum(-1, keepdim=True), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])
def test_autoguidance_extrapolates_from_the_worse_model_with_or_without_a_condition(t: float | Tensor) -> None:
    good, bad = mixture(), GaussianMixture(PROCESS, [[-0.4, 0.0], [0.6, -0.2]], [0.3, 0.5])
    for cond in (COND, None):
        here, there = good(points(), t, cond).mean, bad(points(), t, cond).mean
        for scale, asked in ((1.0, (1, 0)), (0.0, (0, 1)), (2.5, (1, 1))):
            one, other = Counted(good), Counted(bad)
            guided = Autoguided(one, other, scale)(points(), t, cond).mean
            assert (len(one.batches), len(other.batches)) == asked
            assert torch.allclose(guided, there + scale * (here - there), rtol=1e-12, atol=1e-12)
        assert torch.equal(Autoguided(good, bad, 1.0)(points(), t, cond).mean, here)


def test_autoguidance_on_gaussians_is_the_score_of_the_sharpened_density() -> None:
    """A worse model of N(m, v) is wider, N(m, w): p^s q^(1-s) has the same mean and precision s/V + (1-s)/W."""
    t, m, v, w, scale = 0.45, 0.3, 0.5, 0.9, 2.0
    alpha, sigma = PROCESS.scales(t)
    precision = scale / (alpha**2 * v + sigma**2) + (1 - scale) / (alpha**2 * w + sigma**2)
    x_t = points()[:, :1]
    expected = (x_t - sigma**2 * precision * (x_t - alpha * m)) / alpha
    good, bad = (GaussianMixture(PROCESS, [[m]], [spread]) for spread in (v, w))
    assert torch.allclose(Autoguided(good, bad, scale)(x_t, t).mean, expected, rtol=1e-10, atol=1e-10)


def test_autoguidance_nests_with_classifier_free_guidance() -> None:
    """Away from a worse model that is itself guided: both extrapolations, in either order of words."""
    good, bad = mixture(), GaussianMixture(PROCESS, [[-0.4, 0.0], [0.6, -0.2]], [0.3, 0.5])
    guided = Autoguided(ClassifierFree(good, 2.0), ClassifierFree(bad, 2.0), 1.5)(points(), 0.4, COND).mean
    means = [2.0 * model(points(), 0.4, COND).mean - model(points(), 0.4).mean for model in (good, bad)]
    assert torch.allclose(guided, 1.5 * means[0] - 0.5 * means[1], rtol=1e-12)


def test_autoguidance_refuses_another_process_and_a_scale_that_is_no_number() -> None:
    other = mixture(Gaussian(LinearLogSnr(9.0, -8.0)))
    with pytest.raises(IncompatibleError, match="one process"):
        Autoguided(mixture(), other, 2.0)
    with pytest.raises(ConfigError, match="1 means none"):
        Autoguided(mixture(), mixture(), float("nan"))
