"""MMDiT: patches and the condition's tokens, each with weights of their own, in one attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diff_diffusion.cond import Embedded
from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.attention import attend, normed
from diff_diffusion.networks.blocks import Block, modulated, xavier, zeroed
from diff_diffusion.networks.transformer import PatchTransformer
from diff_diffusion.registry import register


class JointBlock(nn.Module):
    """A block of the image and a block of the text that attend as one. Starts as the identity."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.image, self.text = Block(width, heads, hidden, dropout), Block(width, heads, hidden, dropout)

    def forward(
        self, image: Tensor, text: Tensor, emb: Tensor, angles: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """image [B, L, width], text [B, M, width], mask bool [B, L + M] or None, to the same two."""
        q, k, v, rest = self.image.before(image, emb, angles)
        q_text, k_text, v_text, rest_text = self.text.before(text, emb, None)
        q, k, v = (torch.cat(pair, dim=1) for pair in ((q, q_text), (k, k_text), (v, v_text)))
        mixed = attend(q, k, v, self.image.heads, mask)
        mixed, mixed_text = mixed.split([image.shape[1], text.shape[1]], dim=1)
        return self.image.after(image, mixed, rest), self.text.after(text, mixed_text, rest_text)


class LastBlock(nn.Module):
    """A block of the image that attends to the text too, of which keys and values are all that is still seen."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.image = Block(width, heads, hidden, dropout)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.kv = xavier(nn.Linear(width, 2 * width))
        self.gain = nn.Parameter(torch.ones(width // heads))

    def forward(
        self, image: Tensor, text: Tensor, emb: Tensor, angles: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As a `JointBlock`; the text comes out as it came."""
        q, k, v, rest = self.image.before(image, emb, angles)
        k_text, v_text = self.kv(modulated(text, self.modulation(emb)[:, None])).chunk(2, dim=-1)
        k_text = normed(k_text.unflatten(-1, (self.image.heads, -1)), self.gain).flatten(2)
        mixed = attend(q, torch.cat([k, k_text], dim=1), torch.cat([v, v_text], dim=1), self.image.heads, mask)
        return self.image.after(image, mixed, rest), text


@register("network/mmdit")
class MMDiT(PatchTransformer):
    """The multimodal diffusion transformer of Stable Diffusion 3, for [B, C, H, W] of any H and W and tokens.

    Each block has two streams, patches and the condition's tokens, with weights of their own, which attend to the two
    together. Patches have positions, as in DiT; tokens have those that their encoder gave them. A sample
    without tokens, or with all of them behind the mask, is patches alone.

    Args:
        channels: C of input and output.
        token_width: of the condition's tokens; at least 1.
        patch: a patch's side; half of it costs four times as many tokens.
        width: of a token in the blocks; a multiple of 4 × `heads`. The paper has 64 × `depth`.
        depth: blocks.
        heads: attention heads per block. The paper has `depth`.
        cond_width: the size of the condition's vector, which modulates beside the level; 0 for none.
        mlp_ratio: the MLPs' hidden width as a multiple of `width`.
        positions: "rotary" or "sincos", as of DiT; the paper has the latter.
        dropout: share of the MLPs' hidden activations dropped in training.
        out_channels: of the output; the data's when None.

    Raises:
        ConfigError: a size out of range, a width that heads do not divide, or no tokens to attend to.

    Source: arXiv 2403.03206.
    """

    called = "an MMDiT"

    def __init__(
        self,
        channels: int,
        token_width: int = 0,
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        cond_width: int = 0,
        mlp_ratio: float = 4.0,
        positions: str = "rotary",
        dropout: float = 0.0,
        out_channels: int | None = None,
    ) -> None:
        self.token_width = token_width
        super().__init__(channels, patch, width, depth, heads, cond_width, mlp_ratio, positions, dropout, out_channels)
        self.enter_text = xavier(nn.Linear(token_width, width))

    def _check(self) -> None:
        super()._check()
        if self.token_width == 0:
            raise ConfigError(
                "an MMDiT attends to a condition's tokens and token_width is 0: where no condition is a text, use dit"
            )
        if not 1 <= self.token_width <= 65536:
            raise ConfigError(f"an MMDiT's token_width must be from 1 to 65536, not {self.token_width}")

    def _block(self, index: int) -> nn.Module:
        made = LastBlock if index == self.depth - 1 else JointBlock
        return made(self.width, self.heads, int(self.width * self.mlp_ratio), self.dropout)

    def _through(self, x: Tensor, emb: Tensor, angles: Tensor | None, cond: Embedded | None) -> Tensor:
        tokens, mask = (None, None) if cond is None else (cond.tokens, cond.mask)
        if tokens is None:
            tokens, mask = x.new_zeros(len(x), 0, self.token_width), None
        if mask is not None:
            mask = torch.cat([mask.new_ones(x.shape[:2]), mask], dim=1)
        text = self.enter_text(tokens)
        for block in self.blocks:
            x, text = block(x, text, emb, angles, mask)
        return x
