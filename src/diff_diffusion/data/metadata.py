"""What a folder says of its images beside their pixels: metadata files, sidecar captions, class folders.

A `metadata.csv`, `metadata.jsonl` or `metadata.parquet` may lie in any folder that holds images or folders of them. Its
column `file_name` (or `file`, `filename`, `image`) names an image relative to that folder. An image without a row has
everything missing; a row without an image is counted in a note. A `cat.txt` beside `cat.png` holds captions, one a
line, if at least half of the images have such a file. Images that a column names are conditions, and not trained on
unless they have a row of their own.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from diff_diffusion.data.columns import DERIVED, Column
from diff_diffusion.data.folder import Found
from diff_diffusion.data.kinds import IGNORE, classes, column, infer, names_image
from diff_diffusion.data.report import short
from diff_diffusion.data.store import in_threads
from diff_diffusion.data.tables import TABLES, Cell, read_captions, read_table
from diff_diffusion.errors import ConfigError, DataError, listed

KEYS = ("file_name", "file", "filename", "image")
CAPTION, LABEL = "caption", "label"
_NUMBERS_ONLY = re.compile(r"[\d\s.,+\-eE]*")

Cells = dict[str, list[Cell]]  # of one column, by the name of the image


class Known(NamedTuple):
    """The columns of some images, one value for each.

    Args:
        columns: by name.
        is_labelled: whether the column "label" is a class that is known of every image.
        notes: where it comes from, if there was a choice.
    """

    columns: dict[str, Column]
    is_labelled: bool
    notes: list[str]


@dataclass
class Metadata:
    """What is said of the images of a folder, before one is opened.

    Args:
        root: the folder.
        images: the names of all its images, by their normal form.
        wanted: the kinds that were asked for, and their factors.
        cells: of each column.
        kinds: of each column that is used.
        rows: the images that have a row of their own.
        conditions: the images that are conditions of others only.
        read: how many files of each extension were read.
        notes: what was understood or left alone.
    """

    root: Path = Path()
    images: Mapping[str, str] = field(default_factory=dict)
    wanted: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    cells: dict[str, Cells] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    conditions: set[str] = field(default_factory=set)
    read: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    _folders: dict[str, str] = field(default_factory=dict)  # of a metadata file, by the place of its cells

    def columns(self, files: Sequence[Found]) -> Known:
        """The columns of `files`; "label" where their folders are classes.

        Raises:
            ConfigError: something was asked for of a column that is not there.
            DataError: a value is not of its column's kind.
        """
        train = [not file.held_out for file in files]
        by_folder = any(file.label for file in files)
        labels = self.cells.get(LABEL, {})
        complete = self.kinds.get(LABEL) == "class" and all(file.name in labels for file in files)
        self._check(by_folder)
        notes = []
        found: dict[str, Column] = {}
        for name, kind in self.kinds.items():
            rows = [self.cells[name].get(file.name, []) for file in files]
            if any(row for row, is_train in zip(rows, train, strict=True) if is_train):
                found[name] = column(name, kind, rows, train)
            else:
                notes.append(f"the column {short(name)} is known of no training image, and is left alone")
        if by_folder and complete:
            notes.append("the classes are the metadata's label, not the folders")
        elif by_folder:
            kind, _ = self.wanted.get(LABEL, ("class", 1))
            if found.pop(LABEL, None):
                notes.append(
                    "the classes are the folders; the metadata's label is left alone, since not every image has one"
                )
            if kind == "class":
                found[LABEL] = classes([file.label for file in files], train)
            elif kind != IGNORE:
                found[LABEL] = column(LABEL, kind, [[Cell(f.label, "folder", i)] for i, f in enumerate(files)], train)
        for name, (kind, factor) in self.wanted.items():
            if kind in DERIVED:
                found[name] = Column(kind, factor=factor)
        is_labelled = LABEL in found and found[LABEL].kind == "class" and (by_folder or complete)
        return Known(found, is_labelled, notes)

    def _check(self, by_folder: bool) -> None:
        there = [*self.cells, *([LABEL] if by_folder and LABEL not in self.cells else [])]
        for name, (kind, _) in self.wanted.items():
            if kind in DERIVED and name in there:
                raise ConfigError(
                    f"there is a column {short(name)} already: give what is to be derived, {kind}, another name"
                )
            if kind not in DERIVED and name not in there:
                raise ConfigError(
                    f"there is no column {short(name)} to be read as {kind}; there are "
                    f"{listed(map(short, there)) or 'none'}"
                )

    def _add(self, path: Path, folder: str) -> None:
        """The rows of one metadata file in `folder`, which is "" or ends in a slash."""
        name = folder + path.name
        key, matched, others, examples = "", 0, 0, []
        named: dict[str, str] = {}
        for row, values in read_table(path, name):
            key = key or next((title for known in KEYS for title in values if title.strip().lower() == known), "")
            if not key:
                raise DataError(
                    f"{row.where}: no column names the image (there are {listed(map(short, values)) or 'none'}): "
                    f"call it file_name; or rename {path.name}, to have it left alone"
                )
            self._folders[row.place] = folder
            image = self._image(row._replace(value=values.get(key)))
            if image is None:
                others += 1
                examples += [short(values.get(key, ""))] if others <= 2 else []
                continue
            matched += 1
            self.rows.add(image)
            for title, value in values.items():
                if title != key:
                    if title not in named:
                        named[title] = unicodedata.normalize("NFC", title).strip()
                    cells = self.cells.setdefault(named[title], {})
                    cells.setdefault(image, []).append(Cell(value, row.place, row.number))
        self.read[path.suffix] += 1
        if others and not matched:
            here = [repr(image.removeprefix(folder)) for image in self.images.values() if image.startswith(folder)]
            raise DataError(
                f"{name}: none of its {others} rows names an image that is there: its column {short(key)} has "
                f"{', '.join(examples)}, and the images in {folder or 'the folder'} are {listed(here, 2)}"
            )
        strange = f"; {others} others name none that is there, such as {examples[0]}" if others else ""
        self.notes.append(f"{name}: {matched} rows name an image{strange}")

    def _image(self, cell: Cell) -> str | None:
        """The image that a cell names, relative to the folder of its file."""
        if not isinstance(cell.value, str):
            return None
        below = self._folders[cell.place]
        for spelt in (cell.value, cell.value.replace("\\", "/")):
            path = posixpath.normpath(posixpath.join(below, unicodedata.normalize("NFC", spelt)))
            if path in self.images:
                return self.images[path]
        return None

    def _infer(self) -> None:
        for name, cells in self.cells.items():
            flat = [cell for row in cells.values() for cell in row]
            kind, _ = self.wanted.get(name, ("", 1))
            if not kind:
                kind = infer(name, flat, lambda cell: self._image(cell) is not None)
                if kind == IGNORE:
                    what = "names image files that are not there" if names_image(flat[0].value) else "holds objects"
                    self.notes.append(f"the column {short(name)} {what}, and is left alone")
            if kind in ("image", "mask"):
                kind = self._resolve(name, kind, cells)
            if kind not in (IGNORE, *DERIVED):
                self.kinds[name] = kind

    def _resolve(self, name: str, kind: str, cells: Cells) -> str:
        """The column of image files, with the names that they have here instead of those written."""
        found = {
            image: [cell._replace(value=file) for cell in row if (file := self._image(cell))]
            for image, row in cells.items()
        }
        there = {image: row for image, row in found.items() if row}
        if not there:
            (cell, *_), *_ = cells.values()
            raise DataError(
                f"{cell.where}: {short(cell.value)} in column {short(name)} is no image file of this folder, "
                "nor is any other"
            )
        if name not in self.wanted and all(cell.value == image for image, row in there.items() for cell in row):
            self.notes.append(f"the column {short(name)} names the image itself, and is left alone")
            return IGNORE
        lost = sum(len(row) for row in cells.values()) - sum(len(row) for row in there.values())
        if lost:
            self.notes.append(f"{lost} files that the column {short(name)} names are not there")
        self.cells[name] = there
        self.conditions.update(cell.value for row in there.values() for cell in row)
        return kind

    def _add_sidecars(self) -> None:
        """Captions from the text files beside the images."""
        named = [
            (name, posixpath.splitext(name)[0] + ".txt") for name in self.images.values() if name not in self.conditions
        ]
        beside = [(name, text) for name, text in named if (self.root / text).is_file()]
        if 2 * len(beside) < len(named):
            self.notes.append(
                f"{len(beside)} of {len(named)} images have a .txt file beside them, too few for captions"
            )
            return
        if CAPTION in self.cells:
            self.notes.append("the captions are those of the metadata; the .txt files are left alone")
            return
        read = in_threads(lambda text: read_captions(self.root / text, text), [text for _, text in beside])
        cells = {name: lines for (name, _), lines in zip(beside, read, strict=True) if lines}
        if all(_NUMBERS_ONLY.fullmatch(cell.value) for lines in cells.values() for cell in lines):
            self.notes.append("the .txt files beside the images hold numbers, and are left alone")
            return
        self.cells[CAPTION] = cells
        self.read[".txt"] += len(beside)
        kind, _ = self.wanted.get(CAPTION, ("text", 1))
        if kind not in (IGNORE, *DERIVED):
            self.kinds[CAPTION] = kind


def read_metadata(
    root: Path, names: Sequence[str], others: Mapping[str, int], wanted: Mapping[str, tuple[str, int]]
) -> Metadata:
    """What the folder `root` says of its images.

    Args:
        names: of all its images, POSIX paths.
        others: how many files of other types there are, by extension.
        wanted: the kinds that are asked for and their factors, by column.

    Raises:
        DataError: a metadata file cannot be read, or names no image that is there.
        MissingPackageError: there is a Parquet file, and pyarrow is not installed.
    """
    known = Metadata(root, {unicodedata.normalize("NFC", name): name for name in names}, wanted)
    if any(others.get(extension) for extension in (".csv", ".jsonl", ".parquet")):
        for folder in sorted({prefix for name in names for prefix in _prefixes(name)}):
            tables = [table for table in TABLES if (root / folder / table).is_file()]
            if len(tables) > 1:
                raise DataError(f"{root / folder} holds {listed(tables)}: keep one of them, they may differ")
            for table in tables:
                known._add(root / folder / table, folder)
    known._infer()
    known.conditions -= known.rows
    if others.get(".txt"):
        known._add_sidecars()
    return known


def _prefixes(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["", *("/".join(parts[: i + 1]) + "/" for i in range(len(parts)))]
