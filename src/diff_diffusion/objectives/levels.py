"""Densities of training levels: which noise levels a batch is trained at.

A density is its quantile function, so any of them can be stratified over the batch: sample i of n gets the quantile
of (i + u_i) / n with u_i uniform, which covers the same density with less variance in the batch's mean. To add one: a
frozen dataclass registered as "levels/name".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise

LOG_SNR_MAX = 20.0
"""No level is drawn above this λ: σ would be below 5e-5 of α, beneath what float32 data can show."""


class Levels(ABC):
    """A density of noise levels, cut off where a process has none, and above LOG_SNR_MAX."""

    @abstractmethod
    def quantile(self, u: Tensor, process: Process) -> Tensor:
        """The time below which a share u of the uncut density lies. u in (0, 1) float64, to t in [0, 1]."""

    @abstractmethod
    def share(self, t: Tensor, process: Process) -> Tensor:
        """The share of the uncut density that lies below time t: the inverse of `quantile`."""

    @abstractmethod
    def rate(self, t: Tensor, process: Process) -> Tensor:
        """The uncut density per unit of λ, at λ(t)."""

    def _cut(self, process: Process) -> tuple[Tensor, Tensor]:
        """The shares at which the density is cut off."""
        first = process.time_map.time(LOG_SNR_MAX)
        low, high = self.share(torch.tensor([first, 1.0], dtype=torch.float64), process)
        if high - low < 1e-9:
            raise ConfigError(
                f"{type(self).__name__} levels lie outside this process, whose λ runs from "
                f"{process.time_map.log_snr(first):g} to {process.time_map.log_snr(1.0):g}: move them there"
            )
        return low, high

    def draw(self, u: Tensor, process: Process) -> Tensor:
        """Times at the quantiles u in [0, 1], float64 [B]."""
        low, high = self._cut(process)
        share = (low + (high - low) * u).clamp(1e-12, 1.0 - 1e-12)
        return self.quantile(share, process).clamp(process.time_map.time(LOG_SNR_MAX), 1.0)

    def stratified(self, noise: Noise, process: Process, first: int = 0, whole: int | None = None) -> Tensor:
        """Times for samples first, first + 1, … of a batch of `whole`, float64 [B]: sample i's in its stratum i.

        Args:
            noise: one key for each.
            first, whole: left out, these are the whole batch. The first sample begins a new one.
        """
        count = len(noise)
        if first == 0:
            self.begin()
        strata = torch.arange(first, first + count, dtype=torch.float64)
        u = (strata + noise.fork("level").uniform((count,))) / (whole or count)
        return self.draw(u, process)

    def place(self, t: Tensor, process: Process) -> Tensor:
        """The quantile that a time is drawn at: the inverse of `draw`."""
        low, high = self._cut(process)
        return ((self.share(t, process) - low) / (high - low)).clamp(0.0, 1.0)

    def density(self, t: Tensor, process: Process) -> Tensor:
        """p(λ) at λ(t): how densely levels are drawn per unit of λ."""
        low, high = self._cut(process)
        return self.rate(t, process) / (high - low)

    def correction(self, t: Tensor, process: Process) -> Tensor:
        """The factor that undoes what levels that adapt have changed; 1 for those that do not."""
        return torch.ones_like(t)

    @property
    def taught(self) -> Tensor | None:
        """What this batch has taught so far: a sum over its samples, so that processes can add theirs up."""
        return None

    def begin(self) -> None:  # noqa: B027 - most levels do not adapt
        """A new batch begins: what was recorded may be used."""

    def record(self, t: Tensor, losses: Tensor, process: Process) -> None:  # noqa: B027
        """The losses [B] seen at times t [B], for levels that adapt."""


@register("levels/uniform")
@dataclass(frozen=True)
class Uniform(Levels):
    """t uniform on [0, 1]. Source: Ho et al., arXiv 2006.11239."""

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return u

    def share(self, t: Tensor, process: Process) -> Tensor:
        return t

    def rate(self, t: Tensor, process: Process) -> Tensor:
        return -1.0 / process.time_map.slope(t)


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

    def share(self, t: Tensor, process: Process) -> Tensor:
        return torch.special.ndtr((self.mean - process.time_map.log_snr(t)) / self.std)

    def rate(self, t: Tensor, process: Process) -> Tensor:
        deviation = (process.time_map.log_snr(t) - self.mean) / self.std
        return torch.exp(-0.5 * deviation**2) / (self.std * math.sqrt(2.0 * math.pi))


@register("levels/loss_aware")
class LossAware(nn.Module, Levels):
    """Other levels, drawn more often where the loss is large and uneven: each in proportion to √E[loss²].

    The loss keeps its expectation, because every sample is divided by how much more often it is drawn; its variance is
    the least that a density of levels can give. What is learned about the losses is saved with the model.

    Args:
        levels: the density whose loss is wanted.
        num_bins: equal shares of it, each with its own rate.
        memory: how much of the second moment a batch leaves standing.

    Source: Nichol & Dhariwal, arXiv 2102.09672 (importance sampling of L_vlb), with bins of a continuous density for
    their table of steps.
    """

    MIXED_IN = 0.01  # of the plain levels, so that no level is ever forgotten
    ENOUGH = 10  # losses in every bin before the rates are used

    moments: Tensor
    counts: Tensor
    fresh: Tensor

    def __init__(self, levels: Levels | None = None, num_bins: int = 32, memory: float = 0.9) -> None:
        super().__init__()
        if not 2 <= num_bins <= 4096:
            raise ConfigError(f"num_bins must be from 2 to 4096, not {num_bins}")
        if not 0.0 <= memory < 1.0:
            raise ConfigError(f"memory must be at least 0 and below 1, not {memory}")
        self.levels, self.num_bins, self.memory = levels or Uniform(), num_bins, memory
        for name in ("moments", "counts"):
            self.register_buffer(name, torch.zeros(num_bins, dtype=torch.float64))
        self.register_buffer("fresh", torch.zeros(2, num_bins, dtype=torch.float64))  # Σ loss² and count, this batch's

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return self  # levels are drawn in float64 on the CPU, wherever the model goes

    @property
    def taught(self) -> Tensor:
        return self.fresh

    def rates(self) -> Tensor:
        """How much more often than plainly each bin is drawn, [num_bins] of mean 1."""
        if (self.counts < self.ENOUGH).any() or not (self.moments > 0).any():
            return torch.ones_like(self.moments)
        rates = torch.sqrt(self.moments)
        return (1.0 - self.MIXED_IN) * rates / rates.mean() + self.MIXED_IN

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), self.rates().cumsum(0) / self.num_bins])
        edges = edges / edges[-1]
        bins = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, self.num_bins - 1)
        within = (u - edges[bins]) / (edges[bins + 1] - edges[bins])
        return self.levels.draw((bins + within) / self.num_bins, process)

    def share(self, t: Tensor, process: Process) -> Tensor:
        place = self.levels.place(t, process) * self.num_bins
        bins = place.long().clamp(0, self.num_bins - 1)
        rates = self.rates()
        return ((rates.cumsum(0) - rates)[bins] + rates[bins] * (place - bins)) / self.num_bins

    def rate(self, t: Tensor, process: Process) -> Tensor:
        return self.levels.density(t, process) * self.rates()[self._bins(t, process)]

    def correction(self, t: Tensor, process: Process) -> Tensor:
        return self.levels.correction(t, process) / self.rates()[self._bins(t, process)]

    def _bins(self, t: Tensor, process: Process) -> Tensor:
        return (self.levels.place(t, process) * self.num_bins).long().clamp(0, self.num_bins - 1)

    def begin(self) -> None:
        # Once a batch, not once a micro-batch: how a batch is cut must not change which levels it is trained at.
        squares, seen = self.fresh
        memory = torch.where(self.counts > 0, self.memory, 0.0)
        mean = memory * self.moments + (1.0 - memory) * squares / seen.clamp(min=1.0)
        self.moments.copy_(torch.where(seen > 0, mean, self.moments))
        self.counts.add_(seen)
        self.fresh.zero_()

    def record(self, t: Tensor, losses: Tensor, process: Process) -> None:
        plain = losses.detach().to("cpu", torch.float64) / self.correction(t, process)
        known = torch.isfinite(plain)
        bins = self._bins(t, process)[known]
        self.fresh[0].index_add_(0, bins, plain[known] ** 2)
        self.fresh[1].index_add_(0, bins, torch.ones_like(plain[known]))
