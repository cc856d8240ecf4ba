"""What is known of each image beside its pixels: a class, a number, a sentence, another image.

A column has one kind and one value for each image, or None where it is not known. `kinds` says how kinds are inferred,
`metadata` where the values come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.data.report import short
from diff_diffusion.errors import ConfigError, listed
from diff_diffusion.tensors import enlarged

GIVEN = ("class", "number", "vector", "text", "image", "mask")
DERIVED = ("shrunk", "grey")
KINDS = GIVEN + DERIVED


@dataclass(frozen=True)
class Column:
    """One thing that is known of each image.

    Args:
        kind: one of KINDS.
        values: one per row of the store, None where it is missing: of a class its number, an index into names; of a
            number a float; of a vector a tuple of floats, all of one length; of text a tuple of one caption or more; of
            an image or mask its POSIX path below the root, or uint8 [C, H, W] in memory. Empty where it is derived
            from the pixels.
        names: of a class its vocabulary, sorted.
        factor: of "shrunk", how many times smaller, 2 or more.
        channels: of what is an image, 1 or 3.

    Raises:
        ConfigError: the kind is unknown, or an argument does not go with it.
    """

    kind: str
    values: Sequence[Any] = ()
    names: tuple[str, ...] = ()
    factor: int = 1
    channels: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"there is no kind of column {self.kind!r}; there are {listed(KINDS)}")
        if (self.kind == "shrunk") != (self.factor != 1) or self.factor < 1:
            raise ConfigError(
                f"a column of kind {self.kind} has factor {self.factor}: shrunk takes 2 or more, others 1"
            )
        if self.names and self.kind != "class":
            raise ConfigError(f"a column of kind {self.kind} has no names; it was given {listed(self.names)}")
        if self.kind in DERIVED and len(self.values):
            raise ConfigError(f"a column of kind {self.kind} is made from the image's own pixels and takes no values")

    @property
    def reads_files(self) -> bool:
        """Whether its values lie in files of their own."""
        return self.kind in ("image", "mask") and any(isinstance(value, str) for value in self.values)

    def of(self, rows: Sequence[int], choice: np.ndarray | None = None) -> list[Any]:
        """The values of some rows: int, float, list of floats, or of several captions one; None where missing.

        Args:
            rows: of the store.
            choice: uint64, one for each row, that picks the caption; the first when left out.
        """
        found = [self.values[row] for row in rows]
        if self.kind == "vector":
            return [None if value is None else list(value) for value in found]
        if self.kind != "text":
            return found
        picks = [0] * len(found) if choice is None else [int(pick) for pick in choice]
        return [texts and texts[pick % len(texts)] for texts, pick in zip(found, picks, strict=True)]

    def derive(self, pixels: Tensor) -> Tensor:
        """Of the images uint8 [B, C, H, W] what a derived column holds, uint8 [B, C or 1, H, W]."""
        return luma(pixels) if self.kind == "grey" else shrunk(pixels, self.factor)

    def summary(self, rows: Sequence[int]) -> str:
        """The column in words, as far as it is known of `rows`."""
        if self.kind in DERIVED:
            how = "in grey" if self.kind == "grey" else f"{self.factor} times smaller, enlarged again"
            return f"{self.kind}, the image itself {how}"
        known = [value for value in (self.values[row] for row in rows) if value is not None]
        missing = len(rows) - len(known)
        return f"{self.kind}, {self._known(known)}" + (f", {missing} of {len(rows)} missing" if missing else "")

    def _known(self, known: Sequence[Any]) -> str:
        if self.kind == "class":
            return f"{len(self.names)} names ({listed(map(named, self.names))})"
        if not known:
            return "none known"
        if self.kind == "number":
            return f"{min(known):g} to {max(known):g}"
        if self.kind == "vector":
            return f"{len(known[0])} numbers each, {min(map(min, known)):g} to {max(map(max, known)):g}"
        if self.kind == "text":
            fewest, most = min(map(len, known)), max(map(len, known))
            several = "" if most == 1 else f"{fewest} to {most} each, " if fewest != most else f"{most} each, "
            return f"{several}such as {short(known[0][0])}"
        what = f", such as {short(known[0])}" if isinstance(known[0], str) else " in memory"
        return f"{self.channels} channel{'s' if self.channels > 1 else ''}{what}"

    def contents(self, rows: Sequence[int], root: Path) -> Iterator[bytes]:
        """All that a training can see of it, in pieces to be hashed."""
        yield json.dumps([self.kind, self.names, self.factor, self.channels]).encode()
        for row in rows if self.kind in GIVEN else ():
            value = self.values[row]
            if isinstance(value, Tensor):
                yield hashlib.blake2b(value.contiguous().numpy().tobytes()).digest()
            elif value is not None and self.kind in ("image", "mask"):
                yield _file_digest(root / value)
            else:
                yield json.dumps(value).encode() + b"\0"


def luma(pixels: Tensor) -> Tensor:
    """The grey of RGB images, uint8 [B, 3, H, W] to [B, 1, H, W]: 0.299 R + 0.587 G + 0.114 B, as Pillow rounds it."""
    red, green, blue = pixels.to(torch.int32).unbind(-3)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8).unsqueeze(-3)


def shrunk(pixels: Tensor, factor: int) -> Tensor:
    """Images uint8 [B, C, H, W] averaged over squares of side `factor`, rounded, and enlarged again bilinearly."""
    return enlarged(torch.nn.functional.avg_pool2d(pixels.float(), factor), factor).to(torch.uint8)


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:  # gone since it was found: it reads as missing
        return b"null\0"


def named(text: str) -> str:
    """A name of a stranger's choice in a line: as it is, if that is safe."""
    return text if len(text) <= 60 and text.isprintable() else short(text)
