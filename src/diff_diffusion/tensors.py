"""Small tensor arithmetic shared by every layer: one formula for floats and tensors, and shapes.

Schedule arithmetic is float64: on Python floats in samplers, on CPU tensors in training. `maths(x)` gives the functions
for whichever x is, so that each formula is written once, with the limits (log 0 = -inf, exp inf = inf) that a process
needs at its two ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Real = TypeVar("Real", float, Tensor, "float | Tensor")


class _Floats:
    """math, with the limits of torch: log(0) = -inf, overflow = inf."""

    sqrt = staticmethod(math.sqrt)
    sin = staticmethod(math.sin)
    cos = staticmethod(math.cos)
    sinh = staticmethod(math.sinh)
    log1p = staticmethod(math.log1p)
    atan2 = staticmethod(math.atan2)

    @staticmethod
    def log(x: float) -> float:
        return math.log(x) if x > 0 else -math.inf

    @staticmethod
    def exp(x: float) -> float:
        return math.exp(x) if x < 709.0 else math.inf

    @staticmethod
    def expm1(x: float) -> float:
        return math.expm1(x) if x < 709.0 else math.inf

    @staticmethod
    def sigmoid(x: float) -> float:
        if x >= 0:
            return 1.0 / (1.0 + math.exp(-x))
        z = math.exp(x)
        return z / (1.0 + z)

    @staticmethod
    def softplus(x: float) -> float:
        return max(x, 0.0) + math.log1p(math.exp(-abs(x)))

    @staticmethod
    def clip(x: float, low: float, high: float) -> float:
        return min(max(x, low), high)


class _Tensors:
    sqrt = staticmethod(torch.sqrt)
    sin = staticmethod(torch.sin)
    cos = staticmethod(torch.cos)
    sinh = staticmethod(torch.sinh)
    log1p = staticmethod(torch.log1p)
    atan2 = staticmethod(torch.atan2)
    log = staticmethod(torch.log)
    exp = staticmethod(torch.exp)
    expm1 = staticmethod(torch.expm1)
    sigmoid = staticmethod(torch.sigmoid)
    clip = staticmethod(torch.clamp)

    @staticmethod
    def softplus(x: Tensor) -> Tensor:
        # torch's softplus returns x itself above a threshold of 20, wrong by 2e-9: too coarse for float64 schedules.
        return torch.clamp(x, min=0) + torch.log1p(torch.exp(-torch.abs(x)))


def maths(x: float | Tensor) -> Any:
    """The elementary functions for `x`: over Python floats, or over tensors."""
    return _Tensors if isinstance(x, Tensor) else _Floats


def expand(coefficient: float | Tensor, x: Tensor) -> float | Tensor:
    """`coefficient` ready to multiply x: floats as they are, tensors (a prefix of x's shape) padded with ones."""
    if not isinstance(coefficient, Tensor):
        return coefficient
    padded = coefficient.reshape(*coefficient.shape, *[1] * (x.ndim - coefficient.ndim))
    return padded.to(x.device, x.dtype)


_NOTHING = torch.zeros(())


def mixed(a: float, x: Tensor, b: float, y: Tensor) -> Tensor:
    """a x + b y, in x's dtype.

    As additions: torch makes a tensor of a factor, at half the cost of a small image's product, but not of an alpha.
    """
    return torch.add(_NOTHING, x, alpha=a).add_(y, alpha=b)


def finite(x: Tensor) -> bool:
    """Whether every number is.

    A sum is not finite unless all of its numbers are, and takes a tenth of the time; one that is not may only have
    overflowed.
    """
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def mean_flat(x: Tensor) -> Tensor:
    """The mean over all axes but the first: [B, ...] to [B]."""
    return x.flatten(1).mean(1)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Images [B, C, h, w] of 0 to 255, in whole grey values, `factor` times larger: float32 [B, C, h factor, w factor].

    Bilinear between the centres of pixels, and rounded again: what super-resolution sees in training and when asked.
    """
    whole = images.to(torch.float32).round()
    return functional.interpolate(whole, scale_factor=factor, mode="bilinear", align_corners=False).round()


@dataclass(frozen=True)
class TensorSpec:
    """What one sample is: its shape without the batch axis, the range of its values, and whether they are whole."""

    shape: tuple[int, ...]
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False

    def __str__(self) -> str:
        return f"{list(self.shape)} in [{self.low:g}, {self.high:g}]"
