"""Samples larger than the pictures that the model was trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diff_diffusion.codecs.codec import latent_shape
from diff_diffusion.editing.walks import walked
from diff_diffusion.errors import ConfigError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise


def draw_large(
    model: DiffusionModel,
    num: int,
    height: int,
    width: int,
    *,
    cond: Any = None,
    seed: int = 0,
    overlap: float = 0.5,
    wrap: bool = False,
    batch_size: int = 16,
    **plan: Any,
) -> Tensor:
    """Samples of another size than the model's, larger on one side or both, in data units.

    The model sees them through windows of its own size that overlap: what lies within a window fits together as it does
    in the training pictures, what lies further apart only through the windows between. It knows nothing of the whole:
    textures, landscapes and panoramas grow well, and of a face or a digit there are then several.

    Args:
        num: how many.
        height, width: in pixels, at least the model's own; of a model on latents multiples of what a place stands for.
        cond: what they should be, one for all or one per sample, in every window; images of height × width.
        seed: of the first sample; sample i has seed + i, whatever `num` and `batch_size` are.
        overlap: share of a window that the next one covers, at least. A half costs 4 times what the area does.
        wrap: the right edge meets the left, for panoramas of 360°.
        batch_size: how many at once; each asks the network of all its windows.
        plan: steps, sampler, grid and guidance, as in `DiffusionModel.sample`.

    Returns:
        [num, C, height, width] float32 on the CPU.

    Raises:
        ConfigError: a bad number, or a size smaller than the model's.

    Source: Bar-Tal et al., "MultiDiffusion", arXiv 2302.08113; see `diff_diffusion.guidance.windows`.
    """
    if num < 1 or batch_size < 1:
        raise ConfigError(f"the number of samples and the batch size must be at least 1, not {num} and {batch_size}")
    every = model.guiding(plan.get("guidance")).knows(model).asked(cond, num)
    shape = latent_shape(model.codec, height, width)
    pieces = []
    for first in range(0, num, batch_size):
        part = slice(first, min(first + batch_size, num))
        some = None if every is None else {name: values[part] for name, values in every.items()}
        noise = Noise(range(seed + part.start, seed + part.stop))
        pieces.append(walked(model, noise, plan, cond=some, shape=shape, overlap=overlap, wrap=wrap))
    return torch.cat(pieces)
