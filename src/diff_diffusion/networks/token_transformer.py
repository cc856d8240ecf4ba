"""A transformer on tokens, in a line or on a grid, that says of each place which token was there."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.cond import Embedded
from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.blocks import Block, modulated, zeroed
from diff_diffusion.networks.embeddings import LogSnrEmbedding, axial_angles
from diff_diffusion.networks.transformer import LEVEL_FEATURES, ROTARY_BASE, check_sizes
from diff_diffusion.registry import register


@register("network/token_transformer")
class TokenTransformer(nn.Module):
    """DiT's blocks on tokens: [B, L] or [B, H, W] of any sizes to logits of as many and `vocab`.

    Every place attends to every other. A line is a grid of one row. Positions turn queries and keys and have no
    parameters, so a trained network runs on any size.

    Args:
        vocab: tokens that data have, 0 to vocab - 1; token number `vocab` is the mask.
        width: of a token's embedding; a multiple of 4 × `heads`, so that each head has pairs of numbers to turn for
            both axes.
        depth: blocks.
        heads: attention heads per block.
        cond_width: the embedded condition's size; 0 for none.
        mlp_ratio: the MLP's hidden width as a multiple of `width`.
        dropout: share of the MLP's hidden activations dropped in training.

    Raises:
        ConfigError: a size out of range, or a width that heads do not divide.

    Source: Chang et al., "MaskGIT", arXiv 2202.04200, for a bidirectional transformer on an image's tokens; blocks and
    positions as `DiT`.
    """

    def __init__(
        self,
        vocab: int,
        width: int = 256,
        depth: int = 8,
        heads: int = 8,
        cond_width: int = 0,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.vocab, self.width, self.depth, self.heads = vocab, width, depth, heads
        self.cond_width, self.mlp_ratio, self.dropout = cond_width, mlp_ratio, dropout
        check_sizes("a token transformer", self, [("vocab", vocab, 2, 1 << 24)])
        self.level = LogSnrEmbedding(LEVEL_FEATURES, width)
        self.cond = nn.Linear(cond_width, width, bias=False) if cond_width else None
        self.enter = nn.Embedding(vocab + 1, width)
        self.blocks = nn.ModuleList([Block(width, heads, int(width * mlp_ratio), dropout) for _ in range(depth)])
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.leave = zeroed(nn.Linear(width, vocab))

    def forward(self, x: Tensor, log_snr: Tensor, cond: Embedded | None = None) -> Tensor:
        """x int64 [B, L] or [B, H, W], log_snr [B] in ±20, what it reads of cond or None, to [*x.shape, vocab].

        Raises:
            ConfigError: tokens on another number of axes.
        """
        if x.ndim not in (2, 3):
            raise ConfigError(f"tokens lie in a line [B, L] or on a grid [B, H, W], not {list(x.shape)}")
        rows, columns = (1, *x.shape[1:])[-2:]
        emb = self.level(log_snr)
        if self.cond is not None and cond is not None and cond.vector is not None:
            emb = emb + self.cond(cond.vector)
        emb = functional.silu(emb)

        angles = axial_angles(rows, columns, self.width // self.heads // 4, ROTARY_BASE, x.device)
        tokens = self.enter(x.flatten(1))
        for block in self.blocks:
            tokens = block(tokens, emb, angles)
        logits: Tensor = self.leave(modulated(tokens, self.modulation(emb)[:, None])).unflatten(1, x.shape[1:])
        return logits
