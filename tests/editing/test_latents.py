"""Editing on latents: sizes and masks are given in pixels, and mean there what they mean for a model of pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stirring import stirred
from torch import Tensor
from torch.nn import functional

from diff_diffusion import DiffusionModel
from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.conditions.images import ImageBeside
from diff_diffusion.data import ImageDataset
from diff_diffusion.data.columns import Column
from diff_diffusion.editing import (
    draw_large,
    filling,
    img2img,
    inpaint,
    interpolate,
    outpaint,
    strokes,
    translate,
    upscale,
)
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.models import Autoencoder
from diff_diffusion.samplers.edits import Keep
from diff_diffusion.sizing import describe_autoencoder, describe_for_data

SMALL = {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": [], "group_width": None}


def on_latents(data: ImageDataset, codec: Any) -> DiffusionModel:
    description = describe_for_data(data, codec=codec)
    if description["network"]["type"] == "network/unet":
        description["network"] |= SMALL
    description["recipe"]["grid"]["num_steps"] = 3
    model = DiffusionModel.from_description(description)
    model.take_weights(codec)
    return stirred(model)


def autoencoder(data: ImageDataset, bottleneck: str = "kl") -> Autoencoder:
    description = describe_autoencoder(data, bottleneck, factor=2, channels=None if bottleneck == "fsq" else 3)
    description["network"] |= {"width": 8, "multipliers": [1, 1]}
    return Autoencoder.from_description(description, seed=5)


@pytest.fixture(scope="module")
def codec(data: ImageDataset) -> Autoencoded:
    return autoencoder(data).as_codec(data)


@pytest.fixture(scope="module")
def latent(data: ImageDataset, codec: Autoencoded) -> DiffusionModel:
    return on_latents(data, codec)


# ---- masks ----------------------------------------------------------------------------------------------------------


def test_a_place_is_known_where_all_of_its_pixels_are(
    latent: DiffusionModel, data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixel (3, 5) lies in the place (1, 2)."""
    kept: list[Tensor] = []
    monkeypatch.setattr(filling, "Keep", lambda known, mask: (kept.append(mask), Keep(known, mask))[1])
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[3, 5] = True
    result = inpaint(latent, data.batch(range(2)), mask, repeats=1)
    expected = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    expected[:, :, 1, 2] = False
    assert torch.equal(kept[0], expected)
    same = result == data.batch(range(2)).float()
    assert same[..., ~mask].all()


def test_what_is_under_the_mask_is_not_looked_at_and_the_rest_kept_to_the_last_bit(
    latent: DiffusionModel, data: ImageDataset
) -> None:
    images, mask = data.batch(range(2)), torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 5:] = True
    other = images.clone()
    other[..., 5:] = 255 - other[..., 5:]
    results = [inpaint(latent, each, mask, cond="猫", seed=3) for each in (images, other)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0][..., :5], images[..., :5].float())
    assert not torch.equal(results[0][..., 5:], images[..., 5:].float())


def test_a_soft_mask_lays_what_is_drawn_over_the_image_by_as_much(latent: DiffusionModel, data: ImageDataset) -> None:
    images, mask = data.batch(range(2)), torch.zeros(8, 8)
    mask[:, 4], mask[:, 5:] = 0.25, 1.0
    soft, hard = (inpaint(latent, images, each, repeats=1) for each in (mask, mask > 0))
    assert torch.equal(soft[..., :4], images[..., :4].float())
    assert torch.equal(soft[..., 5:], hard[..., 5:])
    assert torch.allclose(soft[..., 4], 0.75 * images[..., 4] + 0.25 * hard[..., 4], atol=1e-3)
    with pytest.raises(ConfigError, match="0 to 1, not 0 to 2"):
        inpaint(latent, images, 2 * mask)


def test_the_canvas_grows_by_whole_places(latent: DiffusionModel, data: ImageDataset) -> None:
    images = data.batch(range(1))
    grown = outpaint(latent, images, (3, 0, 1, 2), repeats=1)
    assert grown.shape == (1, 1, 10, 12)
    assert torch.equal(grown[..., :8, 3:11], images.float())
    with pytest.raises(ConfigError, match=r"multiples of 2, not \[8, 9\]"):
        outpaint(latent, images, (1, 0, 0, 0))


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_larger_pictures_are_said_in_pixels(latent: DiffusionModel) -> None:
    assert draw_large(latent, 1, 8, 14, cond="dog").shape == (1, 1, 8, 14)
    with pytest.raises(ConfigError, match="multiples of 2, not 8 × 13"):
        draw_large(latent, 1, 8, 13)
    with pytest.raises(ConfigError, match=r"images are 8 × 8 \(height × width\), and 8 × 6 was asked for"):
        draw_large(latent, 1, 8, 6)


