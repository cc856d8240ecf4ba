"""Feature networks: what their names say, and that nothing else changes what they compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from torch import Tensor, nn

from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import CheckpointError, ConfigError, DataError
from diff_diffusion.evaluation.distances import frechet
from diff_diffusion.evaluation.feature_networks import FeatureNetwork, ModuleFeatures, Pixels, random_features
from diff_diffusion.evaluation.features import Classifier, load_classifier, save_classifier, train_classifier


def images(count: int, side: int, channels: int = 1, seed: int = 0) -> Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), np.uint8)
    return torch.from_numpy(pixels)


class Mean(nn.Module):
    """The mean of each channel, times a weight."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.mean((2, 3)) * (2.0 if self.training else 1.0)


def test_pixels_are_means_of_squares() -> None:
    large = images(3, 64)
    found = Pixels((1, 64, 64)).features(large)
    expected = large.double().reshape(3, 32, 2, 32, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert Pixels((1, 64, 64)).name == "pixels@32x32-area"
    small = images(2, 8, 3)
    assert torch.equal(Pixels((3, 8, 8)).features(small), small.flatten(1).double())
    assert Pixels((3, 8, 8)).name == "pixels@8x8"
    assert (Pixels((3, 8, 8)).filter, Pixels((1, 64, 64)).filter) == (None, "area")
    assert Pixels((3, 8, 8)).sha256 != Pixels((1, 64, 64)).sha256


def test_a_name_changes_with_all_that_changes_features() -> None:
    some = ModuleFeatures(Mean(), "mean", size=(16, 16))
    others = [
        replace(some, module=Mean(1.5)),
        replace(some, architecture="mean2"),
        replace(some, size=(16, 12)),
        replace(some, filter="area"),
        replace(some, channels=3),
        replace(some, mean=0.0),
        replace(some, std=1.0),
    ]
    names = [network.name for network in (some, *others)]
    assert len(set(names)) == len(names)
    assert len(some.sha256) == 64
    assert some.sha256[:8] in some.name
    assert [network.sha256 == some.sha256 for network in others] == [False, True, True, True, False, False, False]
    assert some.name.endswith("@16x16-bicubic")
    assert some.name.startswith("mean-")
    assert ModuleFeatures(Mean(), "mean", size=(16, 16)).name == some.name


def test_a_module_is_asked_in_evaluation_mode_and_left_as_it_was() -> None:
    module = Mean().train()
    network = ModuleFeatures(module, "mean", channels=3, mean=(0.0, 10.0, 20.0), std=2.0)
    pixels = images(600, 8)  # in more than one part
    found = network.features(pixels)
    expected = (pixels.double().mean((2, 3)) - torch.tensor([0.0, 10.0, 20.0]).double()) / 2.0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert found.dtype == torch.float64
    assert module.training
    assert isinstance(network, FeatureNetwork)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "area"])
def test_images_are_brought_to_the_size(filter: str) -> None:
    network = ModuleFeatures(nn.Identity(), "identity", size=(4, 6), filter=filter, mean=0.0, std=1.0)
    assert network.features(images(2, 16)).shape == (2, 24)
    flat = torch.full((1, 1, 16, 16), 77, dtype=torch.uint8)
    torch.testing.assert_close(network.features(flat), torch.full((1, 24), 77.0).double())


@pytest.mark.parametrize("wrong", [{"filter": "nearest"}, {"architecture": "a, n=3"}, {"architecture": ""}])
def test_names_that_could_be_others_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        ModuleFeatures(**{"module": Mean(), "architecture": "mean"} | wrong)  # type: ignore[arg-type]


# ---- random features -------------------------------------------------------------------------------------------------


def blobs(count: int, seed: int, place: float = 8.0) -> Tensor:
    """Round spots near a place."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    centres = rng.normal(place, 1.5, (count, 2, 1, 1))
    squared = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2
    return torch.from_numpy(255 * np.exp(-squared / 18)).float()[:, None]


def test_random_features_are_the_same_everywhere_and_see() -> None:
    """Real images are nearest to real images; then a little noise, spots elsewhere, and noise alone."""
    network = random_features((1, 16, 16))
    torch.manual_seed(3)
    assert random_features((1, 16, 16)).name == network.name == "random-cnn-f88f9a33"
    real = network.features(blobs(300, 0))
    floor = frechet(network.features(blobs(300, 1)), real)
    noisy = blobs(300, 1) + 30 * torch.from_numpy(np.random.default_rng(0).normal(size=(300, 1, 16, 16))).float()
    distances = [frechet(network.features(x), real) for x in (noisy, blobs(300, 1, 5.0), images(300, 16))]
    assert floor < 0.5 * distances[0]
    assert distances[0] < distances[2]
    assert floor < 0.1 * distances[1]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 9), (3, 64, 48)])
def test_random_features_fit_any_shape(shape: tuple[int, int, int]) -> None:
    found = random_features(shape).features(torch.zeros(2, *shape, dtype=torch.uint8))
    assert bool(torch.isfinite(found).all())
    assert found.shape[0] == 2


# ---- a classifier in a file ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return tiny.images(count=40)


@pytest.fixture(scope="module")
def classifier(data: ImageDataset) -> Classifier:
    return train_classifier(data, data, steps=5)


def test_a_classifier_is_read_back_to_the_last_bit(classifier: Classifier, data: ImageDataset, tmp_path: Path) -> None:
    save_classifier(classifier, data, tmp_path / "裁判.safetensors")
    again = load_classifier(tmp_path / "裁判.safetensors", data)
    pixels = data.batch(range(40))
    assert again.name == classifier.name
    assert again.name.endswith(f"{again.sha256[:8]}@8x8")
    assert again.sha256 == classifier.sha256
    assert isinstance(again, FeatureNetwork)
    assert torch.equal(again.features(pixels), classifier.features(pixels))
    assert torch.equal(again.labels(pixels), classifier.labels(pixels))
    assert (again.test_accuracy, again.class_names) == (classifier.test_accuracy, data.class_names)


def test_a_classifier_of_other_images_is_refused(classifier: Classifier, data: ImageDataset, tmp_path: Path) -> None:
    save_classifier(classifier, data, tmp_path / "judge")
    with pytest.raises(DataError, match="was trained on other images than arrays"):
        load_classifier(tmp_path / "judge", tiny.images(count=40, seed=1))


def test_other_files_are_no_classifier(classifier: Classifier, data: ImageDataset, tmp_path: Path) -> None:
    path = tmp_path / "judge"
    save_classifier(classifier, data, path)
    whole = path.read_bytes()
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    huge = safetensors.torch.save(
        {"a": torch.zeros(1)}, {"about": json.dumps(about | {"shape": [1, 1 << 20, 1 << 20]})}
    )
    fewer = safetensors.torch.save({"a": torch.zeros(1)}, {"about": json.dumps(about)})
    for content in (b"", whole[:-9], b"x" * 500, huge, fewer, safetensors.torch.save({"a": torch.zeros(1)})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is no classifier of this package"):
            load_classifier(path, data)
    with pytest.raises(CheckpointError, match="is no classifier"):
        load_classifier(tmp_path / "none", data)
