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
import math
import re
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, normalize

from diff_diffusion.errors import ConfigError, DataError, DiffusionError
from diff_diffusion.rng import derive
from diff_diffusion.storage.folder import read_manifest, read_safetensors, to_safetensors, write_folder
from pairs import LANGUAGES, Pairs, fingerprint, read_pairs
from retrieval import Retrieval, ranks, table

SEEN = 32  # pixels a side that the judge looks at, whatever size the pictures have
SHIFT = 2
BUCKETS = 16384
WIDTH, DIM = 128, 128
TEMPERATURE = 0.07
LR = 3e-3
GRAMS_DROPPED = 0.2


def grams(text: str) -> list[int]:
    """The words of a text and their parts, each as the number of its bucket."""
    found = []
    for word in re.findall(r"[\w'’]+", text.casefold()):
        wide = any(ord(letter) >= 0x2E80 for letter in word)
        marked, lengths = (word, (1, 2, 3)) if wide else (f"<{word}>", (3, 4, 5))
        found += [f"{n} {marked[i : i + n]}" for n in lengths for i in range(len(marked) - n + 1)]
        found.append(marked)
    return [zlib.crc32(part.encode()) % BUCKETS for part in found] or [0]


class Dual(nn.Module):
    """Pictures and texts as points on one sphere, near each other where one shows what the other says."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())

        self.eye = nn.Sequential(
            block(3, width),
            block(width, 2 * width, 2),
            block(2 * width, 2 * width),
            block(2 * width, 4 * width, 2),
            block(4 * width, 4 * width),
            block(4 * width, 4 * width, 2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * width * (SEEN // 8) ** 2, DIM),
        )
        self.bag = nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum")
        nn.init.normal_(self.bag.weight, std=0.3)
        self.reader = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Dropout(0.3), nn.Linear(WIDTH, 256), nn.SiLU(), nn.Dropout(0.3), nn.Linear(256, DIM)
        )

    def images(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in data units 0..255 as unit vectors [N, DIM]."""
        return normalize(self.eye(adaptive_avg_pool2d(pixels.float() / 127.5 - 1.0, SEEN)), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts as unit vectors [N, DIM]."""
        bags = [grams(text) for text in texts]
        starts = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        flat = torch.tensor([gram for bag in bags for gram in bag])
        # Some parts are hidden while it learns, so that none is needed, and new words made of known parts are read.
        kept = (torch.rand(len(flat)) > GRAMS_DROPPED).float() if self.training else torch.ones(len(flat))
        return normalize(self.reader(self.bag(flat, starts, per_sample_weights=kept)), dim=1)

    @torch.no_grad()
    def judge(self, pixels: Tensor, captions: Sequence[str]) -> Retrieval:
        """How often pictures [N, 3, H, W] find their own caption among all the different ones."""
        prompts = list(dict.fromkeys(captions))
        seen = torch.cat([self.images(part) for part in pixels.split(256)])
        return Retrieval.of(ranks(seen @ self.texts(prompts).T, [prompts.index(own) for own in captions]), len(prompts))


def train_dual(pairs: Pairs, epochs: int = 80, batch_size: int = 256, seed: int = 0) -> Dual:
    """A dual encoder of the pairs, ready to judge; the same on every run.

    Raises:
        ConfigError: fewer than two pairs a batch, or no epoch.
    """
    batch_size = min(batch_size, len(pairs))
    if batch_size < 2 or epochs < 1:
        raise ConfigError(f"a dual encoder needs an epoch and 2 pairs or more, not {epochs} and {batch_size}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "dual") % (1 << 63))
        dual = Dual()
        steps = epochs * (len(pairs) // batch_size)
        optimizer = torch.optim.AdamW(dual.parameters(), weight_decay=0.05)
        # Up in the first tenth of the steps, then down along a cosine.
        warm = max(1, steps // 10)
        rates = [LR * min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps)) for step in range(steps)]
        for _ in range(epochs):
            order = torch.randperm(len(pairs))
            for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
                seen = dual.images(augmented(pairs.images[rows]))
                loss = torch.zeros(())
                for captions in pairs.captions:
                    alike = seen @ dual.texts([captions[row] for row in rows.tolist()]).T / TEMPERATURE
                    own = torch.arange(len(rows))
                    loss = loss + cross_entropy(alike, own) + cross_entropy(alike.T, own)
                optimizer.zero_grad()
                loss.backward()
                optimizer.param_groups[0]["lr"] = rates.pop(0)
                optimizer.step()
    return dual.eval()


def augmented(pixels: Tensor) -> Tensor:
    """Pictures shifted by up to SHIFT pixels, a little paler, brighter or darker, and with a little noise.

    Never mirrored: captions say left and right. Never coloured: they name colours.
    """
    count, _, height, width = pixels.shape
    shift = torch.randint(-SHIFT, SHIFT + 1, (2, count, 1))
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1)[:, None, :, None]
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1)[:, None, None, :]
    moved = pixels[torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None], rows, columns].float()
    paler, brighter = 1.0 - 0.1 * torch.rand(count, 1, 1, 1), 6.0 * torch.randn(count, 1, 1, 1)
    return (moved - 127.5) * paler + 127.5 + brighter + 6.0 * torch.randn_like(moved)


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
                accuracy[f"{name}, {language}"] = dual.judge(val.images, captions)
            print(f"{name}: {len(pairs)} pairs, {time.monotonic() - started:.0f} s", flush=True)
        config = {"data": fingerprint(asked.data), "accuracy": {name: asdict(row) for name, row in accuracy.items()}}
        write_folder(asked.out, files, config)
    except DiffusionError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"real pictures of val/ that find their own caption (the twin never saw them):\n{table(accuracy)}")


if __name__ == "__main__":
    main()
