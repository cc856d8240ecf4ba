"""An image-caption dual encoder, small enough to be trained on the spot: does a picture show its caption?"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, normalize

from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import CheckpointError, ConfigError, DataError
from diff_diffusion.evaluation.feature_networks import weights_hash
from diff_diffusion.rng import derive
from diff_diffusion.storage.folder import write_file

KIND = "diff-diffusion dual encoder"
SEEN = 32
"""Pixels a side that it looks at, whatever size pictures have."""
SHIFT = 2
BUCKETS = 16384
WIDTH, DIM = 128, 128
TEMPERATURE = 0.07
LR = 3e-3
GRAMS_DROPPED = 0.2
STEPS, EPOCHS, BATCH = 600, 80, 128
"""Of a training on the spot: so many steps, but no image oftener than so many times."""
SETS = 5
"""Captions of one image that are learned, at most."""


def grams(text: str) -> list[int]:
    """The words of a text and their parts, 3 to 5 letters in alphabets and 1 to 3 characters in Chinese, each as the
    number of its bucket. So "red heart" and "红心" share parts with other captions."""
    found = []
    for word in re.findall(r"[\w'’]+", text.casefold()):
        wide = any(ord(letter) >= 0x2E80 for letter in word)
        marked, lengths = (word, (1, 2, 3)) if wide else (f"<{word}>", (3, 4, 5))
        found += [f"{n} {marked[i : i + n]}" for n in lengths for i in range(len(marked) - n + 1)]
        found.append(marked)
    return [zlib.crc32(part.encode()) % BUCKETS for part in found] or [0]


class Dual(nn.Module):
    """Pictures and texts as points on one sphere, near each other where one shows what the other says.

    Args:
        channels: of the pictures.
        width: of the network that looks at them.

    Source: "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
    """

    def __init__(self, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.channels = channels

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())

        self.eye = nn.Sequential(
            block(channels, width),
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

    @property
    def name(self) -> str:
        """The pair of what is seen of images and what is read of texts: "dual-1a2b3c4d@32x32-area+grams"."""
        return f"dual-{weights_hash(self.state_dict().values())[:8]}@{SEEN}x{SEEN}-area+grams"

    def images(self, pixels: Tensor) -> Tensor:
        """Pictures [N, C, H, W] in data units 0..255 as unit vectors [N, DIM]."""
        return normalize(self.eye(adaptive_avg_pool2d(pixels.float() / 127.5 - 1.0, SEEN)), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts as unit vectors [N, DIM]."""
        bags = [grams(text) for text in texts]
        starts = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        flat = torch.tensor([gram for bag in bags for gram in bag])
        # Some parts are hidden while it learns, so that none is needed, and new words made of known parts are read.
        kept = (torch.rand(len(flat)) > GRAMS_DROPPED).float() if self.training else torch.ones(len(flat))
        return normalize(self.reader(self.bag(flat, starts, per_sample_weights=kept)), dim=1)


def train_dual(
    read: Callable[[Tensor], Tensor],
    captions: Sequence[Sequence[str]],
    channels: int,
    epochs: int,
    batch_size: int,
    seed: int = 0,
) -> Dual:
    """A dual encoder of N pictures and their captions, ready to judge; the same on every run.

    The loss (InfoNCE) is each caption's picture among the batch's pictures and each picture's caption among the
    batch's captions, over all sets of captions at once.

    Args:
        read: int64 [B], which pictures, to uint8 [B, C, H, W].
        captions: sets of N captions, such as one for each language.

    Raises:
        ConfigError: fewer than two pairs a batch, or no epoch.
    """
    count = len(captions[0])
    batch_size = min(batch_size, count)
    if batch_size < 2 or epochs < 1:
        raise ConfigError(f"a dual encoder needs an epoch and 2 pairs or more, not {epochs} and {batch_size}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "dual") % (1 << 63))
        dual = Dual(channels)
        steps = epochs * (count // batch_size)
        optimizer = torch.optim.AdamW(dual.parameters(), weight_decay=0.05)
        # Up in the first tenth of the steps, then down along a cosine.
        warm = max(1, steps // 10)
        rates = [LR * min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps)) for step in range(steps)]
        for _ in range(epochs):
            order = torch.randperm(count)
            for rows in order[: count // batch_size * batch_size].split(batch_size):
                seen = dual.images(augmented(read(rows)))
                loss = torch.zeros(())
                for said in captions:
                    alike = seen @ dual.texts([said[row] for row in rows.tolist()]).T / TEMPERATURE
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
    count, channels, height, width = pixels.shape
    shift = torch.randint(-SHIFT, SHIFT + 1, (2, count, 1))
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1)[:, None, :, None]
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1)[:, None, None, :]
    which = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns
    moved = pixels[which].float()
    paler, brighter = 1.0 - 0.1 * torch.rand(count, 1, 1, 1), 6.0 * torch.randn(count, 1, 1, 1)
    return (moved - 127.5) * paler + 127.5 + brighter + 6.0 * torch.randn_like(moved)


def dual_of(train: ImageDataset, column: str, steps: int = STEPS, seed: int = 0) -> Dual:
    """A dual encoder trained on the images that have a caption in a column of the train split.

    Raises:
        DataError: fewer than two do.
    """
    texts = train.values(column)
    rows = [row for row, captions in enumerate(texts) if captions]
    if len(rows) < 2:
        raise DataError(f"{train.name} has {len(rows)} captions in {column}: two are the least to learn from")
    sets = min(SETS, max(len(texts[row]) for row in rows))
    captions = [[texts[row][i % len(texts[row])] for row in rows] for i in range(sets)]
    places, size = torch.tensor(rows), min(BATCH, len(rows))
    epochs = min(EPOCHS, max(1, steps // (len(rows) // size)))
    return train_dual(lambda some: train.batch(places[some].numpy()), captions, train.shape[0], epochs, size, seed)


def save_dual(dual: Dual, train: ImageDataset, path: Path) -> None:
    """The encoder as one safetensors file, so that other models are judged by the very same one.

    Args:
        train: what it was trained on, whose fingerprint the file holds.
    """
    about = {"kind": KIND, "channels": dual.channels, "data": train.fingerprint()}
    write_file(path, safetensors.torch.save(dual.state_dict(), {"about": json.dumps(about)}))


def load_dual(path: Path, train: ImageDataset) -> Dual:
    """An encoder that `save_dual` wrote; nothing in the file is run.

    Raises:
        CheckpointError: no such file, or one that holds something else.
        DataError: it was trained on other images than `train`, and might know those that are held out.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            channels, trained_on = int(about["channels"]), str(about["data"])
            if about["kind"] != KIND or channels not in (1, 3):
                raise ValueError("it describes something else")
            with torch.device("meta"):
                dual = Dual(channels)
            dual.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, assign=True)  # noqa: SIM118
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is no dual encoder of this package: {str(error).splitlines()[0]}") from error
    if trained_on != train.fingerprint():
        raise DataError(f"{path} was trained on other images than {train.name}: leave it out, and another is trained")
    return dual.eval().requires_grad_(False)
