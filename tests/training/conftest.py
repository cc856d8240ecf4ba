"""Runs of these tests are on the CPU, wherever the tests run: they compare bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diff_diffusion.training import loop

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode puts no test folder on the path
import tiny


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "choose_device", lambda: torch.device("cpu"))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny run that was never interrupted, each made once."""
    made: dict[str, Path] = {}

    def run(**changes: object) -> Path:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("uninterrupted")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "choose_device", lambda: torch.device("cpu"))
                tiny.run(made[key], **changes)
        return made[key]

    return run
