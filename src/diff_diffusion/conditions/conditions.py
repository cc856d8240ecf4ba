"""All the conditions of a model together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.cond import Cond, Embedded
from diff_diffusion.conditions.condition import Condition
from diff_diffusion.core.denoiser import Conditioner
from diff_diffusion.errors import ConfigError, listed
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise


@register("conditioner/conditions")
class Conditions(Conditioner):
    """Named conditions: their vectors are added, their tokens and planes put one after the other.

    Args:
        parts: each condition by the name that it is asked by.

    Raises:
        ConfigError: none, or vectors or tokens of different widths.
    """

    def __init__(self, parts: Mapping[str, Condition]) -> None:
        super().__init__()
        # Sorted, because a stored description is: weights go by number, as a name may hold dots.
        self.parts = dict(sorted(parts.items()))
        if not self.parts:
            raise ConfigError("a conditioner needs at least one condition; an unconditional model has no conditioner")
        self.each = nn.ModuleList(self.parts.values())
        self.width = self._common("width")
        self.token_width = self._common("token_width")
        self.planes = sum(part.planes for part in self.parts.values())

    def _common(self, what: str) -> int:
        widths = {name: getattr(part, what) for name, part in self.parts.items() if getattr(part, what)}
        if len(set(widths.values())) > 1:
            raise ConfigError(f"conditions must have one {what}, not {widths}")
        return max(widths.values(), default=0)

    def named(self, asked: Any, count: int) -> dict[str, list[Any]]:
        """What is asked as a list of `count` values for each condition's name.

        Args:
            asked: a mapping from names to values; or, of a model with one condition, just its values. One value is for
                all samples; a list, or a tensor with a row for each sample, has one for each. None says nothing.

        Raises:
            ConfigError: a name that the model does not have, another number of values, or no name where it has several.
        """
        if not isinstance(asked, Mapping):
            if len(self.parts) > 1:
                raise ConfigError(
                    f"this model has several conditions, {listed(self.parts)}: say which, as in "
                    f"cond={{{next(iter(self.parts))!r}: …}}"
                )
            asked = {next(iter(self.parts)): asked}
        unknown = [name for name in asked if name not in self.parts]
        if unknown:
            raise ConfigError(f"this model knows the conditions {listed(self.parts)}, not {listed(unknown)}")
        return {name: self._each(name, value, count) for name, value in asked.items()}

    def _each(self, name: str, value: Any, count: int) -> list[Any]:
        if value is None or self.parts[name].is_one(value):
            return [value] * count
        values = value.tolist() if getattr(value, "ndim", 2) == 1 else list(value)
        if len(values) != count:
            raise ConfigError(f"{count} samples need one {name} or {count} of them, not {len(values)}")
        return values

    def encode(self, asked: Mapping[str, Sequence[Any]]) -> Cond:
        """Lists by name, as `named` makes them, to tensors and the mask of what was given."""
        keep = {name: torch.tensor([v is not None for v in values]) for name, values in asked.items()}
        return Cond({name: self._encoded(name, values) for name, values in asked.items()}, keep)

    def _encoded(self, name: str, values: Sequence[Any]) -> Tensor:
        try:
            return self.parts[name].encode(values)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error

    def once(self, cond: Cond) -> Cond:
        """A condition with all done that need not be done at each step of a walk."""
        return Cond({name: self.parts[name].once(value) for name, value in cond.values.items()}, cond.keep)

    def noised(self, cond: Cond, noise: Noise) -> Cond:
        """A condition as training sees it, with one key of noise per sample."""
        values = {name: self.parts[name].noised(value, noise.fork(name)) for name, value in cond.values.items()}
        return Cond(values, cond.keep)

    def embed(self, cond: Cond | None, x_t: Tensor) -> Embedded:
        cond = cond or Cond()
        unknown = [name for name in cond.values if name not in self.parts]
        if unknown:
            raise ConfigError(f"this model knows the conditions {listed(self.parts)}, not {listed(unknown)}")
        nothing = torch.zeros(len(x_t), dtype=torch.bool, device=x_t.device)
        several = [
            part.embed(cond.values.get(name), cond.keep.get(name, nothing), x_t) for name, part in self.parts.items()
        ]
        vectors = [one.vector for one in several if one.vector is not None]
        planes = [one.planes for one in several if one.planes is not None]
        words = [(one.tokens, one.mask) for one in several if one.tokens is not None]
        return Embedded(
            sum(vectors[1:], vectors[0]) if vectors else None,
            torch.cat([tokens for tokens, _ in words], dim=1) if words else None,
            torch.cat([_whole(tokens, mask) for tokens, mask in words], dim=1) if words else None,
            torch.cat(planes, dim=1) if planes else None,
        )

    def summary(self) -> list[str]:
        """What may be asked, a line for each condition."""
        return [f"{name}: {part.summary()}" for name, part in self.parts.items()]


def _whole(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
