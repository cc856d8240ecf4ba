"""DiT: a transformer on the patches of an image, each block modulated by noise level and condition (adaLN-Zero)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diff_diffusion.cond import Embedded
from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.blocks import Block
from diff_diffusion.networks.transformer import PatchTransformer
from diff_diffusion.registry import register

# The paper's sizes, on its positions. Patches of 2, 4 and 8 of each.
_SIZES = {
    "s": {"width": 384, "depth": 12, "heads": 6},
    "b": {"width": 768, "depth": 12, "heads": 12},
    "l": {"width": 1024, "depth": 24, "heads": 16},
    "xl": {"width": 1152, "depth": 28, "heads": 16},
}
_NAMED = {
    f"dit_{name}_{patch}": {"patch": patch, **size, "positions": "sincos"}
    for name, size in _SIZES.items()
    for patch in (2, 4, 8)
}


@register("network/dit", **_NAMED)
class DiT(PatchTransformer):
    """The diffusion transformer of Peebles & Xie with normed queries and keys, for [B, C, H, W] of any H and W.

    The image is cut into patches, zero-padded to whole ones and cropped again. Positions come from the patches' grid
    and have no parameters, so a trained network runs on any size. "dit_s_2" to "dit_xl_8" are the paper's sizes.

    Args:
        channels: C of input and output.
        patch: a patch's side; half of it costs four times as many tokens.
        width: of a token; a multiple of 4 × `heads`, so that each head has pairs of numbers to turn for both axes.
        depth: blocks.
        heads: attention heads per block.
        cond_width: the embedded condition's size; 0 for none.
        mlp_ratio: the MLP's hidden width as a multiple of `width`.
        positions: "rotary", which turns queries and keys so that attention sees where patches are from one another,
            or "sincos", which adds sines and cosines of the patch's row and column to its token, as the paper does.
        dropout: share of the MLP's hidden activations dropped in training.
        drop_tokens: share of patches that training leads past all but the last quarter of blocks, which they enter as
            they came. A step is cheaper and teaches less.
        out_channels: of the output; the data's when None.

    Raises:
        ConfigError: a size out of range, a width that heads do not divide, or tokens dropped with one block only.

    Source: arXiv 2212.09748; rotary positions arXiv 2104.09864, on two axes arXiv 2403.13298; dropped tokens after
    arXiv 2501.04765.
    """

    called = "a DiT"

    def __init__(
        self,
        channels: int,
        patch: int = 2,
        width: int = 192,
        depth: int = 8,
        heads: int = 6,
        cond_width: int = 0,
        mlp_ratio: float = 4.0,
        positions: str = "rotary",
        dropout: float = 0.0,
        drop_tokens: float = 0.0,
        out_channels: int | None = None,
    ) -> None:
        self.drop_tokens = drop_tokens
        super().__init__(channels, patch, width, depth, heads, cond_width, mlp_ratio, positions, dropout, out_channels)

    def _check(self) -> None:
        super()._check()
        if not 0.0 <= self.drop_tokens < 1.0:
            raise ConfigError(f"drop_tokens must be at least 0 and below 1, not {self.drop_tokens}")
        if self.drop_tokens and self.depth < 2:
            raise ConfigError("drop_tokens needs a depth of at least 2: the last block sees every token")

    def _block(self, index: int) -> nn.Module:
        return Block(self.width, self.heads, int(self.width * self.mlp_ratio), self.dropout)

    def _through(self, x: Tensor, emb: Tensor, angles: Tensor | None, cond: Embedded | None) -> Tensor:
        last = max(1, self.depth // 4) if self.training and self.drop_tokens else self.depth
        count, length, width = x.shape
        if last < self.depth:
            keep = max(1, round(length * (1 - self.drop_tokens)))
            # Torch's global numbers, which training seeds at each step: as for dropout.
            kept = torch.rand(count, length, device=x.device).argsort(dim=1)[:, :keep]
            index = kept[..., None].expand(-1, -1, width)
            part = x.gather(1, index)
            seen = None if angles is None else angles[kept]
            for block in self.blocks[: self.depth - last]:
                part = block(part, emb, seen)
            # As they came, and not a learned filler as in masked training: the last blocks must denoise them too, and
            # without dropped tokens, when sampling, the network is not asked for something it never saw.
            x = x.to(part.dtype).scatter(1, index, part)
        for block in self.blocks[self.depth - last :]:
            x = block(x, emb, angles)
        return x
