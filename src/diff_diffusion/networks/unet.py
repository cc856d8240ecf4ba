"""A U-Net for images of any size: residual blocks modulated by noise level and condition, attention where asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.cond import Embedded
from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.attention import CrossAttention, ImageAttention
from diff_diffusion.networks.embeddings import LogSnrEmbedding
from diff_diffusion.registry import register


def _norm(channels: int, group_width: int | None = None) -> nn.GroupNorm:
    """Over groups of `group_width` channels, or a little more where that divides them; None as `UNet` says."""
    if group_width is not None:
        wide = next((w for w in range(group_width, channels) if channels % w == 0), channels)
        return nn.GroupNorm(channels // wide, channels)
    fits = (g for g in (32, 16, 8, 4, 2, 1) if (channels % g == 0 and channels // g >= 4) or g == 1)
    return nn.GroupNorm(max(fits), channels)


def _zero(module: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResidualBlock(nn.Module):
    """norm, conv, norm, scale and shift from the embedding, conv; added to the input. Starts as the identity."""

    def __init__(
        self, channels_in: int, channels_out: int, emb_width: int, dropout: float, group_width: int | None = None
    ) -> None:
        super().__init__()
        self.norm_in = _norm(channels_in, group_width)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(emb_width, 2 * channels_out)
        self.norm_out = _norm(channels_out, group_width)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zero(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_in(functional.silu(self.norm_in(x)))
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        h = self.conv_out(self.dropout(functional.silu(h)))
        out: Tensor = self.skip(x) + h
        return out


@register("network/unet")
class UNet(nn.Module):
    """The U-Net of Ho et al. with Dhariwal & Nichol's modulation, for [B, C, H, W] of any H and W.

    Sizes that the levels do not divide are zero-padded inside and cropped again.

    Args:
        channels: C of input and output.
        width: channels at full resolution; a multiple of 8.
        multipliers: channels at each level as a multiple of `width`; each level after the first halves the resolution.
        depth: residual blocks per level on the way down (one more on the way up).
        attention: downsampling factors at which blocks attend (2 is the second level); the middle does when any is.
        head_width: channels per attention head, about: heads divide the channels evenly.
        cond_width: the embedded condition's size; 0 for none.
        dropout: share of activations dropped in blocks.
        out_channels: of the output; the data's when None.
        token_width: of the condition's tokens, to which places attend wherever they attend to one another; 0 for none.
        group_width: channels that are normed together; None for at least 4, in 32 groups at most. In bfloat16 on a CPU
            multiples of 16 are by far the fastest.

    Raises:
        ConfigError: a size out of range, an attention factor that no level has, or tokens and nothing that attends.

    Source: arXiv 2006.11239; arXiv 2105.05233; attention to tokens after arXiv 2112.10752.
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        depth: int = 2,
        attention: Sequence[int] = (4,),
        head_width: int = 32,
        cond_width: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
        token_width: int = 0,
        group_width: int | None = None,
    ) -> None:
        super().__init__()
        self.out_channels, self.token_width, self.group_width = out_channels, token_width, group_width
        self.channels, self.width, self.multipliers, self.depth = channels, width, tuple(multipliers), depth
        self.attention, self.head_width, self.cond_width, self.dropout = (
            tuple(attention),
            head_width,
            cond_width,
            dropout,
        )
        self._check()
        emb_width = 4 * width
        self.level = LogSnrEmbedding(width, emb_width)
        self.cond = nn.Linear(cond_width, emb_width, bias=False) if cond_width else None

        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        skips, current = [width], width
        for index, multiplier in enumerate(self.multipliers):
            blocks = nn.ModuleList()
            for _ in range(depth):
                blocks.append(self._stage(current, width * multiplier, emb_width, 2**index in self.attention))
                current = width * multiplier
                skips.append(current)
            self.down.append(blocks)
            if index < len(self.multipliers) - 1:
                self.shrink.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
                skips.append(current)
        self.middle = nn.ModuleList(
            [
                self._stage(current, current, emb_width, bool(self.attention)),
                self._stage(current, current, emb_width, False),
            ]
        )
        for index, multiplier in reversed(list(enumerate(self.multipliers))):
            blocks = nn.ModuleList()
            for _ in range(depth + 1):
                blocks.append(
                    self._stage(current + skips.pop(), width * multiplier, emb_width, 2**index in self.attention)
                )
                current = width * multiplier
            self.up.append(blocks)
            if index > 0:
                self.grow.append(nn.Conv2d(current, current, 3, padding=1))
        self.norm = _norm(current, group_width)
        self.leave = _zero(nn.Conv2d(current, out_channels or channels, 3, padding=1))

    def _check(self) -> None:
        factors = [2**index for index in range(len(self.multipliers))]
        for name, value, low, high in [
            ("channels", self.channels, 1, 4096),
            ("width", self.width, 8, 4096),
            ("the number of multipliers", len(self.multipliers), 1, 8),
            *((f"multiplier {m}", m, 1, 64) for m in self.multipliers),
            ("depth", self.depth, 1, 32),
            ("out_channels", self.out_channels or 1, 1, 4096),
            ("cond_width", self.cond_width, 0, 65536),
            ("head_width", self.head_width, 1, 4096),
            ("token_width", self.token_width, 0, 65536),
            ("group_width", 1 if self.group_width is None else self.group_width, 1, 4096),
        ]:
            if not low <= value <= high:
                raise ConfigError(f"a U-Net's {name} must be from {low} to {high}, not {value}")
        if self.width % 8:
            raise ConfigError(f"a U-Net's width must be a multiple of 8, not {self.width}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        odd = [factor for factor in self.attention if factor not in factors]
        if odd:
            raise ConfigError(f"attention at {odd}: this U-Net's levels downsample by {factors}")
        if self.token_width and not self.attention:
            raise ConfigError(
                f"token_width is {self.token_width} and nothing attends: name at least one of {factors} in attention"
            )

    def _stage(self, channels_in: int, channels_out: int, emb_width: int, attends: bool) -> nn.ModuleList:
        stage = nn.ModuleList([ResidualBlock(channels_in, channels_out, emb_width, self.dropout, self.group_width)])
        if attends:
            norm = partial(_norm, channels_out, self.group_width)
            stage.append(ImageAttention(channels_out, self.head_width, norm()))
            if self.token_width:
                stage.append(CrossAttention(channels_out, self.token_width, self.head_width, norm()))
        return stage

    def forward(self, x: Tensor, log_snr: Tensor, cond: Embedded | None = None) -> Tensor:
        """x [B, C, H, W], log_snr [B] in ±20, what it reads of cond or None, to [B, out_channels, H, W]."""
        height, width = x.shape[-2:]
        factor = 2 ** (len(self.multipliers) - 1)
        if height % factor or width % factor:
            x = functional.pad(x, (0, -width % factor, 0, -height % factor))
        emb = self.level(log_snr)
        if self.cond is not None and cond is not None and cond.vector is not None:
            emb = emb + self.cond(cond.vector)
        emb = functional.silu(emb)

        x = self.enter(x)
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)  # convolutions take half to nine tenths of the time so
        skips = [x]
        for index, blocks in enumerate(self.down):
            for stage in blocks.children():
                x = _run(stage, x, emb, cond)
                skips.append(x)
            if index < len(self.shrink):
                x = self.shrink[index](x)
                skips.append(x)
        for stage in self.middle:
            x = _run(stage, x, emb, cond)
        for index, blocks in enumerate(self.up):
            for stage in blocks.children():
                x = _run(stage, torch.cat([x, skips.pop()], dim=1), emb, cond)
            if index < len(self.grow):
                x = self.grow[index](functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.leave(functional.silu(self.norm(x)))
        return x[..., :height, :width].contiguous()


def _run(stage: nn.Module, x: Tensor, emb: Tensor, cond: Embedded | None) -> Tensor:
    block, *attention = stage.children()
    x = block(x, emb)
    for attend in attention:
        if isinstance(attend, ImageAttention):
            x = attend(x)
        elif cond is not None and cond.tokens is not None:
            x = attend(x, cond.tokens, cond.mask)
    return x
