"""The one pass over every file before training: choose the shape, decode everything once, name what cannot be read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from diff_diffusion.data import store as stores
from diff_diffusion.data.columns import Column
from diff_diffusion.data.folder import Folder, Found
from diff_diffusion.data.images import Header, ImageFileError, peek, read_image
from diff_diffusion.data.plan import Plan, plan
from diff_diffusion.data.report import NAMED, printable, short, skipped_lines
from diff_diffusion.data.seen import Seen
from diff_diffusion.data.store import Digests, Store, digest, in_threads
from diff_diffusion.errors import DataError

MAX_BAD = 0.05
SAMPLED = 256  # files of a column that are looked into
SAME_ASPECT = 0.02  # what rounding a side of 50 pixels may do

Progress = Callable[[int, int], None]
Source = TypeVar("Source")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Survey:
    """What the pass found.

    Args:
        plan: the shape of every image, and why.
        files: the images that can be used.
        headers: of those files.
        store: their pixels; row i is files[i].
        bad: the names of the others, by reason.
    """

    plan: Plan
    files: tuple[Found, ...]
    headers: tuple[Header, ...]
    store: Store
    bad: dict[str, list[str]]


def survey(
    folder: Folder,
    size: tuple[int, int] | None,
    channels: int | None,
    progress: Progress | None,
    indexed: bool = False,
) -> Survey:
    """Every image of `folder`, decoded once; or never again where an index knows it.

    Args:
        size, channels: as in `plan`.
        progress: called as progress(done, total) after each file.
        indexed: whether to read and keep an index (see `diff_diffusion.data.index`).

    Raises:
        DataError: more than 5 % of the images cannot be read, or none that is meant for training can.
    """

    def usable() -> tuple[tuple[Found, ...], Plan]:
        files = tuple(file for file in folder.files if file.name not in reasons)
        train = [headers[file.name] for file in files if not file.held_out]
        if not train:
            raise _too_many_bad(folder, reasons)
        return files, plan(train, size, channels)

    with warnings.catch_warnings():
        # What Pillow warns of (damaged EXIF, say) is either harmless here or ends as a reason.
        warnings.filterwarnings("ignore", module="PIL")
        seen = Seen(folder, size, channels, indexed)
        headers, reasons = _headers(folder, seen.headers())
        while True:
            files, chosen = usable()
            store, broken = _decode(folder.root, [file.name for file in files], chosen.shape, progress, seen)
            reasons |= broken
            files, final = usable()
            # A broken file may have been the one that made the set colour, or of mixed sizes.
            if final.shape == chosen.shape:
                break
            progress = None
    if len(reasons) > MAX_BAD * len(folder.files):
        raise _too_many_bad(folder, reasons)
    seen.keep(headers, store)
    return Survey(final, files, tuple(headers[file.name] for file in files), store, _by_reason(folder, reasons))


def survey_column(name: str, column: Column, root: Path, headers: Sequence[Header]) -> tuple[Column, list[str]]:
    """A column of image files with the channels that they have, 1 if all are grey, and what may spoil a training.

    Only SAMPLED of the files are looked into, and only their headers; a file that breaks later reads as missing.

    Args:
        headers: of the images, one for each value.

    Raises:
        DataError: none of them can be read.
    """
    named = [i for i, value in enumerate(column.values) if value is not None]
    if not named:
        return column, []
    sample = named[:: -(-len(named) // SAMPLED)]
    results = list(in_threads(lambda i: _attempt(peek, root / column.values[i]), sample))
    seen = [(headers[i], result) for i, result in zip(sample, results, strict=True) if isinstance(result, Header)]
    bad = [result for result in results if isinstance(result, ImageFileError)]
    if not seen:
        raise DataError(f"column {short(name)}: none of its image files can be read, such as {bad[0]}")
    other = sum(abs(math.log(a.width * b.height / (a.height * b.width))) > SAME_ASPECT for a, b in seen)
    warnings = []
    if bad:
        warnings.append(
            f"{len(bad)} of {len(sample)} files of the column {short(name)} cannot be read, such as {bad[0]}"
        )
    if other:
        warnings.append(
            f"{other} of {len(seen)} files of the column {short(name)} have another aspect than their images: both are "
            "cropped to one shape, and will not lie on each other"
        )
    grey = column.kind == "mask" or all(header.grey for _, header in seen)
    return replace(column, channels=1 if grey else 3), warnings


def _headers(folder: Folder, known: dict[str, Header]) -> tuple[dict[str, Header], dict[str, str]]:
    """The headers by name, those `known` among them, and the reasons of the files that have none."""
    headers, reasons = known, dict[str, str]()
    names = [file.name for file in folder.files if file.name not in known]
    for name, result in zip(names, in_threads(lambda name: _attempt(peek, folder.root / name), names), strict=True):
        if isinstance(result, ImageFileError):
            reasons[name] = result.reason
        else:
            headers[name] = result
    return headers, reasons


def _decode(
    root: Path, names: Sequence[str], shape: tuple[int, int, int], progress: Progress | None, seen: Seen
) -> tuple[Store, dict[str, str]]:
    """The images that can be decoded, in memory if they fit there, and the reasons of the others."""
    in_memory = len(names) * math.prod(shape) <= stores.MEMORY_BUDGET
    known_digests, known_pixels, rows = seen.decoded(shape, in_memory)
    places = [rows.get(name, -1) for name in names]
    if known_digests.size and places == list(range(len(known_digests))):  # nothing changed: the index itself will do
        return Store(shape, names, Digests(known_digests), known_pixels, root), {}
    pixels = torch.empty((len(names) if in_memory else 0, *shape), dtype=torch.uint8)
    digests: list[bytes] = []
    broken: dict[str, str] = {}

    def read(name: str) -> Tensor:
        return torch.from_numpy(read_image(root / name, shape))

    new = in_threads(
        lambda name: _attempt(read, name), [n for n, place in zip(names, places, strict=True) if place < 0]
    )
    for i, place in enumerate(places):
        result = next(new) if place < 0 else known_pixels[place] if known_pixels is not None else None
        if isinstance(result, ImageFileError):
            broken[names[i]] = result.reason
        else:
            if in_memory and result is not None:
                pixels[len(digests)] = result
            digests.append(digest(result) if place < 0 and result is not None else known_digests[place].tobytes())
        if progress:
            progress(i + 1, len(names))
    good = [name for name in names if name not in broken]
    return Store(shape, good, digests, pixels[: len(good)] if in_memory else None, root), broken


def _attempt(read: Callable[[Source], Result], source: Source) -> Result | ImageFileError:
    try:
        return read(source)
    except ImageFileError as error:
        return error


def _by_reason(folder: Folder, reasons: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for file in folder.files:
        if file.name in reasons:
            grouped.setdefault(reasons[file.name], []).append(file.name)
    return grouped


def _too_many_bad(folder: Folder, reasons: Mapping[str, str]) -> DataError:
    total = len(folder.files)
    rows = "\n".join(f"  {printable(line)}" for line in skipped_lines(_by_reason(folder, reasons), NAMED))
    return DataError(
        f"{len(reasons)} of the {total} images in {folder.root} cannot be read ({len(reasons) / total:.1%}; up to "
        f"{MAX_BAD:.0%} would be skipped). Mend or remove them:\n{rows}"
    )
