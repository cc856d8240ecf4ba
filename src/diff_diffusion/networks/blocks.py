"""What transformers are made of: a block in two halves, before and after attention, so that two can attend as one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.networks.attention import attend, normed, rotated


class Block(nn.Module):
    """Attention and MLP; each normed, scaled and shifted, then gated, by the embedding. Starts as the identity."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv = xavier(nn.Linear(width, 3 * width))
        self.gain = nn.Parameter(torch.ones(2, width // heads))
        self.out = xavier(nn.Linear(width, width))
        self.mlp = nn.Sequential(
            xavier(nn.Linear(width, hidden)),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            xavier(nn.Linear(hidden, width)),
        )

    def forward(self, x: Tensor, emb: Tensor, angles: Tensor | None) -> Tensor:
        """x [B, L, width], emb [B, width], angles [L or B × L, head width / 2] or None, to [B, L, width]."""
        q, k, v, rest = self.before(x, emb, angles)
        return self.after(x, attend(q, k, v, self.heads), rest)

    def before(self, x: Tensor, emb: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, L, width], and what modulates after attention [B, 1, 4 · width]."""
        width = x.shape[-1]
        shift_scale, rest = self.modulation(emb)[:, None].split([2 * width, 4 * width], dim=-1)
        q, k, v = self.qkv(modulated(x, shift_scale)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = (normed(y, gain) for y, gain in zip((q, k), self.gain, strict=True))
        if angles is not None:
            q, k = rotated(q, angles), rotated(k, angles)
        # The norm and the angles may be in float32 where the rest is not.
        q, k, v = (y.to(v.dtype).flatten(2) for y in (q, k, v))
        return q, k, v, rest

    def after(self, x: Tensor, mixed: Tensor, rest: Tensor) -> Tensor:
        """x with what was attended to, then with the MLP's, [B, L, width]."""
        width = x.shape[-1]
        gate_a, shift_scale, gate_m = rest.split([width, 2 * width, width], dim=-1)
        x = x + gate_a * self.out(mixed)
        x = x + gate_m * self.mlp(modulated(x, shift_scale))
        return x


def modulated(x: Tensor, shift_scale: Tensor) -> Tensor:
    """x [B, L, width] normed, times 1 + scale, plus shift: [B, 1, 2 · width], shift first."""
    shift, scale = shift_scale.chunk(2, dim=-1)
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The layer, giving 0 whatever it sees until it learns."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def xavier(linear: nn.Linear) -> nn.Linear:
    """The layer with weights that keep variance both ways, and no bias yet."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
