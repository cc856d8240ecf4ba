"""Counter-based noise: a pure function of (seed of the sample, stream, step).

Sample i is the same whatever the batch size, rank count, worker count or order, because nothing is shared: each
sample has its own Philox key and each step its own counter block. Drawn with numpy on the CPU, since torch.randn
differs between instruction sets; no global random state is read or written.

The noise of a sampler's steps is one Brownian path per sample, so that a sample of an SDE converges as its grid is
refined: a coarse step's noise is the sum of the fine steps' in its place.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), for Philox.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.errors import ConfigError


@lru_cache(maxsize=256)
def _stream_key(stream: str) -> int:
    return derive(0, stream)


def derive(seed: int, *path: int | str) -> int:
    """A 64-bit seed for one use of `seed`: `derive(run_seed, "order", epoch)`."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A numpy generator of its own for one use of `seed`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *path)))


@dataclass(frozen=True)
class Noise:
    """Random numbers for a batch of samples, one key each.

    Args:
        seeds: one seed per sample, each in [0, 2^64).
        stream: what the numbers are for; two streams of one sample are independent.
        step: which step they are for.

    Raises:
        ConfigError: a seed is out of range.

    >>> noise = Noise([7, 8])
    >>> bool((noise.normal((2, 3))[1] == Noise([8]).normal((1, 3))[0]).all())
    True
    """

    seeds: Sequence[int]
    stream: str = "sample"
    step: int = 0
    _increment: tuple[Brownian, float, float] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bad = next((seed for seed in self.seeds if not 0 <= seed < 1 << 64), None)
        if bad is not None:
            raise ConfigError(f"seed {bad} is out of range: a seed is a whole number from 0 to 2^64 - 1")

    def __len__(self) -> int:
        return len(self.seeds)

    def at(self, step: int, along: tuple[Brownian, float, float] | None = None) -> Noise:
        """The same samples at another step. `along` (path, t, s): `normal` gives that path's increment from t to s."""
        return self._with(step=step, _increment=along)

    def fork(self, stream: str) -> Noise:
        """The same samples in another stream, named below this one."""
        return self._with(stream=f"{self.stream}/{stream}", _increment=None)

    def path(self, leg: int, clock: Callable[[float], float]) -> Brownian:
        """The samples' Brownian paths down one leg of a walk: from its start, or a jump to more noise, to the next."""
        return Brownian(self.fork(f"path/{leg}"), clock)

    def until(self, s: float) -> Noise:
        """The first part of a step's noise, up to time s: the whole step's, drawn after it, has it in it.

        Raises:
            ConfigError: this is not the noise of a step.
        """
        if self._increment is None:
            raise ConfigError(
                "only noise along a path has parts: take a step's from trajectory, or from at(step, along)"
            )
        path, t, _ = self._increment
        return self._with(_increment=(path, t, s))

    def _with(self, **changes: Any) -> Noise:
        # dataclasses.replace would check every seed again, at each step.
        noise = object.__new__(type(self))
        noise.__dict__.update(self.__dict__)
        noise.__dict__.update(changes)
        return noise

    def __getitem__(self, rows: slice) -> Noise:
        return self._with(seeds=self.seeds[rows], _increment=None)

    def normal(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """Standard normal numbers, [len(self), ...] float32, on the device and in the dtype of `like`."""
        if self._increment is not None:
            path, t, s = self._increment
            return _to(path.normal(t, s, shape), like)
        out = np.empty((len(self.seeds), math.prod(shape[1:])), np.float32)
        for row, rng in zip(out, self._generators(shape), strict=True):
            rng.standard_normal(out=row, dtype=np.float32)
        return _to(torch.from_numpy(out.reshape(shape)), like)

    def uniform(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """Uniform numbers in [0, 1), [len(self), ...] float64."""
        out = np.empty((len(self.seeds), math.prod(shape[1:])), np.float64)
        for row, rng in zip(out, self._generators(shape), strict=True):
            rng.random(out=row)
        return _to(torch.from_numpy(out.reshape(shape)), like)

    def _generators(self, shape: Sequence[int]) -> Iterator[np.random.Generator]:
        if len(shape) == 0 or shape[0] != len(self.seeds):
            raise ConfigError(f"noise for {len(self.seeds)} samples was asked for shape {tuple(shape)}")
        # Re-keying one bit generator costs 1 µs; making a new one costs 6.
        philox = np.random.Philox(key=0)
        state = philox.state
        rng = np.random.Generator(philox)
        key = state["state"]["key"] = np.array([0, _stream_key(self.stream)], np.uint64)
        state["state"]["counter"] = np.array([0, 0, self.step, 0], np.uint64)
        for seed in self.seeds:
            key[0] = seed
            philox.state = state
            yield rng


class Brownian:
    """Brownian paths W on τ ∈ [0, 1], one per sample, read from 0 to 1 by increments.

    W(1) is drawn first, then midpoints of halves of halves, until the segment that a step ends in is at most half
    the step; the rest is an exact Brownian bridge from the last point read. So the increments of any grid are
    exactly independent and normal, and two grids read the same path as far as their steps resolve it. Nodes are keyed
    by their place; only the increments still ahead are kept, never W itself, which would lose short steps to rounding.

    Args:
        noise: keys of the samples, in a stream of the path's own.
        clock: τ at time t, rising from 0 towards 1 as t falls.

    Source: the virtual Brownian tree of Li et al., "Scalable Gradients for SDEs", arXiv 2001.01328, with bridges for
    its cut-off.
    """

    RESOLUTION = 0.5

    def __init__(self, noise: Noise, clock: Callable[[float], float]) -> None:
        self.noise, self.clock = noise, clock
        self._start = self._here = 0.0
        self._risen: Tensor | None = None  # W(here) - W(start)
        self._ahead: list[tuple[int, int, Tensor]] = []  # (level, index, what W rises by in it), the nearest last
        self._bridges = 0  # in the segment that `here` is in

    def normal(self, t: float, s: float, shape: Sequence[int]) -> Tensor:
        """(W(τ_s) - W(τ_t)) / √(τ_s - τ_t), standard normal.

        Raises:
            ConfigError: the path was read beyond this step already.
        """
        start, end = self.clock(t), self.clock(s)
        if start >= end:  # α²/σ² above e^140: the clock stands still, and so would the sample
            return self.noise.at(1 << 62).normal(shape)
        if start != self._start:
            self._read(start, shape)
            self._start, self._risen = start, None
        self._read(end, shape)
        assert self._risen is not None
        return self._risen / math.sqrt(end - start)

    def _read(self, end: float, shape: Sequence[int]) -> None:
        if end < self._here:
            raise ConfigError("a path's noise is drawn in the order of its steps, once; use noise.fork(name) for more")
        if not self._ahead and self._here == 0.0:
            self._ahead.append((0, 0, self.noise.at(0).normal(shape)))
        resolved = self.RESOLUTION * (end - self._start)
        while self._here < end:
            level, index, rise = self._ahead.pop()
            length, node = 0.5**level, (1 << level) + index
            stop = (index + 1) * length
            if stop <= end:
                self._bridges = 0
            elif length > resolved and not self._bridges and level < _DEEPEST:
                half = 0.5 * rise
                bend = self.noise.at(node).normal(shape).mul_(0.5 * math.sqrt(length))
                self._ahead += ((level + 1, 2 * index + 1, half - bend), (level + 1, 2 * index, half + bend))
                continue
            else:
                share = (end - self._here) / (stop - self._here)
                self._bridges += 1
                bend = self.noise.at((self._bridges << _DEEPEST + 1) + node).normal(shape)
                part = bend.mul_(math.sqrt((end - self._here) * (1.0 - share))).add_(rise, alpha=share)
                self._ahead.append((level, index, rise - part))
                rise, stop = part, end
            self._risen = rise if self._risen is None else self._risen + rise
            self._here = stop


_DEEPEST = 40  # levels: nodes' numbers stay below 2^64, and floats resolve their places


def _to(values: Tensor, like: Tensor | None) -> Tensor:
    return values if like is None else values.to(like.device, like.dtype)
