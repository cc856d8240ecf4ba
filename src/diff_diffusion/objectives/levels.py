"""Densities of training levels: which noise levels a batch is trained at.

A density is its quantile function, so any of them can be stratified over the batch: sample i of n gets the quantile
of (i + u_i) / n with u_i uniform, which covers the same density with less variance in the batch's mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register

LOG_SNR_MAX = 20.0
"""No level is drawn above this λ: σ would be below 5e-5 of α, beneath what float32 data can show."""


class Levels(ABC):
    """A density of noise levels."""

    @abstractmethod
    def quantile(self, u: Tensor, process: Process) -> Tensor:
        """The time below which a share u of the levels lies. u in (0, 1) float64 [B], to t in [0, 1]."""

    def draw(self, u: Tensor, process: Process) -> Tensor:
        """Times at the quantiles u, kept where there is noise left to learn from."""
        first = process.time_map.time(LOG_SNR_MAX)
        return self.quantile(u.clamp(1e-12, 1.0 - 1e-12), process).clamp(first, 1.0)


@register("levels/uniform")
@dataclass(frozen=True)
class Uniform(Levels):
    """t uniform on [0, 1]. Source: Ho et al., arXiv 2006.11239."""

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return u


@register("levels/normal", log_normal={"mean": 2.4, "std": 2.4}, logit_normal={"mean": 0.0, "std": 2.0})
@dataclass(frozen=True)
class Normal(Levels):
    """λ ~ N(mean, std²): EDM's log-normal σ and Stable Diffusion 3's logit-normal t are this one density.

    ln σ ~ N(P_mean, P_std²) is λ ~ N(-2 P_mean, 4 P_std²): EDM's (-1.2, 1.2) gives (2.4, 2.4). On the flow map
    logit t = -λ/2, so logit t ~ N(m, s²) is λ ~ N(-2m, 4s²): (0, 1) gives (0, 2).

    Source: Karras et al., arXiv 2206.00364; Esser et al., arXiv 2403.03206.
    """

    mean: float = 0.0
    std: float = 2.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ConfigError(f"the levels' std must be above 0, not {self.std}")

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return process.time_map.time(self.mean - self.std * torch.special.ndtri(u))
