"""What all edits share: one walk of a model, from the prior or from noised images, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.codecs.codec import place_side
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.errors import ConfigError
from diff_diffusion.guidance.windows import Windowed
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.edits import Edit, time_travel
from diff_diffusion.samplers.grid import Grid
from diff_diffusion.samplers.sampler import trajectory
from diff_diffusion.samplers.transforms import Truncate


def from_time(model: DiffusionModel, strength: float, grid: Any, steps: int | None) -> Grid:
    """The model's grid, or the one asked for, from time `strength` on.

    Raises:
        ConfigError: a strength outside (0, 1], or below what the grid resolves.
    """
    if not 0.0 < strength <= 1.0:
        raise ConfigError(f"strength must be above 0 (the image itself) and at most 1 (none of it), not {strength}")
    truncated = Truncate(strength, model.chosen_grid(grid, steps))
    try:
        truncated.times(model.recipe.process)
    except ConfigError as error:
        raise ConfigError(f"strength {strength:g} is less noise than this model's grid resolves: {error}") from error
    return truncated


def walked(
    model: DiffusionModel,
    noise: Noise,
    plan: dict[str, Any],
    *,
    cond: Any = None,
    latent: Tensor | None = None,
    shape: Sequence[int] | None = None,
    edits: Sequence[Edit] = (),
    travel: tuple[int, int] = (1, 1),
    overlap: float = 0.5,
    wrap: bool = False,
) -> Tensor:
    """One walk, in data units [len(noise), *shape] on the CPU.

    Args:
        noise: one key per sample.
        plan: of `DiffusionModel.plan`, whose grid says where the walk starts.
        cond: as in `DiffusionModel.sample`.
        latent: clean latents to start from, noised to the first time; None to start from the prior.
        shape: of a sample in latent units, the model's own where None; larger ones are seen through windows.
        edits, travel: what is done after each step, and RePaint's (length, repeats).
        overlap, wrap: of the windows.
    """
    shape = tuple(model.codec.latent.shape if shape is None else shape)
    denoiser, sampler, times = model.plan(**plan, conditional=cond is not None)
    denoiser, process = seen(model, denoiser, shape, overlap, wrap), model.recipe.process
    if latent is None:
        x = process.prior((len(noise), *shape), noise.at(0), times[0]).to(model.device)
    else:
        x = process.marginal(latent, torch.full((len(latent),), times[0], dtype=torch.float64), noise.at(0)).x_t
    encoded = model.guiding(plan.get("guidance")).ready(model, cond, len(noise))
    with model.evaluating():
        for step in trajectory(
            denoiser, sampler, time_travel(times, *travel), x, cond=encoded, noise=noise, edits=edits
        ):
            x = step.x
    return model.decode(x).cpu()


def seen(
    model: DiffusionModel, denoiser: Denoiser, shape: Sequence[int], overlap: float = 0.5, wrap: bool = False
) -> Denoiser:
    """The denoiser for samples of `shape`: itself for the model's own, and through windows for larger images.

    Raises:
        ConfigError: an image smaller than the model's, or samples that are no images and not the model's.
        IncompatibleError: a model of tokens, and a size that is not its own.
    """
    codec, own = model.codec, tuple(model.codec.latent.shape)
    if tuple(shape) == own and not wrap:
        return denoiser
    if len(codec.data.shape) != 3 or len(shape) != len(own) or tuple(shape[:-2]) != own[:-2]:
        raise ConfigError(f"this model's samples are {list(own)}, and {list(shape)} was asked for")
    if shape[-2] < own[-2] or shape[-1] < own[-1]:
        (_, height, width), side = codec.data.shape, place_side(codec)
        raise ConfigError(
            f"this model's images are {height} × {width} (height × width), and {shape[-2] * side} × "
            f"{shape[-1] * side} was asked for: it can be larger on both sides, not smaller"
        )
    return Windowed(denoiser, (own[-2], own[-1]), overlap, wrap)
