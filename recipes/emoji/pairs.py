"""The pictures and captions of a folder that build.py made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diff_diffusion.errors import DataError, listed

LANGUAGES = ("English", "Chinese")


@dataclass(frozen=True)
class Pairs:
    """Pictures and what they are called.

    Args:
        images: uint8 [N, 3, H, W].
        captions: for each language, the caption of every picture.
    """

    images: Tensor
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.images)

    def __add__(self, other: Pairs) -> Pairs:
        captions = tuple(mine + theirs for mine, theirs in zip(self.captions, other.captions, strict=True))
        return Pairs(torch.cat([self.images, other.images]), captions)


def read_pairs(folder: Path) -> Pairs:
    """The pairs of a folder with a metadata.jsonl, as build.py writes them.

    Raises:
        DataError: no such folder, a line that is not as build.py writes it, or a picture that cannot be read.
    """
    file = folder / "metadata.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        captions = tuple(zip(*(row["caption"] for row in rows), strict=True))
        pixels = [np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    except OSError as error:
        raise DataError(f"{error}; make the folder with build.py, and name it, not its train/ or val/") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not as build.py writes it: {error!r}. Make the folder again") from error
    if len(captions) != len(LANGUAGES):
        raise DataError(f"{file} has {len(captions)} captions a picture, not {len(LANGUAGES)}: {listed(LANGUAGES)}")
    return Pairs(images, captions)


def fingerprint(folder: Path) -> str:
    """Which pictures are in train/ and in val/, and what they are called, as one hash."""
    texts = ((folder / split / "metadata.jsonl").read_bytes() for split in ("train", "val"))
    return hashlib.sha256(b"\0".join(texts)).hexdigest()
