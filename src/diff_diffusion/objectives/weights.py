"""Weights: how much a squared error counts at each noise level.

A weight is w(λ) on the squared error of ε̂. In those terms the variational bound is w = ½ dλ, and every paper's loss is
a row here. To add one: a frozen dataclass registered as "weight/name".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register


class Weight(ABC):
    """w(λ) on ‖ε - ε̂‖²."""

    @abstractmethod
    def of(self, log_snr: Tensor) -> Tensor:
        """w(λ), the same shape."""

    def on_error(self, log_snr: Tensor, gain: Tensor) -> Tensor:
        """The factor on an error whose square times `gain` is the squared error of ε̂."""
        return self.of(log_snr) * gain


@register("weight/unit")
@dataclass(frozen=True)
class Unit(Weight):
    """1 on the target's own squared error: flow matching's loss for velocity, EDM's for its F, v's for v."""

    def of(self, log_snr: Tensor) -> Tensor:
        raise ConfigError("weight 'unit' is 1 on the target's own error; it is no function of λ alone")

    def on_error(self, log_snr: Tensor, gain: Tensor) -> Tensor:
        return torch.ones_like(gain)


@register("weight/simple")
@dataclass(frozen=True)
class Simple(Weight):
    """‖ε - ε̂‖², whatever the network outputs. Source: Ho et al., arXiv 2006.11239, L_simple."""

    def of(self, log_snr: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


@register("weight/min_snr")
@dataclass(frozen=True)
class MinSnr(Weight):
    """min(SNR, γ) on ‖x_0 - x̂_0‖², which is min(1, γ / SNR) on ‖ε - ε̂‖². Source: Hang et al., arXiv 2303.09556."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ConfigError(f"min-SNR's gamma must be above 0, not {self.gamma}; the paper uses 5")

    def of(self, log_snr: Tensor) -> Tensor:
        return torch.clamp(self.gamma * torch.exp(-log_snr), max=1.0)


@register("weight/edm")
@dataclass(frozen=True)
class Edm(Weight):
    """(σ² + 1) / σ² on ‖x_0 - x̂_0‖² with σ² = 1/SNR and data of variance 1, which is (1 + SNR) / SNR on ‖ε - ε̂‖².

    Source: Karras et al., arXiv 2206.00364.
    """

    def of(self, log_snr: Tensor) -> Tensor:
        return 1.0 + torch.exp(-log_snr)