def test_a_painting_is_held_in_squares_of_several_places(
    latent: DiffusionModel, data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, codec = data.batch(range(2)), latent.codec
    made: list[Tensor] = []
    monkeypatch.setattr(latent, "decode", lambda x: (made.append(x), codec.decode(x))[1])
    strokes(latent, images, 4, cond="dog")
    averages = [functional.avg_pool2d(x, 2) for x in (made[0], codec.encode(images))]
    assert torch.allclose(*averages, atol=1e-5)
    with pytest.raises(ConfigError, match="not of side 2; these do: 4, 8"):
        strokes(latent, images, 2)


def test_up_and_down_the_flow_is_what_the_autoencoder_makes_of_it(latent: DiffusionModel, data: ImageDataset) -> None:
    images = data.batch(range(2))
    there_and_back = translate(latent, images, cond="dog", from_cond="dog", steps=24)
    assert (there_and_back - latent.codec.decode(latent.codec.encode(images))).abs().max() < 1.0
    assert interpolate(latent, 1, 2, 3, steps=3).shape == (3, 1, 8, 8)
    assert torch.equal(*(img2img(latent, each, strength=1.0, seed=5) for each in (images, 255 - images)))


# ---- images beside --------------------------------------------------------------------------------------------------


def test_pixels_of_an_image_stand_beside_their_place() -> None:
    image = torch.arange(2 * 4 * 6).reshape(2, 4, 6).to(torch.uint8)
    part = ImageBeside((2, 4, 6), noise=0.5, fold=2)
    folded = part.encode([image, (image, 0.25)])
    assert part.planes == 2 * 4 + 2
    assert part.places == (2, 3) == tuple(folded.shape[2:])
    assert torch.equal(functional.pixel_shuffle(folded[:, :-1], 2), torch.stack([image, image]) / 127.5 - 1)
    assert folded[:, -1].flatten(1).unique(dim=1).flatten().tolist() == [0.0, 0.25]
    with pytest.raises(ConfigError, match="multiples of 2"):
        part.encode([image[:, :3]])
    with pytest.raises(ConfigError, match="cannot be folded by 4"):
        ImageBeside((2, 4, 6), fold=4)


def test_small_images_are_made_large_in_latents(data: ImageDataset, codec: Autoencoded) -> None:
    """What is beside changes the result, in windows too; and what would not stand beside a place is refused."""
    known = ImageDataset.from_arrays(data.batch(range(12)), columns={"小": Column("shrunk", factor=2)})
    description = describe_for_data(known, codec=codec)
    part = description["conditioner"]["parts"]["小"]
    assert part["fold"] == 2
    model = on_latents(known, codec)
    small = torch.randint(0, 256, (2, 1, 4, 7), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    wide = upscale(model, small, 2, noise=0.1, seed=3)
    assert wide.shape == (2, 1, 8, 14)
    assert not torch.equal(wide, upscale(model, 255 - small, 2, noise=0.1, seed=3))
    part["fold"] = 1
    description["network"]["channels"] = 3 + 1 + 2
    with pytest.raises(IncompatibleError, match=r"'小' would stand beside 8 × 8 places.* works on 4 × 4: .* fold=2"):
        DiffusionModel.from_description(description)


def test_tokens_are_filled_in_and_refuse_what_has_no_meaning(data: ImageDataset) -> None:
    tokens = on_latents(data, autoencoder(data, "fsq").as_tokens())
    images, mask = data.batch(range(2)), torch.zeros(8, 8, dtype=torch.bool)
    mask[3, 5] = True
    result = inpaint(tokens, images, mask, repeats=1)
    assert torch.equal(result[..., ~mask], images[..., ~mask].float())
    assert img2img(tokens, images).shape == images.shape
    for edit in (
        lambda: strokes(tokens, images, 4),
        lambda: interpolate(tokens, 1, 2, 3),
        lambda: translate(tokens, images, cond="dog"),
        lambda: draw_large(tokens, 1, 8, 16),
    ):
        with pytest.raises(IncompatibleError, match=r"tokens|Gaussian"):
            edit()
