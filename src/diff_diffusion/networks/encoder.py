"""The way down of a U-Net, to scores of classes: what a classifier that knows noise looks with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.attention import ImageAttention
from diff_diffusion.networks.embeddings import LogSnrEmbedding
from diff_diffusion.networks.unet import ResidualBlock, _norm
from diff_diffusion.registry import register


@register("classifier/unet_encoder")
class UNetEncoder(nn.Module):
    """The downsampling half of a `UNet`, averaged over places, to a score of each class; for any H and W.

    It starts with every score at 0, all classes alike.

    Args:
        channels: C of the input.
        num_classes: how many scores.
        width: channels at full resolution; a multiple of 8.
        multipliers: channels at each level as a multiple of `width`; each level after the first halves the resolution,
            rounded up.
        depth: residual blocks per level.
        attention: downsampling factors at which blocks attend; the last block, below them all, does when any is.
        head_width: channels per attention head, about.
        dropout: share of activations dropped in blocks.
        group_width: channels that are normed together, as in `UNet`.

    Raises:
        ConfigError: a size out of range or an attention factor that no level has.

    Source: arXiv 2105.05233.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        depth: int = 2,
        attention: Sequence[int] = (4,),
        head_width: int = 32,
        dropout: float = 0.0,
        group_width: int | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.num_classes, self.width, self.depth = channels, num_classes, width, depth
        self.multipliers, self.attention = tuple(multipliers), tuple(attention)
        self.head_width, self.dropout, self.group_width = head_width, dropout, group_width
        self._check()
        emb_width = 4 * width
        self.level = LogSnrEmbedding(width, emb_width)
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks, current = nn.ModuleList(), width
        for index, multiplier in enumerate(self.multipliers):
            if index > 0:
                self.blocks.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
            for _ in range(depth):
                self.blocks.append(ResidualBlock(current, width * multiplier, emb_width, dropout, group_width))
                current = width * multiplier
                if 2**index in self.attention:
                    self.blocks.append(ImageAttention(current, head_width, _norm(current, group_width)))
        if self.attention:
            self.blocks.append(ImageAttention(current, head_width, _norm(current, group_width)))
        self.blocks.append(ResidualBlock(current, current, emb_width, dropout, group_width))
        self.norm = _norm(current, group_width)
        self.leave = nn.Linear(current, num_classes)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def _check(self) -> None:
        for name, value, low, high in [
            ("channels", self.channels, 1, 4096),
            ("num_classes", self.num_classes, 1, 1_000_000),
            ("width", self.width, 8, 4096),
            ("the number of multipliers", len(self.multipliers), 1, 8),
            *((f"multiplier {m}", m, 1, 64) for m in self.multipliers),
            ("depth", self.depth, 1, 32),
            ("head_width", self.head_width, 1, 4096),
        ]:
            if not low <= value <= high:
                raise ConfigError(f"a U-Net encoder's {name} must be from {low} to {high}, not {value}")
        if self.width % 8:
            raise ConfigError(f"a U-Net encoder's width must be a multiple of 8, not {self.width}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        factors = [2**index for index in range(len(self.multipliers))]
        odd = [factor for factor in self.attention if factor not in factors]
        if odd:
            raise ConfigError(f"attention at {odd}: this encoder's levels downsample by {factors}")

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """x [B, C, H, W], log_snr [B] in ±20, to [B, num_classes]."""
        scores: Tensor = self.leave(functional.silu(self.norm(self.features(x, log_snr)[-1])).mean((2, 3)))
        return scores

    def features(self, x: Tensor, log_snr: Tensor) -> list[Tensor]:
        """What each residual block gives, [B, channels, height, width] each, the first ones the largest."""
        emb = functional.silu(self.level(log_snr))
        x, found = self.enter(x), []
        for block in self.blocks:
            if isinstance(block, ResidualBlock):
                x = block(x, emb)
                found.append(x)
            else:
                x = block(x)
        return found
