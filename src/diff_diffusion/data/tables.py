"""Metadata files as rows: `.csv`, `.jsonl`, `.parquet`, and the `.txt` file beside an image.

Text is UTF-8, with or without a byte order mark. Nothing here knows what a column means; whatever is wrong is named by
file and line. No line is read further than MAX_LINE, so a file of one endless line costs a megabyte and an error.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diff_diffusion.data.report import short
from diff_diffusion.errors import DataError, listed, require

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
MAX_LINE = 1 << 20  # bytes
MAX_TABLE = 1 << 30  # bytes, unpacked
MAX_COLUMNS = 1000

# A leading zero is kept as it is written: 007 is a name, and 7 would be another.
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


class Cell(NamedTuple):
    """One value, and where it stands: `place` "metadata.csv, line" and `number` 12."""

    value: Any
    place: str
    number: int

    @property
    def where(self) -> str:
        return f"{self.place} {self.number}"


class Loose(str):
    """A cell of a CSV file, which cannot say whether it is a number; see `typed`."""


def read_table(path: Path, name: str) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The rows of a metadata file: (where the row stands, its values by column); what is missing is left out.

    Args:
        path: of a `.csv`, `.jsonl` or `.parquet` file.
        name: what messages call it.

    Raises:
        DataError: the file is too large, or a line of it cannot be read.
        MissingPackageError: it is Parquet, and pyarrow is not installed.
    """
    read, unit = {".csv": (_csv, "line"), ".jsonl": (_jsonl, "line"), ".parquet": (_parquet, "row")}[path.suffix]
    if (num_bytes := os.path.getsize(path)) > MAX_TABLE:
        raise DataError(f"{name} has {num_bytes:,} bytes: at most {MAX_TABLE:,} are read")
    seen: set[str] = set()
    for number, values in read(path, name):
        seen.update(values)
        if len(seen) > MAX_COLUMNS:
            raise DataError(
                f"{name}, {unit} {number}: this is column number {len(seen)}: at most {MAX_COLUMNS} are read"
            )
        row = {column: value for column, value in values.items() if not _is_missing(value)}
        yield Cell(None, f"{name}, {unit}", number), row


def _is_missing(value: object) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def read_captions(path: Path, name: str) -> list[Cell]:
    """The lines of the text file beside an image that are not empty.

    Raises:
        DataError: it is not UTF-8, or longer than MAX_LINE bytes.
    """
    if (num_bytes := os.path.getsize(path)) > MAX_LINE:
        raise DataError(f"{name} has {num_bytes:,} bytes, too many for captions: at most {MAX_LINE:,}")
    place = f"{name}, line"
    return [Cell(line.strip(), place, i) for i, line in enumerate(_lines(path, name), 1) if line.strip()]


def typed(cells: Sequence[Cell]) -> Sequence[Cell]:
    """The cells of one column with what CSV cells can be read as, if all of them can: booleans, numbers, JSON lists.

    Raises:
        DataError: one of the numbers is not finite.
    """
    if not all(isinstance(cell.value, Loose) for cell in cells):
        return cells
    texts = [cell.value for cell in cells]
    if all(text.lower() in ("true", "false") for text in texts):
        return [cell._replace(value=cell.value.lower() == "true") for cell in cells]
    numbers = [_NUMBER.fullmatch(text) for text in texts]
    if any(numbers) and all(n or _NOT_FINITE.fullmatch(text) for n, text in zip(numbers, texts, strict=True)):
        return [cell._replace(value=_number(cell)) for cell in cells]
    if all(text[:1] == "[" and text[-1:] == "]" for text in texts):
        try:
            return [cell._replace(value=_loads(cell.value)) for cell in cells]
        except (ValueError, RecursionError):
            return cells
    return cells


def _number(cell: Cell) -> int | float:
    value = int(cell.value) if _WHOLE.fullmatch(cell.value) and len(cell.value) < 1000 else float(cell.value)
    if not math.isfinite(value):
        raise DataError(
            f"{cell.where}: {cell.value} is no number to train on: leave the cell empty where it is missing"
        )
    return value


def _lines(path: Path, name: str) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            for number in itertools.count(1):
                raw = file.readline(MAX_LINE + 1)
                if not raw:
                    return
                if len(raw) > MAX_LINE:
                    raise DataError(f"{name}, line {number}: more than {MAX_LINE:,} bytes in one line; is it broken?")
                yield _decoded(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw, name, number)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from error


def _decoded(raw: bytes, name: str, number: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}, line {number}: byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8: "
            "save the file with that encoding"
        ) from error


def _csv(path: Path, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = _lines(path, name)
    first = next(lines, "")
    # Of a tie, none at all included, the comma.
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 1
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{name}, line {number}: {error}; is a quotation mark left open, or not doubled?"
            ) from error
        if cells is None:
            return
        if header is None:
            header = [cell.strip() for cell in cells]
            twice = [column for i, column in enumerate(header) if column and column in header[:i]]
            if twice:
                raise DataError(f"{name}, line 1: two columns are called {listed(map(short, twice))}: rename one")
        elif cells:
            if len(cells) != len(header):
                raise DataError(
                    f"{name}, line {number}: {len(cells)} cells under a header of {len(header)}: a text that contains "
                    f"{delimiter!r} must stand in double quotes"
                )
            yield number, {column: Loose(cell.strip()) for column, cell in zip(header, cells, strict=True) if column}


def _jsonl(path: Path, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(path, name), 1):
        if not line.strip():
            continue
        try:
            values = _loads(line)
            if not isinstance(values, dict):
                raise ValueError("this is no object")
            if "\\u" in line:
                # JSON can spell half a character, which no file can hold.
                json.dumps(values, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise DataError(
                f'{name}, line {number}: {error}; each line is one JSON object, such as {{"file_name": "1.png"}}'
            ) from error
        yield number, values


def _loads(text: str) -> Any:
    return _DECODER.decode(text)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number to train on, write null where it is missing")


_DECODER = json.JSONDecoder(parse_constant=_refused)


def _parquet(path: Path, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    parquet = require("pyarrow.parquet", extra="tables")
    try:
        with parquet.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            unpacked = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            if unpacked > MAX_TABLE:
                raise DataError(f"{name} has {unpacked:,} bytes unpacked: at most {MAX_TABLE:,} are read")
            batches = file.iter_batches(batch_size=1024)
            yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1)
    except DataError:
        raise
    except Exception as error:  # of a damaged file pyarrow raises nearly anything
        raise DataError(f"{name} cannot be read as Parquet: {error}") from error
