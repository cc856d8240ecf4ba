"""Data sets that come with a package, by name. A second one is one more function in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diff_diffusion import rng
from diff_diffusion.data.split import held_out
from diff_diffusion.errors import require


class Arrays(NamedTuple):
    """A labelled data set in memory.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N], each an index into class_names.
        class_names: one name per class.
        val: bool [N], the images held out of training.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    val: np.ndarray


def digits() -> Arrays:
    """1,797 handwritten digits, 8×8 grey, a stratified fifth held out.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), as in scikit-learn.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    found = require("sklearn.datasets", extra="demo").load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = found.target.astype(np.int64)
    val = held_out(labels, round(0.2 * len(labels)), rng.generator(0, "digits split"))
    return Arrays(images, labels, tuple("0123456789"), val)


BUILTIN: dict[str, Callable[[], Arrays]] = {"digits": digits}
