"""The affine codec: every channel to mean 0 and standard deviation 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import TensorSpec


@register("codec/affine")
@dataclass(frozen=True)
class Affine:
    """(data - mean) / std per channel. Fitted on the train split by `fit`, stored with the model.

    Args:
        shape: one sample's shape, channels first.
        mean, std: one number per channel, in data units.
        low, high: the range of the data; decoded samples are clamped to it.

    Raises:
        ConfigError: counts that do not match, or a std that is not above 0.
    """

    shape: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    low: float = 0.0
    high: float = 255.0

    def __post_init__(self) -> None:
        for name in ("shape", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not (1 <= len(self.shape) <= 8 and all(1 <= size <= 1 << 20 for size in self.shape)):
            raise ConfigError(f"a sample's shape must be 1 to 8 sizes of at least 1, not {list(self.shape)}")
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ConfigError(
                f"{self.shape[0]} channels need as many means and stds, not {len(self.mean)} and {len(self.std)}"
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(0 < s < math.inf for s in self.std):
            raise ConfigError(f"every mean must be finite and every std above 0, not {self.mean} and {self.std}")

    @classmethod
    def fit(cls, batches: Iterable[Tensor], low: float = 0.0, high: float = 255.0) -> Affine:
        """The codec of these data, [N, C, ...] in any number of pieces.

        A channel that never changes gets std 1, so that it decodes to its constant.
        """
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        shape: tuple[int, ...] = ()
        for batch in batches:
            shape = tuple(batch.shape[1:])
            flat = batch.to(torch.float64).transpose(0, 1).flatten(1)
            count += flat.shape[1]
            total = total + flat.sum(1)
            square = square + (flat**2).sum(1)
        if not count:
            raise ConfigError("a codec cannot be fitted to no data")
        mean = total / count
        std = (square / count - mean**2).clamp(min=0).sqrt()
        std = torch.where(std > 1e-6 * (high - low), std, 1.0)
        return cls(shape, mean.tolist(), std.tolist(), low, high)

    @property
    def data(self) -> TensorSpec:
        return TensorSpec(tuple(self.shape), self.low, self.high)

    @property
    def latent(self) -> TensorSpec:
        return TensorSpec(tuple(self.shape))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The data's range per channel in latent units: two float32 tensors that broadcast with a latent."""
        mean, std = self._columns(torch.empty(0))
        return (self.low - mean) / std, (self.high - mean) / std

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        view = (-1, *[1] * (len(self.shape) - 1))
        return tuple(torch.tensor(v, dtype=torch.float32, device=like.device).view(view) for v in (self.mean, self.std))  # type: ignore[return-value]

    def encode(self, data: Tensor, noise: Noise | None = None) -> Tensor:
        """Data [B, *shape] in data units (uint8 or float) to float32 of mean 0 and std 1, in the one way there is.

        Raises:
            IncompatibleError: another number of channels.
        """
        if data.ndim != len(self.shape) + 1 or data.shape[1] != self.shape[0]:
            raise IncompatibleError(f"this model's samples are {list(self.shape)}, not {list(data.shape[1:])}")
        mean, std = self._columns(data)
        return (data.to(torch.float32) - mean) / std

    def decode(self, latent: Tensor) -> Tensor:
        """The inverse of `encode`, in float32 data units clamped to [low, high]."""
        mean, std = self._columns(latent)
        return (latent.to(torch.float32) * std + mean).clamp(self.low, self.high)
