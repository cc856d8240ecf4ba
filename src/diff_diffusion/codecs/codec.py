"""What every codec is: from data units to what diffusion works on, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from diff_diffusion.tensors import TensorSpec


class Codec(Protocol):
    """A pair of maps, with what they are between.

    To add one: a registered part with these, "codec/name". One with weights is an `nn.Module`, and a model that has it
    keeps its weights and never trains them.
    """

    @property
    def shape(self) -> Sequence[int]:
        """Of one sample of the data."""

    @property
    def mean(self) -> Sequence[float]:
        """Of what is encoded, by channel: what encoding takes off it, to have mean 0."""

    @property
    def std(self) -> Sequence[float]:
        """Of what is encoded, by channel: what encoding divides it by, to have standard deviation 1."""

    @property
    def data(self) -> TensorSpec:
        """Shape and range of one sample."""

    @property
    def latent(self) -> TensorSpec:
        """Shape of one encoded sample."""

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Between which numbers encoded samples lie: two float32 tensors that broadcast with one."""

    def encode(self, data: Any) -> Tensor:
        """Data [B, *data.shape] in data units to float32 [B, *latent.shape] of mean 0 and standard deviation 1."""

    def decode(self, latent: Any) -> Tensor:
        """The way back, in float32 data units within their range."""


def learned(codec: Any) -> nn.Module | None:
    """The codec where it is one with weights."""
    return codec if isinstance(codec, nn.Module) else None
