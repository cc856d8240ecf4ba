"""How often pictures find their own prompt among others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from diff_diffusion.evaluation.captions import FEW, first_of_few
from diff_diffusion.evaluation.score import interval


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

        def share(mean: float) -> Share:
            return Share(mean, *interval(mean * trials, trials))

        first, in_five = (share(float((ranks <= last).double().mean())) for last in (1, 5))
        return cls(prompts, few, first, in_five, share(first_of_few(ranks, prompts, few)))


def table(rows: Mapping[str, Retrieval]) -> str:
    """Retrievals as lines of text, one for each name."""
    some = next(iter(rows.values()))
    width = max(map(len, rows))
    head = f"{'':{width}}   {f'first of {some.few}':22}{f'first of {some.prompts}':22}{f'in five of {some.prompts}':22}"
    lines = [
        f"{name:{width}}   {row.first_of_few!s:22}{row.first!s:22}{row.in_five!s:22}" for name, row in rows.items()
    ]
    return "\n".join(line.rstrip() for line in (head, *lines))
