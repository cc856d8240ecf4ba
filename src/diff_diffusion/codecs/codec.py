"""What every codec is: from data units to what diffusion works on, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise
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
        """Of what is encoded, by channel: what encoding takes off it, to have mean 0; () where it gives tokens."""

    @property
    def std(self) -> Sequence[float]:
        """By channel, what encoding divides it by, to have standard deviation 1; () where it gives tokens."""

    @property
    def data(self) -> TensorSpec:
        """Shape and range of one sample."""

    @property
    def latent(self) -> TensorSpec:
        """Shape of one encoded sample; where it is one of whole numbers, tokens, from 0 to which."""

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Between which numbers encoded samples lie: two float32 tensors that broadcast with one."""

    def encode(self, data: Any, noise: Noise | None = None) -> Tensor:
        """Data [B, *data.shape] in data units to [B, *latent.shape]: float32 of mean 0 and standard deviation 1, or
        tokens, int64.

        Where data can be coded in several ways, drawn among them with `noise`, one key per sample; the best without.
        """

    def decode(self, latent: Any) -> Tensor:
        """The way back, in float32 data units within their range."""


def place_side(codec: Codec) -> int:
    """How many pixels of a picture's side one place of its latent stands for."""
    return codec.data.shape[-1] // codec.latent.shape[-1]


def latent_shape(codec: Codec, height: int, width: int) -> tuple[int, ...]:
    """Of an encoded picture of height × width pixels: (C, h, w), or (h, w) of tokens.

    Raises:
        ConfigError: data that are no pictures, or sizes that are no whole number of places.
    """
    if len(codec.data.shape) != 3:
        raise ConfigError(
            f"this model's samples are {list(codec.data.shape)}, and pictures of {height} × {width} were asked for"
        )
    side = place_side(codec)
    if height % side or width % side:
        raise ConfigError(
            f"this model works on places of {side} × {side} pixels: heights and widths are multiples of {side}, not "
            f"{height} × {width}"
        )
    return (*codec.latent.shape[:-2], height // side, width // side)


def learned(codec: Any) -> nn.Module | None:
    """The codec where it is one with weights."""
    return codec if isinstance(codec, nn.Module) else None
