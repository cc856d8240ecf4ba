"""Features of a noise level, and of a place in a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LogSnrEmbedding(nn.Module):
    """λ in ±20 as `width` numbers: sines and cosines at frequencies from one turn per 80 to one per 1, then an MLP."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features // 2 * 2, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, log_snr: Tensor) -> Tensor:
        """[B] to [B, width]."""
        # Made anew and in float32, so that a network in half precision still tells close levels apart.
        turns = torch.logspace(math.log10(1 / 80), 0.0, self.features // 2, device=log_snr.device)
        angles = log_snr.float()[:, None] * (2 * math.pi * turns)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedded: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return embedded


def axial_angles(rows: int, columns: int, count: int, base: float, device: torch.device) -> Tensor:
    """Angles of each place of a grid, in reading order: float32 [rows · columns, 2 · count].

    The first `count` are row · base^(-i / count) for i = 0, 1, …; the others the same of the column.
    """
    rates = base ** (-torch.arange(count, device=device, dtype=torch.float32) / count)
    row = torch.arange(rows, device=device, dtype=torch.float32)[:, None, None] * rates
    column = torch.arange(columns, device=device, dtype=torch.float32)[None, :, None] * rates
    both = (row.expand(rows, columns, count), column.expand(rows, columns, count))
    return torch.cat(both, dim=-1).flatten(0, 1)
