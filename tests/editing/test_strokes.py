"""Colours held in squares: their averages are the painting's, and nothing finer is touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diff_diffusion import DiffusionModel
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.data import ImageDataset
from diff_diffusion.editing import KeepCoarse, strokes
from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.sampler import trajectory

PROCESS = Gaussian(LinearLogSnr(10.0, -10.0))


def coarse(x: Tensor, factor: int) -> Tensor:
    return functional.avg_pool2d(x, factor)


def test_an_edit_moves_the_averages_and_nothing_finer() -> None:
    x, known = (Noise([1, 2], stream).normal((2, 3, 6, 9)).double() for stream in ("x", "known"))
    for s in (0.0, 0.4):
        edited = KeepCoarse(known, 3)(x, s, PROCESS, Noise([1, 2], "edit"))
        assert torch.allclose(fine(edited, 3), fine(x, 3), rtol=0, atol=1e-12)
        at_s = known
        if s > 0:
            at_s = PROCESS.marginal(known, torch.full((2,), s, dtype=torch.float64), Noise([1, 2], "edit")).x_t
        assert torch.allclose(coarse(edited, 3), coarse(at_s, 3), rtol=0, atol=1e-12)


def fine(x: Tensor, factor: int) -> Tensor:
    return x - coarse(x, factor).repeat_interleave(factor, -2).repeat_interleave(factor, -1)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_walk_ends_with_the_paintings_averages(factor: int) -> None:
    """Even where they are far from any data: the model's pixels are N(0, 1), the painting's 3."""
    exact = GaussianMixture(PROCESS, torch.zeros(1, 64), [1.0])
    known, noise = 3.0 + Noise(range(4), "known").normal((4, 1, 8, 8)), Noise(range(4))
    x = PROCESS.prior((4, 1, 8, 8), noise.at(0))
    times = grids.LogSnr(20, 8.0, -8.0).times(PROCESS)
    for step in trajectory(exact, Ancestral(1.0), times, x, noise=noise, edits=(KeepCoarse(known, factor),)):
        x = step.x
    assert (coarse(x, factor) - coarse(known, factor)).abs().max() < 1e-5
    # Of independent pixels the rest is still its own: N(0, 1) less a square's average.
    assert fine(x, factor).var().item() == pytest.approx(1 - 1 / factor**2, abs=0.3)


def test_strokes_keep_colours_and_draw_the_rest(model: DiffusionModel, data: ImageDataset) -> None:
    painting = 96.0 + data.batch(range(3)).float() / 4  # in the middle of the range, where nothing is cut
    kept = strokes(model, painting, 2, cond="猫", seed=5, steps=8)
    whole = functional.max_pool2d(((kept == 0.0) | (kept == 255.0)).float(), 2) == 0.0  # squares with nothing cut
    assert whole.sum() > 10
    assert (coarse(kept, 2) - coarse(painting, 2))[whole].abs().max() < 1e-3
    blurred = coarse(painting, 2).repeat_interleave(2, -2).repeat_interleave(2, -1)
    # At strength 1 nothing else of the painting is seen; the edit's noise is the sample's, so the pictures are one.
    assert (kept - strokes(model, blurred, 2, cond="猫", seed=5, steps=8)).abs().max() < 0.01
    assert (kept - strokes(model, painting, 2, cond="猫", seed=6, steps=8)).abs().mean() > 1.0
    near = [strokes(model, x, 2, strength=0.3, seed=5, steps=8) for x in (painting, blurred)]
    assert (near[0] - near[1]).abs().mean() > 1.0  # below 1 its edges count too
    assert (near[0] - painting).abs().mean() < (kept - painting).abs().mean()


def test_squares_that_do_not_fit_are_refused(model: DiffusionModel, data: ImageDataset) -> None:
    for factor in (1, 3, 16):
        with pytest.raises(ConfigError, match="these do: 2, 4, 8"):
            strokes(model, data.batch([0]), factor)
    with pytest.raises(ConfigError, match="strength"):
        strokes(model, data.batch([0]), 2, strength=0.0)
