"""Clipping x̂_0: nothing inside the data's range, the range outside it."""

from __future__ import annotations

import pytest
import torch

from diff_diffusion import DiffusionModel, ImageDataset
from diff_diffusion.codecs.affine import Affine
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.targets import LearnedVariance, LinearTarget
from diff_diffusion.core.time_maps import Cosine, Truncated
from diff_diffusion.guidance import Clipped
from diff_diffusion.presets import RECIPES, recipe

PROCESS = Gaussian(Truncated(Cosine(), -20.0))


def test_a_guess_within_the_range_is_untouched_and_one_outside_is_at_its_edge() -> None:
    exact = GaussianMixture(PROCESS, [[-1.0], [1.0]], [0.04, 0.04])
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)[:, None]
    free = exact(x, 0.3).mean
    wide = Clipped(exact, torch.tensor(-9.0), torch.tensor(9.0))(x, 0.3).mean
    narrow = Clipped(exact, torch.tensor(-0.5), torch.tensor(0.75))(x, 0.3).mean
    assert torch.equal(wide, free)
    assert torch.equal(narrow, free.clamp(-0.5, 0.75))
    assert float(free.abs().max()) > 0.75


def test_the_codec_gives_the_bounds_in_latent_units() -> None:
    codec = Affine((2, 3, 3), (100.0, 50.0), (20.0, 10.0))
    low, high = codec.bounds
    assert torch.equal(codec.decode(low.expand(1, 2, 3, 3)), torch.zeros(1, 2, 3, 3))
    assert torch.equal(codec.decode(high.expand(1, 2, 3, 3)), torch.full((1, 2, 3, 3), 255.0))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_that_predict_eps_clip(name: str) -> None:
    made = recipe(name)
    target = made.target.target if isinstance(made.target, LearnedVariance) else made.target
    assert made.clip == (target == LinearTarget("eps"))


def test_few_steps_of_an_eps_model_stay_in_the_range() -> None:
    """An untrained eps network is wrong by 1; over α = 5e-5 that is 20,000 data ranges without the clip."""
    images = torch.randint(0, 255, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = DiffusionModel.for_data(ImageDataset.from_arrays(images), "iddpm")
    low, high = model.codec.bounds
    _, steps = model.walk([0, 1], steps=4)
    for step in steps:
        assert step.x_0 is not None
        assert bool((step.x_0 >= low).all() & (step.x_0 <= high).all())
    model.recipe = type(model.recipe)(**{**vars(model.recipe), "clip": False})
    guesses = [step.x_0 for step in model.walk([0, 1], steps=4)[1]]
    assert guesses[0] is not None
    assert float(guesses[0].abs().max()) > 1e3
