"""What destroys data: the contract that samplers and objectives see, whatever the family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from torch import Tensor

from diff_diffusion.core.posterior import Posterior
from diff_diffusion.core.time_maps import TimeMap
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import Real, expand


@dataclass(frozen=True)
class Corrupted:
    """Data after the forward process: x_t at time t, with the x_0 and the noise it came from."""

    x_t: Tensor
    x_0: Tensor
    noise: Tensor
    t: Tensor


class Error(NamedTuple):
    """How wrong a denoiser is about corrupted data.

    Attributes:
        value: [B, ...]. For a Gaussian process the error of x_0, or of what the network outputs; for tokens what it
            costs, in nats.
        gain: [B]. gain · value² is the squared error of ε̂; for tokens, gain · value is twice the nats for a unit of λ.
            So that for both, w = ½ dλ is the variational bound.
        bound: [B], what the network's output costs on top of that, or None: a learned variance.
    """

    value: Tensor
    gain: Tensor
    bound: Tensor | None = None


class Moment(float):
    """A time of a walk that remembers what its process says of it, since every step asks several times.

    To all others it is the float that it is, and so is whatever is computed from it. A walk makes its own, so nothing
    is remembered of a time map that learns.
    """

    process: Process
    log_snr: float
    scales: Any

    def __new__(cls, t: float, process: Process) -> Moment:
        moment = float.__new__(cls, t)
        moment.process, moment.log_snr, moment.scales = process, process.time_map.log_snr(float(t)), None
        return moment


class Process(ABC):
    """A forward process on [0, 1] whose only dial is its time map, and its one reverse kernel."""

    time_map: TimeMap

    def log_snr(self, t: Real) -> Real:
        """λ at t, of a float or a float64 tensor."""
        return t.log_snr if isinstance(t, Moment) and t.process is self else self.time_map.log_snr(t)

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
    def error(self, corrupted: Corrupted, posterior: Posterior) -> Error:
        """How wrong the posterior of corrupted.x_t is about corrupted.x_0."""

    def nats(self, error: Error) -> Tensor:
        """What an error costs for a unit of λ, number by number: the rate at which the variational bound grows."""
        return error.value * expand(0.5 * error.gain, error.value)

    @abstractmethod
    def reconstruction(self, x_0: Tensor, posterior: Posterior, t: float, bins: Any | None = None) -> Tensor:
        """-ln p(x_0 | x_t), nats [B]: what is left to say when the bound's last level is t.

        `bins` (core.likelihood.Bins) says what the values of discrete numbers are; None for continuous ones.
        """

    def with_time_map(self, time_map: TimeMap) -> Process:
        """The same process on another clock."""
        return cast(Process, replace(cast(Any, self), time_map=time_map))

    @abstractmethod
    def shown(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """x_t as a network sees it: the same whatever the scaling."""

    @abstractmethod
    def prior_gap(self, x_0: Tensor, t: float) -> Tensor:
        """KL(q(x_t | x_0) ‖ prior at t), nats [B]: what is still known of x_0 where sampling starts."""

    @abstractmethod
    def prior(self, shape: Sequence[int], noise: Noise, t: float = 1.0) -> Tensor:
        """Where sampling starts: a draw of the process at time t when the data are forgotten."""
