"""Small image files, made where they are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes an image file below tmp_path: noise of its own for each name, so that no two are alike."""

    def write(name: str, height: int = 16, width: int = 16, mode: str = "RGB", **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        depth = {"L": 1, "RGB": 3}[mode]
        noise = np.random.default_rng(list(name.encode())).integers(0, 256, (height, width, depth), np.uint8)
        Image.fromarray(noise.squeeze()).save(path, **options)
        return path

    return write
