"""Every preset for images is said on the command line, trains a step, and can be looked at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diff_diffusion.cli.app import app
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.presets import RECIPES, recipe

FOR_IMAGES = [name for name in sorted(RECIPES) if isinstance(recipe(name).process, Gaussian)]


def test_help_names_them_all() -> None:
    told = re.sub(r"[\s│]+", " ", CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output)
    assert [name for name in FOR_IMAGES if not re.search(rf"\b{name}\b", told)] == []


@pytest.mark.parametrize("preset", FOR_IMAGES)
def test_a_preset_is_told_and_kept(preset: str, tmp_path: Path) -> None:
    few = ["--steps", "1", "--set", "train.batch_size=4", "--set", "grid.num_steps=2", "--set", "network.width=8"]
    told = CliRunner().invoke(app, ["train", "digits", "--preset", preset, "--out", str(tmp_path / "run"), *few])
    assert told.exit_code == 0, told.output
    assert "process:" in told.output
    again = CliRunner().invoke(app, ["info", str(tmp_path / "run")])
    assert again.exit_code == 0, again.output
    assert "variance" in again.output or preset != "iddpm"
