"""The scores of a class-conditional model, each beside what real data get at the same n."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import DataError
from diff_diffusion.evaluation.distances import frechet, nearest
from diff_diffusion.evaluation.features import Classifier
from diff_diffusion.models import DiffusionModel


@dataclass(frozen=True)
class Scores:
    """What was measured, and on what.

    Attributes:
        n: samples in each of `sets` sets, asked for with the labels of the held-out images.
        agreement: share of all samples that the classifier gives the label asked for; with its 95 % interval.
        classifier_accuracy: the same classifier on the held-out images.
        frechet: distance of each set to the train split on the classifier's features, averaged; with its spread.
        frechet_floor: the same distance for the held-out images: real against real at the same n.
        nearest, nearest_real: median distance to the nearest training image of samples, and of held-out images.
        features: the feature network's name.
        sampling: the sampler, its steps and the guidance.
    """

    n: int
    sets: int
    agreement: float
    agreement_interval: tuple[float, float]
    classifier_accuracy: float
    frechet: float
    frechet_spread: float
    frechet_floor: float
    nearest: float
    nearest_real: float
    features: str
    sampling: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def interval(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def score(
    model: DiffusionModel,
    train: ImageDataset,
    held_out: ImageDataset,
    classifier: Classifier,
    sets: int = 3,
    guidance: float | None = None,
) -> Scores:
    """Scores of `sets` sets of samples, each as many as the held-out images and with their labels; seeds from 0 on.

    Raises:
        DataError: the held-out images have no labels.
    """
    if held_out.labels is None:
        raise DataError("scoring a class-conditional model needs labelled held-out images")
    n, labels = len(held_out), held_out.labels.tolist()
    real = held_out.batch(range(n))
    training = train.batch(range(len(train)))
    reference = classifier.features(training)
    right, distances, nearests = 0, [], []
    for index in range(sets):
        # Rounded to whole grey values, as a picture file would hold them.
        samples = model.sample(n, cond=labels, seed=index * n, batch_size=256, guidance=guidance).round()
        right += int((classifier.labels(samples) == torch.tensor(labels)).sum())
        distances.append(frechet(classifier.features(samples), reference))
        nearests.append(nearest(samples, training)[0])
    recipe = model.recipe
    scale = recipe.guidance if guidance is None else guidance
    return Scores(
        n=n,
        sets=sets,
        agreement=right / (n * sets),
        agreement_interval=interval(right, n * sets),
        classifier_accuracy=classifier.test_accuracy,
        frechet=statistics.fmean(distances),
        frechet_spread=statistics.stdev(distances) if sets > 1 else 0.0,
        frechet_floor=frechet(classifier.features(real), reference),
        nearest=float(torch.cat(nearests).median()),
        nearest_real=float(nearest(real, training)[0].median()),
        features=classifier.name,
        sampling=f"{type(recipe.sampler).__name__}, {recipe.grid.num_steps} steps, guidance {scale:g}",
    )
