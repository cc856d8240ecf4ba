"""Larger than the model: the same samples in any batch, panoramas without an edge, and what was there is kept."""

from __future__ import annotations

import pytest
import torch
from stirring import stirred

from diff_diffusion import DiffusionModel
from diff_diffusion.data import ImageDataset
from diff_diffusion.editing import draw_large, img2img, inpaint, outpaint, translate
from diff_diffusion.errors import ConfigError


@pytest.fixture(scope="module", params=["unet", "dit"])
def lively(request: pytest.FixtureRequest, data: ImageDataset) -> DiffusionModel:
    """A model whose weights are not the start's zeros, so that places see one another and classes differ."""
    return stirred(DiffusionModel.for_data(data, network=request.param))


def test_of_its_own_size_it_is_the_models_own_sample(lively: DiffusionModel) -> None:
    large = draw_large(lively, 2, 8, 8, cond=["猫", "dog"], seed=3, steps=3)
    assert torch.equal(large, lively.sample(2, cond=["猫", "dog"], seed=3, steps=3))
    wrapped = draw_large(lively, 2, 8, 8, cond=["猫", "dog"], seed=3, steps=3, wrap=True)
    assert (wrapped - large).abs().max() > 1.0


def test_a_sample_is_the_same_in_any_batch(lively: DiffusionModel) -> None:
    three = draw_large(lively, 3, 12, 20, cond=["猫", "dog", "dog"], seed=3, steps=3, batch_size=2)
    assert three.shape == (3, 1, 12, 20)
    alone = draw_large(lively, 1, 12, 20, cond="dog", seed=4, steps=3)
    assert (three[1] - alone[0]).abs().max() < 0.05
    last = draw_large(lively, 1, 12, 20, cond="dog", seed=5, steps=3)
    assert (three[2] - last[0]).abs().max() < 0.05
    other = draw_large(lively, 1, 12, 20, cond="猫", seed=4, steps=3)
    assert (other - alone).abs().max() > 1.0
    wrapped = draw_large(lively, 1, 12, 20, cond="dog", seed=4, steps=3, wrap=True)
    assert (wrapped - alone)[..., :4].abs().max() > 1.0


def test_what_it_cannot_draw_is_refused(lively: DiffusionModel) -> None:
    for height, width in ((7, 20), (20, 7)):
        with pytest.raises(ConfigError, match=rf"8 × 8 .* {height} × {width} was asked for"):
            draw_large(lively, 1, height, width)
    with pytest.raises(ConfigError, match="at least 1"):
        draw_large(lively, 0, 8, 20)
    with pytest.raises(ConfigError, match="overlap"):
        draw_large(lively, 1, 8, 20, overlap=1.0)
    with pytest.raises(ConfigError, match="2 samples need"):
        draw_large(lively, 2, 8, 20, cond=["dog"] * 3)


# ---- around a picture -----------------------------------------------------------------------------------------------


def test_what_was_there_is_kept_to_the_last_bit(lively: DiffusionModel, data: ImageDataset) -> None:
    images = data.batch(range(2))
    grown = outpaint(lively, images, (1, 2, 3, 4), cond="猫", steps=3, repeats=2, length=2)
    assert grown.shape == (2, 1, 8 + 6, 8 + 4)
    assert torch.equal(grown[..., 2:10, 1:9], images.float())
    around = torch.ones(14, 12, dtype=torch.bool)
    around[2:10, 1:9] = False
    assert grown[..., around].std() > 1.0
    assert torch.equal(grown, outpaint(lively, images, (1, 2, 3, 4), cond="猫", steps=3, repeats=2, length=2))
    assert not torch.equal(grown, outpaint(lively, images, (1, 2, 3, 4), cond="猫", steps=3, repeats=1, length=2))
    other = outpaint(lively, 255 - images, (1, 2, 3, 4), cond="猫", steps=3, repeats=2, length=2)
    assert (grown - other)[..., around].abs().max() > 1.0  # what is drawn sees what is there


def test_part_of_a_picture_grows_to_the_models_size(lively: DiffusionModel, data: ImageDataset) -> None:
    part = data.batch(range(2))[..., 2:6, :]
    whole = outpaint(lively, part, (0, 2, 0, 2), steps=3, repeats=1)
    assert whole.shape == (2, 1, 8, 8)
    assert torch.equal(whole[..., 2:6, :], part.float())


def test_a_canvas_that_makes_no_sense_is_refused(lively: DiffusionModel, data: ImageDataset) -> None:
    for extend in ((0, 0, 0, 0), (-1, 0, 4, 0), (1, 2, 3)):
        with pytest.raises(ConfigError, match="four numbers"):
            outpaint(lively, data.batch([0]), extend)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="5 × 8 was asked for"):
        outpaint(lively, data.batch([0])[..., :4, :], (0, 0, 0, 1))


def test_every_edit_takes_larger_pictures(lively: DiffusionModel, data: ImageDataset) -> None:
    wide = torch.cat([data.batch([0, 1]), data.batch([2, 3])], -1)
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[:, 6:10] = True
    filled = inpaint(lively, wide, mask, steps=2, repeats=1)
    assert torch.equal(filled[..., :6], wide[..., :6].float())
    assert img2img(lively, wide, strength=0.5, steps=2).shape == wide.shape
    same = translate(lively, wide, cond="dog", from_cond="dog", steps=32)
    assert (same - wide).abs().mean() < 3.0
