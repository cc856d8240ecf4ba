"""The codec of latent diffusion: an autoencoder that has learned, and its latents at mean 0 and std 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.bottleneck import Bottleneck
from diff_diffusion.codecs.encoded import Encoded
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise, derive
from diff_diffusion.tensors import TensorSpec

DENSITIES = ("laplace", "gauss")
MEASURED = 1 << 22
LEAST_WIDTH = 1e-6
LEAST_SAID = 0.01
"""The share of a latent's standard deviation that its best guess has at least, or it says nothing of the data."""


@register("codec/autoencoded")
class Autoencoded(Encoded):
    """Data to latents of an autoencoder, at mean 0 and std 1, and back.

    Args:
        network: with `encode`, `decode` and `factor`, such as `ConvAutoencoder`; it does not learn any more.
        bottleneck: what the latents are.
        pixels: the codec that the autoencoder was trained on.
        mean, std: of its latents as measured, one number per channel; what diffusion sees has mean 0 and std 1.
        density: what data are around what is decoded of their latent, "laplace" or "gauss".
        width: its mean absolute, or its root mean square, deviation in the units of `pixels`, as measured; None where
            nobody did.

    Raises:
        ConfigError: counts that do not match, a std or a width that is not above 0, or another density.
        IncompatibleError: samples that the network cannot make smaller.
    """

    def __init__(
        self,
        network: nn.Module,
        bottleneck: Bottleneck,
        pixels: Affine,
        mean: Sequence[float],
        std: Sequence[float],
        density: str = "laplace",
        width: float | None = None,
    ) -> None:
        super().__init__(network, bottleneck, pixels)
        self.mean, self.std, self.density, self.width = tuple(mean), tuple(std), density, width
        if density not in DENSITIES or not (width is None or 0 < width < math.inf):
            raise ConfigError(f"decoded data have a {' or a '.join(DENSITIES)} around them, not {density!r} of {width}")
        if not len(self.mean) == len(self.std) == bottleneck.channels:
            raise ConfigError(
                f"latents of {bottleneck.channels} channels need as many means and stds, not {len(self.mean)} and "
                f"{len(self.std)}"
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(0 < s < math.inf for s in self.std):
            raise ConfigError(f"every mean must be finite and every std above 0, not {self.mean} and {self.std}")

    @classmethod
    def fit(
        cls,
        network: Any,
        bottleneck: Bottleneck,
        pixels: Affine,
        batches: Iterable[Tensor],
        density: str = "laplace",
    ) -> Autoencoded:
        """The codec with the statistics of the latents of these data, [N, *shape] in data units, in any pieces.

        Of latents that are drawn, as training draws them: what is added to the best guess has a variance too. The
        density's width is that of the first MEASURED numbers.

        Raises:
            ConfigError: no data, or a channel of the latents that never changes.
        """
        count, seen, missed, numbers = 0, 0, 0.0, 0
        total, square, guess, told = (torch.zeros(()) for _ in range(4))
        with torch.no_grad():
            for batch in batches:
                noise = Noise([derive(0, "codec", seen + row) for row in range(len(batch))])
                seen += len(batch)
                x = pixels.encode(batch)
                moments = network.encode(x).float()
                drawn = bottleneck.latent(moments, noise)
                if numbers < MEASURED:
                    error = (x - pixels.encode(pixels.decode(network.decode(drawn)))).double()
                    missed += float(error.abs().sum() if density == "laplace" else error.square().sum())
                    numbers += error.numel()
                flat, best = (
                    latent.double().cpu().transpose(0, 1).flatten(1) for latent in (drawn, bottleneck.latent(moments))
                )
                guess, told = guess + best.sum(1), told + (best**2).sum(1)
                count, total, square = count + flat.shape[1], total + flat.sum(1), square + (flat**2).sum(1)
        if not count:
            raise ConfigError("a codec cannot be fitted to no data")
        mean = total / count
        std = (square / count - mean**2).clamp(min=0).sqrt()
        said = (told / count - (guess / count) ** 2).clamp(min=0).sqrt()
        if float((said / std.clamp(min=1e-12)).min()) < LEAST_SAID:
            silent = int((said / std.clamp(min=1e-12)).argmin())
            raise ConfigError(
                f"channel {silent} of the latents varies by {float(said[silent]):.2g} from place to place, and by "
                f"{float(std[silent]):.2g} with what is drawn: it says nothing of the data. Train the autoencoder "
                "longer, or with fewer channels or a smaller rate"
            )
        width = missed / numbers if density == "laplace" else math.sqrt(missed / numbers)
        return cls(network, bottleneck, pixels, mean.tolist(), std.tolist(), density, max(width, LEAST_WIDTH))

    @property
    def latent(self) -> TensorSpec:
        return TensorSpec((self.bottleneck.channels, *self.places))

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        view = (-1, *[1] * (like.ndim - 2))
        mean, std = (torch.tensor(v, dtype=torch.float32, device=like.device).view(view) for v in (self.mean, self.std))
        return mean, std

    def latents(self, moments: Tensor, noise: Noise | None = None) -> Tensor:
        """Latents of mean 0 and std 1: drawn with `noise`, one key per sample; the most likely without."""
        latent = self.bottleneck.latent(moments, noise).float()
        mean, std = self._columns(latent)
        return (latent - mean) / std

    def decode(self, latent: Tensor) -> Tensor:
        """Latents in float32 data units, clamped to the data's range; gradients pass."""
        mean, std = self._columns(latent)
        return self._decoded(latent.float() * std + mean)
