"""Rescaled and projected guidance: none at scale 1, the papers' formulas at any other, plain guidance in the limit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.categorical import TokenPosterior
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance import Autoguided, ClassifierFree, Clipped, Project, Rescale
from diff_diffusion.rng import Noise

PROCESS = Gaussian(LinearLogSnr(9.0, -9.0))
COND = Cond({"component": torch.tensor([0, 1, 1, 0])})
MEANS = [[-0.6, 0.2, 0.4, 0.0, 1.0, 0.3], [0.9, -0.4, 0.1, -1.0, 0.2, 0.5]]
EXACT = GaussianMixture(PROCESS, MEANS, [0.09, 0.25], [0.6, 0.4])
X = Noise(range(4)).normal((4, 2, 3)).double()  # samples of shape [2, 3]


class Counted(Denoiser):
    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        self.batches.append(len(x_t))
        return self.inner(x_t, t, cond)


def pair(t: float = 0.4) -> tuple[Tensor, Tensor]:
    return EXACT(X, t, COND).mean, EXACT(X, t).mean


@pytest.mark.parametrize("move", [Rescale(0.7), Project(0.0), Project(0.3, 0.1)])
def test_scale_1_is_the_conditional_model_asked_once_and_others_ask_once_in_twice_the_batch(move) -> None:
    for scale, batches in ((1.0, [4]), (0.0, [8]), (3.0, [8])):
        inner = Counted(EXACT)
        ClassifierFree(inner, scale, move=move)(X, 0.4, COND)
        assert inner.batches == batches
    assert torch.equal(ClassifierFree(EXACT, 1.0, move=move)(X, 0.4, COND).mean, pair()[0])
    posterior = EXACT(X, 0.4, COND)
    assert torch.allclose(move(posterior, EXACT(X, 0.4), 1.0).mean, posterior.mean, rtol=1e-14)


def test_rescaling_all_the_way_gives_the_conditional_deviation_and_phi_is_linear_between() -> None:
    given, free = pair()
    plain = free + 5.0 * (given - free)
    moved = {phi: ClassifierFree(EXACT, 5.0, move=Rescale(phi))(X, 0.4, COND).mean for phi in (0.0, 0.7, 1.0)}
    assert torch.allclose(moved[0.0], plain, rtol=1e-12)
    assert torch.allclose(moved[1.0].flatten(1).std(1), given.flatten(1).std(1), rtol=1e-12)
    direction = torch.cosine_similarity(moved[1.0].flatten(1), plain.flatten(1))
    assert torch.allclose(direction, torch.ones_like(direction))
    assert torch.allclose(moved[0.7], 0.3 * plain + 0.7 * moved[1.0], rtol=1e-12)
    assert bool((plain.flatten(1).std(1) > 1.05 * given.flatten(1).std(1)).all())


def test_without_signal_rescaling_x_0_is_rescaling_the_output_of_a_v_model() -> None:
    """The paper's rescaling of v = α ε - σ x_0, which it needs where the terminal SNR is zero: α = 0, σ = 1."""
    given, free = pair()
    v_given, v_free = -given, -free
    v = v_free + 7.5 * (v_given - v_free)
    v = 0.7 * v * (v_given.flatten(1).std(1) / v.flatten(1).std(1))[:, None, None] + 0.3 * v
    assert torch.allclose(ClassifierFree(EXACT, 7.5, move=Rescale(0.7))(X, 0.4, COND).mean, -v, rtol=1e-12)


def test_a_sample_without_contrast_is_left_as_it_is() -> None:
    flat = GaussianPosterior(torch.full((2, 4), 0.5), 0.1)
    assert torch.equal(Rescale(1.0)(flat, flat, 3.0).mean, flat.mean)
    one = GaussianPosterior(torch.tensor([[0.5]]), 0.1)
    assert torch.equal(Rescale(1.0)(one, GaussianPosterior(torch.zeros(1, 1), 0.1), 3.0).mean, torch.tensor([[1.5]]))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_projection_weighs_the_part_along_x_0_and_keeps_the_rest(eta: float) -> None:
    given, free = pair()
    moved = ClassifierFree(EXACT, 4.0, move=Project(eta))(X, 0.4, COND).mean
    step, away, axis = (v.flatten(1) for v in (moved - given, given - free, given))
    along, plain = (step * axis).sum(1), 3.0 * (away * axis).sum(1)
    assert torch.allclose(along, eta * plain, rtol=1e-10, atol=1e-12)
    square = (axis**2).sum(1, keepdim=True)
    rest = [v - (v * axis).sum(1, keepdim=True) / square * axis for v in (step, 3.0 * away)]
    assert torch.allclose(*rest, rtol=1e-10, atol=1e-12)
    if eta == 1.0:
        assert torch.allclose(moved, free + 4.0 * (given - free), rtol=1e-12)


def test_the_threshold_bounds_the_move_of_each_sample() -> None:
    given, free = pair()
    norms = (given - free).flatten(1).norm(dim=1)
    bound = float(norms.sort().values[1:3].mean())  # two samples within, two beyond
    moved = ClassifierFree(EXACT, 4.0, move=Project(1.0, bound))(X, 0.4, COND).mean - given
    assert torch.allclose(moved.flatten(1).norm(dim=1), 3.0 * norms.clamp(max=bound), rtol=1e-12)
    assert torch.allclose(torch.cosine_similarity(moved.flatten(1), (given - free).flatten(1)), torch.ones(4).double())
    still = Project(0.0, bound)(EXACT(X, 0.4), EXACT(X, 0.4), 4.0).mean
    assert torch.equal(still, free)  # no move has no direction, and is none


@pytest.mark.parametrize("move", [Rescale(0.7), Project(0.2, 0.5)])
def test_moves_nest_and_keep_a_learned_variance_and_a_sample_alone(move) -> None:
    worse = GaussianMixture(PROCESS, (torch.tensor(MEANS) * 0.5).tolist(), [0.2, 0.4])
    guided = Clipped(Autoguided(EXACT, worse, 3.0, move), torch.tensor(-0.5), torch.tensor(0.5))(X, 0.4, COND).mean
    assert torch.equal(guided, move(EXACT(X, 0.4, COND), worse(X, 0.4, COND), 3.0).mean.clamp(-0.5, 0.5))
    assert not torch.equal(guided, worse(X, 0.4, COND).extrapolate(EXACT(X, 0.4, COND), -2.0).mean.clamp(-0.5, 0.5))
    share = torch.full_like(X, 0.25)
    moved = move(GaussianPosterior(X, 0.1, share), GaussianPosterior(0.5 * X, 0.1, 1 - share), 3.0)
    assert torch.equal(moved.share, share)
    alone = ClassifierFree(EXACT, 3.0, move=move)(X[1:2], 0.4, COND[1:2]).mean
    assert torch.allclose(alone, ClassifierFree(EXACT, 3.0, move=move)(X, 0.4, COND).mean[1:2], rtol=1e-13)


def test_moves_say_what_they_cannot_do() -> None:
    with pytest.raises(ConfigError, match="phi must be from 0"):
        Rescale(1.5)
    with pytest.raises(ConfigError, match="eta must be a finite number"):
        Project(math.nan)
    with pytest.raises(ConfigError, match="inf means none"):
        Project(0.0, 0.0)
    tokens = TokenPosterior(torch.zeros(1, 2, 3))
    for move in (Rescale(), Project()):
        with pytest.raises(IncompatibleError, match="move=None"):
            move(tokens, tokens, 2.0)
