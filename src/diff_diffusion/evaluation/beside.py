"""What stands beside quality: channels, classes, spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.evaluation.manifolds import precision
from diff_diffusion.evaluation.score import interval

MEAN_OFF, STD_OFF = 0.1, 1.25
"""A channel drifts when its mean is off by more than so many standard deviations of the data, or its spread by more
than this factor, beyond what chance explains."""

LEAST, REFERENCE = 20, 1000
"""Training images of a class below which nothing is said of its quality, and of those that are compared, at most."""

Share = tuple[float, tuple[float, float]]
"""A share and its Wilson interval, 95 %."""


@dataclass(frozen=True)
class Channel:
    """Mean and standard deviation of one channel, in grey values, of samples and of the training images.

    Attributes:
        error: of the samples' mean, four standard errors over whole images.
    """

    mean: float
    std: float
    real_mean: float
    real_std: float
    error: float

    @property
    def drifts(self) -> bool:
        spread = max(self.real_std, 1e-9)
        ratio = max(self.std, 1e-9) / spread
        off = abs(self.mean - self.real_mean) > MEAN_OFF * spread + self.error
        return off or not 1 / STD_OFF < ratio < STD_OFF


class Moments:
    """Sums over images [N, C, H, W] that come in parts, for means and deviations of each channel."""

    def __init__(self, channels: int) -> None:
        self.means, self.squares = [torch.zeros(0, channels, dtype=torch.float64)], torch.zeros(channels).double()

    def add(self, images: Tensor) -> None:
        values = images.double()
        self.means.append(values.mean((2, 3)))
        self.squares += (values**2).mean((2, 3)).sum(0)

    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, standard deviation over all pixels, and standard error of the mean over images; float64 [C] each."""
        each = torch.cat(self.means)
        mean, n = each.mean(0), len(each)
        spread = (self.squares / n - mean**2).clamp(min=0).sqrt()
        return mean, spread, each.std(0, correction=min(1, n - 1)) / n**0.5


def channels(samples: Iterable[Tensor], real: Iterable[Tensor], count: int) -> tuple[Channel, ...]:
    """The channels of images that come in parts, of samples beside those of real images."""
    drawn, true = Moments(count), Moments(count)
    for moments, parts in ((drawn, samples), (true, real)):
        for part in parts:
            moments.add(part)
    rows = [*drawn.found()[:2], *true.found()[:2], 4.0 * drawn.found()[2]]
    return tuple(Channel(*(float(row[i]) for row in rows)) for i in range(count))


@dataclass(frozen=True)
class Seen:
    """What a judge sees in some images.

    Attributes:
        features: float64 [N, D].
        labels: int64 [N], the class that each looks like.
        true: int64 [N], the class that each is, or was asked to be, -1 where that is not known; None where nothing was
            asked.
    """

    features: Tensor
    labels: Tensor
    true: Tensor | None


@dataclass(frozen=True)
class ClassRow:
    """How one class fares.

    Attributes:
        name: the class.
        n, real_n: samples asked to be it, or where nothing was asked those that the judge sees as it; and held-out
            images of it.
        real_share: of held-out images that the judge sees as it.
        share: of samples that the judge sees as it.
        agreement: of samples that were asked to be it, those the judge sees as it; None where none was asked.
        judge: of held-out images of it, those the judge is right on; None where none is held out.
        precision: of the n samples, those that lie within the training images of this class, by balls to their third
            neighbours: how many look like real ones. None where fewer than 20 are trained on, or n is below 2.
        real_precision: the same of the held-out images of it.
        behind: whether its share or its agreement lies below what real images have, intervals and all.
        worse: whether its precision does.
    """

    name: str
    n: int
    real_n: int
    real_share: Share
    share: Share
    agreement: Share | None
    judge: Share | None
    precision: Share | None
    real_precision: Share | None

    @property
    def behind(self) -> bool:
        return self.share[1][1] < self.real_share[1][0] or _below(self.agreement, self.judge)

    @property
    def worse(self) -> bool:
        return _below(self.precision, self.real_precision)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"behind": self.behind, "worse": self.worse}


def class_rows(names: Sequence[str], samples: Seen, held_out: Seen, training: Seen) -> tuple[ClassRow, ...]:
    """The table of classes, of samples beside held-out images, which are compared with training images of each class.

    Shares of samples stand beside what the same judge sees in real images, so that a judge who prefers a class does not
    make a model look unfair; and quality beside that of real images of the same class, so that a class of many forms
    does not.

    Args:
        samples, held_out, training: seen by one judge; the last two with what they are.
    """
    assert held_out.true is not None
    assert training.true is not None
    rows = []
    for i, name in enumerate(names):
        asked = None if samples.true is None else samples.true == i
        mine, real = samples.labels == i if asked is None else asked, held_out.true == i
        reference = training.features[training.true == i][:REFERENCE]
        rows.append(
            ClassRow(
                name,
                int(mine.sum()),
                int(real.sum()),
                _share(held_out.labels == i),
                _share(samples.labels == i),
                None if asked is None else _of_some(samples.labels[asked] == i),
                _of_some(held_out.labels[real] == i),
                _within(samples.features[mine], reference),
                _within(held_out.features[real], reference),
            )
        )
    return tuple(rows)


def _share(hits: Tensor) -> Share:
    return float(hits.double().mean()), interval(int(hits.sum()), len(hits))


def _of_some(hits: Tensor) -> Share | None:
    return _share(hits) if len(hits) else None


def _within(features: Tensor, reference: Tensor) -> Share | None:
    if len(features) < 2 or len(reference) < LEAST:
        return None
    share = precision(features, reference)
    return share, interval(share * len(features), len(features))


def _below(mine: Share | None, real: Share | None) -> bool:
    return mine is not None and real is not None and mine[1][1] < real[1][0]
