"""Data whose diffusion is known in closed form, and noises that turn a random walk into arithmetic.

Written from the formulas, and apart from `core/analytic.py`, so that the two check each other. One number is one
sample: a denoiser here treats the numbers of any tensor one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.errors import DiffusionError
from diff_diffusion.tensors import expand

BISECTIONS = 90


class Normal(Denoiser):
    """The exact denoiser of data N(mean, variance): linear, so that every walk is.

    Args:
        process: what destroys the data.
        mean, variance: the data's.
        ends: answer with the end of the probability-flow ODE from x_t instead of the posterior mean, as a perfect
            consistency model does: mean + (x_t - α mean) √(variance / (α² variance + σ²)).
    """

    def __init__(self, process: Gaussian, mean: float, variance: float, ends: bool = False) -> None:
        self.process: Gaussian = process
        self.mean, self.variance, self.ends = mean, variance, ends

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
        # As floats one by one, so that a batch cannot change a sample's rounding.
        lines = [self._line(time) for time in (t.expand(len(x_t)).tolist() if isinstance(t, Tensor) else [t])]
        gain, alpha = (expand(torch.tensor(column, dtype=torch.float64), x_t) for column in zip(*lines, strict=True))
        return GaussianPosterior(self.mean + gain * (x_t - alpha * self.mean), math.nan)

    def _line(self, t: float) -> tuple[float, float]:
        """How much of x_t less α mean is the answer's, and α."""
        alpha, sigma = self.process.scales(t)
        total = alpha**2 * self.variance + sigma**2
        return math.sqrt(self.variance / total) if self.ends else alpha * self.variance / total, alpha


class TwoModes(Denoiser):
    """The exact denoiser of 0.6 N(-0.6, 0.3²) + 0.4 N(0.9, 0.25²), and where its probability-flow ODE leads.

    In one dimension the flow keeps the order of points and carries p_t to p_s, so it keeps the distribution function:
    F_s(x_s) = F_t(x_t). That is the ODE's exact solution, with no step taken.
    """

    def __init__(self, process: Gaussian) -> None:
        self.process: Gaussian = process
        self.shares, self.means, self.variances = (
            torch.tensor(row, dtype=torch.float64) for row in ((0.6, 0.4), (-0.6, 0.9), (0.09, 0.0625))
        )

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
        time = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = (scale.reshape(-1, *[1] * x_t.ndim) for scale in self.process.scales(time))
        total = alpha**2 * self.variances + sigma**2
        centred = x_t.double()[..., None] - alpha * self.means
        logits = torch.log(self.shares / total.sqrt()) - centred**2 / (2.0 * total)
        means = self.means + alpha * self.variances / total * centred
        return GaussianPosterior((logits.softmax(-1) * means).sum(-1).to(x_t.dtype), math.nan)

    def share_below(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """F_t(x_t): how much of p_t lies below."""
        total = alpha**2 * self.variances + sigma**2
        below: Tensor = torch.special.ndtr((x_t[..., None] - alpha * self.means) / total.sqrt())
        return (self.shares * below).sum(-1)

    def carried(self, x_t: Tensor, t: float, s: float) -> Tensor:
        """Where the probability-flow ODE takes x_t from t to s, by bisection of F_s to the last digit."""
        goal = self.share_below(x_t, *self.process.scales(t))
        alpha, sigma = self.process.scales(s)
        high = torch.full_like(x_t, 8.0 * (alpha + sigma))
        low = -high
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            below = self.share_below(middle, alpha, sigma) < goal
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def distance(self, samples: Tensor) -> float:
        """sup |F_n - F| of samples of the data: Kolmogorov's distance."""
        x = samples.flatten().double().sort().values
        exact = self.share_below(x, 1.0, 0.0)
        steps = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
        return max((exact - steps[:-1]).max().item(), (steps[1:] - exact).max().item())


def distance_bound(count: int, chance: float = 1e-6) -> float:
    """What Kolmogorov's distance of `count` independent draws exceeds with probability at most `chance`.

    √(ln(2 / chance) / (2 count)): the Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant.
    """
    return math.sqrt(math.log(2.0 / chance) / (2.0 * count))


class _Path:
    """A Brownian path as the pieces that were read of it, each an impulse of its own."""

    def __init__(self, clock: Callable[[float], float]) -> None:
        self.clock = clock
        self.pieces: list[tuple[float, float, int]] = []  # (from, to, which impulse)


class Impulses:
    """Noise that a linear walk answers with its variance: each independent draw is a 1 in one sample, 0 in the others.

    So the samples are the walk's responses. One that no draw has reached is the mean of its result, and the squares of
    the others about it sum to the variance, without Monte Carlo.

    Args:
        count: samples; more than the draws of the walk.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.drawn: dict[tuple[str, int], int] = {}
        self.fresh = itertools.count()
        self.key: tuple[str, int] = ("", 0)
        self.along: tuple[Any, float, float] | None = None

    def __len__(self) -> int:
        return self.count

    def _with(self, **changes: Any) -> Impulses:
        other = object.__new__(Impulses)
        other.__dict__.update(self.__dict__ | changes)
        return other

    def at(self, step: int, along: tuple[Any, float, float] | None = None) -> Impulses:
        return self._with(key=(self.key[0], step), along=along)

    def fork(self, stream: str) -> Impulses:
        return self._with(key=(f"{self.key[0]}/{stream}", self.key[1]), along=None)

    def path(self, leg: int, clock: Callable[[float], float]) -> Any:
        return _Path(clock)

    def until(self, s: float) -> Impulses:
        assert self.along is not None
        return self._with(along=(*self.along[:2], s))

    def normal(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        out = torch.zeros(tuple(shape), dtype=torch.float64)
        for which, size in self._impulses():
            if which >= self.count - 1:  # the last is the mean's
                raise DiffusionError(f"a walk drew more than {self.count - 1} independent numbers: too many to follow")
            out[which] = size
        return out

    def _impulses(self) -> Iterator[tuple[int, float]]:
        """(sample, size) of what this draw is made of."""
        if self.along is None:
            if self.key not in self.drawn:
                self.drawn[self.key] = next(self.fresh)
            yield self.drawn[self.key], 1.0
            return
        path, t, s = self.along
        start, end = path.clock(t), path.clock(s)
        if not start < end:  # the clock stands still at the data
            yield next(self.fresh), 1.0
            return
        here = path.pieces[-1][1] if path.pieces else start
        if here < end:
            path.pieces.append((max(here, start), end, next(self.fresh)))
        for begin, stop, which in path.pieces:
            if start <= begin and stop <= end:
                yield which, math.sqrt((stop - begin) / (end - start))


@dataclass(frozen=True)
class Given:
    """Noise that is whatever it was given, for kernels that are linear in it."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def normal(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        return self.values.expand(tuple(shape)).clone()

    def fork(self, stream: str) -> Any:
        return self
