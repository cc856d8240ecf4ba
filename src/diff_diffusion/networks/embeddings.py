"""Features of a noise level."""

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
