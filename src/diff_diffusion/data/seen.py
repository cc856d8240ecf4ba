"""Which files of a folder an index knows, and what it says of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.data import index
from diff_diffusion.data.folder import Folder
from diff_diffusion.data.images import Header
from diff_diffusion.data.store import Digests, Store


class Seen:
    """What an index says of the files of a folder, as far as they are still those that it was made of.

    Args:
        folder: the files.
        size, channels: as they were asked for.
        indexed: whether to read and keep an index.
    """

    def __init__(self, folder: Folder, size: tuple[int, int] | None, channels: int | None, indexed: bool) -> None:
        self.names = [file.name for file in folder.files]
        self.indexed = indexed and len(self.names) >= index.ENOUGH
        self.rows: dict[str, int] = {}
        self.arrays: index.Arrays = {}
        if not self.indexed:
            return
        self.about = {"folder": os.path.realpath(folder.root), "size": size, "channels": channels}
        root = os.path.join(os.path.realpath(folder.root), "")
        self.stamps = index.stamps([root + name for name in self.names])  # taken before a file is opened
        self.arrays = index.read(self.about) or {}
        if self.arrays:
            stored = bytes(self.arrays["names"]).decode("utf-8", "surrogateescape").split("\0")
            place = {name: row for row, name in enumerate(stored)}
            rows = np.array([place.get(name, -1) for name in self.names])
            same = (rows >= 0) & (self.stamps[:, 0] >= 0) & (self.stamps == self.arrays["stamps"][rows]).all(1)
            self.rows = {name: row for name, row, kept in zip(self.names, rows.tolist(), same, strict=True) if kept}

    def headers(self) -> dict[str, Header]:
        if not self.rows:
            return {}
        modes = bytes(self.arrays["modes"]).decode().split("\0")
        table, equal = self.arrays["headers"].tolist(), dict[tuple[int, ...], Header]()
        found = {}
        for name, row in self.rows.items():
            height, width, mode, grey = key = tuple(table[row])
            found[name] = equal.setdefault(key, Header(height, width, modes[mode], bool(grey)))
        return found

    def decoded(
        self, shape: tuple[int, int, int], with_pixels: bool
    ) -> tuple[np.ndarray, Tensor | None, dict[str, int]]:
        """Digests and pixels of the files as images of `shape`, and the rows of the files that have them."""
        known = self.rows and tuple(self.arrays["shape"]) == shape and (not with_pixels or "pixels" in self.arrays)
        if not known:
            return np.empty((0, 16), np.uint8), None, {}
        pixels = torch.from_numpy(self.arrays["pixels"]) if with_pixels else None
        return self.arrays["digests"], pixels, self.rows

    def keep(self, headers: Mapping[str, Header], store: Store) -> None:
        """Keeps what was found out, if anything was new."""
        if not self.indexed or isinstance(store.digests, Digests):  # all of it is the index's own
            return
        modes = sorted({header.mode for header in headers.values()})
        code = {mode: i for i, mode in enumerate(modes)}
        at = {name: row for row, name in enumerate(self.names)}
        told = [(h.height, h.width, code[h.mode], h.grey) for h in (headers[name] for name in store.names)]
        arrays = {
            "names": _packed(store.names),
            "modes": _packed(modes),
            "stamps": self.stamps[[at[name] for name in store.names]],
            "headers": np.array(told, np.int32),
            "shape": np.array(store.shape, np.int64),
            "digests": Digests.of(store.digests).values,
        }
        if store.pixels is not None:
            arrays["pixels"] = store.pixels.numpy()
        index.write(self.about, arrays)


def _packed(names: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)
