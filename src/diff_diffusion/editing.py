"""Editing: pictures changed by a model of pictures like them. All of it is a start, a grid and an edit after a step.

Images go in and come out in data units, as `DiffusionModel.sample` gives them. Seeds, labels, sampler, steps and
guidance mean what they mean there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.errors import ConfigError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.edits import Edit, Keep, time_travel
from diff_diffusion.samplers.inversion import invert, regenerate
from diff_diffusion.samplers.sampler import trajectory
from diff_diffusion.samplers.transforms import Truncate


def img2img(
    model: DiffusionModel,
    images: Tensor,
    *,
    strength: float = 0.5,
    labels: Sequence[Any] | None = None,
    seed: int = 0,
    steps: int | None = None,
    **plan: Any,
) -> Tensor:
    """Images like these: noised part of the way and denoised again. Another seed is another variation.

    Args:
        images: [B, *shape] in data units.
        strength: the time to which they are noised, in (0, 1]: near 0 nothing changes, 1 forgets the image.
        labels: what they should become, one per image; None for whatever the model sees in them.
        seed: of the first image; image i has seed + i.
        steps: of the part that is walked.
        plan: sampler, grid and guidance, as in `DiffusionModel.sample`.

    Returns:
        [B, *shape] float32 on the CPU.

    Raises:
        ConfigError: a strength outside (0, 1].

    Source: Meng et al., "SDEdit", arXiv 2108.01073.
    """
    if not 0.0 < strength <= 1.0:
        raise ConfigError(f"strength must be above 0 (the image itself) and at most 1 (none of it), not {strength}")
    grid = Truncate(strength, model.chosen_grid(plan.pop("grid", None), steps))
    try:
        grid.times(model.recipe.process)
    except ConfigError as error:
        raise ConfigError(f"strength {strength:g} is less noise than this model's grid resolves: {error}") from error
    return _walked(model, images, strength, labels, seed, plan | {"grid": grid})


def inpaint(
    model: DiffusionModel,
    images: Tensor,
    masks: Tensor,
    *,
    labels: Sequence[Any] | None = None,
    seed: int = 0,
    steps: int | None = None,
    repeats: int = 4,
    length: int = 4,
    **plan: Any,
) -> Tensor:
    """The masked part of each image drawn anew, to fit what is left; the rest is returned exactly as it was.

    Outpainting is the same on an image with a masked border.

    Args:
        images: [B, *shape] in data units; what is under the mask is not looked at.
        masks: true where to draw: [H, W] for all, or [B, H, W], or [B, *shape].
        labels: what they should be, one per image; None for whatever fits.
        repeats, length: every `length` steps are walked `repeats` times, with jumps back to more noise between; more
            fits better and costs as many times more. 1 repeat only replaces.

    Raises:
        ConfigError: a mask of another shape.

    Source: Lugmayr et al., "RePaint", arXiv 2201.09865.
    """
    drawn = _as_mask(masks, images)
    grid = model.chosen_grid(plan.pop("grid", None), steps)
    keep = Keep(model.codec.encode(images.to(model.device)), ~drawn)
    result = _walked(model, images, None, labels, seed, plan | {"grid": grid}, edits=(keep,), travel=(length, repeats))
    return torch.where(drawn.cpu(), result, images.to(result))


def translate(
    model: DiffusionModel,
    images: Tensor,
    *,
    labels: Sequence[Any] | None,
    from_labels: Sequence[Any] | None = None,
    steps: int = 64,
    guidance: float | None = None,
) -> Tensor:
    """The same picture as something else: up the probability-flow ODE as what it is, down it as what it should become.

    The noise that the flow ends in holds what the label does not say: slant, stroke, place. Nothing is random.

    Args:
        images: [B, *shape] in data units.
        labels: what they should become.
        from_labels: what they are; None to go up unconditionally.
        steps: each way, two evaluations a step, even in λ.
        guidance: on the way down; on the way up there is none.

    Raises:
        IncompatibleError: a process that is not Gaussian.

    Source: Su et al., "Dual Diffusion Implicit Bridges", arXiv 2203.08382.
    """
    with model.evaluating():
        latent, cond = model.codec.encode(images.to(model.device)), model.encode(from_labels, len(images))
        noise = invert(model.denoiser, latent, steps, cond)
    return _regenerated(model, noise, labels, steps, guidance)


def interpolate(
    model: DiffusionModel,
    first: int,
    last: int,
    num: int = 8,
    *,
    labels: Sequence[Any] | None = None,
    steps: int = 64,
    guidance: float | None = None,
) -> Tensor:
    """`num` samples on the way from seed `first` to seed `last`: their noise turned from one to the other.

    Args:
        first, last: seeds of the two ends.
        num: samples, both ends included; at least 2.
        labels: one for all, or `num` of them.

    Source: Song et al., arXiv 2010.02502, for the spherical path.
    """
    if num < 2:
        raise ConfigError(f"an interpolation has at least its two ends, not {num} samples")
    ends = model.recipe.process.prior((2, *model.codec.latent.shape), Noise([first, last])).to(model.device)
    a, b = ends[0], ends[1]
    angle = math.acos(float(torch.cosine_similarity(a.flatten(), b.flatten(), 0)))
    shares = torch.linspace(0.0, 1.0, num)
    x = torch.stack([(math.sin((1 - s) * angle) * a + math.sin(s * angle) * b) / math.sin(angle) for s in shares])
    every = None if labels is None else list(labels) * (num if len(labels) == 1 else 1)
    return _regenerated(model, x, every, steps, guidance)


# ---- how -------------------------------------------------------------------------------------------------------------


def _walked(
    model: DiffusionModel,
    images: Tensor,
    strength: float | None,
    labels: Sequence[Any] | None,
    seed: int,
    plan: dict[str, Any],
    edits: Sequence[Edit] = (),
    travel: tuple[int, int] = (1, 1),
) -> Tensor:
    """One walk, from the images noised to time `strength`, or from the prior where None."""
    denoiser, sampler, times = model.plan(**plan, conditional=labels is not None)
    noise, process = Noise(range(seed, seed + len(images))), model.recipe.process
    if strength is None:
        x = process.prior((len(images), *model.codec.latent.shape), noise.at(0), times[0]).to(model.device)
    else:
        latent = model.codec.encode(images.to(model.device))
        x = process.marginal(latent, torch.full((len(images),), times[0], dtype=torch.float64), noise.at(0)).x_t
    cond = model.encode(labels, len(images))
    with model.evaluating():
        for step in trajectory(denoiser, sampler, time_travel(times, *travel), x, cond=cond, noise=noise, edits=edits):
            x = step.x
    return model.decode(x).cpu()


def _as_mask(masks: Tensor, images: Tensor) -> Tensor:
    """The mask as bool [B or 1, C or 1, H, W]."""
    masks = masks.bool()
    while masks.ndim < images.ndim:
        masks = masks[None] if masks.ndim < images.ndim - 1 else masks[:, None]
    try:
        return masks.expand(images.shape)
    except RuntimeError as error:
        raise ConfigError(
            f"a mask must be [H, W], [B, H, W] or [B, C, H, W] for images {list(images.shape)}, not {list(masks.shape)}"
        ) from error


def _regenerated(
    model: DiffusionModel, x: Tensor, labels: Sequence[Any] | None, steps: int, guidance: float | None
) -> Tensor:
    """Noise carried down the flow, decoded."""
    denoiser, _, _ = model.plan(guidance=guidance, conditional=labels is not None, clip=False)
    with model.evaluating():
        return model.decode(regenerate(denoiser, x, steps, model.encode(labels, len(x)))).cpu()
