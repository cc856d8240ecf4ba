"""Counter-based noise: a pure function of (seed of the sample, stream, step).

Sample i is the same whatever the batch size, rank count, worker count or order, because nothing is shared: each
sample has its own Philox key and each step its own counter block. Drawn with numpy on the CPU, since torch.randn
differs between instruction sets; no global random state is read or written.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), for Philox.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

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

    def __post_init__(self) -> None:
        bad = next((seed for seed in self.seeds if not 0 <= seed < 1 << 64), None)
        if bad is not None:
            raise ConfigError(f"seed {bad} is out of range: a seed is a whole number from 0 to 2^64 - 1")

    def __len__(self) -> int:
        return len(self.seeds)

    def at(self, step: int) -> Noise:
        """The same samples at another step."""
        return replace(self, step=step)

    def fork(self, stream: str) -> Noise:
        """The same samples in another stream, named below this one."""
        return replace(self, stream=f"{self.stream}/{stream}")

    def __getitem__(self, rows: slice) -> Noise:
        return replace(self, seeds=self.seeds[rows])

    def normal(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """Standard normal numbers, [len(self), ...] float32, on the device and in the dtype of `like`."""
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
        stream = _stream_key(self.stream)
        for seed in self.seeds:
            state["state"]["key"] = np.array([seed, stream], np.uint64)
            state["state"]["counter"] = np.array([0, 0, self.step, 0], np.uint64)
            philox.state = state
            yield rng


def _to(values: Tensor, like: Tensor | None) -> Tensor:
    return values if like is None else values.to(like.device, like.dtype)
