"""A small transformer that reads a caption both ways, trained along with the network that it tells what to draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.attention import attend, normed, rotated
from diff_diffusion.networks.blocks import xavier, zeroed
from diff_diffusion.registry import register

ROTARY_BASE = 10_000.0


class TextBlock(nn.Module):
    """Attention and MLP, each of the normed tokens and added to them. Starts as the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = xavier(nn.Linear(width, 3 * width))
        self.gain = nn.Parameter(torch.ones(2, width // heads))
        self.out = zeroed(nn.Linear(width, width))
        self.mlp = nn.Sequential(
            xavier(nn.Linear(width, 4 * width)),
            nn.GELU(approximate="tanh"),
            zeroed(nn.Linear(4 * width, width)),
        )

    def forward(self, x: Tensor, mask: Tensor, angles: Tensor) -> Tensor:
        """x [B, L, width], mask bool [B, L], angles [L, head width / 2], to [B, L, width]."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = (rotated(normed(y, gain), angles) for y, gain in zip((q, k), self.gain, strict=True))
        # The norm and the angles may be in float32 where the rest is not.
        q, k, v = (y.to(v.dtype).flatten(2) for y in (q, k, v))
        x = x + self.out(attend(q, k, v, self.heads, mask))
        x = x + self.mlp(self.norms[1](x))
        return x


@register("encoder/text")
class TextEncoder(nn.Module):
    """Tokens of a text to what each means there: a transformer in which every token sees every other.

    Positions are rotary: attention sees how far tokens are apart, so what a text means does not depend on padding.

    Args:
        vocab: how many tokens there are.
        width: of what comes out, for each token; a multiple of 2 × `heads`.
        depth: blocks.
        heads: attention heads per block.
        length: the most tokens that a text has.

    Raises:
        ConfigError: a size out of range, or a width that heads do not divide.

    Source: rotary positions arXiv 2104.09864.
    """

    def __init__(self, vocab: int, width: int = 192, depth: int = 3, heads: int = 3, length: int = 64) -> None:
        super().__init__()
        self.vocab, self.width, self.depth, self.heads, self.length = vocab, width, depth, heads, length
        for name, value, low, high in [
            ("vocab", vocab, 2, 1_000_000),
            ("width", width, 2, 8192),
            ("depth", depth, 1, 64),
            ("heads", heads, 1, 256),
            ("length", length, 1, 4096),
        ]:
            if not low <= value <= high:
                raise ConfigError(f"a text encoder's {name} must be from {low} to {high:,}, not {value:,}")
        if width % (2 * heads):
            raise ConfigError(f"a text encoder's width must be a multiple of 2 × heads = {2 * heads}, not {width}")
        self.table = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList([TextBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids int64 [B, L], mask bool [B, L] with a token in each row, to [B, L, width]: 0 where the mask is false."""
        pairs = self.width // self.heads // 2
        rates = ROTARY_BASE ** (-torch.arange(pairs, device=ids.device, dtype=torch.float32) / pairs)
        angles = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)[:, None] * rates
        x = self.table(ids)
        for block in self.blocks:
            x = block(x, mask, angles)
        return torch.where(mask[..., None], self.norm(x), 0.0)
