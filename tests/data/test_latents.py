"""Kept latents: found again, never another's, and made anew when a file is not as it was written."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diff_diffusion.data import ImageDataset, index, load_image_dataset
from diff_diffusion.data import store as stores
from diff_diffusion.data.latents import Moments, at_once, moments_of

WHO = {"weights": "一"}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "缓存"))


class Encoder:
    """Halves sides; counts the images that it was asked for."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain, self.asked = gain, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.gain * torch.nn.functional.avg_pool2d(images.float(), 2)


def images(count: int = 150, seed: int = 0) -> ImageDataset:
    return ImageDataset.from_arrays(np.random.default_rng(seed).integers(0, 256, (count, 4, 6), np.uint8))


def kept(data: ImageDataset, encoder: Encoder, who: dict[str, Any] = WHO, **options: Any) -> Moments:
    found = moments_of(data, encoder, who, **options)
    assert found is not None
    return found


def test_each_image_is_encoded_once_and_never_again() -> None:
    data, encoder = images(), Encoder()
    first = kept(data, encoder)
    rows = np.array([149, 0, 64, 64])
    torch.testing.assert_close(first.batch(rows), Encoder()(data.batch(rows)), rtol=0, atol=0)
    assert encoder.asked == 150 + 1, "one more for the shape"
    again = Encoder()
    assert torch.equal(kept(data, again).batch(rows), first.batch(rows))
    assert again.asked == 0


def test_other_images_or_another_encoder_find_nothing_of_these() -> None:
    data = images()
    kept(data, Encoder())
    for other, who, gain in ((images(seed=1), WHO, 1.0), (data, {"weights": "二"}, 2.0), (images(100), WHO, 1.0)):
        encoder = Encoder(gain)
        found = kept(other, encoder, who)
        assert encoder.asked > 0
        rows = np.arange(len(other))
        torch.testing.assert_close(found.batch(rows), Encoder(gain)(other.batch(rows)), rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_file_that_is_not_as_it_was_written_is_made_anew(damage: str) -> None:
    data, rows = images(), np.arange(150)
    whole = kept(data, Encoder()).batch(rows)
    [path] = index.home().glob("*.index")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-100] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "emptied": b""}[damage])
    encoder = Encoder()
    assert torch.equal(kept(data, encoder).batch(rows), whole)
    assert encoder.asked == 151
    kept(data, encoder)
    assert encoder.asked == 151, "and is whole again"


def test_where_nothing_can_be_kept_they_are_there_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data, rows = images(), np.arange(150)
    torch.testing.assert_close(kept(data, Encoder()).batch(rows), Encoder()(data.batch(rows)), rtol=0, atol=0)


def test_what_would_take_too_much_is_not_kept() -> None:
    """150 images of 1 × 2 × 3 numbers of four bytes."""
    assert moments_of(images(), Encoder(), WHO, most=150 * 6 * 4 - 1) is None
    assert moments_of(images(), Encoder(), WHO, most=150 * 6 * 4) is not None
    assert moments_of(images().split(0.5)[0], Encoder(), WHO) is not None


def test_what_stands_in_for_a_broken_image_is_not_kept_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is out of reach for a moment must not leave another image's latents under its name."""
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 6), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"图{i}.png")
    monkeypatch.setattr(stores, "MEMORY_BUDGET", 0)
    data = load_image_dataset(tmp_path)
    whole = data.batch(range(6))
    hidden = tmp_path / "图2.png"
    hidden.rename(tmp_path / "away")
    first = kept(data, Encoder())
    assert not torch.equal(first.batch(np.arange(6)), Encoder()(whole))
    assert not list(index.home().glob("*.index"))
    (tmp_path / "away").rename(hidden)
    again = kept(load_image_dataset(tmp_path), Encoder())
    torch.testing.assert_close(again.batch(np.arange(6)), Encoder()(whole), rtol=0, atol=0)


def test_a_disk_without_room_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert moments_of(images(), Encoder(), WHO) is None
    assert not list(index.home().iterdir())


def test_large_images_are_encoded_few_at_a_time() -> None:
    assert [at_once((3, side, side)) for side in (8, 128, 256, 512, 4096)] == [64, 64, 16, 4, 1]
    together: list[int] = []

    def encode(x: Tensor) -> Tensor:
        together.append(len(x))
        return torch.nn.functional.avg_pool2d(x.float(), 512)

    data = ImageDataset.from_arrays(np.random.default_rng(0).integers(0, 256, (6, 512, 512), np.uint8))
    assert kept(data, encode).values.shape == (6, 1, 1, 1)  # type: ignore[arg-type]
    assert together == [1, 4, 2]


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    moments_of(images(), Encoder(), WHO, progress=lambda done, total: told.append((done, total)))
    assert told == [(64, 150), (128, 150), (150, 150)]
