"""A judge of whether a picture shows its caption: an image-caption dual encoder, trained on the real pairs.

    python recipes/emoji/dual.py emoji --out runs/judge [--epochs 80]

Two are trained alike. The *twin* sees train/ only, so what it gets right on the real pairs of val/ is honest: how far a
judge of this kind understands captions that it never saw. The *judge* sees val/ too. It is the one to ask about a
generated picture, whose caption comes from val/: it knows what that picture should look like, so that it is the model
under test, and not the judge, that has to recombine words. What the judge gets right on those real pairs it has
learned by heart; that says that it can tell the candidates apart, and nothing more.

Both encoders end on the unit sphere, and the loss (InfoNCE, each caption's picture among the batch's pictures and each
picture's caption among the batch's captions) is over the captions of every language at once. Text is a bag of words and
parts of words, 3 to 5 letters in alphabets and 1 to 3 characters in Chinese, so that "red heart" and "红心" share parts
with other captions.

Source: "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from diff_diffusion.errors import DataError, DiffusionError
from diff_diffusion.evaluation.captions import ranks
from diff_diffusion.evaluation.dual import Dual
from diff_diffusion.evaluation.dual import train_dual as train_encoder
from diff_diffusion.storage.folder import read_manifest, read_safetensors, to_safetensors, write_folder
from pairs import LANGUAGES, Pairs, fingerprint, read_pairs
from retrieval import Retrieval, table


def judged(dual: Dual, pixels: Tensor, captions: Sequence[str]) -> Retrieval:
    """How often pictures [N, 3, H, W] find their own caption among all the different ones."""
    prompts = list(dict.fromkeys(captions))
    with torch.no_grad():
        seen = torch.cat([dual.images(part) for part in pixels.split(256)])
        alike = seen @ dual.texts(prompts).T
    return Retrieval.of(ranks(alike, [prompts.index(own) for own in captions]), len(prompts))


def train_dual(pairs: Pairs, epochs: int = 80, batch_size: int = 256, seed: int = 0) -> Dual:
    """A dual encoder of the pairs, ready to judge; the same on every run.

    Raises:
        ConfigError: fewer than two pairs a batch, or no epoch.
    """
    return train_encoder(lambda rows: pairs.images[rows], pairs.captions, 3, epochs, batch_size, seed)


def load_duals(folder: Path, data: Path) -> dict[str, Dual]:
    """The judge and the twin in `folder`, which `main` wrote for the emoji in `data`.

    Raises:
        CheckpointError: there are none, or the folder is damaged.
        DataError: they were trained on other emoji, so that the judge does not know the held-out ones.
    """
    manifest = read_manifest(folder)
    if manifest.get("data") != fingerprint(data):
        raise DataError(f"{folder} was trained on other emoji than those in {data}: run dual.py on these again")
    duals = {}
    for name in ("judge", "twin"):
        duals[name] = Dual().eval()
        duals[name].load_state_dict(read_safetensors(folder, f"{name}.safetensors", manifest))
    return duals


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that build.py made")
    parser.add_argument("--out", type=Path, default=Path("runs/judge"), help="where both go (default: runs/judge)")
    parser.add_argument("--epochs", type=int, default=80, help="of each (default: 80)")
    asked = parser.parse_args(arguments)
    try:
        train, val = (read_pairs(asked.data / split) for split in ("train", "val"))
        files, accuracy = {}, {}
        for name, pairs in (("twin", train), ("judge", train + val)):
            started = time.monotonic()
            dual = train_dual(pairs, asked.epochs)
            files[f"{name}.safetensors"] = to_safetensors(dual.state_dict())
            for language, captions in zip(LANGUAGES, val.captions, strict=True):
                accuracy[f"{name}, {language}"] = judged(dual, val.images, captions)
            print(f"{name}: {len(pairs)} pairs, {time.monotonic() - started:.0f} s", flush=True)
        config = {"data": fingerprint(asked.data), "accuracy": {name: asdict(row) for name, row in accuracy.items()}}
        write_folder(asked.out, files, config)
    except DiffusionError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"real pictures of val/ that find their own caption (the twin never saw them):\n{table(accuracy)}")


if __name__ == "__main__":
    main()
