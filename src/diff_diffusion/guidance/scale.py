"""Guidance by a scale: the conditional posterior, extrapolated away from a reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.posterior import Posterior
from diff_diffusion.errors import ConfigError, IncompatibleError, listed

Move = Callable[[Posterior, Posterior, float], Posterior]
"""How a posterior moves away from a reference by a scale. Every move leaves it where it is at scale 1."""


class ClassifierFree(Denoiser):
    """Classifier-free guidance: scale 1 is exactly the conditional model, 0 the unconditional one, above 1 goes beyond.

    The two are asked in one batched call. Scale 1 asks once, and scale 0 too where nothing but the scale moves.

    Args:
        denoiser: a model trained with conditions dropped some of the time.
        scale: any finite number; 1 to 3 is usual for small data.
        negative: what to move away from in place of the null, a negative prompt: one row for all samples, or one for
            each. A name that it leaves out, or does not keep, is null there.
        move: how to move; None is `Posterior.extrapolate`, others are in `diff_diffusion.guidance.moves`.

    Raises:
        ConfigError: a scale that is not finite; at the call, a scale other than 1 with no condition to guide by, or a
            negative condition that does not match it.

    Source: Ho & Salimans, arXiv 2207.12598, whose w is scale - 1.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, negative: Cond | None = None, move: Move | None = None
    ) -> None:
        check_scale(scale)
        self.denoiser = denoiser
        self.process = denoiser.process
        self.scale = scale
        self.negative = negative
        self.move = move

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        if self.scale == 1.0:
            return self.denoiser(x_t, t, cond)
        if not cond:
            raise ConfigError(f"guidance scale {self.scale:g} was asked for without a condition: give one, or scale 1")
        other = cond.null() if self.negative is None else _in_place_of_null(self.negative, cond, len(x_t))
        if self.scale == 0.0 and self.move is None:
            return self.denoiser(x_t, t, other)
        both = self.denoiser(
            torch.cat([x_t, x_t]), torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t, cond.cat(other)
        )
        return _moved(both[: len(x_t)], both[len(x_t) :], self.scale, self.move)


class Autoguided(Denoiser):
    """Autoguidance: away from a worse model of the same data. Scale 1 is none, and asks the better model alone.

    Where both are wrong they are wrong alike, the worse one more so. The condition goes to both, so this needs none,
    and does not push samples to what is typical of it.

    Args:
        denoiser: the model to guide.
        reference: a smaller, or earlier, model with an equal process.
        scale: any finite number; 0 is the reference.
        move: how to move; None is `Posterior.extrapolate`.

    Raises:
        ConfigError: a scale that is not finite.
        IncompatibleError: two processes, whose x_t mean different things.

    Source: Karras et al., arXiv 2406.02507.
    """

    def __init__(self, denoiser: Denoiser, reference: Denoiser, scale: float, move: Move | None = None) -> None:
        check_scale(scale)
        _check_process(denoiser, reference, "a model and the reference that guides it")
        self.denoiser, self.reference = denoiser, reference
        self.process = denoiser.process
        self.scale = scale
        self.move = move

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        if self.scale == 1.0:
            return self.denoiser(x_t, t, cond)
        reference = self.reference(x_t, t, cond)
        if self.scale == 0.0 and self.move is None:
            return reference
        return _moved(self.denoiser(x_t, t, cond), reference, self.scale, self.move)


def check_scale(scale: float) -> None:
    """Nothing, or a ConfigError for a scale that is no finite number."""
    if not math.isfinite(scale):
        raise ConfigError(f"the guidance scale must be a finite number, not {scale}; 1 means none")


def _moved(posterior: Posterior, reference: Posterior, scale: float, move: Move | None) -> Posterior:
    return posterior.extrapolate(reference, scale) if move is None else move(posterior, reference, scale)


def _check_process(one: Denoiser, other: Denoiser, who: str) -> None:
    if one.process != other.process:
        raise IncompatibleError(f"{who} must have one process, not {one.process} and {other.process}")


def _in_place_of_null(negative: Cond, cond: Cond, count: int) -> Cond:
    """`negative` for `count` samples, with the names of `cond`."""
    strange = [name for name in negative.values if name not in cond.values]
    if strange:
        raise ConfigError(f"the negative condition has {listed(strange)}, and samples have {listed(cond.values)}")
    wrong = next((len(value) for value in negative.values.values() if len(value) not in (1, count)), None)
    if wrong is not None:
        raise ConfigError(f"a negative condition has 1 row or one for each of {count} samples, not {wrong}")
    null = cond.null()
    values = {n: v.to(cond.values[n].device).expand(count, *v.shape[1:]) for n, v in negative.values.items()}
    keep = {n: k.to(cond.keep[n].device).expand(count) for n, k in negative.keep.items()}
    return Cond({**null.values, **values}, {**null.keep, **keep})
