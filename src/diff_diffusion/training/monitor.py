"""Is it learning? Sample sheets with fixed seeds."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from diff_diffusion.data import ImageDataset
from diff_diffusion.models import Model
from diff_diffusion.pictures import write_png
from diff_diffusion.storage.folder import refusals
from diff_diffusion.training.ema import Ema

SHEET = 10


def write_sheets(model: Model, ema: Ema, data: ImageDataset, folder: Path, step: int) -> None:
    """What the averaged and the raw weights draw, step-N-ema.png and step-N-raw.png; nothing from what draws nothing.

    A model that is asked for more than a class is asked for what the first images of `data` are, and one that makes
    something of images makes it of them.
    """
    rows = range(min(SHEET, len(data)))
    known, images = model.known(data.cond(rows)), data.batch(rows)
    for weights, context in (("ema", ema.swapped()), ("raw", nullcontext())):
        with context:
            picture = model.sheet(known, images)
        if picture is not None:
            with refusals(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"step-{step:08d}-{weights}.png", picture)
