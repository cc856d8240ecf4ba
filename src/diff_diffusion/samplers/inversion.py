"""The probability flow both ways: from data to the noise that deterministic samplers would make them of, and back."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.single_step import Heun

LIMIT = 12.0
"""λ between which the flow is walked: beyond, a sample is its data, or its noise, to three digits."""


def invert(denoiser: Denoiser, x_0: Tensor, steps: int = 64, cond: Cond | None = None) -> Tensor:
    """The noise x that `regenerate` would turn into x_0, [B, ...], at the process's noisiest level.

    Heun's method in `steps` steps even in λ, two evaluations each: the error of the way there and back falls with the
    square of the steps. A denoiser that is clipped or guided makes a flow that cannot be walked back.

    Raises:
        ConfigError: steps below 1.
        IncompatibleError: a process that is not Gaussian.

    Source: Song et al., arXiv 2010.02502 (encoding with DDIM); Karras et al., arXiv 2206.00364, for Heun's method.
    """
    process, times = _walk(denoiser, steps)
    alpha, _ = process.scales(times[-1])
    return _along(denoiser, alpha * x_0, times[::-1], cond)


def regenerate(denoiser: Denoiser, x: Tensor, steps: int = 64, cond: Cond | None = None) -> Tensor:
    """The data that noise x flows to, [B, ...]; at the last level x̂_0. The inverse of `invert`, cond the same."""
    _, times = _walk(denoiser, steps)
    x = _along(denoiser, x, times, cond)
    with torch.no_grad():
        return denoiser(x, times[-1], cond).mean


def _walk(denoiser: Denoiser, steps: int) -> tuple[Gaussian, list[float]]:
    process = denoiser.process
    if not isinstance(process, Gaussian):
        raise IncompatibleError(f"a probability flow needs a Gaussian process, not {type(process).__name__}")
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, not {steps}")
    low, high = max(process.time_map.log_snr(1.0), -LIMIT), min(process.time_map.log_snr(0.0), LIMIT)
    levels = [low + (high - low) * i / steps for i in range(steps + 1)]
    # A map with a finite λ(0) has that level just above time 0.
    return process, [min(max(process.time_map.time(level), 1e-9), 1.0) for level in levels]


@torch.no_grad()
def _along(denoiser: Denoiser, x: Tensor, times: list[float], cond: Cond | None) -> Tensor:
    """Heun's step along times that rise or fall: its algebra is the same both ways."""
    heun, still = Heun(), Noise([])
    for t, s in pairwise(times):
        x, _ = heun.step(denoiser, x, t, s, None, cond, still)
    return x
