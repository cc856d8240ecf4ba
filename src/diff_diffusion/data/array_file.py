"""Images in one array file, mapped: as many as the disk holds, in memory that does not grow with them.

`photos.npy` is uint8 [N, H, W] or [N, H, W, C]; `photos.labels.npy` beside it, where it is there, are whole numbers [N]
from 0. Nothing is resized or turned to grey: what lies in the file is what is trained on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import torch

from diff_diffusion.data import index
from diff_diffusion.data.store import Digests, Store, digest
from diff_diffusion.data.survey import Progress
from diff_diffusion.errors import ConfigError, DataError

SUFFIX, LABELS = ".npy", ".labels.npy"
_PART = 4096


class Arrays(NamedTuple):
    """The images of a file, mapped, and their labels, int64 [N], or None."""

    store: Store
    labels: np.ndarray | None


class Numbers(Sequence[str]):
    """The names of images that have none: "0", "1", …"""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Numbers: ...
    def __getitem__(self, row: int | slice) -> str | Numbers:
        return Numbers(self.numbers[row]) if isinstance(row, slice) else str(self.numbers[row])


def read_arrays(
    path: Path, size: tuple[int, int] | None, channels: int | None, progress: Progress | None, indexed: bool
) -> Arrays:
    """The images of an array file.

    Args:
        size, channels: those of the file, or None.
        progress: called as progress(done, total) while images are hashed.
        indexed: whether to read and keep their hashes (see `diff_diffusion.data.index`).

    Raises:
        ConfigError: another size or number of channels was asked for.
        DataError: the file is not such an array, or the labels do not fit.
    """
    array = _opened(path)
    if (
        array.dtype != np.uint8
        or array.ndim not in (3, 4)
        or array.size == 0
        or array.shape[3:] not in ((), (1,), (3,))
    ):
        raise DataError(
            f"{path} holds {list(array.shape)} of {array.dtype}: images are uint8 [N, H, W] or [N, H, W, C], C 1 or 3, "
            "0 to 255"
        )
    images = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    if (size or shape[1:]) != shape[1:] or (channels or shape[0]) != shape[0]:
        raise ConfigError(
            f"{path} holds images of {shape[1]}×{shape[2]} in {'grey' if shape[0] == 1 else 'RGB'}, and an array file "
            "is used as it is: leave size and channels out, or write another file"
        )
    pixels = torch.from_numpy(images)
    beside = path.with_name(path.name.removesuffix(SUFFIX) + LABELS)
    labels = _labels(beside, len(images)) if beside.exists() else None
    about = {"file": os.path.realpath(path), "shape": list(array.shape)}
    stamp = index.stamps([os.path.realpath(path)])
    known = index.read(about) if indexed and len(images) >= index.ENOUGH else None
    if known is not None and stamp[0, 0] >= 0 and (known["stamp"] == stamp).all():
        digests = known["digests"]
    else:
        digests = np.empty((len(images), 16), np.uint8)
        for first in range(0, len(images), _PART):
            for row, image in enumerate(pixels[first : first + _PART], first):
                digests[row] = np.frombuffer(digest(image), np.uint8)
            if progress:
                progress(min(first + _PART, len(images)), len(images))
        if indexed and len(images) >= index.ENOUGH and stamp[0, 0] >= 0:
            index.write(about, {"stamp": stamp, "digests": digests})
    return Arrays(Store(shape, Numbers(range(len(images))), Digests(digests), pixels), labels)


def _opened(path: Path) -> np.ndarray:
    try:
        # Mapped privately: torch wants memory that may be written to, and the file must not be.
        found: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
        return found
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not an array that numpy.save wrote: {error}") from error


def _labels(path: Path, count: int) -> np.ndarray:
    labels = _opened(path)
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(
            f"{path} holds {list(labels.shape)} of {labels.dtype}: labels are {count} whole numbers from 0, one for "
            "each image"
        )
    return labels.astype(np.int64)
