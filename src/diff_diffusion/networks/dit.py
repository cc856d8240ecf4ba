"""DiT: a transformer on the patches of an image, each block modulated by noise level and condition (adaLN-Zero)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.attention import attend, rotated
from diff_diffusion.networks.embeddings import LogSnrEmbedding, axial_angles
from diff_diffusion.registry import register

POSITIONS = ("rotary", "sincos")
LEVEL_FEATURES = 256
# Rotary frequencies are chosen for grids of tens of patches, the paper's sines and cosines as for text.
ROTARY_BASE, SINCOS_BASE = 100.0, 10_000.0

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


class DiTBlock(nn.Module):
    """Attention and MLP; each normed, scaled and shifted, then gated, by the embedding. Starts as the identity."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = _zero(nn.Linear(width, 6 * width))
        self.qkv = _xavier(nn.Linear(width, 3 * width))
        # Without a norm of queries and keys attention can grow until half precision overflows.
        self.gain = nn.Parameter(torch.ones(2, width // heads))
        self.out = _xavier(nn.Linear(width, width))
        self.mlp = nn.Sequential(
            _xavier(nn.Linear(width, hidden)),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            _xavier(nn.Linear(hidden, width)),
        )

    def forward(self, x: Tensor, emb: Tensor, angles: Tensor | None) -> Tensor:
        """x [B, L, width], emb [B, width], angles [L or B × L, head width / 2] or None, to [B, L, width]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(emb)[:, None].chunk(6, dim=-1)
        x = x + gate_a * self._attention(_modulated(x, shift_a, scale_a), angles)
        x = x + gate_m * self.mlp(_modulated(x, shift_m, scale_m))
        return x

    def _attention(self, x: Tensor, angles: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = (
            functional.rms_norm(y, y.shape[-1:], eps=1e-6) * gain for y, gain in zip((q, k), self.gain, strict=True)
        )
        if angles is not None:
            q, k = rotated(q, angles), rotated(k, angles)
        # The norm and the angles may be in float32 where the rest is not.
        q, k, v = (y.to(v.dtype).flatten(2) for y in (q, k, v))
        mixed: Tensor = self.out(attend(q, k, v, self.heads))
        return mixed


@register("network/dit", **_NAMED)
class DiT(nn.Module):
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
        super().__init__()
        self.channels, self.patch, self.width, self.depth, self.heads = channels, patch, width, depth, heads
        self.cond_width, self.mlp_ratio, self.positions = cond_width, mlp_ratio, positions
        self.dropout, self.drop_tokens, self.out_channels = dropout, drop_tokens, out_channels
        self._check()
        self.level = LogSnrEmbedding(LEVEL_FEATURES, width)
        self.cond = nn.Linear(cond_width, width, bias=False) if cond_width else None
        self.enter = _xavier(nn.Linear(channels * patch**2, width))
        hidden = int(width * mlp_ratio)
        self.blocks = nn.ModuleList([DiTBlock(width, heads, hidden, dropout) for _ in range(depth)])
        self.modulation = _zero(nn.Linear(width, 2 * width))
        self.leave = _zero(nn.Linear(width, (out_channels or channels) * patch**2))

    def _check(self) -> None:
        for name, value, low, high in [
            ("channels", self.channels, 1, 4096),
            ("patch", self.patch, 1, 64),
            ("width", self.width, 4, 8192),
            ("depth", self.depth, 1, 128),
            ("heads", self.heads, 1, 256),
            ("cond_width", self.cond_width, 0, 65536),
            ("mlp_ratio", self.mlp_ratio, 0.5, 16),
            ("out_channels", self.out_channels or 1, 1, 4096),
        ]:
            if not low <= value <= high:
                raise ConfigError(f"a DiT's {name} must be from {low} to {high}, not {value}")
        if self.width % (4 * self.heads):
            raise ConfigError(
                f"a DiT's width must be a multiple of 4 × heads = {4 * self.heads}, not {self.width}: "
                f"{max(1, self.width // (4 * self.heads)) * 4 * self.heads} would do"
            )
        if self.positions not in POSITIONS:
            raise ConfigError(f"a DiT's positions must be one of {', '.join(POSITIONS)}, not {self.positions!r}")
        for name, share in (("dropout", self.dropout), ("drop_tokens", self.drop_tokens)):
            if not 0.0 <= share < 1.0:
                raise ConfigError(f"{name} must be at least 0 and below 1, not {share}")
        if self.drop_tokens and self.depth < 2:
            raise ConfigError("drop_tokens needs a depth of at least 2: the last block sees every token")

    def forward(self, x: Tensor, log_snr: Tensor, cond: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], log_snr [B] in ±20, cond [B, cond_width] or None, to [B, out_channels, H, W]."""
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        emb = self.level(log_snr)
        if self.cond is not None and cond is not None:
            emb = emb + self.cond(cond)
        emb = functional.silu(emb)

        tokens = self.enter(functional.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))
        angles, added = self._positions(rows, columns, tokens)
        tokens = self._blocks(tokens, emb, angles, added)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=-1)
        patches = self.leave(_modulated(tokens, shift, scale)).transpose(1, 2).unflatten(2, (rows, columns))
        return functional.pixel_shuffle(patches, self.patch)[..., :height, :width]

    def _positions(self, rows: int, columns: int, like: Tensor) -> tuple[Tensor | None, Tensor]:
        """The angles that queries and keys are turned by, and what is added to tokens."""
        if self.positions == "rotary":
            return axial_angles(rows, columns, self.width // self.heads // 4, ROTARY_BASE, like.device), like.new_zeros(
                1
            )
        angles = axial_angles(rows, columns, self.width // 4, SINCOS_BASE, like.device)
        return None, torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)

    def _blocks(self, tokens: Tensor, emb: Tensor, angles: Tensor | None, added: Tensor) -> Tensor:
        last = max(1, self.depth // 4) if self.training and self.drop_tokens else self.depth
        count, length, width = tokens.shape
        x = tokens + added
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


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _xavier(linear: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
