"""Conditioners: from what a user says ("cat") to a tensor once per sample, and to an embedding at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Conditioner
from diff_diffusion.errors import ConfigError, listed
from diff_diffusion.registry import register

MAX_CLASSES = 1_000_000


@register("conditioner/classes")
class ClassLabels(Conditioner):
    """A class label, by name or number, with a stored null for "no label".

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
        # Row len(names) is the null. It is trained by the objective's cond_drop and saved like any weight.
        self.table = nn.Embedding(len(self.names) + 1, width)

    def encode(self, labels: Sequence[str | int | None]) -> Cond:
        """Labels by name, by number, or None for no label.

        Raises:
            ConfigError: a label the model does not know; the message lists those it does.
        """
        rows = [self._row(label) for label in labels]
        keep = torch.tensor([row is not None for row in rows], dtype=torch.bool)
        return Cond({"label": torch.tensor([row or 0 for row in rows], dtype=torch.int64)}, {"label": keep})

    def _row(self, label: str | int | None) -> int | None:
        if label is None:
            return None
        if isinstance(label, str) and label in self.names:
            return self.names.index(label)
        if not isinstance(label, str) and 0 <= label < len(self.names):
            return int(label)
        raise ConfigError(f"unknown label {label!r}: this model knows {listed(self.names, 40)}")

    def embed(self, cond: Cond | None, count: int) -> Tensor:
        """[count, width]: the label's row, or the null's for samples that keep none."""
        null = len(self.names)
        unknown = [name for name in cond.values if name != "label"] if cond is not None else []
        if unknown:
            raise ConfigError(f"this model knows the condition 'label', not {listed(unknown)}")
        if cond is None or "label" not in cond.values:
            return self.table.weight[null].expand(count, -1)
        rows = torch.where(cond.keep["label"], cond.values["label"], null)
        embedded: Tensor = self.table(rows)
        return embedded
