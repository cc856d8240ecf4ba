"""Convolutions that make data small and large again: what an autoencoder is made of, for one to three axes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.attention import ImageAttention
from diff_diffusion.networks.unet import _norm
from diff_diffusion.registry import register

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


class ConvBlock(nn.Module):
    """norm, conv, norm, conv; added to the input. Starts as the identity, or a linear map where channels change."""

    def __init__(self, dims: int, channels_in: int, channels_out: int, group_width: int | None) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.norm_in, self.norm_out = _norm(channels_in, group_width), _norm(channels_out, group_width)
        self.conv_in = conv(channels_in, channels_out, 3, padding=1)
        self.conv_out = conv(channels_out, channels_out, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)
        self.skip = nn.Identity() if channels_in == channels_out else conv(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(functional.silu(self.norm_in(x)))
        out: Tensor = self.skip(x) + self.conv_out(functional.silu(self.norm_out(h)))
        return out


class Enlarge(nn.Module):
    """Every axis twice as long, by repetition, then a convolution."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[dims](channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return larger


@register("autoencoder/conv")
class ConvAutoencoder(nn.Module):
    """An encoder and a decoder of residual convolutions, for [B, C, *sizes] with as many sizes as `dims`.

    Each level after the first halves every size; sizes must be multiples of `factor`. No place sees farther than the
    convolutions reach, unless `attention` is on, so what was trained small also codes the large.

    Args:
        channels: C of the data.
        codes_out: channels that the encoder gives, as the bottleneck asks: a Gaussian's mean and log-variance are two.
        codes_in: channels that the decoder takes, those of a latent.
        width: channels at full resolution; a multiple of 8.
        multipliers: channels at each level as a multiple of `width`; factor 2 ** (levels - 1).
        depth: residual blocks per level of the encoder (one more in the decoder).
        dims: axes of a sample beside its channels, 1 to 3.
        attention: whether all places of the smallest level attend to one another; for images alone.
        group_width: channels that are normed together, as in `UNet`.

    Raises:
        ConfigError: a size out of range.

    Source: the autoencoder of arXiv 2112.10752.
    """

    def __init__(
        self,
        channels: int,
        codes_out: int,
        codes_in: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        depth: int = 1,
        dims: int = 2,
        attention: bool = False,
        group_width: int | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.codes_out, self.codes_in, self.width = channels, codes_out, codes_in, width
        self.multipliers, self.depth, self.dims, self.attention = tuple(multipliers), depth, dims, attention
        self.group_width = group_width
        self._check()
        conv = CONVOLUTIONS[dims]
        down: list[nn.Module] = [conv(channels, width, 3, padding=1)]
        current = width
        for index, multiplier in enumerate(self.multipliers):
            if index:
                down.append(conv(current, current, 3, stride=2, padding=1))
            for _ in range(depth):
                down.append(ConvBlock(dims, current, width * multiplier, group_width))
                current = width * multiplier
        self.encoder = nn.Sequential(*down, *self._middle(current), *self._end(current, codes_out))
        up: list[nn.Module] = [conv(codes_in, current, 3, padding=1), *self._middle(current)]
        for index, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(depth + 1):
                up.append(ConvBlock(dims, current, width * multiplier, group_width))
                current = width * multiplier
            if index:
                up.append(Enlarge(dims, current))
        self.decoder = nn.Sequential(*up, *self._end(current, channels))

    def _check(self) -> None:
        for name, value, low, high in [
            ("channels", self.channels, 1, 4096),
            ("codes_out", self.codes_out, 1, 4096),
            ("codes_in", self.codes_in, 1, 4096),
            ("width", self.width, 8, 4096),
            ("the number of multipliers", len(self.multipliers), 1, 8),
            *((f"multiplier {m}", m, 1, 64) for m in self.multipliers),
            ("depth", self.depth, 1, 32),
            ("dims", self.dims, 1, 3),
            ("group_width", 1 if self.group_width is None else self.group_width, 1, 4096),
        ]:
            if not low <= value <= high:
                raise ConfigError(f"an autoencoder's {name} must be from {low} to {high}, not {value}")
        if self.width % 8:
            raise ConfigError(f"an autoencoder's width must be a multiple of 8, not {self.width}")
        if self.attention and self.dims != 2:
            raise ConfigError(f"an autoencoder attends over the places of images, dims 2, not {self.dims}")

    def _middle(self, channels: int) -> list[nn.Module]:
        attends = [ImageAttention(channels, 32, _norm(channels, self.group_width))] if self.attention else []
        first, last = (ConvBlock(self.dims, channels, channels, self.group_width) for _ in range(2))
        return [first, *attends, last]

    def _end(self, channels: int, out: int) -> list[nn.Module]:
        return [_norm(channels, self.group_width), nn.SiLU(), CONVOLUTIONS[self.dims](channels, out, 3, padding=1)]

    @property
    def factor(self) -> int:
        """How many times smaller every size of a latent is."""
        return 1 << (len(self.multipliers) - 1)

    @property
    def last(self) -> nn.Parameter:
        """The weight of the decoder's last layer."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def encode(self, x: Tensor) -> Tensor:
        """x [B, C, *sizes] to [B, codes_out, *(sizes / factor)].

        Raises:
            ConfigError: sizes that are no multiples of the factor.
        """
        if any(size % self.factor for size in x.shape[2:]):
            raise ConfigError(
                f"this autoencoder makes every size {self.factor} times smaller, so sizes are multiples of "
                f"{self.factor}, not {list(x.shape[2:])}"
            )
        coded: Tensor = self.encoder(x)
        return coded

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, codes_in, *sizes] to [B, C, *(sizes · factor)]."""
        decoded: Tensor = self.decoder(codes)
        return decoded
