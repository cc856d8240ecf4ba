"""Attention: the one call to scaled_dot_product_attention, the turning of queries and keys, and images that attend."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FUSED_ABOVE = 1024
"""Keys up to which scores are kept for the gradient, in bfloat16 on a CPU: the fused kernel keeps none, and its
gradient takes two to thirty times as long there (torch 2.13)."""


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of q [B, L, C] to k and v [B, M, C], C a multiple of heads, to [B, L, C].

    Args:
        q: queries.
        k: keys.
        v: values.
        heads: the number of them.
        mask: bool [B, M], true where there is something to attend to; None where there is everywhere. A sample with
            nothing to attend to gets zeros.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if mask is None:
        return _mixed(q, k, v).transpose(1, 2).flatten(2)
    # A softmax over nothing is NaN in some kernels, and so is its gradient: such a sample attends to all, unheard.
    nothing = ~mask.any(dim=1)[:, None, None, None]
    mixed = _mixed(q, k, v, mask[:, None, None] | nothing)
    return mixed.masked_fill(nothing, 0.0).transpose(1, 2).flatten(2)


def _mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v over [B, heads, L or M, D]."""
    if v.dtype == torch.bfloat16 and v.requires_grad and v.device.type == "cpu" and k.shape[-2] <= FUSED_ABOVE:
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        mixed: Tensor = scores.softmax(-1) @ v
        return mixed
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def normed(x: Tensor, gain: Tensor) -> Tensor:
    """Queries or keys [..., D] at root mean square 1, times gain [D].

    Without it attention can grow until half precision overflows.
    """
    return functional.rms_norm(x, x.shape[-1:], eps=1e-6) * gain


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
        self.heads = _heads(channels, head_width)
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


class CrossAttention(nn.Module):
    """Residual attention from the places of an image to tokens, [B, C, H, W] to the same.

    Starts as the identity, and always is for a sample without tokens: nothing is added where nothing is attended to.
    """

    def __init__(self, channels: int, token_width: int, head_width: int, norm: nn.Module) -> None:
        super().__init__()
        self.heads = _heads(channels, head_width)
        self.norm = norm
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(token_width, 2 * channels)
        self.gain = nn.Parameter(torch.ones(2, channels // self.heads))
        self.out = nn.Linear(channels, channels, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, C, H, W], tokens [B, L, token_width], mask bool [B, L] or None."""
        q = self.q(self.norm(x).flatten(2).transpose(1, 2))
        k, v = self.kv(tokens).chunk(2, dim=-1)
        q, k = (
            normed(y.unflatten(-1, (self.heads, -1)), gain).flatten(2)
            for y, gain in zip((q, k), self.gain, strict=True)
        )
        mixed = self.out(attend(q, k, v, self.heads, mask))
        out: Tensor = x + mixed.transpose(1, 2).reshape(x.shape)
        return out


def _heads(channels: int, head_width: int) -> int:
    """As many heads of about head_width as divide the channels evenly."""
    return next(heads for heads in range(max(1, channels // head_width), 0, -1) if channels % heads == 0)
