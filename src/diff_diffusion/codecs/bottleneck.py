"""Bottlenecks: what an autoencoder lets through from its encoder to its decoder, and what that costs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise


@dataclass(frozen=True)
class Passed:
    """What training needs of one batch.

    Attributes:
        latent: [B, channels, ...], differentiable, what the decoder sees.
        nats: float [B], what the latent costs under its prior: the bound's rate.
        commitment: float [B], what pulls the encoder to the code it chose; 0 for those that need none.
    """

    latent: Tensor
    nats: Tensor
    commitment: Tensor


class Bottleneck(nn.Module, ABC):
    """From what an encoder gives [B, codes_out, ...] to a latent [B, channels, ...].

    Attributes:
        channels: of a latent.
        codes_out: channels that the encoder must give.
    """

    channels: int
    codes_out: int

    @abstractmethod
    def forward(self, h: Tensor, noise: Noise) -> Passed:
        """In training, with one key of noise per sample."""

    @abstractmethod
    def latent(self, h: Tensor, noise: Noise | None = None) -> Tensor:
        """The latent that `h` stands for: drawn with `noise` where there is something to draw, else its best guess."""


class Tokens(Bottleneck):
    """A bottleneck whose latents are codes out of a finite number: `size` of them.

    Attributes:
        size: how many codes there are.
    """

    size: int

    def rate(self, latent: Tensor) -> Tensor:
        """Nats of each sample's codes when all codes are as likely: ln(size) a place, [B]."""
        places = latent[0, 0].numel()
        return torch.full((len(latent),), places * math.log(self.size), dtype=latent.dtype, device=latent.device)

    @abstractmethod
    def tokens(self, h: Tensor) -> Tensor:
        """The number of each place's code: int64 [B, ...]."""

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """The latents that numbers of codes, int64 [B, ...], stand for: float32 [B, channels, ...].

        Raises:
            IncompatibleError: a number that is no code's.
        """

    def _known(self, tokens: Tensor) -> Tensor:
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < self.size):
            raise IncompatibleError(
                f"there are {self.size} codes, numbered from 0, and this holds {int(tokens.min())} to "
                f"{int(tokens.max())}"
            )
        return tokens


@register("bottleneck/kl")
class Gauss(Bottleneck):
    """z ~ N(μ, σ²) with μ, ln σ² from the encoder, held to N(0, 1) by KL(q(z|x) ‖ N(0, 1)) = ½ Σ (μ² + σ² - 1 - ln σ²).

    Args:
        channels: of a latent.

    Raises:
        ConfigError: channels out of range.

    Source: Kingma & Welling, arXiv 1312.6114, appendix B.
    """

    LOG_VARIANCE = (-30.0, 20.0)  # of float32's safe exponents; an encoder that starts anywhere stays finite

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        if not 1 <= channels <= 4096:
            raise ConfigError(f"a latent's channels must be from 1 to 4096, not {channels}")
        self.channels, self.codes_out = channels, 2 * channels

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """μ and ln σ², [B, channels, ...] each, in float32 at least."""
        mean, log_variance = (h if h.dtype == torch.float64 else h.float()).chunk(2, dim=1)
        return mean, log_variance.clamp(*self.LOG_VARIANCE)

    def entropy(self, h: Tensor) -> Tensor:
        """-E ln q(z|x) = ½ Σ (1 + ln 2π + ln σ²), nats, float64 [B]."""
        _, log_variance = self.moments(h)
        nats: Tensor = 0.5 * (1.0 + math.log(2.0 * math.pi) + log_variance.double()).flatten(1).sum(1)
        return nats

    def forward(self, h: Tensor, noise: Noise) -> Passed:
        mean, log_variance = self.moments(h)
        nats = 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance).flatten(1).sum(1)
        return Passed(self._drawn(mean, log_variance, noise), nats, torch.zeros_like(nats))

    def latent(self, h: Tensor, noise: Noise | None = None) -> Tensor:
        mean, log_variance = self.moments(h)
        return mean if noise is None else self._drawn(mean, log_variance, noise)

    @staticmethod
    def _drawn(mean: Tensor, log_variance: Tensor, noise: Noise) -> Tensor:
        return mean + (0.5 * log_variance).exp() * noise.normal(mean.shape, like=mean)


@register("bottleneck/fsq")
class FiniteScalar(Tokens):
    """Each channel rounded to one of a few values in [-1, 1]: a code is one value of each, and none is ever unused.

    z_i = round(f_i(h_i)) / ⌊L_i / 2⌋ with f bounded by tanh to L_i values; the gradient is that of f.

    Args:
        levels: values of each channel, at least 2.

    Raises:
        ConfigError: fewer than two values, or more codes than 2^24.

    Source: Mentzer et al., arXiv 2309.15505, section 3 and appendix A.
    """

    def __init__(self, levels: tuple[int, ...] = (8, 8, 8)) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.size = 1
        for count in self.levels:
            self.size *= max(count, 0)
        if not self.levels or min(self.levels) < 2 or self.size > 1 << 24:
            raise ConfigError(f"levels are at least 2 in each channel and 2^24 codes in all, not {list(levels)}")
        self.channels = self.codes_out = len(self.levels)

    def _row(self, values: list[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, *[1] * (like.ndim - 2))

    def _bounded(self, h: Tensor) -> Tensor:
        """f: from anywhere to between the first and the last whole number that a channel has."""
        half = self._row([(count - 1) / 2 + 1e-3 for count in self.levels], h)
        offset = self._row([0.5 * (count % 2 == 0) for count in self.levels], h)
        # tanh is shifted, so that h = 0 stays near the middle where the number of values is even.
        return torch.tanh(h + torch.atanh(offset / half)) * half - offset

    def _half(self, like: Tensor) -> Tensor:
        return self._row([float(count // 2) for count in self.levels], like)

    def _rounded(self, h: Tensor) -> tuple[Tensor, Tensor]:
        bounded = self._bounded(h if h.dtype == torch.float64 else h.float())
        return bounded, bounded.round()

    def forward(self, h: Tensor, noise: Noise) -> Passed:
        bounded, whole = self._rounded(h)
        latent = (bounded + (whole - bounded).detach()) / self._half(bounded)
        nats = self.rate(latent)
        return Passed(latent, nats, torch.zeros_like(nats))

    def latent(self, h: Tensor, noise: Noise | None = None) -> Tensor:
        whole = self._rounded(h)[1]
        return whole / self._half(whole)

    def tokens(self, h: Tensor) -> Tensor:
        whole = self._rounded(h)[1]
        digits = (whole + self._half(whole)).to(torch.int64)
        number = torch.zeros_like(digits[:, 0])
        for channel, count in enumerate(self.levels):
            number = number * count + digits[:, channel]
        return number

    def embed(self, tokens: Tensor) -> Tensor:
        left, digits = self._known(tokens), []
        for count in reversed(self.levels):
            digits.append(left % count)
            left = left // count
        whole = torch.stack(digits[::-1], dim=1).to(torch.float32)
        half = self._half(whole)
        return (whole - half) / half
