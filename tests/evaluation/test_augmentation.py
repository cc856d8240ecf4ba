"""Augmentation: what is kept agrees with its label and copies nothing; what is dropped is counted by its reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from diff_diffusion import DiffusionModel, ImageDataset, load_image_dataset
from diff_diffusion.cli.app import app
from diff_diffusion.errors import ConfigError, DataError
from diff_diffusion.evaluation.augmentation import TRIES, augment, copy_distance
from diff_diffusion.evaluation.distances import nearest
from diff_diffusion.pictures import read_recipe


def dataset(seed: int, count: int = 40) -> ImageDataset:
    """Dark pictures named 暗, bright ones bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = (rng.integers(0, 60, (count, 1, 8, 8)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    return ImageDataset.from_arrays(torch.from_numpy(pixels), labels, ["暗", "bright"])


class Judge:
    """Bright is bright."""

    test_accuracy = 1.0

    def labels(self, images: Tensor) -> Tensor:
        return (images.flatten(1).mean(1) > 100).long()


TRAIN, HELD_OUT = dataset(0), dataset(1)


class Drawer:
    """In place of a model: of every four samples one is a copy, one is of the wrong class, two are new."""

    class_names = ("暗", "bright")

    asked: list[int] = []  # noqa: RUF012

    def sample(self, num: int, cond: str, seed: int, guidance: float | None) -> Tensor:
        images = []
        for i in range(seed, seed + num):
            self.asked.append(i)
            bright = (cond == "bright") != (i % 4 == 1)
            rng = np.random.default_rng(i)
            image = torch.from_numpy(rng.integers(0, 60, (1, 8, 8)) + 150 * bright).float()
            images.append(TRAIN.batch([int(cond == "bright")])[0].float() if i % 4 == 0 else image)
        return torch.stack(images)


def drawn(per_class: int, model: Any = None, **options: Any) -> tuple[Any, Sequence[Any]]:
    tally, some = augment(model or Drawer(), TRAIN, HELD_OUT, Judge(), per_class, **options)  # type: ignore[arg-type]
    return tally, list(some)


def test_copies_and_wrong_labels_are_dropped_and_counted() -> None:
    tally, kept = drawn(10)
    assert tally.kept == {"暗": 10, "bright": 10}
    assert tally.drawn == len(kept) + tally.copied + tally.disagreed
    assert tally.copied == pytest.approx(10, abs=2)
    assert tally.disagreed == pytest.approx(10, abs=2)
    images = torch.stack([one.image for one in kept])
    assert (Judge().labels(images) == torch.tensor([one.label == "bright" for one in kept])).all()
    distances = nearest(images, TRAIN.batch(range(len(TRAIN))))[0]
    assert (distances > tally.closest).all()
    assert torch.allclose(distances, torch.tensor([one.distance for one in kept]).double())
    assert len({one.seed for one in kept}) == 20


def test_the_copy_distance_is_what_real_images_keep() -> None:
    """All but one in a hundred held-out images are farther; a training image itself is at 0."""
    closest = copy_distance(TRAIN, HELD_OUT)
    real = nearest(HELD_OUT.batch(range(40)), TRAIN.batch(range(40)))[0]
    assert (real > closest).double().mean() >= 0.97
    assert closest > 10.0
    assert copy_distance(TRAIN, TRAIN) == 0.0


def test_it_gives_up_after_enough_tries_and_says_how_many_came() -> None:
    class Useless(Drawer):
        def sample(self, num: int, cond: str, seed: int, guidance: float | None) -> Tensor:
            return torch.zeros(num, 1, 8, 8) + 75.0  # always dark, whatever was asked for

    tally, kept = drawn(6, Useless())
    assert tally.kept == {"暗": 6, "bright": 0}
    assert tally.disagreed == 6 * TRIES
    assert {one.label for one in kept} == {"暗"}


def test_what_cannot_be_augmented_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        drawn(0)

    class Other(Drawer):
        class_names = ("a", "b")

    with pytest.raises(DataError, match="classes of the data"):
        drawn(1, Other())


def test_the_command_writes_a_data_set(tmp_path: Path) -> None:
    """An untrained model's noise passes for no digit but one; what passes is a folder that loads, with its recipes."""
    model = DiffusionModel.for_data(load_image_dataset("digits").split()[0])
    model.save(tmp_path / "model")
    arguments = ["augment", str(tmp_path / "model"), "digits", "--per-class", "1", "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, [*arguments, "--json"])
    assert told.exit_code == 0, told.output
    tally = json.loads(told.stdout)
    assert tally["drawn"] == sum(tally["kept"].values()) + tally["disagreed"] + tally["copied"]
    assert set(tally["kept"]) == set("0123456789")
    files = sorted((tmp_path / "out").rglob("*.png"))
    assert len(files) == sum(tally["kept"].values())
    if files:
        assert read_recipe(files[0])["asked"]["label"] == files[0].parent.name
        again = CliRunner().invoke(app, [*arguments, "--json"])
        assert isinstance(again.exception, ConfigError)
        assert "new or empty" in str(again.exception)
