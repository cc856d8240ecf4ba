"""Fashion-MNIST: 70,000 grey images of 28 × 28 in ten classes (Xiao et al. 2017, arXiv 1708.07747; MIT licence).

Debian and its relatives have it as the package `dataset-fashion-mnist`, which puts it into /usr/share/datasets.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import DataError

HOME = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_HEADERS = {"images": 16, "labels": 8}


def there() -> bool:
    return (HOME / "train-images-idx3-ubyte.gz").exists()


def fashion() -> tuple[ImageDataset, ImageDataset]:
    """The 60,000 training images, and the 10,000 that are held out.

    Raises:
        DataError: they are not on this machine.
    """
    if not there():
        raise DataError(
            f"no Fashion-MNIST in {HOME}: install the package dataset-fashion-mnist, or set FASHION_MNIST to a folder "
            "that holds its four files"
        )
    return _split("train"), _split("t10k")


def _split(name: str) -> ImageDataset:
    images = _read(name, "images").reshape(-1, 28, 28)
    return ImageDataset.from_arrays(images, _read(name, "labels").astype(np.int64), NAMES, name=f"fashion-mnist-{name}")


def _read(split: str, what: str) -> np.ndarray:
    [path] = HOME.glob(f"{split}-{what}-idx?-ubyte.gz")
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=_HEADERS[what]).copy()
