"""A set of images of one shape: by item, in batches, split, and with a fingerprint of its contents."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diff_diffusion import rng
from diff_diffusion.data.audit import account
from diff_diffusion.data.images import Header, ImageFileError
from diff_diffusion.data.plan import Plan
from diff_diffusion.data.report import DataReport
from diff_diffusion.data.split import held_out
from diff_diffusion.data.store import Store, digest, in_threads
from diff_diffusion.errors import ConfigError, DataError, listed

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
    ) -> None:
        self.name = report.name
        self.shape = store.shape
        self.class_names = class_names
        self.labels = labels
        self.report = report
        self.val = val
        self._store = store
        self._rows = rows

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
        wanted = np.arange(len(self))[np.asarray(indices, np.int64)]
        if self._store.pixels is not None:
            return self._store.pixels[torch.from_numpy(self._rows[wanted])]
        out = torch.empty((len(wanted), *self.shape), dtype=torch.uint8)
        for i, image in enumerate(in_threads(self._read, wanted.tolist())):
            out[i] = image
        return out

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
        """A sha256 in hex of all that a training sees: names, shape, labels and every pixel after fitting."""
        head = {"shape": self.shape, "classes": self.class_names, "items": len(self)}
        total = hashlib.sha256(json.dumps(head).encode())
        if self.labels is not None:
            total.update(self.labels.astype("<i8").tobytes())
        for row in self._rows.tolist():
            # Macs spell the same name with other code points.
            name = unicodedata.normalize("NFC", self._store.names[row])
            total.update(name.encode("utf-8", "surrogateescape") + b"\0" + self._store.digests[row])
        return total.hexdigest()

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | Tensor,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
        class_names: Sequence[str] = (),
        name: str = "arrays",
    ) -> ImageDataset:
        """A data set of pixels in memory.

        Args:
            images: uint8, an array [N, H, W] or [N, H, W, C], or a tensor [N, H, W] or [N, C, H, W]; C is 1 or 3.
            labels: [N] whole numbers from 0, or None.
            class_names: one name per class; "0", "1", … when left out.
            name: what the report calls it.

        Raises:
            DataError: a shape, a type or a label does not fit.
        """
        pixels = _channels_first(images)
        count, channels, height, width = pixels.shape
        numbers, names = _checked_labels(labels, tuple(class_names), count)
        digests = [digest(image) for image in pixels]
        store = Store((channels, height, width), [str(i) for i in range(count)], digests, pixels)
        header = Header(height, width, "L" if channels == 1 else "RGB", channels == 1)
        why = Plan(store.shape, "as given", "as given")
        report = account(name, why, [header] * count, digests, numbers, names)
        return cls(store, np.arange(count), report, numbers, names)

    def _read(self, index: int) -> Tensor:
        """The image at `index`; if its file broke since it was verified, the next one (of its class) that reads."""
        for stand_in in self._stand_ins(index):
            row = int(self._rows[stand_in])
            try:
                return self._store.read(row)
            except ImageFileError as error:
                self.report.replaced[self._store.names[row]] = error.reason
        raise DataError(
            f"{self.name}: {self._store.names[self._rows[index]]} is gone, and so is all that could stand in"
        )

    def _stand_ins(self, index: int) -> Iterator[int]:
        for step in range(len(self)):
            other = (index + step) % len(self)
            if self.labels is None or self.labels[other] == self.labels[index]:
                yield other

    def _part(self, mask: np.ndarray) -> ImageDataset:
        labels = None if self.labels is None else self.labels[mask]
        return ImageDataset(self._store, self._rows[mask], self.report, labels, self.class_names)


def _channels_first(images: np.ndarray | Tensor) -> Tensor:
    """`images` as a tensor [N, C, H, W] of its own."""
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


def _checked_labels(
    labels: Sequence[int] | np.ndarray | Tensor | None, class_names: tuple[str, ...], count: int
) -> tuple[np.ndarray | None, tuple[str, ...]]:
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
