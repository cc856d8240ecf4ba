"""Where the pixels of a data set lie: all in memory, or in files that are decoded when asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.data.images import read_image

MEMORY_BUDGET = 1 << 30  # bytes of decoded pixels that are kept; a larger set stays on disk
_CHUNK = 1024

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Store:
    """Images by row, each uint8 of one shape. Shared by a data set and its parts.

    Args:
        shape: (C, H, W).
        names: one per row; of files, their POSIX paths below the root.
        digests: one per row, a hash of its pixels.
        pixels: uint8 [N, C, H, W]; None where files are decoded on demand.
        root: the folder of the files; unused in memory.
    """

    shape: tuple[int, int, int]
    names: Sequence[str]
    digests: Sequence[bytes]
    pixels: Tensor | None = None
    root: Path = Path()

    def read(self, row: int) -> Tensor:
        """The image of one row, uint8 [C, H, W], the caller's own.

        Raises:
            ImageFileError: its file is gone or broken.
        """
        if self.pixels is not None:
            return self.pixels[row].clone()
        return torch.from_numpy(read_image(self.root / self.names[row], self.shape))


class Digests(Sequence[bytes]):
    """Hashes of images, uint8 [N, 16], one after the other in memory or in a mapped file."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.asarray(values)  # plain: a memmap's own indexing is slow

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> Digests: ...
    def __getitem__(self, row: int | slice) -> bytes | Digests:
        return Digests(self.values[row]) if isinstance(row, slice) else self.values[row].tobytes()

    @classmethod
    def of(cls, digests: Sequence[bytes]) -> Digests:
        if isinstance(digests, cls):
            return digests
        return cls(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16))

    def distinct(self) -> int:
        """How many there are that differ, in their first half: 10⁷ random ones have two alike once in 400,000 times."""
        return len(np.unique(np.ascontiguousarray(self.values[:, :8]).view(np.uint64)))


def digest(image: Tensor) -> bytes:
    """16 bytes that stand for the values of a contiguous uint8 tensor."""
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`function` of each item, in order, several at a time (Pillow lets go of the interpreter while it decodes).

    The pool lives as long as the call: one that a process keeps would be dead, and hang, in the workers it forks.
    """
    if len(items) < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1, len(items))) as pool:
        # In chunks, because map queues everything at once and keeps every result that is not yet taken.
        for first in range(0, len(items), _CHUNK):
            yield from pool.map(function, items[first : first + _CHUNK])
