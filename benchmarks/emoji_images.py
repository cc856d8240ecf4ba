"""Emoji of 64 × 64 as recipes/emoji/build.py makes them, or any other folder of images."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from diff_diffusion import ImageDataset, load_image_dataset

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "emoji" / "build.py"
SIDE = 64
HELD_OUT, SHARE = 500, 0.3
"""Images held out: so many, or that share where it is fewer."""


def folder_of(source: Path | None, home: Path) -> Path:
    """A folder of images: the one given, or the recipe's, below `home`, of the system's font or of an .npz file."""
    if source is not None and source.suffix != ".npz":
        return source
    name = f"emoji{SIDE}" + (f"-{hashlib.sha256(source.read_bytes()).hexdigest()[:8]}" if source else "")
    folder = home / name
    if not folder.exists():
        home.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, whoever else is building it.
        made = Path(tempfile.mkdtemp(dir=home)) / name
        recipe = [sys.executable, str(RECIPE), str(made), "--size", str(SIDE)]
        done = subprocess.run([*recipe, *(("--arrays", str(source)) if source else ())])
        if done.returncode == 0 and not folder.exists():
            made.rename(folder)
        shutil.rmtree(made.parent)
        if done.returncode:
            raise SystemExit("no emoji were made, for the reason above; --data takes any folder of images instead")
    return folder


def images(folder: Path, size: int, most: int | None = None) -> tuple[ImageDataset, ImageDataset]:
    """What is trained on and what is held out, of at most `most`; with classes where the folder has any, or a column
    "category".

    The recipe holds out fewer, to ask for their captions; a Fréchet distance wants as many real images as samples.
    """
    first = load_image_dataset(str(folder), size=size)
    parts = [first] if first.val is None else [first, first.val]
    pixels = torch.cat([part.batch(range(len(part))) for part in parts])
    # Folders lie in an order, and pictures show the first few.
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:most]
    labels: torch.Tensor | None = None
    names: tuple[str, ...] = ()
    for name in ("label", "category"):
        if labels is None and name in first.columns and first.columns[name].kind == "class":
            known = [value for part in parts for value in part.values(name)]
            if None not in known:
                labels, names = torch.tensor(known)[chosen], first.columns[name].names
    whole = ImageDataset.from_arrays(pixels[chosen], labels, names, name=folder.name)
    return whole.split(min(SHARE, HELD_OUT / len(whole)))
