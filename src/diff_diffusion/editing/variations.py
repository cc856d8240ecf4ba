"""Variations: an image noised part of the way and denoised again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diff_diffusion.editing.walks import from_time, walked
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise


def img2img(
    model: DiffusionModel,
    images: Tensor,
    *,
    strength: float = 0.5,
    cond: Any = None,
    seed: int = 0,
    steps: int | None = None,
    **plan: Any,
) -> Tensor:
    """Images like these: noised part of the way and denoised again. Another seed is another variation.

    Args:
        images: [B, C, H, W] in data units, of the model's size or larger.
        strength: the time to which they are noised, in (0, 1]: near 0 nothing changes, 1 forgets the image.
        cond: what they should become, one for all or one per image; None for whatever the model sees in them.
        seed: of the first image; image i has seed + i.
        steps: of the part that is walked.
        plan: sampler, grid and guidance, as in `DiffusionModel.sample`.

    Returns:
        [B, C, H, W] float32 on the CPU.

    Raises:
        ConfigError: a strength outside (0, 1], or images smaller than the model's.

    Source: Meng et al., "SDEdit", arXiv 2108.01073.
    """
    grid = from_time(model, strength, plan.pop("grid", None), steps)
    latent = model.codec.encode(images.to(model.device))
    noise = Noise(range(seed, seed + len(images)))
    return walked(model, noise, plan | {"grid": grid}, cond=cond, latent=latent, shape=latent.shape[1:])
