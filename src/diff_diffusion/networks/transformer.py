"""What transformers on the patches of an image share: patches in and out, positions, level and condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.cond import Embedded
from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.blocks import modulated, xavier, zeroed
from diff_diffusion.networks.embeddings import LogSnrEmbedding, axial_angles

POSITIONS = ("rotary", "sincos")
LEVEL_FEATURES = 256
# Rotary frequencies are chosen for grids of tens of patches, the papers' sines and cosines as for text.
ROTARY_BASE, SINCOS_BASE = 100.0, 10_000.0


def check_sizes(called: str, network: Any, rows: Sequence[tuple[str, float, float, float]]) -> None:
    """Nothing, or a ConfigError where a transformer's sizes are out of range: its own `rows`, and what all have."""
    for name, value, low, high in [
        *rows,
        ("width", network.width, 4, 8192),
        ("depth", network.depth, 1, 128),
        ("heads", network.heads, 1, 256),
        ("cond_width", network.cond_width, 0, 65536),
        ("mlp_ratio", network.mlp_ratio, 0.5, 16),
    ]:
        if not low <= value <= high:
            raise ConfigError(f"{called}'s {name} must be from {low} to {high}, not {value}")
    each = 4 * network.heads
    if network.width % each:
        raise ConfigError(
            f"{called}'s width must be a multiple of 4 × heads = {each}, not {network.width}: "
            f"{max(1, network.width // each) * each} would do"
        )
    if not 0.0 <= network.dropout < 1.0:
        raise ConfigError(f"dropout must be at least 0 and below 1, not {network.dropout}")


class PatchTransformer(nn.Module, ABC):
    """A network for [B, C, H, W] of any H and W; how its blocks are led through is each one's own.

    The image is cut into patches, zero-padded to whole ones and cropped again. Positions come from the patches' grid
    and have no parameters, so a trained network runs on any size.

    Raises:
        ConfigError: a size out of range, or a width that heads do not divide.
    """

    called: str
    """What errors call it."""

    def __init__(
        self,
        channels: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        cond_width: int,
        mlp_ratio: float,
        positions: str,
        dropout: float,
        out_channels: int | None,
    ) -> None:
        super().__init__()
        self.channels, self.patch, self.width, self.depth, self.heads = channels, patch, width, depth, heads
        self.cond_width, self.mlp_ratio, self.positions = cond_width, mlp_ratio, positions
        self.dropout, self.out_channels = dropout, out_channels
        self._check()
        self.level = LogSnrEmbedding(LEVEL_FEATURES, width)
        self.cond = nn.Linear(cond_width, width, bias=False) if cond_width else None
        self.enter = xavier(nn.Linear(channels * patch**2, width))
        self.blocks = nn.ModuleList([self._block(index) for index in range(depth)])
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.leave = zeroed(nn.Linear(width, (out_channels or channels) * patch**2))

    def _check(self) -> None:
        rows = [
            ("channels", self.channels, 1, 4096),
            ("patch", self.patch, 1, 64),
            ("out_channels", self.out_channels or 1, 1, 4096),
        ]
        check_sizes(self.called, self, rows)
        if self.positions not in POSITIONS:
            raise ConfigError(
                f"{self.called}'s positions must be one of {', '.join(POSITIONS)}, not {self.positions!r}"
            )

    @abstractmethod
    def _block(self, index: int) -> nn.Module:
        """Block number `index`."""

    @abstractmethod
    def _through(self, x: Tensor, emb: Tensor, angles: Tensor | None, cond: Embedded | None) -> Tensor:
        """x [B, L, width] led through the blocks, with emb [B, width] and angles [L, head width / 2] or None."""

    def forward(self, x: Tensor, log_snr: Tensor, cond: Embedded | None = None) -> Tensor:
        """x [B, C, H, W], log_snr [B] in ±20, what it reads of cond or None, to [B, out_channels, H, W]."""
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        emb = self.level(log_snr)
        if self.cond is not None and cond is not None and cond.vector is not None:
            emb = emb + self.cond(cond.vector)
        emb = functional.silu(emb)

        tokens = self.enter(functional.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))
        if self.positions == "sincos":
            places = axial_angles(rows, columns, self.width // 4, SINCOS_BASE, x.device)
            tokens = tokens + torch.cat([places.sin(), places.cos()], dim=-1).to(tokens.dtype)
            angles = None
        else:
            angles = axial_angles(rows, columns, self.width // self.heads // 4, ROTARY_BASE, x.device)
        tokens = self._through(tokens, emb, angles, cond)
        patches = self.leave(modulated(tokens, self.modulation(emb)[:, None])).transpose(1, 2)
        return functional.pixel_shuffle(patches.unflatten(2, (rows, columns)), self.patch)[..., :height, :width]
