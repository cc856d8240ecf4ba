"""How often pictures find their own prompt among others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diff_diffusion.evaluation.score import interval

FEW = 20  # candidates of the easier question


def ranks(alike: Tensor, own: Sequence[int]) -> Tensor:
    """The rank, from 1, of each picture's own prompt among all of them. What ties with it ranks before it.

    Args:
        alike: how alike each picture and each prompt are [N, prompts].
        own: for each picture, which of the prompts is its own.
    """
    mine = alike[torch.arange(len(alike)), torch.as_tensor(own)]
    # Asked this way round, a similarity that is no number counts against the picture.
    return (~(alike < mine[:, None])).sum(1)


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.share:5.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Retrieval:
    """How often pictures find their own prompt.

    Args:
        prompts: how many candidates there are; chance is one in so many.
        first, in_five: among all of them.
        first_of_few: among `few` candidates, its own and others drawn at random, every draw counted.
    """

    prompts: int
    few: int
    first: Share
    in_five: Share
    first_of_few: Share

    @classmethod
    def of(cls, ranks: Tensor, prompts: int) -> Retrieval:
        """From ranks [N] among `prompts` candidates.

        The intervals are Wilson's for as many trials as there are different prompts: the pictures of one prompt
        share its difficulty, and a mean of numbers between 0 and 1 varies no more than a share does.
        """
        few, trials = min(FEW, prompts), min(prompts, len(ranks))

        def share(right: Sequence[float]) -> Share:
            mean = math.fsum(right) / len(right)
            return Share(mean, *interval(mean * trials, trials))

        # A picture of rank r is first of few where the others are drawn from the prompts - r that it beats.
        draws = math.comb(prompts - 1, few - 1)
        of_few = [math.comb(prompts - rank, few - 1) / draws for rank in ranks.tolist()]
        first, in_five = (share((ranks <= last).double().tolist()) for last in (1, 5))
        return cls(prompts, few, first, in_five, share(of_few))


def table(rows: Mapping[str, Retrieval]) -> str:
    """Retrievals as lines of text, one for each name."""
    some = next(iter(rows.values()))
    width = max(map(len, rows))
    head = f"{'':{width}}   {f'first of {some.few}':22}{f'first of {some.prompts}':22}{f'in five of {some.prompts}':22}"
    lines = [
        f"{name:{width}}   {row.first_of_few!s:22}{row.first!s:22}{row.in_five!s:22}" for name, row in rows.items()
    ]
    return "\n".join(line.rstrip() for line in (head, *lines))
