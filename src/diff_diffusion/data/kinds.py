"""From the cells of a column to a typed `Column`.

Unless a kind is asked for, it is inferred from all values that are there:

- a column called text, caption or prompt, or ending in _text, _caption, _prompt: text;
- strings that name image files of the same folder: image, or mask where the column's name ends in mask;
- other strings: class, if there are at most 1,000 different ones and each occurs four times on average, or if the
  column is called label, class or category; else text;
- true and false: class;
- numbers: number, but whole numbers in a column called label, class or category: class;
- lists of numbers: vector; lists of strings: text, several captions of one image.

Cells of a CSV file are read as booleans, numbers or JSON lists where the whole column can be. Several rows for one
image are several captions of it, and must otherwise agree. Text is put in Unicode's normal form C, spaces
around it are cut.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from diff_diffusion.data.columns import GIVEN, Column
from diff_diffusion.data.images import EXTENSIONS
from diff_diffusion.data.report import short
from diff_diffusion.data.tables import Cell, typed
from diff_diffusion.errors import ConfigError, DataError

IGNORE = "ignore"
MAX_NAMES = 1000
REPEATED = 4  # times that a class occurs on average
_TEXT = re.compile(r"(.*[_\- ])?(text|caption|prompt)s?", re.IGNORECASE)
_CLASS = re.compile(r"label|class|category", re.IGNORECASE)


def asked(name: str, text: str) -> tuple[str, int]:
    """The kind and factor that a user asked for, such as "text", "shrunk:4" or "ignore".

    Raises:
        ConfigError: there is no such kind.
    """
    kind, _, factor = str(text).partition(":")
    if kind == "shrunk" and factor.isascii() and factor.isdigit() and 2 <= int(factor) <= 4096:
        return kind, int(factor)
    if not factor and kind in (*GIVEN, "grey", IGNORE):
        return kind, 1
    raise ConfigError(
        f"column {short(name)}: {text!r} is no kind; there are {', '.join(GIVEN)}, {IGNORE}, grey, and shrunk:2, "
        "shrunk:4 …"
    )


def infer(name: str, cells: Sequence[Cell], is_image: Callable[[Cell], bool]) -> str:
    """The kind of a column that nobody said anything of; IGNORE where nothing can be made of its values.

    Args:
        name: of the column.
        cells: its values, one at least.
        is_image: whether a string names an image file.

    Raises:
        DataError: the values are of several types.
    """
    values = [cell.value for cell in cells]
    if _TEXT.fullmatch(name) and all(_sort(value) in ("text", "numbers", "lists of text") for value in values):
        return "text"
    cells = typed(cells)
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(_sort(cell.value), cell)
    if set(first) <= {"text", "lists of text"} and "lists of text" in first:
        return "text"
    if len(first) > 1:
        (one, there), (other, here) = list(first.items())[:2]
        raise DataError(
            f"column {short(name)} holds {one} ({there.where}) and {other} ({here.where}): use one type, or "
            f"say its kind, such as columns={{{short(name)}: 'text'}} or 'ignore'"
        )
    (sort,) = first
    if sort == "text":
        return _kind_of_strings(name, cells, is_image)
    if sort == "numbers":
        # 1.0 too: a table with one label missing is often written so.
        whole = all(isinstance(cell.value, int) or cell.value.is_integer() for cell in cells)
        return "class" if whole and _CLASS.fullmatch(name) else "number"
    return {"booleans": "class", "lists of numbers": "vector"}.get(sort, IGNORE)


def column(
    name: str,
    kind: str,
    cells: Sequence[Sequence[Cell]],
    is_train: Sequence[bool],
) -> Column:
    """The column of these cells.

    Args:
        name: what messages call it.
        kind: one of GIVEN.
        cells: for each row those that speak of it, none where it is missing.
        is_train: for each row, whether it is trained on. The vocabulary of a class is theirs; others become missing.

    Raises:
        DataError: a value is not of that kind, or two of one row differ.
    """
    flat = [cell for row in cells for cell in row]
    if kind != "text":
        # The same cells in the same order, so that they can be dealt out again.
        dealt = iter(typed(flat))
        cells = [[next(dealt) for _ in row] for row in cells]
    if kind == "text":
        return Column("text", [_captions(name, row) for row in cells])
    read: Mapping[str, Callable[[str, Cell], Any]] = {
        "class": _class_name,
        "number": _number,
        "vector": _vector,
        "image": lambda _, cell: cell.value,
        "mask": lambda _, cell: cell.value,
    }
    values = [_agreed(name, row, [read[kind](name, cell) for cell in row]) for row in cells]
    if kind == "vector":
        _one_length(name, cells, values)
    if kind != "class":
        return Column(kind, values)
    return classes(values, is_train)


def classes(names: Sequence[str | None], is_train: Sequence[bool]) -> Column:
    """A class column of its names, one a row; a name that no training row has becomes missing."""
    known = tuple(sorted({name for name, train in zip(names, is_train, strict=True) if train and name is not None}))
    number = {name: i for i, name in enumerate(known)}
    return Column("class", [None if name is None else number.get(name) for name in names], known)


def from_values(name: str, values: Sequence[Any] | np.ndarray | Tensor, count: int) -> Column:
    """A column of plain Python values or an array [N] or [N, D], None where missing; the kind is inferred.

    Raises:
        DataError: there are not `count` of them, or they are of no kind.
    """
    plain = list(values) if isinstance(values, Sequence) else values.tolist()
    if len(plain) != count:
        raise DataError(f"column {short(name)} has {len(plain)} values for {count} images: give one for each, or None")
    given = [value.tolist() if hasattr(value, "tolist") else value for value in plain]
    given = [list(value) if isinstance(value, tuple) else value for value in given]
    place = f"column {short(name)}, value"
    cells = [[] if value in (None, "", []) else [Cell(value, place, i)] for i, value in enumerate(given)]
    flat = [cell for row in cells for cell in row]
    if not flat:
        raise DataError(f"column {short(name)} has no value at all: leave it out")
    kind = infer(name, flat, lambda cell: False)
    if kind == IGNORE:
        raise DataError(
            f"{flat[0].where}: {short(flat[0].value)} is none of a class or text (str), number, list of numbers, "
            "or list of captions"
        )
    return column(name, kind, cells, [True] * count)


def names_image(text: object) -> bool:
    """Whether it looks like the name of an image file."""
    return isinstance(text, str) and text.lower().endswith(EXTENSIONS)


def _kind_of_strings(name: str, cells: Sequence[Cell], is_image: Callable[[Cell], bool]) -> str:
    like_files = [cell for cell in cells if names_image(cell.value)]
    if len(like_files) == len(cells):
        if any(map(is_image, cells)):
            return "mask" if name.lower().endswith("mask") else "image"
        return IGNORE
    different = len({cell.value for cell in cells})
    if different <= MAX_NAMES and (_CLASS.fullmatch(name) or len(cells) >= REPEATED * different):
        return "class"
    return "text"


def _sort(value: object) -> str:
    if isinstance(value, bool):
        return "booleans"
    if isinstance(value, int | float):
        return "numbers"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        inner = {_sort(item) for item in value}
        if len(inner) == 1 and inner <= {"numbers", "text"}:
            return f"lists of {inner.pop()}"
    return "objects"


def _agreed(name: str, cells: Sequence[Cell], values: Sequence[Any]) -> Any:
    for cell, value in zip(cells, values, strict=True):
        if value != values[0]:
            raise DataError(
                f"column {short(name)} says two things of one image: {short(values[0])} ({cells[0].where}) and "
                f"{short(value)} ({cell.where}); keep one"
            )
    return values[0] if values else None


def _text(value: object) -> str:
    return unicodedata.normalize("NFC", str(value)).strip()


def _captions(name: str, cells: Sequence[Cell]) -> tuple[str, ...] | None:
    texts: dict[str, None] = {}
    for cell in cells:
        for item in cell.value if isinstance(cell.value, list) else [cell.value]:
            if not isinstance(item, str | int | float):
                raise _unfit(name, cell, "text")
            texts.setdefault(_text(item))
    texts.pop("", None)
    return tuple(texts) or None


def _class_name(name: str, cell: Cell) -> str | None:
    if isinstance(cell.value, bool):
        return "true" if cell.value else "false"
    if not isinstance(cell.value, str | int | float):
        raise _unfit(name, cell, "class")
    whole = isinstance(cell.value, float) and cell.value.is_integer()
    return _text(int(cell.value) if whole else cell.value) or None


def _number(name: str, cell: Cell) -> float:
    try:
        value = float(cell.value)
    except (TypeError, ValueError, OverflowError):
        raise _unfit(name, cell, "number") from None
    if not math.isfinite(value):
        raise _unfit(name, cell, "finite number")
    return value


def _vector(name: str, cell: Cell) -> tuple[float, ...]:
    if _sort(cell.value) != "lists of numbers":
        raise _unfit(name, cell, "list of numbers")
    return tuple(_number(name, cell._replace(value=item)) for item in cell.value)


def _one_length(name: str, cells: Sequence[Sequence[Cell]], values: Sequence[Any]) -> None:
    known = [(row[0], value) for row, value in zip(cells, values, strict=True) if value is not None]
    for cell, value in known:
        if len(value) != len(known[0][1]):
            raise DataError(
                f"column {short(name)} has vectors of {len(known[0][1])} numbers ({known[0][0].where}) and of "
                f"{len(value)} ({cell.where}): all must have one length"
            )


def _unfit(name: str, cell: Cell, kind: str) -> DataError:
    return DataError(f"{cell.where}: {short(cell.value)} in column {short(name)} is no {kind}")
