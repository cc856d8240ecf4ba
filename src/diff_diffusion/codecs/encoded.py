"""What codecs of an autoencoder share: data through its encoder and decoder, which do not learn any more."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.bottleneck import Bottleneck
from diff_diffusion.codecs.tiles import decoded
from diff_diffusion.errors import DiffusionError, IncompatibleError
from diff_diffusion.registry import describe
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import TensorSpec, finite


class Encoded(nn.Module, ABC):
    """Data to latents of an autoencoder and back; whatever works on latents never learns that it does.

    Raises:
        IncompatibleError: samples that the network cannot make smaller.
    """

    network: Any
    factor: int
    mean: Sequence[float]
    std: Sequence[float]

    def __init__(self, network: nn.Module, bottleneck: Bottleneck, pixels: Affine) -> None:
        super().__init__()
        self.network, self.bottleneck, self.pixels = network, bottleneck, pixels
        factor = self.factor = self.network.factor
        if any(size % factor for size in pixels.shape[1:]):
            raise IncompatibleError(
                f"samples {list(pixels.shape)} cannot be made {factor} times smaller: sizes are multiples of {factor}"
            )
        self.requires_grad_(False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape)

    @property
    def places(self) -> tuple[int, ...]:
        """The sizes of a latent beside its channels."""
        return tuple(size // self.factor for size in self.pixels.shape[1:])

    @property
    def data(self) -> TensorSpec:
        return self.pixels.data

    @property
    @abstractmethod
    def latent(self) -> TensorSpec: ...

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Between which numbers latents lie: all numbers, unless the latents say otherwise."""
        return torch.tensor(self.latent.low), torch.tensor(self.latent.high)

    def identity(self) -> dict[str, Any]:
        """What tells this encoder from any other: its description, and the sha256 of its weights."""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return {"codec": describe(self), "weights": digest.hexdigest()}

    def moments(self, data: Tensor) -> Tensor:
        """What the encoder says of data [B, *shape]: float32 [B, codes_out, ...], of which latents are made."""
        with torch.no_grad():
            said: Tensor = self.network.encode(self.pixels.encode(data).to(self._dtype)).float()
        return said

    @abstractmethod
    def latents(self, moments: Tensor, noise: Noise | None = None) -> Tensor:
        """The latents that moments say: drawn with `noise`, one key per sample; the most likely without."""

    def encode(self, data: Tensor, noise: Noise | None = None) -> Tensor:
        """Data [B, *shape] in data units to latents: drawn with `noise`, a key per sample; the most likely without."""
        return self.latents(self.moments(data), noise)

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Latents in float32 data units, clamped to the data's range; gradients pass where there are any."""

    def _decoded(self, codes: Tensor) -> Tensor:
        """What the decoder makes of the bottleneck's latents, in data units; large ones in tiles.

        Raises:
            DiffusionError: values that are not finite, even in float32.

        Warns:
            UserWarning: half precision was not enough for some, which were decoded again in float32.
        """
        return self.pixels.decode(decoded(self._finite, codes, self.factor))

    @property
    def _dtype(self) -> torch.dtype:
        return next((parameter.dtype for parameter in self.network.parameters()), torch.float32)

    def _finite(self, codes: Tensor) -> Tensor:
        found: Tensor = self.network.decode(codes.to(self._dtype)).float()
        if finite(found):
            return found
        # Only those that need it: what a sample is must not depend on its batch.
        bad = ~torch.isfinite(found).flatten(1).all(1)
        if self._dtype != torch.float32 or torch.is_autocast_enabled(codes.device.type):
            warnings.warn("the decoder's half precision overflows: such samples are decoded in float32", stacklevel=2)
            with torch.autocast(codes.device.type, enabled=False):
                again = deepcopy(self.network).float().decode(codes[bad].float())
            found = found.masked_scatter(bad.view(-1, *[1] * (found.ndim - 1)), again)
        if not finite(found):
            raise DiffusionError(
                f"what the decoder makes of {int(bad.sum())} of {len(bad)} latents is not finite: the autoencoder's "
                "weights are damaged; use an earlier checkpoint of it, or train it anew"
            )
        return found
