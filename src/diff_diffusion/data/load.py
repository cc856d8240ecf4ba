"""The one door to image data: a folder or a built-in name in, a verified `ImageDataset` out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diff_diffusion.data.audit import account
from diff_diffusion.data.builtin import BUILTIN
from diff_diffusion.data.dataset import ImageDataset
from diff_diffusion.data.folder import existing, scan
from diff_diffusion.data.images import Header, pixels
from diff_diffusion.data.plan import Plan, checked_channels, checked_size, plan
from diff_diffusion.data.store import Store, digest
from diff_diffusion.data.survey import Progress, survey
from diff_diffusion.errors import DataError


def load_image_dataset(
    path: str | os.PathLike[str],
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    *,
    progress: Progress | None = None,
) -> ImageDataset:
    """The images of a folder, or a built-in data set, verified and brought to one shape.

    A folder may hold images at any depth, class folders, or `train/` and `val/` (see `diff_diffusion.data.folder`).
    Every file is decoded once before anything else: one that cannot be read is skipped, and named in the report with
    the reason. Images are turned upright, laid on white, scaled to 8 bits, cropped to the common aspect and resized
    (see `diff_diffusion.data.images`).

    Args:
        path: a folder, or the name of a built-in set such as "digits"; "./digits" then means the folder of that name.
        size: the side of a square, or (height, width), in pixels. When left out: the images' own size if they share
            one of at most 64; else, from the median image, a square of side 8, 16, 24, 32, 48 or 64, or a rectangle
            no longer than that.
        channels: 1 makes every image grey, 3 RGB. When left out: 1 if every file is grey, else 3.
        progress: called as progress(done, total) after each file.

    Raises:
        ConfigError: size or channels cannot be used.
        DataError: there is no such folder, no image in it, or more than 5 % of its images cannot be read.
        MissingPackageError: a built-in set needs a package that is not installed.
    """
    wanted, colours = checked_size(size), checked_channels(channels)
    # The bare name always means the built-in set: a command must not change its meaning with the working directory.
    if isinstance(path, str) and path in BUILTIN:
        return _builtin(path, wanted, colours)
    if not os.fspath(path):
        raise DataError("the path of the data is empty: give a folder of images, or the name of a built-in data set")
    return _folder(Path(path), wanted, colours, progress)


def _folder(path: Path, size: tuple[int, int] | None, channels: int | None, progress: Progress | None) -> ImageDataset:
    folder = scan(existing(Path(os.path.expanduser(path)), sorted(BUILTIN)))
    found = survey(folder, size, channels, progress)
    class_names = tuple(sorted({file.label for file in found.files if not file.held_out} - {""}))
    number = {name: i for i, name in enumerate(class_names)}
    labels = np.array([number.get(file.label, -1) for file in found.files])
    # A class that is not trained on cannot be measured either.
    strange = labels < 0 if class_names else np.zeros(len(labels), bool)
    held_out = np.array([file.held_out for file in found.files])
    dataset = _assemble(
        str(path),
        found.plan,
        found.headers,
        found.store,
        np.flatnonzero(~held_out),
        np.flatnonzero(held_out & ~strange),
        labels if class_names else None,
        class_names,
    )
    report = dataset.report
    report.found = len(folder.files)
    report.skipped = dict(found.bad)
    if strange.any():
        report.skipped["of a class without training images"] = [found.files[i].name for i in np.flatnonzero(strange)]
    report.others = folder.others
    report.notes.extend(folder.notes)
    return dataset


def _builtin(name: str, size: tuple[int, int] | None, channels: int | None) -> ImageDataset:
    data = BUILTIN[name]()
    count, height, width, depth = data.images.shape
    headers = [Header(height, width, "L" if depth == 1 else "RGB", depth == 1)] * count
    chosen = plan(headers, size, channels)
    pictures = data.images[..., 0] if depth == 1 else data.images
    stacked = torch.from_numpy(np.stack([pixels(Image.fromarray(picture), chosen.shape) for picture in pictures]))
    store = Store(chosen.shape, [str(i) for i in range(count)], [digest(image) for image in stacked], stacked)
    train, val = np.flatnonzero(~data.val), np.flatnonzero(data.val)
    return _assemble(name, chosen, headers, store, train, val, data.labels, data.class_names)


def _assemble(
    name: str,
    chosen: Plan,
    headers: Sequence[Header],
    store: Store,
    train: np.ndarray,
    val: np.ndarray,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
) -> ImageDataset:
    """The data set of the rows `train`, with that of the rows `val` beside it, and one account of both."""
    train_labels, val_labels = (None if labels is None else labels[rows] for rows in (train, val))
    rows = train.tolist()
    digests = [store.digests[row] for row in rows]
    report = account(name, chosen, [headers[row] for row in rows], digests, train_labels, class_names)
    report.found = len(headers)
    report.held_out = len(val)
    held_out = ImageDataset(store, val, report, val_labels, class_names) if len(val) else None
    return ImageDataset(store, train, report, train_labels, class_names, held_out)
