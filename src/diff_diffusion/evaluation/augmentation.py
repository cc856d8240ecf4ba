"""Data augmentation: labelled samples that a judge agrees with and that copy no training image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from diff_diffusion.data import ImageDataset
from diff_diffusion.data.survey import Progress
from diff_diffusion.errors import ConfigError, DataError
from diff_diffusion.evaluation.distances import nearest
from diff_diffusion.evaluation.features import Classifier
from diff_diffusion.models import DiffusionModel

TRIES = 4
"""Samples drawn at most for each that is wanted."""
BATCH = 64


class Drawn(NamedTuple):
    """A sample that is kept: its label, its seed, and how far it is from the nearest training image."""

    label: str
    seed: int
    image: Tensor
    distance: float


@dataclass
class Tally:
    """What became of the samples drawn, and what they were held against.

    Attributes:
        drawn: all of them.
        kept: of each label.
        disagreed: dropped because the judge saw another label.
        copied: dropped because a training image is nearer than `closest`.
        closest: the distance, in grey values RMS, at which one held-out image in a hundred is to a training image.
        judge_accuracy: the judge's on held-out images.
    """

    closest: float
    judge_accuracy: float
    drawn: int = 0
    disagreed: int = 0
    copied: int = 0
    kept: dict[str, int] = field(default_factory=dict)


def copy_distance(train: ImageDataset, held_out: ImageDataset) -> float:
    """How near real images come to training images that they are not: the nearest hundredth of the held-out ones."""
    real = held_out.batch(range(min(len(held_out), 512)))
    return float(nearest(real, train.batch(range(len(train))))[0].quantile(0.01))


def augment(
    model: DiffusionModel,
    train: ImageDataset,
    held_out: ImageDataset,
    judge: Classifier,
    per_class: int,
    *,
    guidance: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Tally, Iterator[Drawn]]:
    """`per_class` samples of every class, fewer where TRIES times as many were not enough; and the tally, filled as
    they come.

    A sample is kept when the judge sees the label that was asked for, and no training image is nearer to it than real
    images come to each other.

    Args:
        model: class-conditional, of the data's classes.
        train: what it was trained on, to compare with.
        held_out: real images that say how near is near.
        judge: trained on `train` alone, or it would let through what it should not know.

    Raises:
        ConfigError: a number below 1.
        DataError: a model without classes, or of other classes than the data.
    """
    if per_class < 1:
        raise ConfigError(f"the number of samples a class must be at least 1, not {per_class}")
    if not model.class_names or model.class_names != tuple(train.class_names):
        raise DataError("augmentation needs a model trained on the classes of the data; this one is not")
    tally = Tally(copy_distance(train, held_out), judge.test_accuracy, kept=dict.fromkeys(train.class_names, 0))
    return tally, _drawn(model, train, judge, per_class, guidance, seed, tally, progress)


def _drawn(
    model: DiffusionModel,
    train: ImageDataset,
    judge: Classifier,
    per_class: int,
    guidance: float | None,
    seed: int,
    tally: Tally,
    progress: Progress | None,
) -> Iterator[Drawn]:
    training, wanted = train.batch(range(len(train))), per_class * len(train.class_names)
    for number, label in enumerate(train.class_names):
        first, end = 0, TRIES * per_class
        while tally.kept[label] < per_class and first < end:
            count = min(BATCH, end - first, 2 * (per_class - tally.kept[label]) + 4)
            start = seed + number * end + first
            images = model.sample(count, cond=label, seed=start, guidance=guidance).round()
            agrees, distances = judge.labels(images) == number, nearest(images, training)[0]
            for i in range(count):
                if tally.kept[label] == per_class:
                    break
                tally.drawn += 1
                if not agrees[i]:
                    tally.disagreed += 1
                elif distances[i] <= tally.closest:
                    tally.copied += 1
                else:
                    tally.kept[label] += 1
                    yield Drawn(label, start + i, images[i], float(distances[i]))
            first += count
            if progress is not None:
                progress(sum(tally.kept.values()), wanted)
