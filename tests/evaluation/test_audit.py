"""The audit for copies: the nearest images are those of brute force, copies are told, and new samples are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import DataError
from diff_diffusion.evaluation import audit as module
from diff_diffusion.evaluation.audit import Audit, Nearest, audit, nearest_training, real_images
from diff_diffusion.evaluation.feature_networks import Pixels, random_features


def smooth(count: int, seed: int) -> np.ndarray:
    """Fresh draws of one distribution: waves of random direction, phase and strength."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:8, :8] / 8 * 2 * np.pi
    waves = rng.normal(size=(count, 6)) * 30
    shapes = [np.sin(x), np.cos(x), np.sin(y), np.cos(y), np.sin(x + y), np.cos(x - y)]
    pixels = 128 + np.einsum("ni,ihw->nhw", waves, np.stack(shapes))
    return np.clip(np.rint(pixels + rng.normal(size=pixels.shape) * 4), 0, 255).astype(np.uint8)[:, None]


def dataset(count: int, seed: int) -> ImageDataset:
    return ImageDataset.from_arrays(torch.from_numpy(smooth(count, seed)))


def audited(samples: Tensor, train: ImageDataset, held_out: ImageDataset) -> Audit:
    networks: list[Any] = [Pixels(train.shape), random_features(train.shape)]
    real, own, what = real_images(train, held_out)
    asked = [(net, torch.cat([net.features(samples), net.features(real)])) for net in networks]
    found = nearest_training(asked, torch.cat([torch.full((len(samples),), -1), own]), train)
    return audit(found[0].split(len(samples)), found[1].split(len(samples)), what)


def copies(train: ImageDataset, count: int, noise: float) -> Tensor:
    rng = np.random.default_rng(9)
    picked = train.batch(rng.integers(0, len(train), count)).double()
    return (picked + torch.from_numpy(rng.normal(0, noise, picked.shape))).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(("count", "held"), [(20, 2), (400, 150)])
def test_a_model_that_copies_is_told_and_a_healthy_one_is_not(count: int, held: int) -> None:
    train, held_out = dataset(count, 0), dataset(held, 1)
    found = audited(copies(train, 256, 3.0), train, held_out)
    assert found.copies
    assert found.share > 0.95
    assert found.verdict.startswith("this model copies its training set: ")
    healthy = audited(torch.from_numpy(smooth(256, 2)), train, held_out)
    assert not healthy.copies
    assert healthy.verdict.startswith("no sign that this model copies its training set: ")
    if count == 400:
        assert healthy.median == pytest.approx(healthy.real_median, rel=0.1)


def test_a_few_copies_among_new_samples_are_told() -> None:
    train, held_out = dataset(400, 0), dataset(300, 1)
    mixed = torch.cat([torch.from_numpy(smooth(225, 2)), copies(train, 25, 3.0)])
    found = audited(mixed, train, held_out)
    assert found.share == pytest.approx(0.1, abs=0.03)
    assert found.copies
    assert {sample for sample, _, _ in found.pairs} <= set(range(225, 250))


def test_blurred_samples_are_near_by_pixels_and_no_copies() -> None:
    """Means of images lie nearer to every image than images do to each other."""
    train, held_out = dataset(400, 0), dataset(300, 1)
    rng = np.random.default_rng(0)
    blurred = torch.stack(
        [train.batch(rng.integers(0, 400, 12)).double().mean(0).round().to(torch.uint8) for _ in range(200)]
    )
    found = audited(blurred, train, held_out)
    assert found.share_pixels > found.share
    assert not found.copies


@pytest.mark.parametrize("part", [7, 1024])
def test_the_nearest_are_those_of_brute_force(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", part)
    train = dataset(40, 0)
    samples = torch.cat([torch.from_numpy(smooth(20, 1)), train.batch([3, 38])])
    own = torch.tensor([-1] * 20 + [3, -1])
    pixels = Pixels(train.shape)
    seen = []
    found = nearest_training([(pixels, pixels.features(samples))], own, train, lambda *at: seen.append(at))[0]
    every = ((samples[:, None].double() - train.batch(range(40))[None].double()) ** 2).mean((2, 3, 4)).sqrt()
    every[20, 3] = float("inf")  # it is that image itself
    expected, which = every.min(1)
    torch.testing.assert_close(found.distance, expected, rtol=1e-6, atol=1e-4)
    assert torch.equal(found.index, which)
    assert found.index[21] == 38
    assert seen[-1] == (40, 40)


def test_training_images_stand_in_where_few_are_held_out() -> None:
    train, held_out = dataset(30, 0), dataset(5, 1)
    images, own, what = real_images(train, held_out)
    assert (len(images), own[:5].tolist()) == (35, [-1] * 5)
    assert sorted(own[5:].tolist()) == list(range(30))
    assert "training images among them" in what
    images, own, what = real_images(train, dataset(100, 1))
    assert (len(images), what) == (100, "held-out images")
    assert bool((own == -1).all())


def test_repeated_images_are_no_copying() -> None:
    """Where the data hold the same images again and again, a sample that equals one is what real images do."""
    repeated = np.repeat(smooth(20, 0), 10, 0)
    train, held_out = (ImageDataset.from_arrays(torch.from_numpy(repeated[i::2])) for i in (0, 1))
    found = audited(held_out.batch(range(100)), train, held_out)
    assert found.share == found.real_share == 1.0
    assert not found.copies


def test_nothing_cannot_be_audited() -> None:
    none = Nearest(torch.zeros(0).double(), torch.zeros(0).long())
    with pytest.raises(DataError, match="needs samples and real images"):
        audit((none, none), (none, none), "held-out images")
