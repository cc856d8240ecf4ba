"""Weights: how much an error counts at each noise level.

A weight is w(λ) on the squared error of ε̂. In those terms the variational bound is w = ½ dλ, and every paper's loss is
a row here. To add one: a frozen dataclass with `of`, registered as "weight/name".

Two kinds. Most papers weigh the samples that they happen to draw: their loss is E over levels of w(λ) ‖ε - ε̂‖², and
other levels are another loss. A weight of the integral means ∫ w(λ) ‖ε - ε̂‖² dλ, whatever levels are drawn: the
objective divides by their density, and levels only change its variance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register


class Weight(ABC):
    """w(λ) on ‖ε - ε̂‖²."""

    own: bool = False
    """Whether it weighs the error of what the network outputs instead of that of ε̂."""
    integral: bool = False
    """Whether it weighs dλ instead of the levels drawn."""
    penalises: bool = False
    """Whether it learns, and adds a penalty to the loss so that it does not learn to be 0."""

    @abstractmethod
    def of(self, log_snr: Tensor) -> Tensor:
        """w(λ), float64 of the same shape."""

    def penalty(self, log_snr: Tensor) -> Tensor:
        """What a weight that penalises adds to the loss, of λ's shape."""
        return torch.zeros_like(log_snr)


@register("weight/unit")
@dataclass(frozen=True)
class Unit(Weight):
    """1 on the target's own squared error: flow matching's loss for velocity, EDM's for its F, v's for v."""

    own: ClassVar[bool] = True  # type: ignore[misc]

    def of(self, log_snr: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


@register("weight/simple")
@dataclass(frozen=True)
class Simple(Weight):
    """‖ε - ε̂‖², whatever the network outputs. Source: Ho et al., arXiv 2006.11239, L_simple."""

    def of(self, log_snr: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


@register("weight/vlb")
@dataclass(frozen=True)
class Vlb(Weight):
    """½ dλ: the loss is the variational bound's integral, in nats for each number of the data.

    For tokens too, whose costs are counted double. Source: Kingma et al., arXiv 2107.00630.
    """

    integral: ClassVar[bool] = True  # type: ignore[misc]

    def of(self, log_snr: Tensor) -> Tensor:
        return torch.full_like(log_snr, 0.5)


@register("weight/sigmoid")
@dataclass(frozen=True)
class Sigmoid(Weight):
    """sigmoid(bias - λ) dλ: the bound, with what the eye does not see faded out. It falls with λ, so the loss is still
    a bound, of data with noise added.

    Source: Kingma & Gao, arXiv 2303.00848; Hoogeboom et al., arXiv 2410.19324, for the bias.
    """

    integral: ClassVar[bool] = True  # type: ignore[misc]
    bias: float = 0.0

    def of(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - log_snr)


@register("weight/min_snr")
@dataclass(frozen=True)
class MinSnr(Weight):
    """min(SNR, γ) on ‖x_0 - x̂_0‖², which is min(1, γ / SNR) on ‖ε - ε̂‖². Source: Hang et al., arXiv 2303.09556."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _above_0("min-SNR's gamma", self.gamma, "the paper uses 5")

    def of(self, log_snr: Tensor) -> Tensor:
        return torch.clamp(self.gamma * torch.exp(-log_snr), max=1.0)


@register("weight/soft_min_snr")
@dataclass(frozen=True)
class SoftMinSnr(Weight):
    """1 / (1/SNR + 1/γ) on ‖x_0 - x̂_0‖², which is γ / (SNR + γ) on ‖ε - ε̂‖²: min-SNR without its corner.

    Source: Crowson et al., arXiv 2401.11605.
    """

    gamma: float = 4.0

    def __post_init__(self) -> None:
        _above_0("soft-min-SNR's gamma", self.gamma, "the paper uses 4")

    def of(self, log_snr: Tensor) -> Tensor:
        return self.gamma / (torch.exp(log_snr) + self.gamma)


@register("weight/p2")
@dataclass(frozen=True)
class P2(Weight):
    """1 / (k + SNR)^γ on ‖ε - ε̂‖²: perception prioritised. Source: Choi et al., arXiv 2204.00227."""

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        _above_0("P2's gamma", self.gamma, "the paper uses 0.5 and 1")
        _above_0("P2's k", self.k, "the paper uses 1")

    def of(self, log_snr: Tensor) -> Tensor:
        return (self.k + torch.exp(log_snr)) ** -self.gamma


@register("weight/edm")
@dataclass(frozen=True)
class Edm(Weight):
    """(σ² + 1) / σ² on ‖x_0 - x̂_0‖² with σ² = 1/SNR and data of variance 1, which is (1 + SNR) / SNR on ‖ε - ε̂‖².

    Source: Karras et al., arXiv 2206.00364.
    """

    def of(self, log_snr: Tensor) -> Tensor:
        return 1.0 + torch.exp(-log_snr)


@register("weight/learned_uncertainty")
class LearnedUncertainty(nn.Module, Weight):
    """Another weight times e^(-u(λ)), plus u(λ): u learns the logarithm of the loss at each level.

    At its best every level's loss is 1, so no level drowns the others' gradient. u is a sum of cosines of λ.

    Args:
        weight: the one that is rescaled.
        num_frequencies: how finely u can follow λ.

    Source: Karras et al., arXiv 2312.02696, where u is a one-layer network of Fourier features.
    """

    def __init__(self, weight: Weight | None = None, num_frequencies: int = 32) -> None:
        super().__init__()
        if not 1 <= num_frequencies <= 4096:
            raise ConfigError(f"num_frequencies must be from 1 to 4096, not {num_frequencies}")
        self.weight = weight or Unit()
        self.num_frequencies = num_frequencies
        self.own, self.integral, self.penalises = self.weight.own, self.weight.integral, True
        self.coefficients = nn.Parameter(torch.zeros(num_frequencies))

    def uncertainty(self, log_snr: Tensor) -> Tensor:
        """u(λ), float32 on the weight's device, of λ's shape."""
        place = ((log_snr + 20.0) / 40.0).clamp(0.0, 1.0).to(self.coefficients)[..., None]  # λ = -20 … 20 to 0 … 1
        waves = torch.cos(torch.pi * place * torch.arange(self.num_frequencies).to(place))
        return (waves * self.coefficients).sum(-1)  # a matrix product would be bfloat16 under autocast

    def of(self, log_snr: Tensor) -> Tensor:
        return self.weight.of(log_snr) * torch.exp(-self.uncertainty(log_snr)).to(log_snr)

    def penalty(self, log_snr: Tensor) -> Tensor:
        return self.uncertainty(log_snr)


def _above_0(name: str, value: float, hint: str) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be above 0, not {value}; {hint}")
