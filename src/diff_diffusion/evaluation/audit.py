"""Does the model copy its training set? Samples and real images, each held against every training image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from diff_diffusion.data import ImageDataset
from diff_diffusion.data.survey import Progress
from diff_diffusion.errors import DataError
from diff_diffusion.evaluation.feature_networks import FeatureNetwork
from diff_diffusion.evaluation.score import interval
from diff_diffusion.pictures import sheet

QUANTILE = 0.01
FEW, MANY = 100, 2000
"""Held-out images below which training images stand in, and real images at most."""
PART = 1024


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each of n images, on one feature network.

    Attributes:
        distance: float64 [n], root mean square over the features.
        index: int64 [n], which training image.
    """

    distance: Tensor
    index: Tensor

    def split(self, first: int) -> tuple[Nearest, Nearest]:
        """Those of the first images, and of the others."""
        return (
            Nearest(self.distance[:first], self.index[:first]),
            Nearest(self.distance[first:], self.index[first:]),
        )


@dataclass(frozen=True)
class Audit:
    """What was found. A copy is nearer to a training image, by pixels and by features, than all but one real image in
    a hundred; that is what `closest_*` say.

    Attributes:
        n, real_n: samples, and real images.
        real: which real images.
        share, share_interval: of samples that are copies; Wilson, 95 %.
        real_share, real_interval: the same of the real images.
        share_pixels, share_features: by the one distance alone.
        closest_pixels, closest_features: the distances below which a sample is a copy.
        median, real_median: distance to the nearest training image by pixels, in grey values RMS.
        copies: whether the whole interval of samples lies above that of real images.
        pairs: the closest by pixels: number of the sample, of the training image, distance.
    """

    n: int
    real_n: int
    real: str
    share: float
    share_interval: tuple[float, float]
    real_share: float
    real_interval: tuple[float, float]
    share_pixels: float
    share_features: float
    closest_pixels: float
    closest_features: float
    median: float
    real_median: float
    copies: bool
    pairs: tuple[tuple[int, int, float], ...]

    @property
    def verdict(self) -> str:
        """In a sentence."""
        found = f"{_percent(self.share)} of {self.n} samples ({_between(self.share_interval)})"
        real = f"{_percent(self.real_share)} of {self.real_n} {self.real} ({_between(self.real_interval)})"
        says = f"{'' if self.copies else 'no sign that '}this model copies its training set"
        return f"{says}: all but next to a training image are {found}, and {real}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def audit(pixels: tuple[Nearest, Nearest], features: tuple[Nearest, Nearest], real: str) -> Audit:
    """The audit from the nearest training images of (samples, real images), by pixels and by features.

    Both distances must agree, because each alone is misled: blurred samples are near to everything by pixels, and a
    network that was trained on the training images sees all of a class as near.

    Raises:
        DataError: nothing to compare.
    """
    (near, real_near), (seen, real_seen) = pixels, features
    if not len(near.distance) or not len(real_near.distance):
        raise DataError("an audit needs samples and real images that the model was not trained on")
    limits = [float(found.distance.quantile(QUANTILE)) for found in (real_near, real_seen)]
    by_pixels, by_features = near.distance <= limits[0], seen.distance <= limits[1]
    copied = int((by_pixels & by_features).sum())
    real_copied = int(((real_near.distance <= limits[0]) & (real_seen.distance <= limits[1])).sum())
    n, real_n = len(near.distance), len(real_near.distance)
    found, expected = interval(copied, n), interval(real_copied, real_n)
    order = near.distance.argsort(stable=True)[:10].tolist()
    return Audit(
        n=n,
        real_n=real_n,
        real=real,
        share=copied / n,
        share_interval=found,
        real_share=real_copied / real_n,
        real_interval=expected,
        share_pixels=float(by_pixels.double().mean()),
        share_features=float(by_features.double().mean()),
        closest_pixels=limits[0],
        closest_features=limits[1],
        median=float(near.distance.median()),
        real_median=float(real_near.distance.median()),
        copies=found[0] > expected[1],
        pairs=tuple((i, int(near.index[i]), float(near.distance[i])) for i in order),
    )


def real_images(train: ImageDataset, held_out: ImageDataset) -> tuple[Tensor, Tensor, str]:
    """Real images to hold samples against: uint8 [R, C, H, W], which row of `train` each is (-1: none), and their name.

    The held-out ones; where they are few, training images too, each of which is held against the others alone.
    """
    count = min(len(held_out), MANY)
    images, own, what = held_out.batch(range(count)), torch.full((count,), -1), "held-out images"
    if count < FEW and len(train) > 1:
        rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: MANY - count]
        images = torch.cat([images, train.batch(rows.tolist())])
        own, what = torch.cat([own, rows]), "real images, training images among them without themselves"
    return images, own, what


def nearest_training(
    asked: list[tuple[FeatureNetwork, Tensor]], own: Tensor, train: ImageDataset, progress: Progress | None = None
) -> list[Nearest]:
    """For each (network, features [n, D] that it gave), the nearest of all training images, in one pass over them.

    Args:
        own: int64 [n], the row of `train` that an image is itself, which is not asked; -1 for none.
    """
    best = [torch.full((len(features),), float("inf"), dtype=torch.float64) for _, features in asked]
    which = [torch.zeros(len(features), dtype=torch.int64) for _, features in asked]
    for first in range(0, len(train), PART):
        last = min(first + PART, len(train))
        images = train.batch(range(first, last))
        for (network, features), least, index in zip(asked, best, which, strict=True):
            others = network.features(images)
            # Features are rounded, and so are distances through products: equal images are not quite at 0.
            tiny = 1e-5 * float((features**2).mean().sqrt())
            for part in torch.arange(len(features)).split(PART):
                distances = torch.cdist(features[part], others) / features.shape[1] ** 0.5
                distances[distances < tiny] = 0.0
                mine = own[part] - first
                inside = (mine >= 0) & (mine < last - first)
                distances[inside.nonzero()[:, 0], mine[inside]] = float("inf")
                nearer, place = distances.min(1)
                better = nearer < least[part]
                least[part[better]], index[part[better]] = nearer[better], place[better] + first
        if progress is not None:
            progress(last, len(train))
    return [Nearest(*found) for found in zip(best, which, strict=True)]


def pairs_sheet(closest: Tensor, found: Audit, train: ImageDataset) -> Image:
    """The samples of `found.pairs`, uint8 [pairs, C, H, W], over their nearest training images."""
    copied = train.batch([index for _, index, _ in found.pairs])
    return sheet(torch.cat([closest, copied]), len(found.pairs), labels=["sample", "training"])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _between(found: tuple[float, float]) -> str:
    return f"95 %: {100 * found[0]:.1f} to {100 * found[1]:.1f}"
