"""The data set as torch sees it: items, batches, splits, workers, and files that break during a training."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.data import store as stores
from diff_diffusion.errors import ConfigError, DataError

Make = Callable[..., Path]


def noise(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MEMORY_BUDGET", 0)


@pytest.fixture
def folder(make: Make, tmp_path: Path) -> Path:
    for i in range(10):
        make(f"{'ab'[i % 2]}/{i}.png", 8, 8)
    return tmp_path


def test_arrays_and_tensors() -> None:
    colour = noise(5, 4, 6, 3)
    dataset = ImageDataset.from_arrays(colour)
    assert dataset.shape == (3, 4, 6)
    assert (dataset[2].numpy() == colour[2].transpose(2, 0, 1)).all()
    assert ImageDataset.from_arrays(noise(5, 4, 6)).shape == (1, 4, 6)
    assert ImageDataset.from_arrays(torch.from_numpy(noise(5, 3, 4, 6))).shape == (3, 4, 6)
    assert ImageDataset.from_arrays(noise(5, 4, 6), [0, 2, 1, 0, 0]).class_names == ("0", "1", "2")


def test_the_data_set_has_pixels_of_its_own() -> None:
    pixels = noise(3, 4, 4)
    dataset = ImageDataset.from_arrays(pixels)
    kept = dataset.batch([0, 1, 2])
    pixels[:] = 0
    dataset[0].zero_()
    dataset.batch([1]).zero_()
    assert (dataset.batch([0, 1, 2]) == kept).all()


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (noise(2, 4, 4) / 255, None, (), "uint8"),
        (noise(2, 3, 4, 4), None, (), "N, H, W, C"),
        (noise(2, 4, 4, 4), None, (), "C 1 or 3"),
        (noise(0, 4, 4), None, (), "nothing empty"),
        (noise(4), None, (), "N, H, W"),
        (noise(2, 4, 4), [0], (), "2 whole numbers"),
        (noise(2, 4, 4), [0, -1], (), "whole numbers from 0"),
        (noise(2, 4, 4), [0.0, 1.0], (), "whole numbers"),
        (noise(2, 4, 4), [0, 2], ("a", "b"), "label 2 has no name"),
        (noise(2, 4, 4), None, ("a",), "no labels"),
    ],
)
def test_arrays_that_do_not_fit(images: np.ndarray, labels: list[int], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageDataset.from_arrays(images, labels, names)


def test_items_and_batches(folder: Path) -> None:
    dataset = load_image_dataset(folder)
    assert dataset.batch([]).shape == (0, 3, 8, 8)
    assert (dataset[-1] == dataset[9]).all()
    assert (dataset.batch(np.array([3, 3, -1])) == torch.stack([dataset[3], dataset[3], dataset[9]])).all()
    assert len(list(dataset)) == 10
    for beyond in (10, -11):
        with pytest.raises(IndexError, match="of a data set of 10"):
            dataset[beyond]
        with pytest.raises(IndexError):
            dataset.batch([beyond])


def content(dataset: ImageDataset) -> list[bytes]:
    return [bytes(image.numpy()) for image in dataset]


def test_the_split_is_a_partition_that_never_changes() -> None:
    dataset = ImageDataset.from_arrays(noise(50, 4, 4))
    train, held_out = dataset.split(0.2)
    dataset.split(0.5)
    again = ImageDataset.from_arrays(noise(50, 4, 4)).split(0.2)
    assert (len(train), len(held_out)) == (40, 10)
    assert sorted(content(train) + content(held_out)) == sorted(content(dataset))
    assert content(held_out) == content(again[1])
    assert content(train) == content(again[0])
    assert held_out.val is None


def test_the_split_is_stratified_and_leaves_every_class_something() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 9 + [3]
    train, held_out = ImageDataset.from_arrays(noise(100, 4, 4), labels).split(0.1)
    assert train.labels is not None
    assert held_out.labels is not None
    assert np.bincount(held_out.labels, minlength=4).tolist() == [6, 3, 1, 0]
    assert np.bincount(train.labels).tolist() == [54, 27, 8, 1]
    # Labels stay with their images.
    assert [content(held_out)[0] in content(ImageDataset.from_arrays(noise(100, 4, 4)[:60]))] == [
        held_out.labels[0] == 0
    ]


def test_no_class_is_emptied_by_the_split() -> None:
    train, _ = ImageDataset.from_arrays(noise(20, 4, 4), [0] * 10 + list(range(1, 11))).split(0.5)
    assert train.labels is not None
    assert set(train.labels) == set(range(11))


@pytest.mark.parametrize(
    ("count", "labels", "fraction", "held"),
    [(2, None, 0.1, 1), (2, None, 0.99, 1), (5, [0, 1, 2, 3, 4], 0.1, 1), (30_000, None, 0.5, 2000)],
)
def test_the_size_of_the_held_out_part(count: int, labels: list[int] | None, fraction: float, held: int) -> None:
    train, held_out = ImageDataset.from_arrays(noise(count, 1, 1), labels).split(fraction)
    assert (len(train), len(held_out)) == (count - held, held)


def test_what_cannot_be_split() -> None:
    with pytest.raises(DataError, match="at least two"):
        ImageDataset.from_arrays(noise(1, 4, 4)).split()
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="out of range"):
            ImageDataset.from_arrays(noise(4, 4, 4)).split(fraction)


def test_the_fingerprint_changes_with_whatever_training_sees(make: Make, folder: Path) -> None:
    prints = [load_image_dataset(folder).fingerprint()]
    assert load_image_dataset(folder).fingerprint() == prints[0]
    prints.append(load_image_dataset(folder, size=16).fingerprint())
    prints.append(load_image_dataset(folder, channels=1).fingerprint())
    prints.append(load_image_dataset(folder).split()[0].fingerprint())
    (folder / "a/0.png").rename(folder / "a/00.png")
    prints.append(load_image_dataset(folder).fingerprint())
    (folder / "a/00.png").rename(folder / "b/00.png")
    prints.append(load_image_dataset(folder).fingerprint())
    (folder / "b").rename(folder / "c")
    prints.append(load_image_dataset(folder).fingerprint())
    make("x.png", 8, 8).replace(folder / "c/00.png")
    prints.append(load_image_dataset(folder).fingerprint())
    assert len(set(prints)) == len(prints)


def test_pixels_alone_change_the_fingerprint() -> None:
    one, other = noise(3, 4, 4), noise(3, 4, 4)
    other[2, 3, 3] ^= 1
    assert ImageDataset.from_arrays(one).fingerprint() != ImageDataset.from_arrays(other).fingerprint()
    labelled = [ImageDataset.from_arrays(one, labels).fingerprint() for labels in ([0, 1, 0], [0, 1, 1])]
    assert labelled[0] != labelled[1]
    named = [ImageDataset.from_arrays(one, [0, 1, 0], names).fingerprint() for names in (("a", "b"), ("a", "c"))]
    assert named[0] != named[1]
    assert ImageDataset.from_arrays(one.reshape(3, 2, 8)).fingerprint() != ImageDataset.from_arrays(one).fingerprint()


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_torch_data_loader_reads_it(folder: Path, workers: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "disk":
        monkeypatch.setattr(stores, "MEMORY_BUDGET", 0)
    dataset = load_image_dataset(folder)
    dataset.batch(range(10))  # a process that has used its threads is what forks
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, multiprocessing_context="fork" if workers else None)
    seen = torch.cat(list(loader))
    assert seen.dtype == torch.uint8
    assert (seen == dataset.batch(range(10))).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_reads_batches(folder: Path, on_disk: None) -> None:
    dataset = load_image_dataset(folder)
    dataset.batch(range(10))
    worker = multiprocessing.get_context("fork").Process(target=dataset.batch, args=(range(10),))
    worker.start()
    worker.join(20)
    ended = worker.exitcode
    worker.kill()
    assert ended == 0


def test_spawned_workers_read_it(folder: Path, on_disk: None) -> None:
    dataset = load_image_dataset(folder)
    loader = DataLoader(dataset, batch_size=5, num_workers=1, multiprocessing_context="spawn")
    assert (torch.cat(list(loader)) == dataset.batch(range(10))).all()


def test_a_file_that_vanishes_has_a_deterministic_replacement(folder: Path, on_disk: None) -> None:
    dataset = load_image_dataset(folder)
    before = dataset.batch(range(10))  # rows 0 to 4 are class a, 5 to 9 class b
    (folder / "a/8.png").unlink()  # row 4: the next of its class is row 0
    (folder / "b/3.png").write_bytes((folder / "b/3.png").read_bytes()[:100])  # row 6: the next is row 7
    expected = before[[0, 1, 2, 3, 0, 5, 7, 7, 8, 9]]
    assert (dataset.batch(range(10)) == expected).all()
    assert (torch.stack([dataset[i] for i in range(10)]) == expected).all()
    assert dataset.report.replaced == {"a/8.png": "missing file", "b/3.png": "truncated"}
    for replaced in (dataset.report.replaced, dict(reversed(dataset.report.replaced.items()))):
        dataset.report.replaced = replaced  # filled by several threads, in any order
        assert "2 files broke during training: a/8.png (missing file), b/3.png" in "\n".join(dataset.report.lines())


def test_when_all_that_could_stand_in_is_gone(folder: Path, on_disk: None) -> None:
    dataset = load_image_dataset(folder)
    for path in (folder / "a").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"a/0\.png is gone"):
        dataset[0]
    assert dataset[5].shape == (3, 8, 8)


def test_loading_twice_gives_the_same_bytes(folder: Path) -> None:
    digests = {hashlib.sha256(load_image_dataset(folder).batch(range(10)).numpy().tobytes()).hexdigest() for _ in "ab"}
    assert len(digests) == 1
