"""A folder of Chinese captions trains and samples with no special flag; what was asked makes the same picture again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diff_diffusion.cli.guiding import guidance_of
from diff_diffusion.models import DiffusionModel
from diff_diffusion.pictures import read_recipe

CAPTIONS = {"红色的圆": (220, 40, 40), "蓝色的圆": (40, 40, 220), "a green disc": (30, 180, 60)}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 discs of three colours, with captions, a size and the edge of each."""
    folder = tmp_path_factory.mktemp("图片")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:8, 0:8]
    lines = []
    (folder / "边").mkdir()
    for i in range(36):
        caption, colour = list(CAPTIONS.items())[i % 3]
        radius = float(rng.uniform(1.5, 3.5))
        disc = (x - 3.5) ** 2 + (y - 3.5) ** 2 < radius**2
        picture = np.where(disc[..., None], colour, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"图{i}.png")
        Image.fromarray(np.where(disc, 255, 0).astype(np.uint8)).save(folder / "边" / f"{i}.png")
        line = {"file_name": f"图{i}.png", "caption": caption, "半径": radius, "disc_mask": f"边/{i}.png"}
        lines.append(json.dumps(line, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(captioned: Path, tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diff_diffusion.cli.app import app

    out = tmp_path_factory.mktemp("runs") / "discs"
    app(["train", str(captioned), "--out", str(out), "--steps", "3", *tiny], standalone_mode=False)
    return out


def test_a_model_tells_what_it_can_be_asked(cli, run: Path) -> None:
    code, said, err = cli("info", run)
    assert code == 0, err
    for line in (
        "asked for caption: a text",
        "asked for 半径: a number from 1.5",
        "asked for disc_mask: mask of 1 × 8",
    ):
        assert line in said
    assert "半径: a number from 1.5" in (run / "README.md").read_text(encoding="utf-8")


def test_captions_train_and_sample_with_no_special_flag(cli, run: Path, tmp_path: Path) -> None:
    model = DiffusionModel.load(run)
    assert model.network.token_width  # it attends to the words
    out = tmp_path / "s"
    code, _, err = cli(
        "sample", run, "-n", 4, "--steps", 2, "--prompt", "红色的圆", "--prompt", "蓝色的圆", "--out", out
    )
    assert code == 0, err
    files = sorted(out.glob("0*.png"))
    assert [file.name for file in files] == [f"0000{i}-{'红蓝'[i % 2]}色的圆-seed{i}.png" for i in range(4)]
    assert read_recipe(files[1])["asked"] == {"label": None, "prompt": "蓝色的圆", "cond": []}
    code, said, err = cli("repro", files[1])
    assert code == 0, err
    assert "identical pixels" in said


def test_every_kind_of_condition_and_guidance_is_made_again(cli, run: Path, captioned: Path, tmp_path: Path) -> None:
    words = ["--prompt", "红色的圆", "--cond", "半径=2.5", "--cond", f"disc_mask={captioned / '边' / '0.png'}"]
    # A model of three steps hardly tells one caption from another.
    guided = ["--guidance", 100, "--negative", "蓝色的圆", "--guidance-how", "apg", "--guidance-interval", "0.1:0.9"]
    pictures = []
    for index, more in enumerate([[], guided, [*guided, "--dynamic", "0.9"], ["--guidance", 2, "--autoguide", run]]):
        out = tmp_path / str(index)
        code, _, err = cli("sample", run, "-n", 1, "--steps", 3, *words, *more, "--out", out)
        assert code == 0, err
        file = next(out.glob("0*.png"))
        pictures.append(Image.open(file).tobytes())
        code, said, err = cli("repro", file)
        assert code == 0, err
        assert "identical pixels" in said
    # A model guided away from itself stays where it is.
    assert pictures[3] == pictures[0]
    assert len(set(pictures)) == 3


def test_larger_samples_are_made_again(cli, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    code, _, err = cli(
        "sample", run, "-n", 1, "--steps", 2, "--prompt", "红色的圆", "--size", "8x20", "--wrap", "--out", out
    )
    assert code == 0, err
    file = next(out.glob("0*.png"))
    assert Image.open(file).size == (20, 8)
    code, said, _ = cli("repro", file)
    assert code == 0
    assert "identical pixels" in said


def test_an_image_condition_is_brought_to_the_size_and_known_again(cli, run: Path, tmp_path: Path) -> None:
    mask, out = tmp_path / "m=1.png", tmp_path / "s"
    Image.fromarray(np.tile(np.array([0, 255], np.uint8), (16, 12))).save(mask)
    words = ["--steps", 2, "--cond", f"disc_mask={mask}"]
    for size in ([], ["--size", "16x24"]):
        code, _, err = cli("sample", run, "-n", 1, *words, *size, "--out", out)
        assert code == 0, err
        file = next(out.glob("0*.png"))
        assert "identical pixels" in cli("repro", file)[1]
    Image.fromarray(np.zeros((16, 24), np.uint8)).save(mask)
    code, _, err = cli("repro", file)
    assert code == 3
    assert "which is another file now" in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label", "猫"], "--label 猫: this model takes none; it is asked for caption: a text"),
        (["--cond", "半径=大"], "半径 is a number, and '大' is not"),
        (["--cond", "半径=9"], "半径: 9 is outside of what this model was trained on"),
        (["--cond", "colour=1"], "it is NAME=VALUE, and this model knows caption, disc_mask, 半径"),
        (["--cond", "caption=a", "--prompt", "b"], "caption is said twice"),
        (["--prompt", "a", "--negative", "b"], "a negative has no effect at guidance 1"),
        (["--prompt", "a", "--guidance", "2", "--guidance-interval", "0.5"], "guidance has an interval of times"),
        (["--prompt", "a", "--guidance", "2", "--guidance-interval", "x:y"], "LOW:HIGH between 0 and 1"),
        (["--cond", "半径=2", "--guidance", "2", "--negative", "b"], "--negative says a caption to move away from"),
        (["--wrap"], "give it a --size"),
        (["--size", "99999x99999"], "9,999,800,001 pixels: at most 67,108,864 are drawn"),
        (["--size", "4"], "larger on both sides, not smaller"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_cannot_be_asked_is_said(cli, run: Path, tmp_path: Path, words: list[str], said: str) -> None:
    code, _, err = cli("sample", run, "-n", 1, "--steps", 2, *words, "--out", tmp_path / "s")
    assert code == 2, err
    assert said in " ".join(err.split())
    assert not (tmp_path / "s").exists()


def test_columns_are_chosen_on_the_command_line(cli, captioned: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    words = ["--set", "data.columns.半径=ignore", "--set", "data.columns.disc_mask=ignore"]
    out = tmp_path / "run"
    code, _, err = cli(
        "train", captioned, "--out", out, "--steps", 1, "--set", "data.columns.low=shrunk:2", *words, *tiny
    )
    assert code == 0, err
    model = DiffusionModel.load(out)
    assert model.conditioner is not None
    assert list(model.conditioner.parts) == ["caption", "low"]
    assert model.recipe.objective.drops == {"caption": 0.1, "low": 0.1}
    code, _, err = cli("train", captioned, "--out", tmp_path / "bad", "--set", "data.columns=5")
    assert code == 2
    assert "data.columns says a kind for each column" in " ".join(err.split())


def test_a_transformer_that_reads_is_a_name(cli, captioned: Path, tmp_path: Path) -> None:
    small = ["--set", "network.depth=2", "--set", "network.width=32", "--set", "network.heads=2"]
    words = ["--steps", 2, "--set", "network=mmdit", *small, "--set", "train.precision=fp32"]
    code, said, err = cli("train", captioned, "--out", tmp_path / "run", *words)
    assert code == 0, err
    assert "model: MMDiT" in said
    code, _, err = cli(
        "sample", tmp_path / "run", "-n", 1, "--prompt", "红色的圆", "--steps", 2, "--out", tmp_path / "s"
    )
    assert code == 0, err
    code, _, err = cli("train", "digits", "--out", tmp_path / "digits", *words)
    assert code == 2
    assert "use dit" in " ".join(err.split())


def test_how_often_each_condition_is_dropped_is_a_setting(cli, captioned: Path, tmp_path: Path) -> None:
    code, out, err = cli(
        "train", "digits", "--out", tmp_path, "--dry-run", "--set", "model.recipe.objective.drops.label=0.5"
    )
    assert code == 0, err
    assert yaml.safe_load(out)["model"]["recipe"]["objective"]["drops"] == {"label": 0.5}


def test_a_text_encoder_needs_captions_to_read(cli, tmp_path: Path) -> None:
    code, _, err = cli("train", "digits", "--out", tmp_path / "run", "--text-encoder", tmp_path, "--steps", 1)
    assert code == 2
    assert "a text encoder reads captions, and digits has none: what is known is label" in " ".join(err.split())
    for kind in ("--classifier", "--unconditional"):
        code, _, err = cli("train", "digits", kind, "--out", tmp_path / "run", "--text-encoder", tmp_path, "--steps", 1)
        assert code == 2
        assert "this model would not be asked for any" in " ".join(err.split())


def test_a_models_own_guidance_is_for_what_it_is_asked(cli, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """Guided by 2 unless told otherwise; not where nothing can be asked, and not where a classifier guides."""
    twice = ["--steps", 1, "--set", "model.recipe.guidance=2", *tiny]
    for kind, scale in (([], 2.0), (["--unconditional"], 1.0)):
        out = tmp_path / f"run {scale}"
        assert cli("train", "digits", *kind, "--out", out, *twice)[0] == 0
        code, _, err = cli("sample", out, "-n", 1, "--steps", 2, "--out", out / "s")
        assert code == 0, err
        file = next((out / "s").glob("0*.png"))
        assert read_recipe(file)["guidance"]["scale"] == scale
        assert "identical pixels" in cli("repro", file)[1]
    judge = tmp_path / "judge"
    assert cli("train", "digits", "--classifier", "--out", judge, "--steps", 1, *tiny)[0] == 0
    assert guidance_of(DiffusionModel.load(out), {"classifier": str(judge)}).scale == 1.0
