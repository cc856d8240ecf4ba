"""What destroys data: the contract that samplers and objectives see, whatever the family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diff_diffusion.core.posterior import Posterior
from diff_diffusion.core.time_maps import TimeMap
from diff_diffusion.rng import Noise


@dataclass(frozen=True)
class Corrupted:
    """Data after the forward process: x_t at time t, with the x_0 and the noise it came from."""

    x_t: Tensor
    x_0: Tensor
    noise: Tensor
    t: Tensor


class Process(ABC):
    """A forward process on [0, 1] whose only dial is its time map, and its one reverse kernel."""

    time_map: TimeMap

    @abstractmethod
    def marginal(self, x_0: Tensor, t: Tensor, noise: Noise) -> Corrupted:
        """A draw of q(x_t | x_0). `t` is float64, its shape a prefix of x_0's: a level per sample, frame or token."""

    @abstractmethod
    def renoise(self, x_s: Tensor, s: float, t: float, noise: Noise) -> Tensor:
        """A draw of the forward kernel q(x_t | x_s), s < t."""

    @abstractmethod
    def reverse(
        self, x_t: Tensor, posterior: Posterior, t: float, s: float, *, eta: float = 0.0, noise: Noise | None = None
    ) -> Tensor:
        """A draw of the reverse kernel q(x_s | x_t, x̂_0), s < t. s = 0 gives x̂_0: no noise is left in a sample."""

    @abstractmethod
    def prior(self, shape: Sequence[int], noise: Noise, t: float = 1.0) -> Tensor:
        """Where sampling starts: a draw of the process at time t when the data are forgotten."""
