"""Damaged files of every format: a reason for each, and exact counts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diff_diffusion.data import survey as surveys
from diff_diffusion.data.folder import scan
from diff_diffusion.data.images import ImageFileError, peek, read_image
from diff_diffusion.data.survey import survey

Make = Callable[..., Path]

REASONS = {
    "empty file",
    "not an image",
    "truncated",
    "too large",
    "unreadable",
    "unsupported pixel format",
    "non-finite values",
    "float values outside 0 to 1",
}
KINDS = ("bmp", "gif", "jpg", "png", "tif", "webp")


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """One of: a cut, some flipped bytes anywhere, some in the header, a missing or a doubled piece."""
    data = bytearray(whole)
    way = rng.randrange(5)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(1, 64))
    if way == 0:
        del data[start:]
    elif way == 1:
        del data[start:end]
    elif way == 2:
        data[start:start] = data[start:end]
    else:
        reach = len(data) if way == 3 else min(len(data), 128)
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(reach)] = rng.randrange(256)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_files_are_counted_exactly(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "MAX_BAD", 1.0)
    # Damage to a header asks for large pictures; this keeps the test within the memory of a small machine.
    monkeypatch.setattr("diff_diffusion.data.images.MAX_PIXELS", 4_000_000)
    rng = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    sources = [make(f"source/{kind}.{kind}", 20, 30, exif=exif).read_bytes() for kind in KINDS]
    sources.append(make("source/deflate.tif", 20, 30, compression="tiff_deflate").read_bytes())
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(600):
        kind = KINDS[i % len(KINDS)]
        (folder / f"{i}.{kind}").write_bytes(damaged(sources[i % len(sources)], rng))
    (folder / "whole.png").write_bytes(sources[KINDS.index("png")])

    bad: dict[str, str] = {}
    for path in folder.iterdir():
        try:
            peek(path)
            read_image(path, (3, 16, 16))
        except ImageFileError as error:
            bad[path.name] = error.reason
    assert set(bad.values()) <= REASONS
    assert 200 < len(bad) < 500  # the damage is neither trivial nor total

    found = survey(scan(folder), (16, 16), 3, None)
    assert {name: reason for reason, names in found.bad.items() for name in names} == bad
    assert len(found.files) + len(bad) == 601
    assert [file.name for file in found.files] == list(found.store.names)
    assert found.store.pixels is not None
    assert len(found.store.pixels) == len(found.store.digests) == len(found.files)
    for i in range(0, len(found.files), 10):
        assert (found.store.pixels[i].numpy() == read_image(folder / found.files[i].name, (3, 16, 16))).all()
