"""Do samples show what their captions say? Told by a judge of images and texts, beside what it says of real images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import DataError
from diff_diffusion.evaluation.beside import Share
from diff_diffusion.evaluation.score import interval

FEW = 20
"""Captions among which an image's own is to be found."""


class CaptionJudge(Protocol):
    """Image features and text features that are compared with each other.

    Attributes:
        name: of the pair, with a hash of all weights.
    """

    @property
    def name(self) -> str: ...

    def images(self, pixels: Tensor) -> Tensor:
        """Images [N, C, H, W] in 0..255 to unit vectors [N, D]."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to unit vectors [N, D]."""
        ...


@dataclass(frozen=True)
class CaptionAgreement:
    """How many images are found to show their own caption.

    Attributes:
        column: of the captions.
        judge: the pair's name.
        n: samples that were asked for held-out captions, and the held-out images of those captions.
        captions: different ones among them, from which candidates are drawn.
        few: candidates: an image's own caption and others at random. Chance is one in so many.
        share: of the samples, those whose own is the first of all candidates, every draw of candidates counted;
            Wilson's interval for as many trials as there are different captions.
        real: the same of the real images: what the judge understands of captions that it never saw. No model can be
            expected to be above it.
    """

    column: str
    judge: str
    n: int
    captions: int
    few: int
    share: Share
    real: Share

    @property
    def behind(self) -> bool:
        return self.share[1][1] < self.real[1][0]

    @property
    def weak(self) -> bool:
        """Whether the judge does not beat chance on real images: it then says nothing of samples."""
        return self.real[1][0] <= 1 / self.few

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"behind": self.behind, "weak": self.weak}


def caption_agreement(
    judge: CaptionJudge, column: str, captions: Sequence[str | None], samples: Iterable[Tensor], real: Iterable[Tensor]
) -> CaptionAgreement:
    """Of samples and of real images of the same captions, how many show their own.

    Args:
        captions: of image i of both, None where it has none and is left out.
        samples, real: images in parts; those beyond the captions are not looked at.

    Raises:
        DataError: fewer than two different captions, among which nothing can be found.
    """
    rows = [row for row, caption in enumerate(captions) if caption]
    own = [str(captions[row]) for row in rows]
    candidates = list(dict.fromkeys(own))
    if len(candidates) < 2:
        raise DataError(f"{len(candidates)} captions of held-out images differ: two are the least to tell apart")
    few, place = min(FEW, len(candidates)), {caption: i for i, caption in enumerate(candidates)}
    with torch.no_grad():
        texts = torch.cat([judge.texts(candidates[i : i + 512]) for i in range(0, len(candidates), 512)])
        found = []
        for images in (samples, real):
            seen = torch.cat([judge.images(part) for part in _first(images, len(captions))])
            at = ranks(seen[rows] @ texts.T, [place[caption] for caption in own])
            right = first_of_few(at, len(candidates), few)
            found.append((right, interval(right * len(candidates), len(candidates))))
    return CaptionAgreement(column, judge.name, len(rows), len(candidates), few, *found)


def caption_column(data: ImageDataset, asked: Mapping[str, Any] | None) -> str | None:
    """The first column of captions among what samples are asked for; None if they are asked for none."""
    return next((name for name in asked or {} if data.columns[name].kind == "text"), None)


def ranks(alike: Tensor, own: Sequence[int]) -> Tensor:
    """The rank, from 1, of each picture's own caption among all of them. What ties with it ranks before it.

    Args:
        alike: how alike each picture and each caption are [N, captions].
        own: for each picture, which of the captions is its own.
    """
    mine = alike[torch.arange(len(alike)), torch.as_tensor(own)]
    # Asked this way round, a similarity that is no number counts against the picture.
    return (~(alike < mine[:, None])).sum(1)


def first_of_few(ranks: Tensor, captions: int, few: int) -> float:
    """The share of pictures that come first among `few` candidates, their own and others at random, every draw counted.

    A picture of rank r does where the others are drawn from the captions - r that it beats.
    """
    draws = math.comb(captions - 1, few - 1)
    return math.fsum(math.comb(captions - rank, few - 1) / draws for rank in ranks.tolist()) / len(ranks)


def _first(parts: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """The first `count` images of parts."""
    for part in parts:
        yield part[:count]
        count -= len(part)
        if count <= 0:
            return
