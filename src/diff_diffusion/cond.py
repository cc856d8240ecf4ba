"""What a sample is asked to be: one `Cond` for every kind of condition, and the `Embedded` that networks read of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cond:
    """Named condition tensors for a batch, each with a mask of the samples that keep it.

    A condition that a sample does not keep is replaced by the model's stored null. There is no other way to say
    "unconditional", and nothing else is passed to a network on the side.

    Args:
        values: name to tensor [B, ...].
        keep: name to bool tensor [B]; a name left out is kept by every sample.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    keep: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        full = {
            name: self.keep.get(name, torch.ones(len(value), dtype=torch.bool, device=value.device))
            for name, value in self.values.items()
        }
        object.__setattr__(self, "keep", full)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __getitem__(self, rows: slice | Tensor) -> Cond:
        return Cond({n: v[rows] for n, v in self.values.items()}, {n: k[rows] for n, k in self.keep.items()})

    def to(self, device: torch.device | str) -> Cond:
        return Cond({n: v.to(device) for n, v in self.values.items()}, {n: k.to(device) for n, k in self.keep.items()})

    def drop(self, mask: Tensor, name: str | None = None) -> Cond:
        """The condition `name`, or every one where None, dropped for the samples where `mask` [B] is true."""
        dropped = {n: k & ~mask.to(k.device) if name in (None, n) else k for n, k in self.keep.items()}
        return Cond(self.values, dropped)

    def null(self) -> Cond:
        """Every condition dropped for every sample: truly unconditional."""
        return Cond(self.values, {n: torch.zeros_like(k) for n, k in self.keep.items()})

    def cat(self, other: Cond) -> Cond:
        """This batch followed by `other`, which has the same condition names."""
        return Cond(
            {n: torch.cat([v, other.values[n]]) for n, v in self.values.items()},
            {n: torch.cat([k, other.keep[n]]) for n, k in self.keep.items()},
        )


@dataclass(frozen=True)
class Embedded:
    """What a network reads of a batch's conditions at one step. It takes what it has a use for.

    Args:
        vector: [B, width], what modulates every block.
        tokens: [B, L, token_width], what blocks attend to.
        mask: bool [B, L], true where there is a token; None where all are.
        planes: [B, C, *places], images to see beside x; the denoiser appends them to x as channels.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    planes: Tensor | None = None
