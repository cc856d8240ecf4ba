"""The order of the data is a pure function of (seed, step), and batches are the same however they are read."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.data import store as stores
from diff_diffusion.data.loader import Batch, Batches, order
from diff_diffusion.errors import ConfigError, DataError

Make = Callable[..., Path]


@pytest.mark.parametrize("num_items", [1, 2, 7, 100])
def test_every_epoch_is_a_permutation(num_items: int) -> None:
    epochs = order(num_items, 3, 0, 5 * num_items).reshape(5, num_items)
    assert (np.sort(epochs) == np.arange(num_items)).all()
    if num_items == 100:
        assert len({epoch.tobytes() for epoch in epochs}) == 5


def test_a_part_equals_the_whole() -> None:
    whole = order(10, 0, 0, 95)
    assert whole.dtype == np.int64
    for first in range(0, 60, 7):
        for count in (0, 1, 10, 35):
            assert (order(10, 0, first, count) == whole[first : first + count]).all()


def test_the_hash_is_the_same_for_any_chunking() -> None:
    def chunked(size: int) -> str:
        total = hashlib.sha256()
        for first in range(0, 840, size):
            total.update(order(23, 5, first, size).tobytes())
        return total.hexdigest()

    assert len({chunked(size) for size in (1, 3, 40, 105, 840)}) == 1


def test_seeds_differ_and_the_order_is_the_same_in_every_version() -> None:
    assert order(50, 0, 0, 50).tolist() != order(50, 1, 0, 50).tolist()
    assert order(8, 0, 0, 16).tolist() == [1, 4, 5, 3, 6, 7, 0, 2, 1, 5, 6, 4, 3, 7, 0, 2]


def test_what_is_handed_out_can_be_changed() -> None:
    first = order(5, 0, 0, 5)
    kept = first.copy()
    first[:] = 0
    assert (order(5, 0, 0, 5) == kept).all()


@pytest.mark.parametrize("wrong", [(0, 0, 1), (5, -1, 1), (5, 0, -1)])
def test_what_has_no_order(wrong: tuple[int, int, int]) -> None:
    num_items, first, count = wrong
    with pytest.raises(ConfigError, match="are the least"):
        order(num_items, 0, first, count)


@pytest.fixture
def disk(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageDataset:
    for i in range(10):
        make(f"{'ab'[i % 2]}/{i}.png", 8, 8)
    monkeypatch.setattr(stores, "MEMORY_BUDGET", 0)
    return load_image_dataset(tmp_path)


def take(batches: Batches, count: int) -> list[Batch]:
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def same(one: list[Batch], other: list[Batch]) -> bool:
    def equal(a: Batch, b: Batch) -> bool:
        assert a.labels is not None
        assert b.labels is not None
        arrays = ((a.indices, b.indices), (a.pixels.numpy(), b.pixels.numpy()), (a.labels.numpy(), b.labels.numpy()))
        return a.step == b.step and all(np.array_equal(x, y) for x, y in arrays)

    return len(one) == len(other) and all(map(equal, one, other))


def test_batches_are_what_the_order_says(disk: ImageDataset) -> None:
    assert disk.labels is not None
    for batch in take(Batches(disk, 4, seed=1), 6):
        assert (batch.indices == order(10, 1, 4 * batch.step, 4)).all()
        assert (batch.pixels == disk.batch(batch.indices)).all()
        assert batch.labels is not None
        assert (batch.labels.numpy() == disk.labels[batch.indices]).all()


def test_batches_are_the_same_for_any_threads_and_on_resume(disk: ImageDataset) -> None:
    whole = take(Batches(disk, 3, seed=1, ahead=0), 12)
    for ahead, threads in ((1, 1), (3, 2), (5, 4)):
        assert same(take(Batches(disk, 3, seed=1, ahead=ahead, threads=threads), 12), whole)
    assert same(take(Batches(disk, 3, seed=1, start_step=5), 7), whole[5:])


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    dataset = ImageDataset.from_arrays(np.arange(3, dtype=np.uint8).reshape(3, 1, 1))
    (batch,) = take(Batches(dataset, 8, seed=0), 1)
    assert batch.pixels.shape == (8, 1, 1, 1)
    assert np.bincount(batch.indices).min() >= 2
    assert batch.labels is None


def background() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_leaving_the_loop_ends_the_threads(disk: ImageDataset) -> None:
    for _ in Batches(disk, 4, seed=0):
        assert background()
        break
    assert not background()

    def broken_training() -> None:
        for _ in Batches(disk, 4, seed=0):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken_training()
    assert not background()


def test_an_error_in_the_background_reaches_the_loop(disk: ImageDataset, tmp_path: Path) -> None:
    batches = iter(Batches(disk, 4, seed=0, ahead=1))
    next(batches)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="is gone"):
        list(itertools.islice(batches, 5))
    assert not background()


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"start_step": -1}, {"ahead": -1}, {"threads": 0}])
def test_arguments_out_of_range(wrong: dict[str, int]) -> None:
    dataset = ImageDataset.from_arrays(np.zeros((3, 1, 1), np.uint8))
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Batches(dataset, **({"batch_size": 2, "seed": 0} | wrong))
