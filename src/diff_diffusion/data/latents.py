"""What an encoder says of every image, found out once: no epoch, and no other training, encodes them again."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.data import index
from diff_diffusion.data.dataset import ImageDataset
from diff_diffusion.data.survey import Progress

PIXELS = 64 * 128 * 128
"""At once, in at most 64 images."""


def at_once(shape: Sequence[int]) -> int:
    """How many images of a shape are encoded together: always as many, so that what is made anew has the same bytes."""
    return max(1, min(64, PIXELS // math.prod(shape[1:])))


class Moments:
    """float32 [N, ...] of N images, in a file that is mapped: what does not fit into memory stays on disk.

    Args:
        values: of every image of a data set.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def batch(self, indices: np.ndarray) -> Tensor:
        """Of some images, float32 [B, ...]."""
        return torch.from_numpy(np.asarray(self.values[indices]))


def moments_of(
    data: ImageDataset,
    encode: Callable[[Tensor], Tensor],
    encoder: Mapping[str, Any],
    most: int = index.MAX_BYTES,
    progress: Progress | None = None,
) -> Moments | None:
    """What `encode` says of every image, from the user's cache folder or found out now, and kept there.

    It is kept under the images' own contents and the encoder's, so another of either finds nothing; a file that is
    not as it was written is made anew. None where it would take more than `most` bytes, or than the disk has.

    Args:
        data: the images.
        encode: uint8 [B, C, H, W] to float32 [B, ...].
        encoder: JSON data that say which encoder it is, weights and all.
        most: bytes.
        progress: called with (done, total) images.
    """
    if not len(data):
        return None
    about = {"latents of": data.fingerprint(), "by": dict(encoder)}
    found = index.read(about)
    if found is not None and len(found.get("moments", ())) == len(data):
        return Moments(found["moments"])
    first = encode(data.batch(range(1)))
    shape = (len(data), *first.shape[1:])
    if 4 * int(np.prod(shape)) > most:
        return None
    file = _file(4 * int(np.prod(shape)))
    if file is None:
        return None
    with file:
        values = np.memmap(file, np.float32, "w+", shape=shape)
        batch = at_once(data.shape)
        for start in range(0, len(data), batch):
            rows = range(start, min(start + batch, len(data)))
            values[rows.start : rows.stop] = encode(data.batch(rows)).cpu().numpy()
            if progress is not None:
                progress(rows.stop, len(data))
        if data.stood_in:  # what took a broken file's place now must not stand for it when it is whole again
            return Moments(values)
        index.write(about, {"moments": values})
        kept = index.read(about)
    return Moments(values if kept is None else kept["moments"])


def _file(size: int) -> IO[bytes] | None:
    """A file of that size without a name, where what is found out is kept; None where the disk has no room."""
    try:
        index.home().mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=index.home())  # noqa: SIM115 - it is handed on
    except OSError:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        if hasattr(os, "posix_fallocate"):  # a file with holes ends the process, without a word, when the disk is full
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        file.close()
        return None
    return file
