"""Does a model that was just trained copy its training images? A search that costs little beside the training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError
from diff_diffusion.evaluation.audit import Audit, audit, nearest_training, pairs_sheet, real_images
from diff_diffusion.evaluation.feature_networks import FeatureNetwork, Pixels, random_features
from diff_diffusion.models import DiffusionModel
from diff_diffusion.pictures import write_png
from diff_diffusion.storage.folder import refusals, to_json, write_file

SMALL = 2000
"""Training images up to which copying is likely enough to be looked for unasked."""
FEWEST, MOST = 64, 256
"""Samples below which nothing could be told, and above which little more."""
SHARE = 0.05
"""Of the training's work, what a search may take."""
STEPS, PART = 50, 128
RECORD, PICTURE = "audit.json", "nearest.png"


@dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        audit: the verdict, and what it rests on.
        picture: the samples that are nearest to a training image, over those images.
        about: the model, and the networks that distances were measured on.
    """

    audit: Audit
    picture: Image
    about: dict[str, Any]

    def write(self, folder: Path) -> Path:
        """audit.json and nearest.png in `folder`; the picture's path.

        Raises:
            CheckpointError: the disk refused.
        """
        with refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / RECORD, to_json(self.audit.to_json() | self.about))
        write_png(folder / PICTURE, self.picture)
        return folder / PICTURE


def affordable(model: DiffusionModel, images_seen: int) -> int:
    """How many samples, 64 to 256, take no more than a twentieth of the work of a training; 0 where none do.

    An image trained on costs three evaluations of the network, forward and backward. A sample costs one a step, or two:
    counted are two, and twice that where the model guides itself. No clock is asked, so that a run that was stopped and
    resumed is searched as it would have been.
    """
    evaluations = 2 * _steps(model) * (1 if model.guiding(None).idle else 2)
    num = min(int(SHARE * 3 * images_seen / evaluations), MOST)
    return num if num >= FEWEST else 0


def look_for_copies(
    model: DiffusionModel, train: ImageDataset, held_out: ImageDataset, num: int = MOST, seed: int = 0
) -> Search:
    """Samples and held-out images, each held against all training images, by pixels and by random features.

    Samples are asked for what training images are, where what was learned by heart is most likely to come out, and
    drawn by the model's own sampler in at most 50 steps. `evaluate` does the same with features that know the data.

    Raises:
        ConfigError: no samples.
        DataError: no held-out images.
    """
    if num < 1:
        raise ConfigError(f"a search needs samples, not {num} of them")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(1)).tolist()
    cond = model.known(train.cond([rows[i % len(rows)] for i in range(num)]))
    samples = model.sample(num, cond=cond, seed=seed, steps=_steps(model)).round().clamp(0, 255).to(torch.uint8)
    real, own, what = real_images(train, held_out)
    networks: tuple[FeatureNetwork, ...] = (Pixels(train.shape), random_features(train.shape))
    images = torch.cat([samples, real]).split(PART)
    asked = [(network, torch.cat([network.features(part) for part in images])) for network in networks]
    pixels, features = nearest_training(asked, torch.cat([_nobody(num), own]), train)
    found = audit(pixels.split(num), features.split(num), what)
    closest = samples[[sample for sample, _, _ in found.pairs]]
    about = {"model": model.fingerprint(), "seed": seed, "networks": [network.name for network in networks]}
    return Search(found, pairs_sheet(closest, found, train), about)


def _steps(model: DiffusionModel) -> int:
    return min(model.recipe.grid.num_steps, STEPS)


def _nobody(count: int) -> Tensor:
    return torch.full((count,), -1)
