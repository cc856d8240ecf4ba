"""What tells real patches from decoded ones: the opponent that makes an autoencoder's pictures sharp."""

from __future__ import annotations

from torch import Tensor, nn

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.unet import _norm
from diff_diffusion.registry import register


@register("critic/patch")
class PatchCritic(nn.Module):
    """[B, C, H, W] to a score of each patch: convolutions of 4 × 4 that halve the sides, above 0 for what seems real.

    Args:
        channels: C of the data.
        width: channels after the first convolution; a multiple of 8.
        layers: halvings; with 3, a score sees 70 × 70 pixels.

    Raises:
        ConfigError: a size out of range.

    Source: Isola et al., arXiv 1611.07004; as an autoencoder's opponent, Esser et al., arXiv 2012.09841.
    """

    def __init__(self, channels: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        for name, value, low, high in [
            ("channels", channels, 1, 4096),
            ("width", width, 8, 4096),
            ("layers", layers, 1, 8),
        ]:
            if not low <= value <= high:
                raise ConfigError(f"a critic's {name} must be from {low} to {high}, not {value}")
        if width % 8:
            raise ConfigError(f"a critic's width must be a multiple of 8, not {width}")
        self.channels, self.width, self.layers = channels, width, layers
        stack: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        current = width
        for layer in range(1, layers + 1):
            out = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            stack += [nn.Conv2d(current, out, 4, stride=stride, padding=1, bias=False), _norm(out), nn.LeakyReLU(0.2)]
            current = out
        self.stack = nn.Sequential(*stack, nn.Conv2d(current, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to scores [B, patches]."""
        scores: Tensor = self.stack(x).flatten(1)
        return scores
