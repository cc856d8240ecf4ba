"""A small classifier trained on the real data: the feature network of small data sets, and the judge of labels."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from diff_diffusion.data import ImageDataset
from diff_diffusion.data.loader import Batches
from diff_diffusion.errors import CheckpointError, DataError
from diff_diffusion.evaluation.feature_networks import weights_hash
from diff_diffusion.rng import derive
from diff_diffusion.storage.folder import write_file

KIND = "diff-diffusion classifier"
MAX_PIXELS = 1 << 24


@dataclass(frozen=True)
class Classifier:
    """A trained classifier of images, and its features.

    Attributes:
        body: [B, C, H, W], normalised, to features [B, 64].
        head: features to class scores.
        mean, std: of the training images, one number each.
        test_accuracy: share of the held-out images it gets right.
        name: what a score made with its features is named after: architecture, a hash of the weights,
            the images' size.
        shape: (C, H, W) of the images.
        class_names: of the classes.
    """

    body: nn.Module
    head: nn.Module
    mean: float
    std: float
    test_accuracy: float
    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return _sha256(nn.Sequential(self.body, self.head), self.mean, self.std)

    @property
    def size(self) -> None:
        """Images are taken as they are, and are of `shape`."""

    @property
    def filter(self) -> None:
        """They are not resized."""

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "classifier") % (1 << 63))
        body, head = layers(train.shape, len(train.class_names))
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
    names = tuple(train.class_names)
    classifier = Classifier(body, head, mean, std, 0.0, _name(both, mean, std, train.shape), train.shape, names)
    right = classifier.labels(test.batch(range(len(test)))) == torch.from_numpy(test.labels)
    return replace(classifier, test_accuracy=float(right.float().mean()))


def _name(both: nn.Module, mean: float, std: float, shape: tuple[int, int, int]) -> str:
    return f"cnn64-{_sha256(both, mean, std)[:8]}@{shape[1]}x{shape[2]}"


def _sha256(both: nn.Module, mean: float, std: float) -> str:
    return weights_hash(both.parameters(), mean, std)


def layers(shape: tuple[int, int, int], classes: int) -> tuple[nn.Sequential, nn.Linear]:
    channels, height, width = shape
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
    return body, nn.Linear(64, classes)


def save_classifier(classifier: Classifier, train: ImageDataset, path: Path) -> None:
    """The classifier as one safetensors file, so that other models are scored by the very same features.

    Args:
        train: what it was trained on, whose fingerprint the file holds.
    """
    about: dict[str, object] = {"kind": KIND, "shape": classifier.shape, "classes": classifier.class_names}
    about["data"] = train.fingerprint()
    about |= {"mean": classifier.mean, "std": classifier.std, "accuracy": classifier.test_accuracy}
    tensors = nn.ModuleDict({"body": classifier.body, "head": classifier.head}).state_dict()
    write_file(path, safetensors.torch.save(tensors, {"about": json.dumps(about, ensure_ascii=False)}))


def load_classifier(path: Path, train: ImageDataset) -> Classifier:
    """A classifier that `save_classifier` wrote; nothing in the file is run.

    Raises:
        CheckpointError: no such file, or one that holds something else.
        DataError: it was trained on other images than `train`, and might know those that are held out.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            channels, height, width = (int(side) for side in about["shape"])
            names = tuple(str(name) for name in about["classes"])
            trained_on, fits = str(about["data"]), 0 < channels * height * width <= MAX_PIXELS
            if about["kind"] != KIND or not (fits and names):
                raise ValueError("it describes something else")
            with torch.device("meta"):  # nothing is allocated for what a file claims before the file has it
                body, head = layers((channels, height, width), len(names))
            both = nn.ModuleDict({"body": body, "head": head})
            both.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, assign=True)  # noqa: SIM118
            mean, std, accuracy = (float(about[key]) for key in ("mean", "std", "accuracy"))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is no classifier of this package: {str(error).splitlines()[0]}") from error
    if trained_on != train.fingerprint():
        raise DataError(f"{path} was trained on other images than {train.name}: leave it out, and another is trained")
    both.eval().requires_grad_(False)
    shape = (channels, height, width)
    name = _name(nn.Sequential(body, head), mean, std, shape)
    return Classifier(body, head, mean, std, accuracy, name, shape, names)
