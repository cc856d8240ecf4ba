"""An image to see while denoising: for super-resolution, colourisation, masks and maps of all kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diff_diffusion.cond import Embedded
from diff_diffusion.conditions.condition import Condition
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise

MAX_NUMBERS = 1 << 28


@register("condition/image")
class ImageBeside(Condition):
    """An image of the sample's own size, seen place by place: its channels, one that says whether it is there, and with
    `noise` one that says how noisy it is.

    Args:
        shape: (C, H, W) of the image; its values are 0 to 255.
        kind: what it is of the sample: "image", "mask", "grey", or "shrunk:4" for itself four times smaller.
        noise: conditioning augmentation. In training the image, in units of -1 to 1, becomes √(1 - s²) image + s ε with
            s even in [0, noise], and the network is told s. A model that enlarges another's samples learns so to
            forgive their faults. When it is asked, an image has s = 0, or what `encode` is told of one noised already.
        fold: pixels of a side that stand beside one place of x, all of them as channels: for x that are latents.

    Raises:
        ConfigError: a shape that is no image's or cannot be folded, or a noise outside [0, 1]; at `encode`, an image of
            another shape.

    Source: Ho et al., arXiv 2106.15282, for conditioning augmentation.
    """

    def __init__(self, shape: Sequence[int], noise: float = 0.0, kind: str = "image", fold: int = 1) -> None:
        super().__init__()
        self.shape, self.noise, self.kind, self.fold = tuple(shape), noise, kind, fold
        if len(self.shape) != 3 or min(self.shape) < 1 or math.prod(self.shape) > MAX_NUMBERS:
            raise ConfigError(
                f"an image condition has a shape (channels, height, width) of at most {MAX_NUMBERS:,} numbers, not "
                f"{list(shape)}"
            )
        if not 0.0 <= noise <= 1.0:
            raise ConfigError(f"the noise on an image condition must be from 0 to 1, not {noise}")
        if fold < 1 or any(side % fold for side in self.shape[1:]):
            raise ConfigError(f"an image condition of {list(self.shape)} cannot be folded by {fold}")
        self.planes = self.shape[0] * fold**2 + 1 + (noise > 0.0)

    @property
    def places(self) -> tuple[int, int]:
        """The sizes of x that it stands beside."""
        return self.shape[1] // self.fold, self.shape[2] // self.fold

    def encode(self, values: Sequence[Any]) -> Tensor:
        """Images uint8 or float [C, H, W] in 0 to 255, or (image, s), to [B, C + 1, H, W]: in -1 to 1, and s.

        Folded, [B, C fold² + 1, H / fold, W / fold].
        """
        given = [value[0] if isinstance(value, tuple) else value for value in values]
        blank = torch.full(next((tuple(image.shape) for image in given if image is not None), self.shape), 127.5)
        rows = []
        for value in values:
            image, level = value if isinstance(value, tuple) else (value, 0.0)
            image = blank if image is None else torch.as_tensor(image).float().cpu()
            if not bool(torch.isfinite(image).all()):
                raise ConfigError("this image condition holds values that are not finite")
            if image.ndim != 3 or image.shape[0] != self.shape[0]:
                raise ConfigError(f"this image condition is {list(self.shape)}, and {list(image.shape)} was given")
            if not 0.0 <= level <= self.noise:
                raise ConfigError(f"the noise on this image condition is from 0 to {self.noise:g}, not {level:g}")
            if any(side % self.fold for side in image.shape[1:]):
                raise ConfigError(
                    f"this image condition has sides that are multiples of {self.fold}, not {list(image.shape)}"
                )
            clean = functional.pixel_unshuffle(image / 127.5 - 1.0, self.fold)
            rows.append(torch.cat([clean, torch.full_like(clean[:1], level)]))
        return torch.stack(rows)

    def noised(self, values: Tensor, noise: Noise) -> Tensor:
        if not self.noise:
            return values
        image = values[:, :-1]
        share = noise.fork("level").uniform((len(values),)).to(values)
        level = (self.noise * share).view(-1, 1, 1, 1).expand_as(values[:, -1:])
        noisy = (1 - level.square()).sqrt() * image + level * noise.fork("eps").normal(image.shape, image)
        return torch.cat([noisy, level], dim=1)

    def is_one(self, value: Any) -> bool:
        return isinstance(value, tuple) or getattr(value, "ndim", 0) == 3

    def embed(self, values: Tensor | None, keep: Tensor, x_t: Tensor) -> Embedded:
        if values is None:
            return Embedded(planes=x_t.new_zeros(len(x_t), self.planes, *x_t.shape[2:]))
        if values.shape[2:] != x_t.shape[2:]:
            raise ConfigError(f"the image condition is {list(values.shape[2:])} where x is {list(x_t.shape[2:])}")
        image, level = values[:, :-1], values[:, -1:]
        kept = keep.view(-1, 1, 1, 1).to(image)
        here = [image * kept, kept.expand_as(level), level * kept]
        return Embedded(planes=torch.cat(here[: 3 if self.noise else 2], dim=1))

    def summary(self) -> str:
        return f"{'an image' if self.kind == 'image' else self.kind} of {' × '.join(map(str, self.shape))}"
