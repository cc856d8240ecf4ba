"""The averaged weights that samples are drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a module's parameters that learn.

    Args:
        module: whose parameters are averaged.
        values: where the average stands, by name; the parameters themselves when left out.
    """

    def __init__(self, module: nn.Module, values: Mapping[str, Tensor] | None = None) -> None:
        self.parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self.values = {
            name: torch.empty_like(parameter).copy_(values[name] if values is not None else parameter).detach()
            for name, parameter in self.parameters.items()
        }

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """values ← rate · values + (1 - rate) · parameters."""
        torch._foreach_lerp_(list(self.values.values()), list(self.parameters.values()), 1.0 - rate)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the module has the averaged weights; after, its own again, bit for bit."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchanges the module's weights and the average."""
        for name, parameter in self.parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data
