"""Guidance by a scale: the conditional posterior, extrapolated away from a reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.posterior import Posterior
from diff_diffusion.errors import ConfigError


class ClassifierFree(Denoiser):
    """Classifier-free guidance: scale 1 is exactly the conditional model, 0 the unconditional one, above 1 goes beyond.

    The two are asked in one batched call. Scale 1 and scale 0 ask once.

    Args:
        denoiser: a model trained with conditions dropped some of the time.
        scale: any finite number; 1 to 3 is usual for small data.

    Raises:
        ConfigError: a scale that is not finite; at the call, a scale other than 1 with no condition to guide by.

    Source: Ho & Salimans, arXiv 2207.12598, whose w is scale - 1.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        if not math.isfinite(scale):
            raise ConfigError(f"the guidance scale must be a finite number, not {scale}; 1 means none")
        self.denoiser = denoiser
        self.process = denoiser.process
        self.scale = scale

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        if self.scale == 1.0:
            return self.denoiser(x_t, t, cond)
        if not cond:
            raise ConfigError(f"guidance scale {self.scale:g} was asked for without a condition: give one, or scale 1")
        if self.scale == 0.0:
            return self.denoiser(x_t, t, cond.null())
        both = self.denoiser(
            torch.cat([x_t, x_t]), torch.cat([t, t]) if isinstance(t, Tensor) else t, cond.cat(cond.null())
        )
        return both[: len(x_t)].extrapolate(both[len(x_t) :], self.scale)
