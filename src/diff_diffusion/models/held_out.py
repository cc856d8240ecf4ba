"""Held-out loss: what training watches and evaluation tells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from diff_diffusion.models.model import LEVELS, Model
from diff_diffusion.rng import Noise, derive

if TYPE_CHECKING:
    from diff_diffusion.data import ImageDataset

MAX_IMAGES = 512
BATCH = 128


@torch.no_grad()
def held_out_loss(model: Model, data: ImageDataset) -> dict[str, Any]:
    """The model's loss on images it is not trained on: {"mean": …, "levels": [[λ, loss], …]}, the latter of what has
    levels of noise.

    The same images, noise levels and noise every time, so that two numbers differ by the weights alone: image i is
    asked at the middle of stratum i mod 8 of the model's levels. Of more than 512 images those at even distances are
    asked, since a folder of classes has one class after another.
    """
    chosen = data.spread(MAX_IMAGES)
    count = len(chosen)
    t = model.held_out_levels(count)
    noise = Noise([derive(0, "held out", i) for i in range(count)])
    losses, levels = [], []
    with model.evaluating():
        for first in range(0, count, BATCH):
            rows = slice(first, min(first + BATCH, count))
            x_0 = model.codec.encode(data.batch(chosen[rows]).to(model.device), noise[rows].fork("latent"))
            known = model.known(data.cond(chosen[rows]))
            loss = model.loss_at(x_0, t[rows], model.encode(known, len(x_0)), noise[rows])
            losses.append(loss.per_sample.double().cpu())
            levels.append(loss.log_snr)
    per_image, log_snr = torch.cat(losses), torch.cat(levels)
    noisy = [k for k in range(min(LEVELS, count)) if math.isfinite(log_snr[k])]
    table = [[float(log_snr[k]), float(per_image[k::LEVELS].mean())] for k in noisy]
    return {"mean": float(per_image.mean()), "levels": table}
