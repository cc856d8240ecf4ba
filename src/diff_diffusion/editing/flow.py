"""The probability flow both ways: a picture as something else, and the way between two."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.editing.walks import seen
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance.between import Between
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.inversion import invert, regenerate


def translate(
    model: DiffusionModel,
    images: Tensor,
    *,
    cond: Any,
    from_cond: Any = None,
    steps: int = 64,
    guidance: float | None = None,
) -> Tensor:
    """The same picture as something else: up the probability-flow ODE as what it is, down it as what it should become.

    The noise that the flow ends in holds what the condition does not say: slant, stroke, place. Nothing is random.

    Args:
        images: [B, C, H, W] in data units, of the model's size or larger.
        cond: what they should become, one for all or one per image.
        from_cond: what they are; None to go up unconditionally.
        steps: each way, two evaluations a step, even in λ.
        guidance: on the way down; on the way up there is none.

    Returns:
        [B, C, H, W] float32 on the CPU.

    Raises:
        ConfigError: images smaller than the model's.
        IncompatibleError: a process that is not Gaussian.

    Source: Su et al., "Dual Diffusion Implicit Bridges", arXiv 2203.08382.
    """
    with model.evaluating():
        latent, encoded = model.codec.encode(images.to(model.device)), model.ready(from_cond, len(images))
        noise = invert(seen(model, model.denoiser, latent.shape[1:]), latent, steps, encoded)
    return _regenerated(model, noise, cond, steps, guidance)


def interpolate(
    model: DiffusionModel,
    first: int,
    last: int,
    num: int = 8,
    *,
    cond: Any = None,
    to_cond: Any = None,
    steps: int = 64,
    guidance: float | None = None,
) -> Tensor:
    """`num` samples on the way from seed `first` to seed `last`: their noise turned from one to the other.

    With `to_cond` what they are changes too, from `cond` to that; the same seed twice changes only this.

    Args:
        first, last: seeds of the two ends.
        num: samples, both ends included; at least 2.
        cond: one for all, or `num` of them: numbers that rise, say.
        to_cond: what the last one is; those between are `guidance.Between` the two.
        steps, guidance: as in `translate`.

    Returns:
        [num, *shape] float32 on the CPU.

    Raises:
        ConfigError: fewer than two samples; ends that are the same; conditions of other names.
        IncompatibleError: a process that is not Gaussian.

    Source: Song et al., arXiv 2010.02502, for the spherical path.
    """
    if num < 2:
        raise ConfigError(f"an interpolation has at least its two ends, not {num} samples")
    if first == last and to_cond is None:
        raise ConfigError(f"from seed {first} to itself nothing changes: give another last seed, or to_cond")
    process = model.recipe.process
    if not isinstance(process, Gaussian):
        raise IncompatibleError(f"between two samples' noise lies noise of a Gaussian process, not of {process}")
    ends = process.prior((2, *model.codec.latent.shape), Noise([first, last])).to(model.device)
    shares = torch.linspace(0.0, 1.0, num)
    x = torch.stack([_turned(ends[0], ends[1], share) for share in shares.tolist()])
    if to_cond is None:
        return _regenerated(model, x, cond, steps, guidance)
    other = model.ready(to_cond, num)
    if cond is None or other is None:
        raise ConfigError("to_cond is what the last sample is; cond must say what the first one is")
    return _regenerated(model, x, cond, steps, guidance, lambda denoiser: Between(denoiser, other, shares))


def _turned(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Noise on the arc from a to b: normal numbers of the same spread all the way."""
    angle = math.acos(min(1.0, float(torch.cosine_similarity(a.flatten(), b.flatten(), 0))))
    if angle < 1e-3:
        return a
    return (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)


def _regenerated(
    model: DiffusionModel,
    x: Tensor,
    cond: Any,
    steps: int,
    guidance: float | None,
    around: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
) -> Tensor:
    """Noise carried down the flow, decoded."""
    denoiser, _, _ = model.plan(guidance=guidance, conditional=cond is not None, clip=False)
    denoiser = seen(model, around(denoiser), x.shape[1:])
    with model.evaluating():
        return model.decode(regenerate(denoiser, x, steps, model.ready(cond, len(x)))).cpu()
