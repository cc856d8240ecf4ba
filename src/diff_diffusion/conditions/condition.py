"""The contract of a condition: from what a user says to a tensor, and from that to what a network reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.cond import Embedded
from diff_diffusion.rng import Noise


class Condition(nn.Module, ABC):
    """One kind of thing that a sample can be asked to be.

    `encode` runs once per sample, `embed` at each step; what `embed` does is learned. `once` is that part of it which a
    sampler, whose weights stay as they are, need not do again at each step.
    """

    width: int = 0
    token_width: int = 0
    planes: int = 0

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Tensor:
        """[B, ...] of the values of a batch, None where a sample has none; what stands there is not looked at.

        Raises:
            ConfigError: a value that the model cannot know, with what it can.
        """

    def once(self, values: Tensor) -> Tensor:
        """Encoded values with all done that does not depend on the step; `embed` takes both."""
        return values

    @abstractmethod
    def embed(self, values: Tensor | None, keep: Tensor, x_t: Tensor) -> Embedded:
        """What a network reads of encoded values [B, ...], and the stored null where `keep` [B] is false.

        `values` is None where nothing is kept. x_t [B, ...] is what the network sees, for its size.
        """

    def noised(self, values: Tensor, noise: Noise) -> Tensor:
        """Encoded values as training sees them; one key of noise per sample."""
        return values

    def is_one(self, value: Any) -> bool:
        """Whether this is the value of one sample, and not one for each of several."""
        return not isinstance(value, list | tuple) and getattr(value, "ndim", 0) == 0

    def summary(self) -> str:
        """What may be asked, in a few words."""
        return type(self).__name__


def chosen(keep: Tensor, here: Tensor, null: Tensor) -> Tensor:
    """`here` [B, ...] where `keep` [B], else `null` [...]."""
    return torch.where(keep.view(-1, *[1] * (here.ndim - 1)), here, null.to(here.dtype))
