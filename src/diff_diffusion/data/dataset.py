"""A set of images of one shape: by item, in batches, split, and with a fingerprint of its contents."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diff_diffusion import rng
from diff_diffusion.data.arrays import channels_first, checked_columns, checked_labels
from diff_diffusion.data.audit import account
from diff_diffusion.data.columns import DERIVED, Column, named
from diff_diffusion.data.images import Header, ImageFileError, read_image, read_mask
from diff_diffusion.data.plan import Plan
from diff_diffusion.data.report import DataReport
from diff_diffusion.data.split import held_out
from diff_diffusion.data.store import Digests, Store, digest, in_threads
from diff_diffusion.errors import ConfigError, DataError

MAX_HELD_OUT = 2000  # more would measure nothing better, and is missing from training


class ImageDataset(Dataset[Tensor]):
    """Images of one shape, with or without classes; a torch data set of uint8 tensors [C, H, W].

    Made by `load_image_dataset` and `from_arrays`. Items can be read from several threads and from the forked or
    spawned workers of a torch DataLoader.

    Attributes:
        name: the path or built-in name it was loaded by.
        shape: (C, H, W) of every item; C is 1 (grey) or 3 (RGB).
        class_names: one name per class, () without classes.
        labels: int64 [N], indices into class_names; None without classes.
        columns: what is known of each image; "label" among it where there are classes.
        report: what was found, used and skipped.
        val: the images that the source itself holds out of training, or None.

    >>> images = np.zeros((4, 8, 8), np.uint8)
    >>> dataset = ImageDataset.from_arrays(images, labels=[0, 1, 0, 1], class_names=("cat", "dog"))
    >>> dataset[0].shape, len(dataset)
    (torch.Size([1, 8, 8]), 4)
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        report: DataReport,
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] = (),
        val: ImageDataset | None = None,
        columns: Mapping[str, Column] | None = None,
    ) -> None:
        self.name = report.name
        self.shape = store.shape
        self.class_names = class_names
        self.labels = labels
        self.report = report
        self.val = val
        self._store = store
        self._rows = rows
        self._stand_in: dict[int, int] = {}
        self.columns = dict(columns or {})
        if labels is not None and "label" not in self.columns:
            values: list[int | None] = [None] * len(store.names)
            for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
                values[row] = label
            self.columns = {"label": Column("class", values, class_names)} | self.columns

    @property
    def in_memory(self) -> bool:
        """Whether the decoded pixels are in memory; if not, every read decodes a file."""
        return self._store.pixels is not None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W].

        Raises:
            IndexError: there is no such item.
            DataError: its file is gone, and so are all that could stand in for it.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a data set of {len(self)}")
        return self._read(index % len(self))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Several images, uint8 [B, C, H, W]; from disk, several are decoded at a time.

        Raises:
            IndexError: there is no such item.
            DataError: as for a single item.
        """
        wanted = self._numbers(indices)
        if self._store.pixels is not None:
            return self._store.pixels[torch.from_numpy(self._rows[wanted])].contiguous()
        out = torch.empty((len(wanted), *self.shape), dtype=torch.uint8)
        for i, image in enumerate(in_threads(self._read, wanted.tolist())):
            out[i] = image
        return out

    def spread(self, most: int) -> list[int]:
        """The numbers of at most so many items, at even distances: a folder of classes has one after another."""
        count = min(most, len(self))
        return [i * len(self) // count for i in range(count)]

    @property
    def stood_in(self) -> bool:
        """Whether an item is another at present, whose file could be read."""
        return bool(self._stand_in)

    def cond(
        self, indices: Sequence[int] | np.ndarray, choice: np.ndarray | None = None, pixels: Tensor | None = None
    ) -> dict[str, list[Any]]:
        """What is known of some items, by column: a list with one entry for each, None where it is missing.

        A class is its number in the column's names, a number a float, a vector a list of floats, a text one of the
        image's captions; all that is an image a uint8 tensor [C, H, W], fitted as the image is.

        Args:
            indices: of the items.
            choice: uint64, one for each, that picks among several captions; the first when left out.
            pixels: of these items if they are read already, uint8 [B, C, H, W]; derived columns are made of them.

        Raises:
            IndexError: there is no such item.
            DataError: as for a single item.
        """
        wanted = self._numbers(indices)
        if pixels is None and any(column.kind in DERIVED for column in self.columns.values()):
            pixels = self.batch(wanted)
        # Where another image stands in for one that broke, what is known must be of that one.
        rows = [int(self._rows[self._stand_in.get(index, index)]) for index in wanted.tolist()]
        found: dict[str, list[Any]] = {}
        for name, column in self.columns.items():
            if column.kind in DERIVED:
                assert pixels is not None
                found[name] = list(column.derive(pixels))
            elif column.kind in ("image", "mask"):
                asked = [(column, value) for value in column.of(rows)]
                found[name] = list(in_threads(self._condition, asked))
            else:
                found[name] = column.of(rows, choice)
        return found

    def values(self, name: str) -> list[Any]:
        """The values of a column, of these images alone, None where they are missing; `Column` says what they are."""
        values = self.columns[name].values
        return [values[row] for row in self._rows.tolist()]

    def known(self, name: str) -> list[Any]:
        """The values of a column, of these images alone, where they are known."""
        return [value for value in self.values(name) if value is not None]

    def split(self, fraction: float = 0.1) -> tuple[ImageDataset, ImageDataset]:
        """What to train on and what to hold out: `val` where the source brings it, else a random part, always the same.

        Args:
            fraction: of the images to hold out, in (0, 1), every class in proportion; at least 1 and at most 2,000 of
                them. Without effect where there is a `val`, whose maker has decided.

        Raises:
            ConfigError: the fraction is out of range.
            DataError: there are fewer than two images.
        """
        if not 0 < fraction < 1:
            raise ConfigError(f"the held-out fraction {fraction!r} is out of range: between 0 and 1, such as 0.1")
        if self.val is not None:
            return self, self.val
        if len(self) < 2:
            raise DataError(f"{self.name} has {len(self)} image: at least two are needed, one of them to hold out")
        labels = np.zeros(len(self), np.int64) if self.labels is None else self.labels
        count = min(max(1, round(fraction * len(self))), MAX_HELD_OUT)
        chosen = held_out(labels, count, rng.generator(0, "held-out split"))
        return self._part(~chosen), self._part(chosen)

    def fingerprint(self) -> str:
        """A sha256 in hex of all that a training sees: names, shape, labels, columns, every pixel after fitting."""
        head = {"shape": self.shape, "classes": self.class_names, "items": len(self)}
        total = hashlib.sha256(json.dumps(head).encode())
        if self.labels is not None:
            total.update(self.labels.astype("<i8").tobytes())
        for row in self._rows.tolist():
            # Macs spell the same name with other code points.
            name = unicodedata.normalize("NFC", self._store.names[row])
            total.update(name.encode("utf-8", "surrogateescape") + b"\0" + self._store.digests[row])
        for name, column in sorted(self.columns.items()):
            if name != "label" or self.labels is None:
                total.update(json.dumps(name).encode())
                for piece in column.contents(self._rows.tolist(), self._store.root):
                    total.update(piece)
        return total.hexdigest()

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | Tensor,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
        class_names: Sequence[str] = (),
        name: str = "arrays",
        columns: Mapping[str, Column | Sequence[Any] | np.ndarray | Tensor] | None = None,
    ) -> ImageDataset:
        """A data set of pixels in memory.

        Args:
            images: uint8, an array [N, H, W] or [N, H, W, C], or a tensor [N, H, W] or [N, C, H, W]; C is 1 or 3.
            labels: [N] whole numbers from 0, or None.
            class_names: one name per class; "0", "1", … when left out.
            name: what the report calls it.
            columns: what else is known of each image, None where it is not: a `Column`, or plain values, whose kind is
                inferred (see `diff_diffusion.data.kinds`); uint8 images are given as `images` are.

        Raises:
            ConfigError: a derived column cannot be made of these images.
            DataError: a shape, a type, a label or a column does not fit.
        """
        pixels = channels_first(images)
        count, channels, height, width = pixels.shape
        numbers, names = checked_labels(labels, tuple(class_names), count)
        digests = [digest(image) for image in pixels]
        store = Store((channels, height, width), [str(i) for i in range(count)], digests, pixels)
        header = Header(height, width, "L" if channels == 1 else "RGB", channels == 1)
        why = Plan(store.shape, "as given", "as given")
        report = account(name, why, [header] * count, Digests.of(digests), numbers, names)
        known = checked_columns(columns or {}, count, store.shape)
        if labels is not None and "label" in known:
            raise DataError("there are labels and a column 'label': give one of them")
        report.columns = {named(title): column.summary(range(count)) for title, column in known.items()}
        return cls(store, np.arange(count), report, numbers, names, columns=known)

    def _numbers(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Indices from 0, int64; those below 0 count from the end."""
        wanted, count = np.asarray(indices, np.int64), len(self)
        wrong = wanted[(wanted < -count) | (wanted >= count)]
        if wrong.size:
            raise IndexError(f"item {wrong.flat[0]} of a data set of {count}")
        return np.where(wanted < 0, wanted + count, wanted)

    def _read(self, index: int) -> Tensor:
        """The image at `index`; if its file broke since it was verified, the next one (of its class) that reads."""
        for stand_in in self._stand_ins(index):
            row = int(self._rows[stand_in])
            try:
                image = self._store.read(row)
                self._stand_in.pop(index, None)  # a file that was out of reach may be back
                if stand_in != index:
                    self._stand_in[index] = stand_in
                return image
            except ImageFileError as error:
                self.report.replaced[self._store.names[row]] = error.reason
        raise DataError(
            f"{self.name}: {self._store.names[self._rows[index]]} is gone, and so is all that could stand in"
        )

    def _condition(self, asked: tuple[Column, str | Tensor | None]) -> Tensor | None:
        """One condition that is an image; one whose file broke is missing."""
        column, value = asked
        if not isinstance(value, str):
            return value if value is None else value.clone()
        read = read_mask if column.kind == "mask" else read_image
        try:
            return torch.from_numpy(read(self._store.root / value, (column.channels, *self.shape[1:])))
        except ImageFileError as error:
            self.report.replaced[value] = error.reason
            return None

    def _stand_ins(self, index: int) -> Iterator[int]:
        for step in range(len(self)):
            other = (index + step) % len(self)
            if self.labels is None or self.labels[other] == self.labels[index]:
                yield other

    def _part(self, mask: np.ndarray) -> ImageDataset:
        labels = None if self.labels is None else self.labels[mask]
        return ImageDataset(self._store, self._rows[mask], self.report, labels, self.class_names, columns=self.columns)
