"""Feature networks: what images are compared by. Each says in its name what it is, down to a hash of its weights.

For data with labels it is the small classifier of `features`, trained on them, which judges labels too; for data
without, a network of random weights, which sees shapes and textures and knows nothing of meaning; or any module. Those
that other libraries run are in `outside`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import generator

FILTERS = ("bilinear", "bicubic", "area")
BATCH = 256


@runtime_checkable
class FeatureNetwork(Protocol):
    """What turns images into numbers whose distances mean something.

    Attributes:
        name: architecture, the start of the hash, and where images are resized the size and the filter:
            "cnn64-1a2b3c4d", "resnet-5e6f7a8b@224x224-bicubic". Two networks of one name give the same features.
        sha256: of the weights and of whatever numbers else make the features, 64 hex digits.
        size: (height, width) that images are brought to; None where they are taken as they are.
        filter: how they are brought to it.
    """

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def size(self) -> tuple[int, int] | None: ...

    @property
    def filter(self) -> str | None: ...

    def features(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W], uint8 or float in 0..255, to float64 features [N, D]."""
        ...


def weights_hash(tensors: Iterable[Tensor], *more: object) -> str:
    """The sha256 of weights, and of whatever numbers else make the features, in hex; a name has its first 8 digits."""
    digest = hashlib.sha256(repr(more).encode() if more else b"")
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _resized(images: Tensor, size: tuple[int, int], filter: str) -> Tensor:
    if filter == "area":
        return functional.adaptive_avg_pool2d(images, size)
    return functional.interpolate(images, size, mode=filter, antialias=True, align_corners=False)


@dataclass(frozen=True)
class Pixels:
    """The pixels themselves, averaged over squares where images are larger than 32 pixels a side.

    Distances divided by √D are root mean squares in grey values.

    Args:
        shape: (C, H, W) of the images.
    """

    shape: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        return min(32, self.shape[1]), min(32, self.shape[2])

    @property
    def filter(self) -> str | None:
        return None if self.size == tuple(self.shape[1:]) else "area"

    @property
    def name(self) -> str:
        return f"pixels@{self.size[0]}x{self.size[1]}" + ("" if self.filter is None else f"-{self.filter}")

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def features(self, images: Tensor) -> Tensor:
        return _resized(images.float(), self.size, "area").flatten(1).double()


@dataclass(frozen=True)
class ModuleFeatures:
    """Any module as a feature network.

    Args:
        module: float32 [N, C, H, W] to features [N, …], which are flattened; it is asked in evaluation mode.
        architecture: what the name says it is; must change whenever what it computes does, but for the weights.
        size: (height, width) that images are brought to; as they are where None.
        filter: "bilinear", "bicubic" (both antialiased) or "area".
        channels: what grey images are repeated to; as they are where None.
        mean, std: what is subtracted from 0..255, and then divided by: one number, or one a channel.

    Raises:
        ConfigError: an unknown filter, or a name that cannot be told from others.
    """

    module: nn.Module
    architecture: str
    size: tuple[int, int] | None = None
    filter: str = "bicubic"
    channels: int | None = None
    mean: float | tuple[float, ...] = 127.5
    std: float | tuple[float, ...] = 127.5

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise ConfigError(f"unknown resize filter {self.filter!r}: it is one of {', '.join(FILTERS)}")
        if not self.architecture or set(self.architecture) & set("@, \n"):
            raise ConfigError(f"{self.architecture!r} is no name: say what the network is, without '@', ',' or spaces")

    @property
    def sha256(self) -> str:
        return weights_hash(self.module.state_dict().values(), self.mean, self.std, self.channels)

    @property
    def name(self) -> str:
        resized = f"@{self.size[0]}x{self.size[1]}-{self.filter}" if self.size is not None else ""
        return f"{self.architecture}-{self.sha256[:8]}{resized}"

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        training = self.module.training
        self.module.eval()
        try:
            return torch.cat([self._of(part) for part in images.split(BATCH)])
        finally:
            self.module.train(training)

    def _of(self, images: Tensor) -> Tensor:
        device = next((tensor.device for tensor in self.module.state_dict().values()), torch.device("cpu"))
        pixels = images.float()
        if self.size is not None:
            pixels = _resized(pixels, self.size, self.filter)
        if self.channels is not None and pixels.shape[1] == 1:
            pixels = pixels.expand(-1, self.channels, -1, -1)
        mean, std = (torch.tensor(value).reshape(1, -1, 1, 1) for value in (self.mean, self.std))
        found: Tensor = self.module(((pixels - mean) / std).to(device))
        return found.flatten(1).double().cpu()


class _RandomCnn(nn.Module):
    """Stages of random 3×3 filters, each halving the sides; a 2×2 grid of means of each stage."""

    def __init__(self, channels: int, sides: tuple[int, int], width: int = 16) -> None:
        super().__init__()
        stages, rng = max(1, min(4, min(sides).bit_length() - 1)), generator(0, "random features")
        self.stages = nn.ModuleList(
            skip_init(nn.Conv2d, channels if i == 0 else width, width, 3, padding=1) for i in range(stages)
        )
        for stage in self.stages:
            assert isinstance(stage, nn.Conv2d)
            assert stage.bias is not None
            scale = (2.0 / (9 * stage.in_channels)) ** 0.5
            stage.weight.data = torch.from_numpy(rng.standard_normal(stage.weight.shape) * scale).float()
            stage.bias.data = torch.from_numpy(rng.standard_normal(width) * 0.1).float()

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for stage in self.stages:
            x = functional.relu(stage(x))
            found.append(functional.adaptive_avg_pool2d(x, 2).flatten(1))
            x = functional.avg_pool2d(x, 2, ceil_mode=True)
        return torch.cat(found, 1)


def random_features(shape: tuple[int, int, int]) -> ModuleFeatures:
    """A convolutional network of random weights, the same on every machine: for data without labels.

    It tells noise, blur, wrong colours and wrong places apart; it knows nothing of what pictures show, so a distance on
    its features is no substitute for one on a network that learned to see, and its name says so.
    """
    return ModuleFeatures(_RandomCnn(shape[0], shape[1:]), "random-cnn")
