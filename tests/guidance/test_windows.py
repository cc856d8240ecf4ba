"""Windows: the identity on one window, exact where places are apart, weights that sum to one, and no seam."""

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
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance import ClassifierFree, Windowed
from diff_diffusion.guidance.windows import _windows
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.sampler import sample

PROCESS = Gaussian(LinearLogSnr(9.0, -9.0))
SIZES = [(8, 8, 0.5), (9, 8, 0.5), (21, 8, 0.5), (21, 8, 0.0), (24, 8, 0.0), (17, 5, 0.9), (40, 6, 0.3), (7, 1, 0.0)]


def drawn(*shape: int) -> Tensor:
    return Noise(range(shape[0])).normal(shape).double()


class Pixels(Denoiser):
    """The exact denoiser of independent pixels, each N(±1, 0.1), the class of a pixel's row given by "component"."""

    def __init__(self) -> None:
        self.one = GaussianMixture(PROCESS, [[-1.0], [1.0]], [0.1, 0.1])
        self.process = PROCESS
        self.asked: list[int] = []

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
        self.asked.append(len(x_t))
        places = x_t[0].numel()
        each = t.repeat_interleave(places) if isinstance(t, Tensor) and t.ndim else t
        known = Cond(
            {n: v.repeat_interleave(places) for n, v in (cond.values if cond else {}).items()},
            {n: k.repeat_interleave(places) for n, k in (cond.keep if cond else {}).items()},
        )
        mean = self.one(x_t.reshape(-1, 1), each, known).mean.reshape(x_t.shape)
        sigma2_over_alpha = self.process.scales(torch.as_tensor(t, dtype=torch.float64))
        return GaussianPosterior(mean, sigma2_over_alpha[1] ** 2 / sigma2_over_alpha[0], x_t.sigmoid())


class Plane(Denoiser):
    """Its x̂_0 is the image condition that it sees, plus how dark its own window is."""

    def __init__(self, whole: float = 0.0) -> None:
        self.process, self.whole = PROCESS, whole

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
        own = cond.values["map"] * cond.keep["map"].view(-1, 1, 1, 1) if cond else 0.0
        return GaussianPosterior(own + self.whole * x_t.mean((1, 2, 3), keepdim=True) + 0 * x_t, 0.1)


# ---- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("length", "size", "overlap"), SIZES)
def test_weights_are_positive_and_sum_to_one_at_every_place(length: int, size: int, overlap: float, wrap: bool) -> None:
    places, weights = _windows(length, size, overlap, wrap)
    total = torch.zeros(length, dtype=torch.float64)
    for place, weight in zip(places, weights, strict=True):
        assert len(set(place.tolist())) == size
        assert bool((weight > 0).all())
        total[place] += weight
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-14)
    # Neighbours share what was asked for, at least, rounded up to whole places.
    starts = [int(place[0]) for place in places] + ([length] if wrap else [])
    steps = [b - a for a, b in pairwise(starts)]
    assert all(size - step >= math.floor(overlap * size) for step in steps)


@pytest.mark.parametrize("t", [0.3, torch.tensor([0.2, 0.7]).double()])
def test_one_window_is_the_denoiser_itself(t: float | Tensor) -> None:
    x = drawn(2, 3, 8, 6)
    windowed, plain = Windowed(Pixels(), (8, 6))(x, t), Pixels()(x, t)
    assert isinstance(windowed, GaussianPosterior)
    assert torch.equal(windowed.mean, plain.mean)
    assert windowed.share is not None
    assert torch.equal(windowed.share, plain.share)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3).double(), torch.tensor([0.2, 0.7]).double()])
@pytest.mark.parametrize(("height", "width", "overlap"), [(5, 4, 0.5), (5, 13, 0.5), (11, 9, 0.2), (16, 4, 0.75)])
def test_where_places_are_apart_it_is_the_denoiser_of_the_whole(
    height: int, width: int, overlap: float, t: float | Tensor, wrap: bool
) -> None:
    x, inner = drawn(2, 2, height, width), Pixels()
    cond = Cond({"component": torch.tensor([1, 0])}, {"component": torch.tensor([True, False])})
    windowed, plain = Windowed(inner, (5, 4), overlap, wrap)(x, t, cond), Pixels()(x, t, cond)
    assert isinstance(windowed, GaussianPosterior)
    assert torch.allclose(windowed.mean, plain.mean, rtol=0, atol=1e-12)
    assert windowed.share is not None
    assert torch.allclose(windowed.share, plain.share, rtol=0, atol=1e-12)  # type: ignore[arg-type]
    assert torch.equal(torch.as_tensor(windowed.tweedie), torch.as_tensor(plain.tweedie))
    assert len(inner.asked) == 1


def test_guidance_goes_inside() -> None:
    x, cond = drawn(2, 1, 6, 10), Cond({"component": torch.tensor([1, 0])})
    windowed = Windowed(ClassifierFree(Pixels(), 2.5), (6, 4))(x, 0.5, cond)
    assert torch.allclose(windowed.mean, ClassifierFree(Pixels(), 2.5)(x, 0.5, cond).mean, rtol=0, atol=1e-12)


