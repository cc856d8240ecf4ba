"""A grid aligned to a model's own error: measured once, stored as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.grid import LogSnr
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.quantile import Quantile
from diff_diffusion.samplers.sampler import trajectory


def optimised(
    denoiser: Denoiser,
    shape: Sequence[int],
    order: int = 1,
    *,
    noise: Noise,
    num_steps: int = 50,
    cond: Cond | None = None,
    knots: int = 64,
    device: torch.device | str = "cpu",
) -> Quantile:
    """The grid whose steps each cost a solver of that order about the same error, for this denoiser.

    A step of length h in λ at order p makes an error of about h^(p+1) ‖dᵖx̂_0/dλᵖ‖ in x_t, of which about α is left in
    the sample (exactly α for unit-variance Gaussian data). So the density of steps is (α rms dᵖx̂_0/dλᵖ)^(1/(p+1)). The
    derivatives are differences of the answers along one fine walk of the denoiser itself: no data are needed, and its
    own mistakes are counted in. At p = 1 the last step, which holds x̂_0, comes out as costly as the others.

    Args:
        denoiser: of a Gaussian process; guided as it will be used.
        shape: of a sample, without the batch.
        order: 1 for ddim and euler; 2 for dpmpp_2m, heun and the like.
        noise: one key for each sample of the walk; 16 to 64 of them are enough.
        num_steps: of the returned grid; `with_steps` changes it without measuring again.
        cond: the condition to walk with.
        knots: evaluations of the walk.
        device: where the walk is.

    Returns:
        A table that can be described, stored and built as any grid.

    Raises:
        ConfigError: an order other than 1, 2 or 3, or fewer than 8 knots.
        IncompatibleError: a process that is not Gaussian.
    """
    if order not in (1, 2, 3) or knots < 8:
        raise ConfigError(f"optimised takes order 1, 2 or 3 and at least 8 knots, not {order} and {knots}")
    process = denoiser.process
    times = LogSnr(knots).times(process)
    x = process.prior((len(noise), *shape), noise.at(0), times[0]).to(device)
    walk = trajectory(denoiser, Multistep(2), times, x, cond=cond, noise=noise)
    places = [(process.time_map.log_snr(step.t), step.x_0) for step in walk]
    table = [(log_snr, answer) for log_snr, answer in places if math.isfinite(log_snr) and answer is not None]
    for _ in range(order):
        table = [(0.5 * (low + high), (b - a) / (high - low)) for (low, a), (high, b) in pairwise(table)]
    log_snrs = [log_snr for log_snr, _ in table]
    errors = [slope.square().mean().sqrt().item() / math.sqrt(1.0 + math.exp(-at)) for at, slope in table]
    return Quantile(log_snrs, [error ** (1.0 / (order + 1)) for error in errors], num_steps)
