"""The denoising objective: levels × weight, for any denoiser of a Gaussian process."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.errors import ConfigError
from diff_diffusion.objectives.levels import Levels, Uniform
from diff_diffusion.objectives.weights import Unit, Weight
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import expand, mean_flat


@dataclass(frozen=True)
class Loss:
    """A batch's loss: its mean (a scalar to differentiate), per sample [B], and the level λ of each [B]."""

    mean: Tensor
    per_sample: Tensor
    log_snr: Tensor


@register("objective/denoising")
@dataclass(frozen=True)
class Objective:
    """E over levels of w(λ) ‖ε - ε̂‖², averaged over a sample's numbers.

    Args:
        levels: the density of training levels.
        weight: w(λ).
        cond_drop: the share of samples trained with their conditions replaced by the null, in [0, 1); what
            classifier-free guidance needs.

    Raises:
        ConfigError: cond_drop out of range.
    """

    levels: Levels = field(default_factory=Uniform)
    weight: Weight = field(default_factory=Unit)
    cond_drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.cond_drop < 1.0:
            raise ConfigError(f"cond_drop must be at least 0 and below 1, not {self.cond_drop}")

    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, cond: Cond | None, noise: Noise, first: int = 0, whole: int | None = None
    ) -> Loss:
        """The loss of clean data x_0 [B, ...], of mean 0 and variance 1.

        Args:
            noise: one key per sample; the level, the dropout and ε come from its streams.
            first, whole: x_0 is samples first, first + 1, … of a batch of `whole`, over which levels are stratified.
                Left out, x_0 is the whole batch.
        """
        count = len(x_0)
        strata = torch.arange(first, first + count, dtype=torch.float64)
        u = (strata + noise.fork("level").uniform((count,))) / (whole or count)
        if cond:
            cond = cond.drop(noise.fork("drop").uniform((count,)) < self.cond_drop)
        return self.at(denoiser, x_0, self.levels.draw(u, denoiser.process), cond, noise.fork("eps"))

    def at(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        """The loss at given times t, float64 [B], with nothing dropped: what held-out evaluation asks for."""
        corrupted = denoiser.process.marginal(x_0, t, noise)
        error, gain = denoiser.error(corrupted, cond)
        log_snr = denoiser.process.time_map.log_snr(t)
        squared = mean_flat(error.to(x_0.dtype) ** 2)  # under autocast the output may be bfloat16
        per_sample = squared * expand(self.weight.on_error(log_snr, gain), squared)
        return Loss(per_sample.mean(), per_sample, log_snr)
