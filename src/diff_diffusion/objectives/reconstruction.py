"""The autoencoder's objective: what decoded data miss, and what their latents cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register

SHAPES = ("laplace", "gauss")


@register("objective/reconstruction")
@dataclass(frozen=True)
class Reconstruction:
    """-ln p(x | z) + β · rate(z), in nats, with p a Laplace (L1) or a Gaussian (L2) around what was decoded.

    Its width is the one that fits what decoding still misses, so that no weight must be found between the two halves:
    β = 1 is the bound on -ln p(x). A smaller β gives latents that say more, for a second model that learns their
    true distribution.

    Args:
        shape: "laplace" or "gauss".
        rate: β, at least 0.
        perceptual: weight of how unlike the pictures look, in nats by the number of a sample's numbers; of effect where
            there is an eye.
        adversarial: the share of the other losses' pull at the decoder that its critic has; where there is a critic.
        start: batches before the critic joins in.

    Raises:
        ConfigError: another shape, or a number below 0.

    Source: the bound, Kingma & Welling, arXiv 1312.6114; the width that fits, Rybkin et al., arXiv 2006.13202.
    """

    shape: str = "laplace"
    rate: float = 0.01
    perceptual: float = 1.0
    adversarial: float = 0.5
    start: int = 1000

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"decoded data are the middle of a {' or a '.join(SHAPES)}, not of {self.shape!r}")
        for name in ("rate", "perceptual", "adversarial", "start"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"a reconstruction's {name} is at least 0 and finite, not {getattr(self, name)}")

    def nats(self, x: Tensor, decoded: Tensor, width: Tensor) -> Tensor:
        """-ln p(x | z) of each sample, summed over its numbers: [B].

        Args:
            x, decoded: [B, ...].
            width: scalar, the Laplace's mean absolute, or the Gaussian's root mean square, deviation.
        """
        error = (x - decoded).flatten(1) / width
        each = error.abs() + math.log(2.0) if self.shape == "laplace" else 0.5 * (error**2 + math.log(2.0 * math.pi))
        nats: Tensor = (each + width.log()).sum(1)
        return nats

    def deviation(self, x: Tensor, decoded: Tensor) -> Tensor:
        """The width for which `nats` is least, scalar."""
        error = (x - decoded).detach()
        return error.abs().mean() if self.shape == "laplace" else error.pow(2).mean().sqrt()


class Width(nn.Module):
    """The moving average of a deviation, over about twenty batches; that of the first batch before there are more.

    Attributes:
        value: the average.
        batches: how many have begun.
    """

    value: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def begin(self) -> None:
        """A new batch begins, in however many pieces it comes."""
        self.batches += 1

    @torch.no_grad()
    def learn(self, deviation: Tensor) -> None:
        new = torch.where(self.value > 0, torch.lerp(self.value, deviation.to(self.value), 0.05), deviation)
        least = new.clamp(min=1e-6)  # data that decode perfectly would cost minus infinity
        self.value.copy_(torch.where(torch.isfinite(new), least, self.value))  # a step that is skipped teaches nothing
