"""Filling: part of an image drawn anew to fit the rest, inside of it or around it.

A model on latents knows a place only where all of its pixels are known, and draws the others whole; the pixels that
are known are put over what it decodes, so that they are kept exactly whatever its autoencoder loses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diff_diffusion.codecs.codec import Codec, learned, place_side
from diff_diffusion.editing.walks import walked
from diff_diffusion.errors import ConfigError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.edits import Keep


def inpaint(
    model: DiffusionModel,
    images: Tensor,
    masks: Tensor,
    *,
    cond: Any = None,
    seed: int = 0,
    steps: int | None = None,
    repeats: int = 4,
    length: int = 4,
    **plan: Any,
) -> Tensor:
    """The masked part of each image drawn anew, to fit what is left; the rest is returned exactly as it was.

    Args:
        images: [B, C, H, W] in data units, of the model's size or larger; what is under the mask is not looked at.
        masks: true where to draw: [H, W] for all, or [B, H, W], or [B, C, H, W]. Of numbers between 0 and 1 everything
            above 0 is drawn, and laid over the image by as much: a soft edge hides what an autoencoder loses at it.
        cond: what they should be, one for all or one per image; None for whatever fits.
        repeats, length: every `length` steps are walked `repeats` times, with jumps back to more noise between; more
            fits better and costs as many times more. 1 repeat only replaces.
        seed, steps, plan: as in `img2img`.

    Returns:
        [B, C, H, W] float32 on the CPU.

    Raises:
        ConfigError: a mask of another shape or with numbers outside [0, 1], or images smaller than the model's.

    Source: Lugmayr et al., "RePaint", arXiv 2201.09865.
    """
    share = _as_mask(masks, images)
    drawn = share > 0
    grid = model.chosen_grid(plan.pop("grid", None), steps)
    codec, data = model.codec, model.codec.data
    # An encoder sees farther than its place: under the mask it is shown grey, and never what was there.
    shown = torch.where(drawn, 0.5 * (data.low + data.high), images.float())
    latent = codec.encode(shown.to(model.device))
    result = walked(
        model,
        Noise(range(seed, seed + len(images))),
        plan | {"grid": grid},
        cond=cond,
        shape=latent.shape[1:],
        edits=(Keep(latent, _known(codec, drawn)),),
        travel=(length, repeats),
    )
    return torch.lerp(images.to(result), result, share.to(result))


def outpaint(
    model: DiffusionModel, images: Tensor, extend: tuple[int, int, int, int], *, cond: Any = None, **how: Any
) -> Tensor:
    """Each image with more around it: the canvas grows, what was there is kept exactly, and the rest is drawn to fit.

    Args:
        images: [B, C, H, W] in data units, of any size.
        extend: pixels to add at the (left, top, right, bottom).
        cond: as in `inpaint`.
        how: seed, steps, repeats, length, sampler, grid and guidance, as in `inpaint`.

    Returns:
        [B, C, top + H + bottom, left + W + right] float32 on the CPU.

    Raises:
        ConfigError: nothing to add, or less; a canvas smaller than the model's images.

    Source: as `inpaint`; a canvas larger than the model's images is seen through windows, `guidance.windows`.
    """
    if len(extend) != 4 or min(extend) < 0 or max(extend) == 0:
        raise ConfigError(
            f"an image is extended by four numbers of pixels, left, top, right and bottom, at least 0 and one of them "
            f"above, not {tuple(extend)}"
        )
    left, top, right, bottom = extend
    around = (left, right, top, bottom)
    drawn = functional.pad(torch.zeros(images.shape[-2:], dtype=torch.bool), around, value=True)
    return inpaint(model, functional.pad(images, around), drawn, cond=cond, **how)


def _as_mask(masks: Tensor, images: Tensor) -> Tensor:
    """How much of each number is drawn, float32 from 0 to 1, of the images' shape."""
    masks = masks.float() if masks.is_floating_point() else masks.bool().float()
    if not bool(((masks >= 0) & (masks <= 1)).all()):
        raise ConfigError(
            f"a mask of numbers has them from 0 to 1, not {float(masks.min()):g} to {float(masks.max()):g}"
        )
    while masks.ndim < images.ndim:
        masks = masks[None] if masks.ndim < images.ndim - 1 else masks[:, None]
    try:
        return masks.expand(images.shape)
    except RuntimeError as error:
        raise ConfigError(
            f"a mask must be [H, W], [B, H, W] or [B, C, H, W] for images {list(images.shape)}, not {list(masks.shape)}"
        ) from error


def _known(codec: Codec, drawn: Tensor) -> Tensor:
    """Which places of the latents are known: those of which no pixel is drawn."""
    if learned(codec) is None:
        return ~drawn
    known = functional.max_pool2d(drawn.float().amax(1, keepdim=True), place_side(codec)) == 0
    return known if len(codec.latent.shape) == 3 else known[:, 0]
