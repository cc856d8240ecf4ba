"""Features of a noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LogSnrEmbedding(nn.Module):
    """λ in ±20 as `width` numbers: sines and cosines at frequencies from one turn per 80 to one per 1, then an MLP."""

    frequencies: Tensor

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        turns = torch.logspace(math.log10(1 / 80), 0.0, features // 2)
        self.register_buffer("frequencies", 2 * math.pi * turns, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features // 2 * 2, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, log_snr: Tensor) -> Tensor:
        """[B] to [B, width]."""
        angles = log_snr[:, None] * self.frequencies
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedded
