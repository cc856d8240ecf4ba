"""`edit`: pictures with their recipe, and no option that has no effect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stirring import stirred
from typer.testing import CliRunner

from diff_diffusion import DiffusionModel
from diff_diffusion.cli.app import app
from diff_diffusion.data import ImageDataset
from diff_diffusion.data.columns import Column
from diff_diffusion.data.images import read_image
from diff_diffusion.editing import img2img, outpaint, strokes, translate, upscale
from diff_diffusion.errors import ConfigError, DataError
from diff_diffusion.pictures import read_recipe, to_array, to_image


@pytest.fixture(scope="module")
def model(data: ImageDataset) -> DiffusionModel:
    return stirred(DiffusionModel.for_data(data))


@pytest.fixture(scope="module")
def many(data: ImageDataset) -> DiffusionModel:
    """A model of several conditions."""
    columns = {
        "low": Column("shrunk", factor=2),
        "age": Column("number", [float(i) for i in range(12)]),
        "caption": Column("text", [("a cat", "一只猫")] * 12),
    }
    pixels = data.batch(range(12))
    known = ImageDataset.from_arrays(pixels, np.arange(12) % 2, ["猫", "dog"], columns=columns)
    return stirred(DiffusionModel.for_data(known))


@pytest.fixture(scope="module")
def run(model: DiffusionModel, many: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edit")
    model.save(folder / "run")
    many.save(folder / "many")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8), np.uint8)).save(folder / "图.png")
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (5, 6), np.uint8)).save(folder / "小.png")
    half = np.zeros((8, 8), np.uint8)
    half[:, :4] = 255
    Image.fromarray(half).save(folder / "half.png")
    return folder


def edited(run: Path, out: str, *options: str, model: str = "run", image: str = "图.png") -> dict:
    places = [str(run / option) if option.endswith(".png") and "=" not in option else option for option in options]
    arguments = ["edit", str(run / model), "--image", str(run / image), "--out", str(run / out), "--json", *places]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, (told.output, told.exception)
    return json.loads(told.stdout)


def opened(file: str) -> torch.Tensor:
    return torch.from_numpy(to_array(Image.open(file)).copy())


def same(file: str, drawn: torch.Tensor) -> bool:
    return bool((opened(file).int() - torch.from_numpy(to_array(to_image(drawn)).copy()).int()).abs().max() <= 1)


@pytest.mark.parametrize(
    ("options", "kind", "count"),
    [
        (["--strength", "0.4", "-n", "3", "--steps", "4"], "img2img", 3),
        (["--mask", "half.png", "--label", "猫", "-n", "2", "--steps", "4"], "inpaint", 2),
        (["--from-label", "dog", "--label", "猫", "--steps", "8"], "translate", 1),
    ],
)
def test_the_command_writes_pictures_with_their_recipe(run: Path, options: list[str], kind: str, count: int) -> None:
    about = edited(run, kind, *options)
    assert about["edit"] == kind
    assert len(about["files"]) == count
    recipe = read_recipe(Path(about["files"][0]))
    assert recipe["image"].endswith("图.png")
    assert Image.open(about["files"][0]).size == (8, 8)
    if kind == "inpaint":
        before, after = np.asarray(Image.open(run / "图.png")), np.asarray(Image.open(about["files"][1]))
        assert (before[:, 4:] == after[:, 4:]).all()
    again = CliRunner().invoke(app, ["repro", about["files"][0]])
    assert isinstance(again.exception, DataError)
    assert "edited picture" in str(again.exception)


def test_around_a_picture(run: Path, model: DiffusionModel) -> None:
    about = edited(run, "around", "--extend", "2,0,5,1", "--label", "猫", "-n", "2", "--steps", "3", "--seed", "7")
    picture = opened(str(run / "图.png"))
    assert [opened(file).shape for file in about["files"]] == [(9, 15)] * 2
    assert torch.equal(opened(about["files"][1])[:8, 2:10], picture)
    images = picture.expand(2, 1, 8, 8)
    assert same(about["files"][1], outpaint(model, images, (2, 0, 5, 1), cond="猫", seed=7, steps=3)[1])
    assert read_recipe(Path(about["files"][0]))["extend"] == "2,0,5,1"


def test_from_colours(run: Path, model: DiffusionModel) -> None:
    images = opened(str(run / "图.png"))[None, None]
    for options, strength in (([], 1.0), (["--strength", "0.6"], 0.6)):
        about = edited(run, "colours", "--colours", "4", "-n", "1", "--steps", "4", "--label", "none", *options)
        assert same(about["files"][0], strokes(model, images, 4, strength=strength, steps=4)[0])


def test_small_to_large(run: Path, many: DiffusionModel) -> None:
    """It is taken as small as it is, with all that is said beside it."""
    said = ["--label", "猫", "--prompt", "一只猫", "--cond", "age=3"]
    about = edited(run, "large", "--upscale", "2", "--steps", "3", *said, model="many", image="小.png")
    cond = {"label": "猫", "caption": "一只猫", "age": 3.0}
    large = upscale(many, opened(str(run / "小.png"))[None, None], 2, cond=cond, steps=3)
    assert large.shape == (1, 1, 10, 12)
    assert len(about["files"]) == 1
    assert same(about["files"][0], large[0])
    assert read_recipe(Path(about["files"][0]))["prompt"] == "一只猫"


def test_whatever_a_model_knows_can_be_said(run: Path, many: DiffusionModel) -> None:
    picture = opened(str(run / "图.png"))
    said = ["--cond", "age=3", "--cond", f"low={run / '图.png'}", "--cond", "caption=a cat", "--cond", "label=dog"]
    about = edited(run, "said", "-n", "1", "--steps", "2", *said, model="many")
    cond = {"label": "dog", "caption": "a cat", "age": 3.0, "low": [picture[None]]}
    assert same(about["files"][0], img2img(many, picture[None, None], cond=cond, steps=2)[0])
    wide = edited(run, "wide", "-n", "1", "--steps", "2", "--extend", "0,0,4,0", *said, model="many")
    low = torch.from_numpy(read_image(run / "图.png", (1, 8, 12)))  # brought to the canvas
    assert same(
        wide["files"][0], outpaint(many, picture[None, None], (0, 0, 4, 0), cond=cond | {"low": [low]}, steps=2)[0]
    )


def test_from_one_thing_to_another(run: Path, many: DiffusionModel) -> None:
    """What is said of it besides holds on both ways."""
    picture = opened(str(run / "图.png"))[None, None]
    options = ["--from-label", "dog", "--from-prompt", "a cat", "--label", "猫", "--cond", "age=3", "--steps", "6"]
    about = edited(run, "turned", *options, model="many")
    assert about["from_prompt"] == "a cat"
    up, down = {"label": "dog", "caption": "a cat", "age": 3.0}, {"label": "猫", "age": 3.0}
    assert same(about["files"][0], translate(many, picture, cond=down, from_cond=up, steps=6)[0])
    assert not same(about["files"][0], translate(many, picture, cond=down, steps=6)[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--strength", "0.4", "--from-label", "dog"], "different edits"),
        (["--strength", "0.4", "--mask", "half.png"], "different edits"),
        (["--strength", "0.4", "--extend", "1,1,1,1"], "different edits"),
        (["--mask", "half.png", "--extend", "1,1,1,1"], "different edits"),
        (["--colours", "2", "--upscale", "2"], "different edits"),
        (["--from-label", "dog"], "--label or --prompt must say"),
        (["--from-label", "dog", "--label", "猫", "--sampler", "heun"], "--sampler has no effect"),
        (["--from-label", "dog", "--label", "猫", "-n", "4"], "-n has no effect"),
        (["--from-label", "dog", "--label", "猫", "--seed", "3"], "--seed has no effect"),
        (["--label", "鸟"], "鸟"),
        (["--prompt", "a bird"], "--prompt a bird: this model takes none"),
        (["--cond", "翅膀=2"], "knows label"),
        (["--cond", "label"], "NAME=VALUE"),
        (["--label", "猫", "--cond", "label=dog"], "said twice"),
        (["--extend", "4"], "LEFT,TOP,RIGHT,BOTTOM"),
        (["--extend", "0,0,0,0"], "four numbers"),
        (["--colours", "3"], "these do: 2, 4, 8"),
        (["--upscale", "2"], "sees a small image beside its own"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Path, options: list[str], says: str) -> None:
    places = [str(run / option) if option.endswith(".png") else option for option in options]
    arguments = ["edit", str(run / "run"), "--image", str(run / "图.png"), "--out", str(run / "no"), *places]
    told = CliRunner().invoke(app, arguments)
    assert isinstance(told.exception, ConfigError), told.output
    assert says in str(told.exception)
    assert not (run / "no").exists()
