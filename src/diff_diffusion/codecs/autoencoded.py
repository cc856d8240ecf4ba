"""The codec of latent diffusion: an autoencoder that has learned, and its latents at mean 0 and std 1."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.bottleneck import Bottleneck
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.registry import describe, register
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import TensorSpec

LEAST_STD = 1e-4


@register("codec/autoencoded")
class Autoencoded(nn.Module):
    """Data to latents of an autoencoder and back; whatever works on latents never learns that it does.

    Args:
        network: with `encode`, `decode` and `factor`, such as `ConvAutoencoder`; it does not learn any more.
        bottleneck: what the latents are.
        pixels: the codec that the autoencoder was trained on.
        mean, std: of its latents as measured, one number per channel; what diffusion sees has mean 0 and std 1.

    Raises:
        ConfigError: counts that do not match, or a std that is not above 0.
        IncompatibleError: samples that the network cannot make smaller.
    """

    network: Any
    factor: int

    def __init__(
        self, network: nn.Module, bottleneck: Bottleneck, pixels: Affine, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.network, self.bottleneck, self.pixels = network, bottleneck, pixels
        self.mean, self.std = tuple(mean), tuple(std)
        if not len(self.mean) == len(self.std) == bottleneck.channels:
            raise ConfigError(
                f"latents of {bottleneck.channels} channels need as many means and stds, not {len(self.mean)} and "
                f"{len(self.std)}"
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(0 < s < math.inf for s in self.std):
            raise ConfigError(f"every mean must be finite and every std above 0, not {self.mean} and {self.std}")
        factor = self.factor = self.network.factor
        if any(size % factor for size in pixels.shape[1:]):
            raise IncompatibleError(
                f"samples {list(pixels.shape)} cannot be made {factor} times smaller: sizes are multiples of {factor}"
            )
        self.requires_grad_(False)

    @classmethod
    def fit(cls, network: Any, bottleneck: Bottleneck, pixels: Affine, batches: Iterable[Tensor]) -> Autoencoded:
        """The codec with the statistics of these data, [N, *shape] in data units in any number of pieces.

        Raises:
            ConfigError: no data, or a channel of the latents that never changes.
        """
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        with torch.no_grad():
            for batch in batches:
                flat = bottleneck.latent(network.encode(pixels.encode(batch))).double().cpu().transpose(0, 1).flatten(1)
                count, total, square = count + flat.shape[1], total + flat.sum(1), square + (flat**2).sum(1)
        if not count:
            raise ConfigError("a codec cannot be fitted to no data")
        mean = total / count
        std = (square / count - mean**2).clamp(min=0).sqrt()
        if float(std.min()) < LEAST_STD:
            raise ConfigError(
                f"channel {int(std.argmin())} of the latents has standard deviation {float(std.min()):.2g}: it says "
                "nothing of the data. Train the autoencoder longer, or with fewer channels or a smaller rate"
            )
        return cls(network, bottleneck, pixels, mean.tolist(), std.tolist())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape)

    @property
    def data(self) -> TensorSpec:
        return self.pixels.data

    @property
    def latent(self) -> TensorSpec:
        return TensorSpec((self.bottleneck.channels, *(size // self.factor for size in self.pixels.shape[1:])))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Latents lie anywhere."""
        return torch.tensor(-torch.inf), torch.tensor(torch.inf)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        view = (-1, *[1] * (like.ndim - 2))
        mean, std = (torch.tensor(v, dtype=torch.float32, device=like.device).view(view) for v in (self.mean, self.std))
        return mean, std

    def identity(self) -> dict[str, Any]:
        """What tells this encoder from any other: its description, and the sha256 of its weights."""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return {"codec": describe(self), "weights": digest.hexdigest()}

    def moments(self, data: Tensor) -> Tensor:
        """What the encoder says of data [B, *shape]: float32 [B, codes_out, ...], of which latents are made."""
        with torch.no_grad():
            said: Tensor = self.network.encode(self.pixels.encode(data)).float()
        return said

    def latents(self, moments: Tensor, noise: Noise | None = None) -> Tensor:
        """Latents of mean 0 and std 1: drawn with `noise`, one key per sample; the most likely without."""
        latent = self.bottleneck.latent(moments, noise).float()
        mean, std = self._columns(latent)
        return (latent - mean) / std

    def encode(self, data: Tensor) -> Tensor:
        """Data [B, *shape] in data units to the latents that they most likely are, float32 of mean 0 and std 1."""
        return self.latents(self.moments(data))

    def decode(self, latent: Tensor) -> Tensor:
        """Latents in float32 data units, clamped to the data's range; gradients pass."""
        mean, std = self._columns(latent)
        decoded: Tensor = self.network.decode(latent.float() * std + mean)
        return self.pixels.decode(decoded)
