"""Strokes: a rough painting says where which colour is, the model what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diff_diffusion.codecs.codec import place_side
from diff_diffusion.core.process import Process
from diff_diffusion.editing.walks import from_time, walked
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.edits import Edit


class KeepCoarse(Edit):
    """A sample's averages over squares are those of known data: x_s + up(down(y_s) - down(x_s)).

    y_s are the data noised to the step's level, and at the end themselves: then the averages are exact. down averages
    squares, up repeats; as down(up(z)) = z, everything finer is left as it was.

    Args:
        known: clean data [B, C, H, W] in the latent's units.
        factor: side of the squares, a divisor of H and W.

    Raises:
        ConfigError: a factor below 2, or one that does not divide the sides.
        IncompatibleError: tokens.

    Source: Choi et al., "ILVR", arXiv 2108.02938, with averages in place of its resizing.
    """

    def __init__(self, known: Tensor, factor: int) -> None:
        if not known.is_floating_point():
            raise IncompatibleError("tokens have no averages, so their colours cannot be kept: use img2img or inpaint")
        _check_squares(known.shape[-2:], factor)
        self.known, self.factor = known, factor

    def __call__(self, x_s: Tensor, s: float, process: Process, noise: Noise) -> Tensor:
        known = self.known.to(x_s)
        if s > 0.0:
            known = process.marginal(known, torch.full((len(known),), s, dtype=torch.float64), noise).x_t
        missing = functional.avg_pool2d(known - x_s, self.factor)
        return x_s + missing.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


def strokes(
    model: DiffusionModel,
    images: Tensor,
    factor: int,
    *,
    strength: float = 1.0,
    cond: Any = None,
    seed: int = 0,
    steps: int | None = None,
    **plan: Any,
) -> Tensor:
    """Pictures whose colours, in squares of side `factor`, are a rough painting's; everything finer is the model's.

    The average of each square is the painting's in the codec's units, but where the result is cut to the data's range.
    Of a model on latents these are averages of latents: colours are then the painting's as nearly as an average of
    latents says them.

    Args:
        images: [B, C, H, W] in data units, of the model's size or larger: paintings, pixelated or blurred pictures.
        factor: side of the squares in pixels, a divisor of H and W; larger leaves the model more freedom. Of a model on
            latents a multiple of the pixels that a place stands for.
        strength: the time from which the walk starts, in (0, 1]. At 1 only the colours count; less keeps edges too.
        cond, seed, steps, plan: as in `img2img`.

    Returns:
        [B, C, H, W] float32 on the CPU.

    Raises:
        ConfigError: a factor that does not divide the sides, a strength outside (0, 1], or images smaller than the
            model's.

    Source: Meng et al., "SDEdit", arXiv 2108.01073, for the start; Choi et al., "ILVR", arXiv 2108.02938, for the hold.
    """
    side = place_side(model.codec)
    _check_squares(images.shape[-2:], factor, side)
    grid = from_time(model, strength, plan.pop("grid", None), steps)
    latent = model.codec.encode(images.to(model.device))
    return walked(
        model,
        Noise(range(seed, seed + len(images))),
        plan | {"grid": grid},
        cond=cond,
        latent=latent,
        shape=latent.shape[1:],
        edits=(KeepCoarse(latent, factor // side),),
    )


def _check_squares(sides: Sequence[int], factor: int, place: int = 1) -> None:
    """Nothing, or a ConfigError where squares of side `factor` are not several whole places that fill the sides."""
    fits = [f for f in range(2 * place, min(sides) + 1, place) if not any(side % f for side in sides)]
    if factor not in fits:
        raise ConfigError(
            f"colours are kept in squares whose side divides {sides[0]} × {sides[1]}, not of side {factor}; "
            f"these do: {', '.join(map(str, fits)) or 'none'}"
        )
