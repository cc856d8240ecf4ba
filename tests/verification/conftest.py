"""One small trained run, and copies of it in which something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from diff_diffusion.models.model import WEIGHTS
from diff_diffusion.storage import folder as storage

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

Sabotage = Callable[[dict[str, Tensor], dict], None]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tiny.run(folder)
    return folder


@pytest.fixture
def sabotaged(run: Path, tmp_path: Path) -> Callable[[Sabotage], Path]:
    """A copy of the run's last checkpoint with its tensors and its model's description changed, and hashes that fit."""

    def make(change: Sabotage) -> Path:
        manifest = storage.read_manifest(run)
        tensors = storage.read_safetensors(run, WEIGHTS, manifest)
        change(tensors, manifest["model"])
        files = {name: storage.read_file(run, name, manifest) for name in manifest["sha256"]}
        files[WEIGHTS] = storage.to_safetensors(tensors)
        config = {key: value for key, value in manifest.items() if key not in ("format", "sha256")}
        storage.write_folder(tmp_path / "changed", files, config)
        return tmp_path / "changed"

    return make
