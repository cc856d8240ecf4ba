"""A small classifier trained on the real data: the feature network of small data sets, and the judge of labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diff_diffusion.data import ImageDataset
from diff_diffusion.data.loader import Batches
from diff_diffusion.errors import DataError
from diff_diffusion.rng import derive


@dataclass(frozen=True)
class Classifier:
    """A trained classifier of images, and its features.

    Attributes:
        body: [B, C, H, W], normalised, to features [B, 64].
        head: features to class scores.
        mean, std: of the training images, one number each.
        test_accuracy: share of the held-out images it gets right.
        name: what a score made with its features is named after: architecture and a hash of the weights.
    """

    body: nn.Module
    head: nn.Module
    mean: float
    std: float
    test_accuracy: float
    name: str

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in data units to float64 features [N, 64]."""
        pieces = [self.body((part.float() - self.mean) / self.std) for part in images.split(512)]
        return torch.cat(pieces).double()

    @torch.no_grad()
    def labels(self, images: Tensor) -> Tensor:
        """The most likely class of each image, int64 [N]."""
        labels: Tensor = self.head(self.features(images).float()).argmax(1)
        return labels


def train_classifier(train: ImageDataset, test: ImageDataset, steps: int = 600, seed: int = 0) -> Classifier:
    """A two-layer CNN trained on `train`, with its accuracy on `test`. A few seconds for small images.

    Raises:
        DataError: no labels to learn.
    """
    if train.labels is None or test.labels is None:
        raise DataError(f"a classifier needs labels, and {train.name} has none")
    channels, height, width = train.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "classifier") % (1 << 63))
        pooled = 64 * ((height + 1) // 2) * ((width + 1) // 2)
        body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(pooled, 64),
            nn.ReLU(),
        )
        head = nn.Linear(64, len(train.class_names))
        pixels = train.batch(range(min(len(train), 4096))).float()
        mean, std = float(pixels.mean()), float(pixels.std())
        both = nn.Sequential(body, head)
        optimizer = torch.optim.AdamW(both.parameters(), lr=2e-3, weight_decay=1e-2)
        for batch in Batches(train, 64, seed):
            if batch.step == steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * (1.0 - batch.step / steps)
            scores = both((batch.pixels.float() - mean) / std)
            optimizer.zero_grad()
            assert batch.labels is not None
            nn.functional.cross_entropy(scores, batch.labels).backward()
            optimizer.step()
        both.eval()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in both.parameters())).hexdigest()[:8]
    classifier = Classifier(body, head, mean, std, 0.0, f"cnn64-{digest}")
    right = classifier.labels(test.batch(range(len(test)))) == torch.from_numpy(test.labels)
    return Classifier(body, head, mean, std, float(right.float().mean()), classifier.name)
