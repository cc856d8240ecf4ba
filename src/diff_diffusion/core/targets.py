"""Prediction targets: what a network's output means. A target is two numbers, y = a x_0 + b ε.

Everything else follows from (a, b): x_0 = (σ y - b x_t) / (a σ - α b) decodes any of them. To add one, add a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.core.process import Corrupted, Error, Process
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.registry import register
from diff_diffusion.tensors import expand, maths, mean_flat, mixed

ROWS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "x0": lambda alpha, sigma: (1.0, 0.0),
    "eps": lambda alpha, sigma: (0.0, 1.0),  # Ho et al., arXiv 2006.11239
    "v": lambda alpha, sigma: (-sigma, alpha),  # Salimans & Ho, arXiv 2202.00512
    "velocity": lambda alpha, sigma: (-1.0, 1.0),  # Lipman et al., arXiv 2210.02747
    "score": lambda alpha, sigma: (0.0, -1.0 / sigma),  # Song et al., arXiv 2011.13456
    "edm": lambda alpha, sigma: (sigma / _norm(alpha, sigma), -alpha / _norm(alpha, sigma)),  # F of arXiv 2206.00364
}


def _norm(alpha: Any, sigma: Any) -> Any:
    return maths(alpha).sqrt(alpha * alpha + sigma * sigma)


class Target(ABC):
    """What a network's output means, for one family of processes."""

    outputs: ClassVar[int] = 1
    """How many channels a network outputs for each of the data's."""

    @abstractmethod
    def check(self, process: Process) -> None:
        """Nothing, or an IncompatibleError that names the pair and the fix."""

    @abstractmethod
    def decode(self, output: Tensor, x_t: Tensor, process: Any, t: float | Tensor) -> Posterior:
        """The posterior that the output stands for."""

    @abstractmethod
    def error(self, output: Tensor, corrupted: Corrupted, process: Any) -> Error:
        """How far the output is from the target."""


@register("target/linear", **{row: {"row": row} for row in ROWS})
@dataclass(frozen=True)
class LinearTarget(Target):
    """y = a x_0 + b ε, with (a, b) by name: x0, eps, v, velocity, score, edm.

    "edm" is the output F of EDM's preconditioned network for data of standard deviation 1; with the vp scaling it is
    -v. EDM's general sigma_data is gone: data have standard deviation 1.

    Raises:
        ConfigError: an unknown row.
    """

    row: str

    def __post_init__(self) -> None:
        if self.row not in ROWS:
            raise ConfigError(f"unknown target {self.row!r}: it is one of {', '.join(ROWS)}")

    def coefficients(self, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        """(a, b)."""
        return ROWS[self.row](alpha, sigma)

    def encode(self, x_0: Tensor, eps: Tensor, process: Gaussian, t: float | Tensor) -> Tensor:
        """y, what a perfect network would output."""
        a, b = self.coefficients(*process.scales(t))
        return expand(a, x_0) * x_0 + expand(b, x_0) * eps

    def check(self, process: Process) -> None:
        if not isinstance(process, Gaussian):
            raise IncompatibleError(f"target {self.row!r} needs a Gaussian process, not {type(process).__name__}")
        alpha, sigma = process.scales(1.0)
        a, b = self.coefficients(alpha, sigma)
        if a * sigma - alpha * b == 0.0:
            raise IncompatibleError(
                f"target {self.row!r} says nothing about x_0 where no signal is left, and "
                f"{type(process.time_map).__name__} ends there (α = 0 at t = 1): use target 'v', 'velocity', 'x0' or "
                "'edm', or give the map a finite end with Truncated"
            )

    def decode(self, output: Tensor, x_t: Tensor, process: Gaussian, t: float | Tensor) -> GaussianPosterior:
        alpha, sigma = process.scales(t)
        a, b = ROWS[self.row](alpha, sigma)
        scale = 1.0 / (a * sigma - alpha * b)
        if not isinstance(t, Tensor):
            tweedie = sigma * sigma / alpha if alpha else float("inf")
            return GaussianPosterior(mixed(-b * scale, x_t, sigma * scale, output), tweedie)
        mean = expand(sigma * scale, output) * output - expand(b * scale, x_t) * x_t
        return GaussianPosterior(mean, sigma * sigma / alpha)

    def error(self, output: Tensor, corrupted: Corrupted, process: Gaussian) -> Error:
        t = corrupted.t
        alpha, sigma = process.scales(t)
        a, b = self.coefficients(alpha, sigma)
        gain = (alpha / (a * sigma - alpha * b)) ** 2
        if output.shape != corrupted.x_t.shape:
            raise IncompatibleError(
                f"for data {list(corrupted.x_t.shape)} the network must output as much, not {list(output.shape)}"
            )
        return Error(output - self.encode(corrupted.x_0, corrupted.noise, process, t), gain)


@register("target/learned_variance")
@dataclass(frozen=True)
class LearnedVariance(Target):
    """Twice the channels: another target, and how uncertain each number of the stochastic step is.

    The second half v says the step's variance, (1 + v)/2 of the way from ln β̃ to ln β. It learns from the step's share
    of the variational bound, times `weight`, which teaches the mean nothing: L_hybrid = L + weight · L_vlb.

    Args:
        target: what the first half means.
        timesteps: T, the length of the chain whose bound is learned; a level t steps to t - 1/T.
        weight: how much the bound counts.

    Source: Nichol & Dhariwal, arXiv 2102.09672, with 0.001.
    """

    target: LinearTarget = field(default_factory=lambda: LinearTarget("eps"))
    timesteps: int = 1000
    weight: float = 0.001

    outputs: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.timesteps < 1 or not self.weight >= 0.0:
            raise ConfigError(
                "a learned variance needs timesteps of at least 1 and a weight of at least 0, not "
                f"{self.timesteps} and {self.weight}"
            )

    def check(self, process: Process) -> None:
        self.target.check(process)

    def decode(self, output: Tensor, x_t: Tensor, process: Gaussian, t: float | Tensor) -> GaussianPosterior:
        first, second = self._halves(output, x_t)
        posterior = self.target.decode(first, x_t, process, t)
        return GaussianPosterior(posterior.mean, posterior.tweedie, 0.5 * (1.0 + second))

    def error(self, output: Tensor, corrupted: Corrupted, process: Gaussian) -> Error:
        first, second = self._halves(output, corrupted.x_t)
        error, t = self.target.error(first, corrupted, process), corrupted.t
        posterior = self.decode(torch.cat([first.detach(), second], 1), corrupted.x_t, process, t)
        # The chain's first step, to the data, is left out: it has no β̃.
        later = (t - 1.0 / self.timesteps).clamp(min=1e-3 / self.timesteps)
        nats = mean_flat(process.divergence(corrupted.x_0, posterior, t, later))
        counts = (t > 1.0 / self.timesteps).to(nats)
        return Error(error.value, error.gain, self.weight * self.timesteps * counts * nats)

    def _halves(self, output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        if output.shape != (x_t.shape[0], 2 * x_t.shape[1], *x_t.shape[2:]):
            raise IncompatibleError(
                f"a learned variance needs twice the data's {x_t.shape[1]} channels from the network, and it outputs "
                f"{list(output.shape)} for {list(x_t.shape)}: build it with out_channels={2 * x_t.shape[1]}"
            )
        first, second = output.chunk(2, dim=1)
        return first, second
