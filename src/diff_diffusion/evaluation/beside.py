"""What stands beside quality: channels, classes, spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diff_diffusion.evaluation.score import interval

MEAN_OFF, STD_OFF = 0.1, 1.25
"""A channel drifts when its mean is off by more than so many standard deviations of the data, or its spread by more
than this factor, beyond what chance explains."""

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
class ClassRow:
    """How one class fares.

    Attributes:
        name: the class.
        real_share: of held-out images that the judge sees as it.
        share: of samples that the judge sees as it.
        agreement: of samples that were asked to be it, those the judge sees as it; None where none was asked.
        judge: of held-out images of it, those the judge is right on; None where none is held out.
        behind: whether its share or its agreement lies below what real images have, intervals and all.
    """

    name: str
    real_share: Share
    share: Share
    agreement: Share | None
    judge: Share | None

    @property
    def behind(self) -> bool:
        rare = self.share[1][1] < self.real_share[1][0]
        wrong = self.agreement is not None and self.judge is not None and self.agreement[1][1] < self.judge[1][0]
        return rare or wrong


def class_rows(
    names: Sequence[str], seen: Tensor, asked: Tensor | None, real_seen: Tensor, real: Tensor
) -> tuple[ClassRow, ...]:
    """The table of classes: labels that a judge saw in samples and in held-out images, beside those asked and true.

    Shares of samples stand beside what the same judge sees in real images, so that a judge who prefers a class does not
    make a model look unfair.

    Args:
        seen, asked: int64 [N]; `asked` None for unconditional samples.
        real_seen, real: int64 [R].
    """

    def share(hits: Tensor) -> Share:
        return float(hits.double().mean()), interval(int(hits.sum()), len(hits))

    rows = []
    for i, name in enumerate(names):
        mine, true = None if asked is None else seen[asked == i] == i, real_seen[real == i] == i
        agreement = share(mine) if mine is not None and len(mine) else None
        rows.append(
            ClassRow(name, share(real_seen == i), share(seen == i), agreement, share(true) if len(true) else None)
        )
    return tuple(rows)
