"""Pictures that carry their recipe, and files that only look like them."""

from __future__ import annotations

import errno
import random
import struct
import zlib
from pathlib import Path

import pytest
import tiny
import torch

from diff_diffusion.errors import CheckpointError, DataError
from diff_diffusion.pictures import read_recipe, sheet, to_array, to_image, to_picture, write_png
from diff_diffusion.storage.folder import clear_unfinished

RECIPE = {"seed": 3, "label": "猫", "nested": {"a": [1.5, None]}}


def picture(channels: int = 1) -> torch.Tensor:
    return torch.arange(channels * 64.0).reshape(channels, 8, 8)


def test_a_recipe_comes_back(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", to_image(picture()), RECIPE)
    assert read_recipe(tmp_path / "a.png") == RECIPE
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_values_are_rounded_and_clamped(channels: int) -> None:
    sample = torch.full((channels, 2, 3), 127.5001)
    sample[:, 0, 0], sample[:, 0, 1] = -9.0, 300.0
    found = to_picture(sample)
    assert found.dtype == torch.uint8
    assert found.shape == ((2, 3) if channels == 1 else (2, 3, channels))
    assert found.flatten()[[0, -1]].tolist() == [0, 128]
    assert found.max() == 255
    assert (torch.from_numpy(to_array(to_image(sample)).copy()) == found).all()


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (1, 1, 4, 4), (5, 4, 4)])
def test_what_is_no_picture_is_said(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="a picture is"):
        to_picture(torch.zeros(shape))


def test_a_sheet_holds_every_sample() -> None:
    samples = torch.stack([torch.full((1, 8, 8), 20.0 + 10 * i) for i in range(7)])
    page = to_array(sheet(samples, 3))
    assert {20 + 10 * i for i in range(7)} <= set(page[..., 0].flatten().tolist())
    assert sheet(samples, 3, ["a", "猫", "b"]).size[0] > sheet(samples, 3).size[0]


def test_a_disk_that_refuses_is_one_line_and_leaves_the_old_picture(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", to_image(picture()), RECIPE)
    with tiny.Disk().failing() as disk:
        write_png(tmp_path / "a.png", to_image(picture()), RECIPE)
    before = (tmp_path / "a.png").read_bytes()
    for at in range(1, disk.count + 1):
        with (
            tiny.Disk(at, errno.ENOSPC).failing(),
            pytest.raises(CheckpointError, match=f"^could not write {tmp_path / 'a.png'}: No space left on device$"),
        ):
            write_png(tmp_path / "a.png", to_image(picture()), RECIPE)
        assert (tmp_path / "a.png").read_bytes() == before
        clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_damaged_picture_is_an_error_or_the_same_recipe(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", to_image(picture()), RECIPE)
    whole, rng, path, refused = (tmp_path / "a.png").read_bytes(), random.Random(0), tmp_path / "b.png", 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 5])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        try:
            assert read_recipe(path) == RECIPE
        except DataError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 0, 0, 0, 0))],
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))],
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)),
            chunk(b"iTXt", b"diff-diffusion\0\1\0\0\0" + zlib.compress(bytes(1 << 27))),
        ],
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)),
            chunk(b"iTXt", b"diff-diffusion\0\0\0\0\0" + b"[" * 100_000),
        ],
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)),
            chunk(b"iTXt", b"diff-diffusion\0\0\0\0\0[1]"),
        ],
    ],
    ids=["bomb", "large", "text bomb", "deep", "no table"],
)
def test_a_picture_made_to_do_harm_is_refused(chunks: list[bytes], tmp_path: Path) -> None:
    tail = chunk(b"IDAT", zlib.compress(bytes(72))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + tail)
    with pytest.raises(DataError, match=f"{tmp_path / 'a.png'} "):
        read_recipe(tmp_path / "a.png")


def test_what_carries_no_recipe_is_said(tmp_path: Path) -> None:
    write_png(tmp_path / "plain.png", to_image(picture()))
    with pytest.raises(DataError, match="carries no recipe"):
        read_recipe(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "nothing.png", "."):
        with pytest.raises(DataError, match="cannot be read as a picture"):
            read_recipe(tmp_path / name)
