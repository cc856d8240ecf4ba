"""A photo folder as people have them, and one small trained run for the commands that read one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diff_diffusion.cli import main

TINY = ("--set", "network.width=8", "--set", "train.precision=fp32", "--set", "train.batch_size=16")


def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    monkeypatch.setattr(sys, "argv", ["diff-diffusion", *map(str, words)])
    capfd.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line."""
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *words: call(capfd, monkeypatch, *words)


def photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A smooth coloured picture with a bright disc: something between noise and a photo."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / width, y * 255 / height, np.full_like(x, rng.integers(0, 255))], -1)
    disc = (x - width * rng.random()) ** 2 + (y - height * rng.random()) ** 2 < (min(width, height) / 4) ** 2
    base[disc] = rng.integers(0, 255, 3)
    return Image.fromarray(base.astype(np.uint8))


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Settings that make a training take seconds."""
    return TINY


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photos of mixed modes, sizes and letter case, one of them corrupt."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    kinds = [
        ("{}.jpg", "RGB"), ("{}.JPG", "RGB"), ("{}.jpeg", "L"), ("{}.PNG", "RGBA"), ("{}.png", "P"),
        ("猫 {}.webp", "RGB"), ("{}.bmp", "RGB"), ("{}.Tiff", "L"), ("{}.gif", "P"), ("{}.png", "I;16"),
    ]  # fmt: skip
    for index in range(39):
        pattern, mode = kinds[index % len(kinds)]
        image = photo(rng, int(rng.integers(40, 200)), int(rng.integers(40, 200)))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        image.save(folder / pattern.format(index))
    (folder / "broken.JPG").write_bytes((folder / "0.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on digits."""
    from diff_diffusion.cli.app import app

    folder = tmp_path_factory.mktemp("runs") / "digits"
    app(["train", "digits", "--out", str(folder), "--steps", "30", *TINY], standalone_mode=False)
    return folder
