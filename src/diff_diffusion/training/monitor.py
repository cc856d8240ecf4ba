"""Is it learning? Held-out loss at fixed noise, per noise level, and sample sheets with fixed seeds."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from diff_diffusion.data import ImageDataset
from diff_diffusion.models import DiffusionModel
from diff_diffusion.pictures import sheet, write_png
from diff_diffusion.rng import Noise, derive
from diff_diffusion.storage.folder import refusals
from diff_diffusion.training.ema import Ema

MAX_IMAGES = 512
LEVELS = 8
BATCH = 128
COLUMNS = 10
SHEET_STEPS = 50


@torch.no_grad()
def held_out_loss(model: DiffusionModel, data: ImageDataset) -> dict[str, Any]:
    """The model's loss on images it is not trained on: {"mean": …, "levels": [[λ, loss], …]}.

    The same images, noise levels and noise every time, so that two numbers differ by the weights alone: image i is
    asked at the middle of stratum i mod 8 of the objective's levels.
    """
    objective, process = model.recipe.objective, model.recipe.process
    count = min(MAX_IMAGES, len(data))
    strata = torch.arange(count, dtype=torch.float64) % LEVELS
    t = objective.levels.draw((strata + 0.5) / LEVELS, process)
    noise = Noise([derive(0, "held out", i) for i in range(count)])
    losses = []
    with model.evaluating():
        for first in range(0, count, BATCH):
            rows = slice(first, min(first + BATCH, count))
            x_0 = model.codec.encode(data.batch(range(rows.start, rows.stop)).to(model.device))
            labels = data.labels[rows] if data.labels is not None and model.conditioner is not None else None
            loss = objective.at(model.denoiser, x_0, t[rows], model.encode(labels, len(x_0)), noise[rows])
            losses.append(loss.per_sample.double().cpu())
    per_image, log_snr = torch.cat(losses), process.time_map.log_snr(t)
    levels = [[float(log_snr[k]), float(per_image[k::LEVELS].mean())] for k in range(min(LEVELS, count))]
    return {"mean": float(per_image.mean()), "levels": levels}


def write_sheets(model: DiffusionModel, ema: Ema, folder: Path, step: int) -> None:
    """Samples of the averaged and of the raw weights, step-N-ema.png and step-N-raw.png, the same seeds every time.

    In at most SHEET_STEPS steps: a chain of a thousand would take longer to look at than the training between.
    """
    names = model.conditioner.names[:COLUMNS] if model.conditioner is not None else ()
    columns = len(names) or COLUMNS
    count = columns * max(2, COLUMNS // columns)
    labels = [names[i % columns] for i in range(count)] if names else None
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for weights, context in (("ema", ema.swapped()), ("raw", nullcontext())):
        with context:
            samples = model.sample(count, labels=labels, steps=min(model.recipe.grid.num_steps, SHEET_STEPS))
        write_png(folder / f"step-{step:08d}-{weights}.png", sheet(samples, columns, heads=names))
