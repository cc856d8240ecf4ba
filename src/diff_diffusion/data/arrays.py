"""What a user has in memory, checked: pixels, labels and columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.data.columns import DERIVED, Column
from diff_diffusion.data.kinds import from_values
from diff_diffusion.errors import ConfigError, DataError, listed


def channels_first(images: np.ndarray | Tensor) -> Tensor:
    """`images` as a tensor uint8 [N, C, H, W] of its own, C 1 or 3.

    Raises:
        DataError: the type or the shape is another.
    """
    is_tensor = isinstance(images, Tensor)
    given = images if isinstance(images, Tensor) else np.asarray(images)
    kind = str(given.dtype).removeprefix("torch.")
    seen = f"{'a tensor' if is_tensor else 'an array'} {list(given.shape)} of {kind}"
    if kind != "uint8":
        raise DataError(f"images are {seen}: they must be uint8, 0 to 255; from 0 to 1, take (x * 255).round() first")
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and not is_tensor:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        raise DataError(
            f"images are {seen}: an array must be [N, H, W] or [N, H, W, C], a tensor [N, H, W] or [N, C, H, W], "
            "with C 1 or 3 and nothing empty"
        )
    return torch.from_numpy(np.array(array, order="C"))


def checked_labels(
    labels: Sequence[int] | np.ndarray | Tensor | None, class_names: tuple[str, ...], count: int
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """`labels` as int64 [count] with a name for each class, or None and no names.

    Raises:
        DataError: they do not fit.
    """
    if labels is None:
        if class_names:
            raise DataError(f"there are class names ({listed(class_names)}) but no labels")
        return None, ()
    numbers = np.asarray(labels)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise DataError(f"labels are {list(numbers.shape)} of {numbers.dtype}: {count} whole numbers from 0 are needed")
    names = class_names or tuple(str(i) for i in range(int(numbers.max()) + 1))
    if numbers.max() >= len(names):
        raise DataError(
            f"the label {numbers.max()} has no name: there are {len(names)} class names, for 0 to {len(names) - 1}"
        )
    return numbers.astype(np.int64), names


def checked_columns(
    columns: Mapping[str, Column | Sequence[Any] | np.ndarray | Tensor], count: int, shape: tuple[int, int, int]
) -> dict[str, Column]:
    """`columns` for `count` images of `shape`: of plain values the kinds are inferred, uint8 images [N, …] are images.

    Raises:
        ConfigError: a derived column cannot be made of such images.
        DataError: values are too few or many, or of no kind.
    """
    found = {}
    for name, given in columns.items():
        if not isinstance(given, Column):
            given = _images(given) if getattr(given, "ndim", 0) >= 3 else from_values(name, given, count)
        if given.kind not in DERIVED and len(given.values) != count:
            raise DataError(
                f"column {name!r} has {len(given.values)} values for {count} images: give one for each, or None"
            )
        if given.kind in ("image", "mask"):
            _check_images(name, given, shape)
        if given.kind == "class":
            _check_classes(name, given)
        found[name] = given
    return {name: fitted(name, column, shape) for name, column in found.items()}


def fitted(name: str, column: Column, shape: tuple[int, int, int]) -> Column:
    """A derived `column` with the channels it has for images of `shape`; others as they are.

    Raises:
        ConfigError: it cannot be made of such images.
    """
    channels, height, width = shape
    if column.kind == "grey" and channels == 1:
        raise ConfigError(f"column {name!r} would be the image itself: the images are grey already")
    if column.kind == "shrunk" and (height % column.factor or width % column.factor):
        fits = [factor for factor in range(2, min(height, width) + 1) if height % factor == width % factor == 0]
        raise ConfigError(
            f"column {name!r}: images of {height}×{width} cannot be shrunk {column.factor} times; "
            + (f"they can be {listed(fits)} times" if fits else "no factor divides both sides")
        )
    return dataclasses.replace(column, channels=channels) if column.kind == "shrunk" else column


def _images(given: Any) -> Column:
    pixels = channels_first(given)
    return Column("image", list(pixels), channels=pixels.shape[1])


def _check_images(name: str, column: Column, shape: tuple[int, int, int]) -> None:
    channels = 1 if column.kind == "mask" else column.channels
    for i, value in enumerate(column.values):
        fits = isinstance(value, Tensor) and value.dtype == torch.uint8 and value.shape == (channels, *shape[1:])
        if value is not None and not fits:
            seen = f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise DataError(
                f"column {name!r}, value {i} is {seen}: the images are {shape[1]}×{shape[2]}, so it must be a tensor "
                f"{[channels, *shape[1:]]} of torch.uint8"
            )


def _check_classes(name: str, column: Column) -> None:
    for i, value in enumerate(column.values):
        if value is not None and not 0 <= value < len(column.names):
            raise DataError(
                f"column {name!r}, value {i} is {value}: there are {len(column.names)} names, numbered from 0"
            )