def test_an_image_condition_is_seen_in_its_place() -> None:
    x, image = drawn(3, 1, 9, 14), drawn(3, 1, 9, 14).exp()
    keep = torch.tensor([True, False, True])
    mean = Windowed(Plane(), (5, 4), wrap=True)(x, 0.5, Cond({"map": image}, {"map": keep})).mean
    assert torch.allclose(mean, image * keep.view(-1, 1, 1, 1), rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match=r"\[5, 4\] does not fit images of \[9, 14\]"):
        Windowed(Plane(), (5, 4))(x, 0.5, Cond({"map": image[..., :5, :4]}))


def test_around_the_back_there_is_no_edge() -> None:
    """12 columns in windows of 4, half covered: six windows, so rolled by 2 columns all is as it was, rolled."""
    x, windowed = drawn(2, 1, 4, 12), Windowed(Plane(whole=1.0), (4, 4), wrap=True)
    mean = windowed(x, 0.5).mean
    for by in (2, 4, -6):
        assert torch.allclose(windowed(x.roll(by, -1), 0.5).mean, mean.roll(by, -1), rtol=0, atol=1e-12)
    assert not torch.allclose(windowed(x.roll(1, -1), 0.5).mean, mean.roll(1, -1), atol=1e-3)
    assert not torch.allclose(Windowed(Plane(whole=1.0), (4, 4))(x.roll(2, -1), 0.5).mean, mean.roll(2, -1), atol=1e-3)


def test_a_panorama_of_one_window_has_no_edge_either() -> None:
    class Sums(Plane):
        def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
            return GaussianPosterior(x_t.cumsum(-1), 0.1)

    x, windowed = drawn(2, 1, 4, 4), Windowed(Sums(), (4, 4), wrap=True)
    assert torch.allclose(windowed(x.roll(2, -1), 0.5).mean, windowed(x, 0.5).mean.roll(2, -1), rtol=0, atol=1e-12)
    assert not torch.allclose(windowed(x, 0.5).mean, Sums()(x, 0.5).mean, atol=0.1)


def test_windows_fade_at_their_edges() -> None:
    """Windows that disagree by one change places smoothly: no step between neighbours is above the cosine's."""
    x = torch.zeros(1, 1, 8, 32, dtype=torch.float64)
    x[..., 16:] = 1.0
    mean = Windowed(Plane(whole=1.0), (8, 16))(x, 0.5).mean[0, 0, 0]
    steps = (mean[1:] - mean[:-1]).abs()
    assert mean[0] == 0.0
    assert mean[-1] == 1.0
    assert steps.max() < 0.5 * math.pi / 8 * 0.55  # windows half apart: sin² of a quarter turn over 8 columns, of 1/2


# ---- samples --------------------------------------------------------------------------------------------------------

NEAR = 0.6


class Chain(Denoiser):
    """The exact denoiser of rows whose neighbours correlate by NEAR: a stationary chain, of any length."""

    def __init__(self) -> None:
        self.process = PROCESS

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
        apart = torch.arange(x_t.shape[-1], dtype=torch.float64)
        covariance = NEAR ** (apart[:, None] - apart).abs()
        return GaussianMixture(PROCESS, torch.zeros(1, len(apart)), covariance[None])(x_t, t)


def seam(overlap: float, count: int = 4000) -> tuple[float, float, float]:
    """Neighbours' mean square difference at the edges of windows of 12 in a row of 36, elsewhere, and its error."""
    times, places = grids.LogSnr(12, 8.0, -8.0), _windows(36, 12, overlap, False)[0]
    rows = sample(Windowed(Chain(), (1, 12), overlap), Multistep(2), times, (1, 1, 36), noise=Noise(range(count)))
    apart = (rows[..., 1:] - rows[..., :-1]).square().double().mean((0, 1, 2))
    at_edges = torch.zeros(35, dtype=torch.bool)
    at_edges[[edge - 1 for place in places for edge in (int(place[0]), int(place[-1]) + 1) if 0 < edge < 36]] = True
    return apart[at_edges].mean().item(), apart[~at_edges].mean().item(), 2 * (1 - NEAR) * math.sqrt(2 / count)


def test_neighbours_are_as_like_at_the_windows_edges_as_elsewhere() -> None:
    """Windows half covered by the next leave no seam; side by side they do: neighbours there are strangers."""
    there, elsewhere, error = seam(0.5)
    assert abs(there - elsewhere) < 3 * error / math.sqrt(5)  # five edges
    there, elsewhere, error = seam(0.0)
    assert there > 2 * elsewhere


# ---- refused --------------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused() -> None:
    for size, overlap, says in [((0, 4), 0.5, "at least 1"), ((4, 4), 1.0, "overlap"), ((4, 4), -0.1, "overlap")]:
        with pytest.raises(ConfigError, match=says):
            Windowed(Pixels(), size, overlap)
    windowed = Windowed(Pixels(), (8, 8))
    for shape in [(1, 1, 7, 9), (1, 1, 9, 7), (1, 1, 64)]:
        with pytest.raises(ConfigError, match="at least as large"):
            windowed(torch.zeros(shape), 0.5)
    with pytest.raises(ConfigError, match="one time for a sample"):
        windowed(torch.zeros(2, 1, 8, 9), torch.full((2, 1), 0.5).double())
    with pytest.raises(IncompatibleError, match="Gaussian process; this model uses Absorbing"):
        Windowed(TokenTable(Absorbing(2), torch.ones(2, 2)), (1, 1))
