"""Measures: what an error costs. To add one: a frozen dataclass with `of`, registered as "measure/name"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diff_diffusion.core.categorical import Tokens
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Process
from diff_diffusion.core.product import Product
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.tensors import expand, mean_flat


class Measure(ABC):
    """The cost of a sample's error."""

    needs: ClassVar[tuple[type[Process], ...]] = (Gaussian,)
    """The families of processes whose errors it measures."""

    @abstractmethod
    def of(self, error: Tensor, gain: Tensor) -> Tensor:
        """[B]: the mean cost of error [B, ...], whose square times gain [B] is the squared error of ε̂."""


@register("measure/squared")
@dataclass(frozen=True)
class Squared(Measure):
    """‖error‖² · gain: the one that makes the posterior mean the best answer, and the loss a bound."""

    def of(self, error: Tensor, gain: Tensor) -> Tensor:
        squared = mean_flat(error**2)
        return squared * expand(gain, squared)


@register("measure/l1")
@dataclass(frozen=True)
class L1(Measure):
    """|error| · √gain. Its best answer is the posterior median, number by number, not the mean."""

    def of(self, error: Tensor, gain: Tensor) -> Tensor:
        absolute = mean_flat(error.abs())
        return absolute * expand(torch.sqrt(gain), absolute)


@register("measure/huber")
@dataclass(frozen=True)
class Huber(Measure):
    """Squared up to `delta`, linear beyond: e² for |e| <= δ, else 2 δ |e| - δ², with e = error · √gain.

    Source: Huber, "Robust estimation of a location parameter" (1964), doubled so that it equals the square near 0.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ConfigError(f"huber's delta must be above 0, not {self.delta}")

    def of(self, error: Tensor, gain: Tensor) -> Tensor:
        size = (error * expand(torch.sqrt(gain), error)).abs()
        return mean_flat(torch.where(size <= self.delta, size**2, self.delta * (2.0 * size - self.delta)))


@register("measure/nats")
@dataclass(frozen=True)
class Nats(Measure):
    """An error that is a cost already: the cross-entropy of tokens, and of mixed data."""

    needs: ClassVar[tuple[type[Process], ...]] = (Tokens, Product)

    def of(self, error: Tensor, gain: Tensor) -> Tensor:
        nats = mean_flat(error) if error.ndim > 1 else error
        return nats * expand(gain, nats)
