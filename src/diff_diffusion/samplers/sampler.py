"""The walk from noise to data: one generator for every sampler, process and grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import count, pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.posterior import Posterior
from diff_diffusion.core.process import Moment, Process
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.registry import build, names
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.edits import Edit
from diff_diffusion.samplers.grid import Grid
from diff_diffusion.tensors import maths


class Sampler(ABC):
    """One step of a walk. To add one: a frozen dataclass with `step`, registered as "sampler/name"."""

    needs: ClassVar[type[Process]] = Process  # type: ignore[type-abstract]
    """The family of processes that it fits."""

    adaptive: ClassVar[bool] = False
    """Whether it takes steps of its own choice between the grid's times."""

    order: int = 1
    """Its convergence order on the probability-flow ODE, proven in tests/laws/test_samplers.py."""

    @property
    def weak_order(self) -> int:
        """The order at which the moments of its samples converge, proven there too."""
        return self.order

    @property
    def bias(self) -> float:
        """How far the variance of its samples may stay from the data's on the finest grid, as a share of it."""
        return 0.0

    @property
    def deterministic(self) -> bool:
        """Whether a step draws no noise: it has no eta, or eta is 0."""
        return bool(getattr(self, "eta", 0.0) == 0.0)

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        """From x_t to x_s, s < t. `state` is None at the start and after a jump, then what the last step returned."""


class Step(NamedTuple):
    """Where the walk is after a step.

    Attributes:
        index: 0 for the first step.
        t, s: the step went from time t to time s.
        x: x_s, [B, ...].
        x_0: the denoiser's first guess of the clean data in this step, x̂_0 at time t; None after a jump to more noise.
        nfe: network evaluations so far.
    """

    index: int  # type: ignore[assignment]  # a tuple's method of that name is of no use here
    t: float
    s: float
    x: Tensor
    x_0: Tensor | None
    nfe: int


class _Watched(Denoiser):
    """A denoiser that counts its evaluations and keeps the first answer of a step."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.inner = denoiser
        self.process = denoiser.process
        self.nfe = 0
        self.first: Tensor | None = None

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        posterior = self.inner(x_t, t, cond)
        self.nfe += 1
        if self.first is None:
            self.first = posterior.mean
        return posterior


def check_fits(sampler: Sampler, process: Process) -> None:
    """Nothing, or an IncompatibleError that names the samplers that fit the process."""
    if not isinstance(process, sampler.needs):
        every = [(name, build({"type": f"sampler/{name}"})) for name in names("sampler")]
        fits = [name for name, other in every if isinstance(process, other.needs)]
        raise IncompatibleError(
            f"{type(sampler).__name__} needs a {sampler.needs.__name__} process; this model uses "
            f"{type(process).__name__}. Samplers that fit: {', '.join(fits)}"
        )


def check_times(times: Sequence[float]) -> None:
    """Nothing, or a ConfigError: at least two times in [0, 1], no two neighbours equal, the last exactly 0."""
    if len(times) < 2 or any(not 0.0 <= time <= 1.0 for time in times):
        raise ConfigError(f"a grid needs at least two times, all in [0, 1], not {list(times)}")
    if times[-1] != 0.0:
        raise ConfigError(f"a grid ends at exactly 0, the data, not at {times[-1]}")
    same = next((t for t, s in pairwise(times) if t == s), None)
    if same is not None:
        raise ConfigError(f"a grid has no step of length 0, but it stays at {same}")


def clock(process: Process) -> Callable[[float], float]:
    """The clock of samples' Brownian paths, τ = sigmoid(λ(t)/4): bounded, and of no time map or scaling."""
    log_snr = process.time_map.log_snr
    return lambda t: float(maths(t).sigmoid(0.25 * log_snr(t)))


def trajectory(
    denoiser: Denoiser,
    sampler: Sampler,
    times: Sequence[float],
    x: Tensor,
    *,
    cond: Cond | None = None,
    noise: Noise,
    edits: Sequence[Edit] = (),
) -> Iterator[Step]:
    """The walk of `x` along `times`, a step at a time.

    A step to a noisier time applies the forward kernel, so churn, restarts and time travel are only grids. The prior
    of a sample is drawn at `noise.at(0)`, and step i's noise is `noise.at(i + 1)`, but for the normal numbers of steps
    down: these are increments of one Brownian path, so that a sample converges as its grid is refined. After a jump a
    new path begins: the old one has been seen.

    Args:
        denoiser: answers for x_0; `cond` is passed on to it.
        sampler: what a step does.
        times: a grid's times, from noise to exactly 0.
        x: x at times[0], [B, ...].
        noise: one key per sample.
        edits: applied to x after each step, in turn.

    Raises:
        IncompatibleError: the sampler does not fit the denoiser's process.
        ConfigError: times that are no grid.
    """
    check_fits(sampler, denoiser.process)
    check_times(times)
    watched, state = _Watched(denoiser), None
    no_grad, already = torch.no_grad(), nullcontext()  # turning off what is off costs as much as a small step
    legs, tau = count(), clock(denoiser.process)
    path = noise.path(next(legs), tau)
    for index, (t, s) in enumerate(pairwise([Moment(time, denoiser.process) for time in times])):
        watched.first = None
        # Not around the yield: the caller's gradient mode is the caller's.
        with no_grad if torch.is_grad_enabled() else already:
            if s > t:
                x, state = denoiser.process.renoise(x, t, s, noise.at(index + 1)), None
                path = noise.path(next(legs), tau)
            else:
                x, state = sampler.step(watched, x, t, s, state, cond, noise.at(index + 1, (path, t, s)))
            for number, edit in enumerate(edits):
                x = edit(x, s, denoiser.process, noise.fork(f"edit {number}").at(index + 1))
        yield Step(index, t, s, x, watched.first, watched.nfe)


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    grid: Grid,
    shape: Sequence[int],
    *,
    noise: Noise,
    cond: Cond | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Samples of the data, [len(noise), *shape]: the end of the trajectory that starts at the prior."""
    times = grid.times(denoiser.process)
    x = denoiser.process.prior((len(noise), *shape), noise.at(0), times[0]).to(device)
    for step in trajectory(denoiser, sampler, times, x, cond=cond, noise=noise):
        x = step.x
    return x
