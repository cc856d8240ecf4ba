"""`train --classifier` and `--unconditional`: from nothing to a model without classes that draws the one asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diff_diffusion.pictures import read_recipe

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 16 pictures."""
    folder, rng = tmp_path_factory.mktemp("动物"), np.random.default_rng(0)
    for name in ("猫", "small dog"):
        (folder / name).mkdir()
        for index in range(16):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name / f"{index}.png")
    return folder


def test_a_classifier_guides_a_model_that_knows_no_classes(
    cli: Cli, animals: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    judge, model = tmp_path / "判官", tmp_path / "model"
    code, out, err = cli("train", animals, "--classifier", "--out", judge, "--steps", 3, *tiny)
    assert code == 0, err
    assert "classifier: UNetEncoder" in out
    assert "tells label: one of 2 classes: small dog, 猫" in out
    assert "held-out" in out
    assert f"now: diff-diffusion sample RUN --classifier {judge} --label 'small dog' --guidance 3" in out
    assert "nothing left to do" in cli("train", animals, "--classifier", "--out", judge, "--steps", 3, *tiny)[1]

    code, out, err = cli("train", animals, "--unconditional", "--out", model, "--steps", 3, *tiny)
    assert code == 0, err
    assert "asked for nothing" in out
    code, out, err = cli("sample", model, "--classifier", judge, "--label", "猫", "--guidance", 3, "-n", 2,
                         "--steps", 3, "--out", tmp_path / "s")  # fmt: skip
    assert code == 0, err
    first = next((tmp_path / "s").glob("00000-猫-seed0.png"))
    assert read_recipe(first)["guidance"]["scale"] == 3.0
    assert "identical pixels" in cli("repro", first)[1]

    code, out, err = cli("sample", model, "--classifier", judge, "--label", "鸟")
    assert code == 2
    assert "unknown label '鸟': this model knows small dog, 猫" in err
    code, out, _ = cli("info", judge)
    assert code == 0
    assert "held-out accuracy" in out
    about = json.loads(cli("info", judge, "--json")[1])
    assert about["model"]["type"] == "model/classifier"
    for words in (("sample", judge), ("sample", model, "--classifier", model, "--label", "猫"), ("explain", judge)):
        code, _, err = cli(*words)
        assert code == 4
        assert "is needed here" in err


def test_what_cannot_be_trained_is_refused(cli: Cli, animals: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    def said(*words: object, code: int = 2) -> str:
        found, _, err = cli("train", *words, "--out", tmp_path / "r", "--steps", 2, *tiny)
        assert found == code
        assert not (tmp_path / "r").exists()
        return err

    assert "which are all that a classifier learns" in said(animals, "--classifier", "--unconditional")
    assert "needs classes" in said(animals / "猫", "--classifier")
    assert "learned time map" in said(animals, "--classifier", "--preset", "vdm")
    assert "unknown part 'classifier/dit'" in said(animals, "--classifier", "--set", "network=dit")
    assert "takes no 'recipe'" in said(animals, "--classifier", "--set", "recipe.guidance=2")


def test_a_printed_configuration_is_one(cli: Cli, animals: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    words = (animals, "--out", tmp_path / "r", "--steps", 1, *tiny)
    printed = cli("train", *words, "--classifier", "--preset", "edm", "--dry-run")[1]
    assert "type: model/classifier" in printed
    (tmp_path / "c.yaml").write_text(printed, encoding="utf-8")
    code, out, err = cli("train", *words, "--config", tmp_path / "c.yaml")
    assert code == 0, err
    assert "noised by: LinearLogSnr" in out
