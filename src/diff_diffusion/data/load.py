"""The one door to image data: a folder or a built-in name in, a verified `ImageDataset` out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diff_diffusion.data.array_file import SUFFIX, Arrays, read_arrays
from diff_diffusion.data.arrays import fitted
from diff_diffusion.data.audit import account
from diff_diffusion.data.builtin import BUILTIN
from diff_diffusion.data.columns import DERIVED, Column, named
from diff_diffusion.data.dataset import ImageDataset
from diff_diffusion.data.folder import Found, existing, scan, walk
from diff_diffusion.data.images import Header, pixels
from diff_diffusion.data.kinds import asked
from diff_diffusion.data.metadata import Metadata, read_metadata
from diff_diffusion.data.plan import Plan, checked_channels, checked_size, plan
from diff_diffusion.data.store import Digests, Store, digest
from diff_diffusion.data.survey import Progress, survey, survey_column
from diff_diffusion.errors import ConfigError, DataError, listed

Kinds = Mapping[str, tuple[str, int]]


def load_image_dataset(
    path: str | os.PathLike[str],
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    index: bool = True,
) -> ImageDataset:
    """The images of a folder, an array file or a built-in data set, verified and brought to one shape.

    A folder may hold images at any depth, class folders, or `train/` and `val/` (see `diff_diffusion.data.folder`).
    What else is known of them is read from `metadata.csv`, `.jsonl` or `.parquet`, or from `.txt` files beside the
    images (see `diff_diffusion.data.metadata`); the kinds are inferred (see `diff_diffusion.data.kinds`).
    Every file is decoded once before anything else: one that cannot be read is skipped, and named in the report with
    the reason. Images are turned upright, laid on white, scaled to 8 bits, cropped to the common aspect and resized
    (see `diff_diffusion.data.images`).

    A `.npy` file of images is used as it is, mapped and not read (see `diff_diffusion.data.array_file`).

    Args:
        path: a folder, a `.npy` file, or the name of a built-in set such as "digits"; "./digits" then means the folder
            of that name.
        size: the side of a square, or (height, width), in pixels. When left out: the images' own size if they share
            one of at most 64; else, from the median image, a square of side 8, 16, 24, 32, 48 or 64, or a rectangle
            no longer than that.
        channels: 1 makes every image grey, 3 RGB. When left out: 1 if every file is grey, else 3.
        columns: the kinds of columns that are other than inferred, by name: "class", "number", "vector", "text",
            "image", "mask" or "ignore", such as {"year": "class", "id": "ignore"}; or a new name for what is made of
            the image itself, {"low": "shrunk:4", "light": "grey"}.
        progress: called as progress(done, total) after each file.
        index: whether to keep in the user's cache folder what was found out about 2,000 images or more, so that the
            next start opens only those that have changed (see `diff_diffusion.data.index`).

    Raises:
        ConfigError: size, channels or columns cannot be used.
        DataError: there is no such folder, no image in it, or more than 5 % of its images cannot be read; or a metadata
            file cannot.
        MissingPackageError: a built-in set or a Parquet file needs a package that is not installed.
    """
    wanted, colours = checked_size(size), checked_channels(channels)
    kinds = {name: asked(name, kind) for name, kind in (columns or {}).items()}
    # The bare name always means the built-in set: a command must not change its meaning with the working directory.
    if isinstance(path, str) and path in BUILTIN:
        return _builtin(path, wanted, colours, kinds)
    if not os.fspath(path):
        raise DataError("the path of the data is empty: give a folder of images, or the name of a built-in data set")
    place = Path(os.path.expanduser(path))
    if place.suffix == SUFFIX and place.is_file():
        return _arrays(place, read_arrays(place, wanted, colours, progress, index), kinds)
    return _folder(Path(path), wanted, colours, kinds, progress, index)


def _arrays(path: Path, found: Arrays, kinds: Kinds) -> ImageDataset:
    count, (channels, height, width) = len(found.store.names), found.store.shape
    plan = Plan(found.store.shape, "as they lie in the file", "as they lie in the file")
    derived = {name: Column(kind, factor=factor) for name, (kind, factor) in kinds.items() if kind in DERIVED}
    others = [name for name, (kind, _) in kinds.items() if kind not in DERIVED]
    if others:
        raise ConfigError(
            f"an array file has no columns but its labels, so there is no {listed(others)}: what is made of the images "
            f"themselves can be asked for, {listed(DERIVED)}"
        )
    if found.labels is not None:
        names = tuple(str(label) for label in range(int(found.labels.max()) + 1))
        derived["label"] = Column("class", found.labels.tolist(), names)
    headers = [Header(height, width, "L" if channels == 1 else "RGB", channels == 1)] * count
    everything = np.ones(count, bool)
    labelled = found.labels is not None
    return _assemble(str(path), plan, headers, found.store, everything, ~everything, derived, labelled)


def _folder(
    path: Path,
    size: tuple[int, int] | None,
    channels: int | None,
    kinds: Kinds,
    progress: Progress | None,
    index: bool,
) -> ImageDataset:
    root = existing(Path(os.path.expanduser(path)), sorted(BUILTIN))
    everything = walk(root)
    said = read_metadata(root, *everything[:2], kinds)
    folder = scan(root, everything, said.conditions)
    said.columns(folder.files)  # what is wrong in them is said before minutes of decoding
    found = survey(folder, size, channels, progress, index)
    known = said.columns(found.files)
    held_out = np.array([file.held_out for file in found.files])
    strange = np.zeros(len(held_out), bool)
    if known.is_labelled:
        # A class that is not trained on cannot be measured either.
        strange = np.array([label is None for label in known.columns["label"].values])
    dataset = _assemble(
        str(path),
        found.plan,
        found.headers,
        found.store,
        ~held_out,
        held_out & ~strange,
        known.columns,
        known.is_labelled,
    )
    report = dataset.report
    report.found = len(folder.files)
    report.skipped = dict(found.bad)
    if strange.any():
        report.skipped["of a class without training images"] = [found.files[i].name for i in np.flatnonzero(strange)]
    report.others = {kind: left for kind, count in folder.others.items() if (left := count - said.read[kind])}
    report.notes = [*folder.notes, *said.notes, *known.notes]
    return dataset


def _builtin(name: str, size: tuple[int, int] | None, channels: int | None, kinds: Kinds) -> ImageDataset:
    data = BUILTIN[name]()
    count, height, width, depth = data.images.shape
    headers = [Header(height, width, "L" if depth == 1 else "RGB", depth == 1)] * count
    chosen = plan(headers, size, channels)
    pictures = data.images[..., 0] if depth == 1 else data.images
    stacked = torch.from_numpy(np.stack([pixels(Image.fromarray(picture), chosen.shape) for picture in pictures]))
    store = Store(chosen.shape, [str(i) for i in range(count)], [digest(image) for image in stacked], stacked)
    files = [Found(str(i), data.class_names[data.labels[i]], held_out=bool(data.val[i])) for i in range(count)]
    known = Metadata(wanted=kinds).columns(files)
    return _assemble(name, chosen, headers, store, ~data.val, data.val, known.columns, known.is_labelled)


def _assemble(
    name: str,
    chosen: Plan,
    headers: Sequence[Header],
    store: Store,
    is_train: np.ndarray,
    is_val: np.ndarray,
    columns: Mapping[str, Column],
    is_labelled: bool,
) -> ImageDataset:
    """The data set of the rows `is_train`, with that of the rows `is_val` beside it, and one account of both."""
    train, val = np.flatnonzero(is_train), np.flatnonzero(is_val)
    rows = train.tolist()
    known, warnings = {}, []
    for title, column in columns.items():
        if column.kind in ("image", "mask"):
            column, more = survey_column(title, column, store.root, headers)
            warnings += more
        known[title] = fitted(title, column, store.shape)
    labels, names = (known["label"].values, known["label"].names) if is_labelled else (None, ())
    train_labels, val_labels = (
        None if labels is None else np.array([labels[row] for row in part.tolist()], np.int64) for part in (train, val)
    )
    report = account(
        name,
        chosen,
        [headers[row] for row in rows],
        Digests(Digests.of(store.digests).values[train]),
        train_labels,
        names,
    )
    report.found = len(headers)
    report.held_out = len(val)
    report.warnings += warnings
    report.columns = {named(t): column.summary(rows) for t, column in known.items() if t != "label" or not is_labelled}
    held_out = ImageDataset(store, val, report, val_labels, names, columns=known) if len(val) else None
    return ImageDataset(store, train, report, train_labels, names, held_out, known)
