"""A class, by its name."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.cond import Embedded
from diff_diffusion.conditions.condition import Condition
from diff_diffusion.errors import ConfigError, listed
from diff_diffusion.registry import register

MAX_CLASSES = 1_000_000


@register("condition/class")
class ClassLabel(Condition):
    """One of several classes, asked for by name or number.

    Args:
        names: the classes' names, Unicode, each once.
        width: the embedding's size.

    Raises:
        ConfigError: no names, or one twice.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        self.names = tuple(str(name) for name in names)
        self.width = width
        if not 1 <= len(self.names) <= MAX_CLASSES or len(set(self.names)) != len(self.names):
            raise ConfigError(f"class names must be 1 to {MAX_CLASSES:,} different strings, not {listed(self.names)}")
        self._rows = {unicodedata.normalize("NFC", name): row for row, name in enumerate(self.names)}
        # Row len(names) is the null. It is trained by the objective's cond_drop and saved like any weight.
        self.table = nn.Embedding(len(self.names) + 1, width)

    def encode(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor([self._row(value) for value in values], dtype=torch.int64)

    def _row(self, value: Any) -> int:
        if value is None:
            return 0
        if isinstance(value, str):
            found = self._rows.get(unicodedata.normalize("NFC", value))
            if found is not None:
                return found
        elif not isinstance(value, bool) and hasattr(value, "__index__") and 0 <= int(value) < len(self.names):
            return int(value)
        raise ConfigError(f"unknown label {value!r}: this model knows {listed(self.names, 40)}")

    def embed(self, values: Tensor | None, keep: Tensor, x_t: Tensor) -> Embedded:
        null = len(self.names)
        if values is None:
            return Embedded(self.table.weight[null].expand(len(x_t), -1))
        return Embedded(self.table(torch.where(keep, values, null)))

    def summary(self) -> str:
        return f"one of {len(self.names)} classes: {listed(self.names, 12)}"
