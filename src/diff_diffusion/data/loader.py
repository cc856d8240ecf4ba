"""The order of the data, a pure function of (seed, step), and batches in that order.

Nothing is counted along the way, so that a training resumed at any step goes on with exactly the images it would have
seen, whatever the batches were cut into before.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diff_diffusion import rng
from diff_diffusion.data.dataset import ImageDataset
from diff_diffusion.errors import ConfigError


class Batch(NamedTuple):
    """What one optimizer step sees.

    Args:
        step: which step, from 0.
        indices: int64 [B], of the items in the data set.
        pixels: uint8 [B, C, H, W]; of no images where they are not wanted.
        labels: int64 [B], or None without classes.
        cond: of each column what is known of the items, lists of B as `ImageDataset.cond` gives them.
    """

    step: int
    indices: np.ndarray
    pixels: Tensor
    labels: Tensor | None
    cond: dict[str, list[Any]]


def order(num_items: int, seed: int, first: int, count: int) -> np.ndarray:
    """The items that the samples first … first + count - 1 of a training are, int64 [count].

    Sample k belongs to epoch k // num_items, and every epoch is a permutation of its own. A batch may straddle epochs.

    Raises:
        ConfigError: there are no items, or first or count is negative.

    >>> order(4, seed=0, first=0, count=6).tolist()[:4] == order(4, seed=0, first=0, count=4).tolist()
    True
    """
    if num_items < 1 or first < 0 or count < 0:
        raise ConfigError(f"{count} samples from number {first} on, of {num_items} items: 0, 0 and 1 are the least")
    pieces = [np.empty(0, np.int64)]
    while count > 0:
        epoch, offset = divmod(first, num_items)
        piece = _permutation(num_items, seed, epoch)[offset : offset + count]
        pieces.append(piece)
        first, count = first + len(piece), count - len(piece)
    return np.concatenate(pieces)


@lru_cache(maxsize=4)
def _permutation(num_items: int, seed: int, epoch: int) -> np.ndarray:
    return rng.generator(seed, "order", epoch).permutation(num_items)


class Batches:
    """The batches of a training from one step on, without end; stop when you have enough.

    Batches that come from disk are read ahead in the background, those in memory when they are asked for. The content
    is the same either way. Leaving the loop, by `break` or by an error, ends the background threads.

    Args:
        dataset: what to train on.
        batch_size: images per step.
        seed: of the order.
        start_step: the first step; resuming at step n is `start_step=n`.
        ahead: how many batches to read ahead; 0 reads each when it is asked for.
        threads: how many batches are read at the same time, each by several threads of its own.
        rows: of every batch, those that are wanted: one process's part. All of them when left out.
        pixels: whether images are wanted at all, or only which they are and what is known of them.

    Raises:
        ConfigError: an argument is out of range.

    >>> dataset = ImageDataset.from_arrays(np.zeros((10, 8, 8), np.uint8))
    >>> next(iter(Batches(dataset, batch_size=4, seed=0))).pixels.shape
    torch.Size([4, 1, 8, 8])
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        *,
        ahead: int = 2,
        threads: int = 1,
        rows: slice | None = None,
        pixels: bool = True,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("start_step", start_step, 0),
            ("ahead", ahead, 0),
            ("threads", threads, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} {value} is out of range: {least} or more")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        reads_files = any(column.reads_files for column in dataset.columns.values())
        self.pixels = pixels
        self.ahead = ahead if reads_files or (pixels and not dataset.in_memory) else 0
        self.threads = threads
        self.rows = range(batch_size)[rows or slice(None)]

    def at(self, step: int) -> Batch:
        """The batch of one step, whatever was read before."""
        first = step * self.batch_size + self.rows.start
        indices = order(len(self.dataset), self.seed, first, len(self.rows))
        labels = self.dataset.labels
        chosen = None if labels is None else torch.from_numpy(labels[indices])
        pixels = self.dataset.batch(indices if self.pixels else [])
        samples = range(first, first + len(self.rows))
        choice = np.array([rng.derive(self.seed, "caption", sample) for sample in samples], np.uint64)
        return Batch(step, indices, pixels, chosen, self.dataset.cond(indices, choice, pixels if self.pixels else None))

    def __iter__(self) -> Generator[Batch, None, None]:
        steps = itertools.count(self.start_step)
        if not self.ahead:
            yield from map(self.at, steps)
            return
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="batches")
        try:
            waiting: deque[Future[Batch]] = deque()
            while True:
                while len(waiting) <= self.ahead:
                    waiting.append(pool.submit(self.at, next(steps)))
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
