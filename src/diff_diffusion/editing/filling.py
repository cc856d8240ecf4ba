"""Filling: part of an image drawn anew to fit the rest, inside of it or around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

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
        masks: true where to draw: [H, W] for all, or [B, H, W], or [B, C, H, W].
        cond: what they should be, one for all or one per image; None for whatever fits.
        repeats, length: every `length` steps are walked `repeats` times, with jumps back to more noise between; more
            fits better and costs as many times more. 1 repeat only replaces.
        seed, steps, plan: as in `img2img`.

    Returns:
        [B, C, H, W] float32 on the CPU.

    Raises:
        ConfigError: a mask of another shape, or images smaller than the model's.

    Source: Lugmayr et al., "RePaint", arXiv 2201.09865.
    """
    drawn = _as_mask(masks, images)
    grid = model.chosen_grid(plan.pop("grid", None), steps)
    latent = model.codec.encode(images.to(model.device))
    result = walked(
        model,
        Noise(range(seed, seed + len(images))),
        plan | {"grid": grid},
        cond=cond,
        shape=latent.shape[1:],
        edits=(Keep(latent, ~drawn),),
        travel=(length, repeats),
    )
    return torch.where(drawn.cpu(), result, images.to(result))


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
    """The mask as bool, of the images' shape."""
    masks = masks.bool()
    while masks.ndim < images.ndim:
        masks = masks[None] if masks.ndim < images.ndim - 1 else masks[:, None]
    try:
        return masks.expand(images.shape)
    except RuntimeError as error:
        raise ConfigError(
            f"a mask must be [H, W], [B, H, W] or [B, C, H, W] for images {list(images.shape)}, not {list(masks.shape)}"
        ) from error
