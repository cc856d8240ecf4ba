"""Self-attention: the one call to scaled_dot_product_attention, and the turning of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of [B, L, C] tensors, C a multiple of heads, to [B, L, C]."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x [B, L, heads, D] with number i and number i + D/2 turned, as a point of the plane, by angle i.

    Queries and keys so turned meet at the difference of their angles alone.

    Args:
        x: queries or keys.
        angles: [L, D/2] or [B, L, D/2], in radians.
    """
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class ImageAttention(nn.Module):
    """Residual self-attention over the places of an image, [B, C, H, W] to the same. Starts as the identity."""

    def __init__(self, channels: int, head_width: int, norm: nn.Module) -> None:
        super().__init__()
        # As many heads of about head_width as divide the channels evenly.
        self.heads = next(heads for heads in range(max(1, channels // head_width), 0, -1) if channels % heads == 0)
        self.norm = norm
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        mixed = self.out(attend(q, k, v, self.heads))
        out: Tensor = x + mixed.transpose(1, 2).reshape(x.shape)
        return out
