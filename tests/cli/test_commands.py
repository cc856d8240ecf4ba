"""Every command, as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from diff_diffusion.models import DiffusionModel
from diff_diffusion.pictures import read_recipe

COMMANDS = [["train"], ["sample"], ["repro"], ["info"], ["explain"], ["doctor"], ["data", "inspect"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches(cli, command):
    code, out, _ = cli(*command, "--help")
    assert code == 0
    assert len(out) > 300
    assert "Usage:" in out


def test_help_needs_no_torch():
    code = (
        "import sys, diff_diffusion.cli.app, diff_diffusion; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(cli):
    from diff_diffusion import __version__

    assert __version__ in cli("--version")[1]


def test_train_on_a_folder_of_mixed_photos_names_the_corrupt_one(cli, photos, tmp_path, tiny):
    code, out, err = cli("train", photos, "--out", tmp_path / "r", "--steps", 3, "--size", 16, *tiny)
    assert code == 0, err
    assert "broken.JPG" in out
    assert re.search(r"found\s+40", out)
    assert "step 3" in out
    code, out, err = cli("sample", tmp_path / "r", "-n", 2, "--out", tmp_path / "s")
    assert code == 0, err
    with Image.open(tmp_path / "s" / "00001-seed1.png") as image:
        assert (image.mode, image.size) == ("RGB", (16, 16))


def test_the_same_command_again_has_nothing_left_to_do(cli, run, tiny):
    code, out, _ = cli("train", "digits", "--out", run, "--steps", 30, *tiny)
    assert code == 0
    assert "finished" in out


def test_another_setting_on_the_same_run_is_refused(cli, run, tiny):
    code, _, err = cli("train", "digits", "--out", run, "--steps", 60, *tiny, "--set", "train.lr=0.1")
    assert code == 2
    assert "lr was 0.001, now 0.1" in err
    assert "Traceback" not in err


def test_dry_run_prints_a_configuration_that_config_takes(cli, tmp_path):
    code, out, err = cli(
        "train", "digits", "--out", tmp_path / "r", "--steps", 5, "--set", "sampler=heun", "--set", "network.width=16",
        "--seed", 7, "--dry-run",
    )  # fmt: skip
    assert code == 0, err
    config = yaml.safe_load(out)
    assert config["model"]["recipe"]["sampler"] == {"type": "sampler/heun"}
    assert config["model"]["network"]["width"] == 16
    assert config["train"]["seed"] == 7
    assert not (tmp_path / "r").exists()
    (tmp_path / "c.yaml").write_text(out, encoding="utf-8")
    code, again, err = cli("train", "digits", "--out", tmp_path / "r", "--config", tmp_path / "c.yaml", "--dry-run")
    assert code == 0, err
    assert yaml.safe_load(again) == config


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["train", "digits", "--out", "r", "--set", "train.lrr=1"], 2, "lrr"),
        (["train", "digits", "--out", "r", "--set", "nonsense"], 2, "PATH=VALUE"),
        (["train", "digits", "--out", "r", "--set", "bogus.x=1"], 2, "unknown section"),
        (["train", "digits", "--out", "r", "--set", "network.widht=64"], 2, "widht"),
        (["train", "digits", "--out", "r", "--set", "sampler=huen"], 2, "heun"),
        (["train", "digits", "--out", "r", "--preset", "ddmp"], 2, "ddpm"),
        (["train", "digits", "--out", "r", "--steps", "5", "--minutes", "1"], 2, "not both"),
        (["train", "digits", "--out", "r", "--size", "big"], 2, "48x64"),
        (["train", "no/such/folder", "--out", "r"], 3, "digits"),
        (["sample", "no/such/run"], 4, "does not exist"),
        (["info", "weights.pth"], 4, "pickle"),
        (["repro", "nothing.png"], 3, "nothing.png"),
        (["data", "inspect", "."], 3, "no "),
        (["sample"], 2, "RUN"),
        (["sample", "x", "-n", "0"], 2, "greater than or equal to 1"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_errors_are_one_message_with_an_exit_code(cli, tmp_path, monkeypatch, words, code, says):
    monkeypatch.chdir(tmp_path)
    got, _, err = cli(*words)
    assert got == code, err
    assert says in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(cli):
    from diff_diffusion.errors import CheckpointError

    with pytest.raises(CheckpointError):
        cli("--debug", "info", "no/such/run")


def test_sample_writes_pictures_that_repro_makes_again(cli, run, tmp_path):
    code, out, err = cli("sample", run, "-n", 12, "--out", tmp_path / "s", "--seed", 40, "--steps", 6, "--json")
    assert code == 0, err
    made = json.loads(out)
    assert len(made["files"]) == 12
    assert Path(made["sheet"]).exists()
    file = tmp_path / "s" / "00003-3-seed43.png"
    code, out, err = cli("repro", file)
    assert code == 0, err
    assert "identical pixels" in out or "difference 1 " in out
    assert (tmp_path / "s" / "00003-3-seed43-again.png").exists()


def test_a_picture_in_half_precision_says_so_and_comes_again(cli, run, tmp_path, monkeypatch):
    half, sample = [], DiffusionModel.sample
    note = lambda *args, **how: (half.append(torch.is_autocast_enabled("cpu")), sample(*args, **how))[1]  # noqa: E731
    monkeypatch.setattr(DiffusionModel, "sample", note)
    for precision in ("fp32", "bf16"):
        asked = ("--steps", 6, "--label", "4", "--precision", precision)
        code, _, err = cli("sample", run, "-n", 3, "--out", tmp_path / precision, *asked)
        assert code == 0, err
        file = tmp_path / precision / "00002-4-seed2.png"
        assert read_recipe(file)["precision"] == precision
        code, said, err = cli("repro", file)
        assert code == 0, err
        assert "identical pixels" in said or "difference 1 " in said
    assert half == [False, False, True, True]
    code, _, err = cli("sample", run, "--out", tmp_path / "s", "--precision", "fp16")
    assert code == 2
    assert "one of fp32, bf16, not 'fp16'" in " ".join(err.split())


def test_the_grid_is_in_the_recipe_of_a_picture(cli, run, tmp_path):
    """So that repro walks the same times: those of a named grid, of one that goes up, and of the model's own."""
    pictures = set()
    for words in (["--grid", "karras"], ["--grid", "churn", "--sampler", "heun"], ["--grid", "restart"], []):
        out = tmp_path / "-".join(["s", *words])
        code, told, err = cli("sample", run, "-n", 1, "--out", out, "--steps", 5, "--label", "4", *words, "--json")
        assert code == 0, err
        recipe = read_recipe(out / "00000-4-seed0.png")
        assert recipe["grid"] == json.loads(told)["grid"]
        assert recipe["steps"] == 5
        assert not words or recipe["grid"]["type"] == f"grid/{words[1]}"
        code, said, err = cli("repro", out / "00000-4-seed0.png")
        assert code == 0, err
        assert "identical pixels" in said or "difference 1 " in said
        pictures.add(Image.open(out / "00000-4-seed0.png").tobytes())
    assert len(pictures) == 4


def test_an_unknown_grid_lists_the_known(cli, run, tmp_path):
    code, _, err = cli("sample", run, "--grid", "karas", "--out", tmp_path / "s")
    assert code == 2
    assert "did you mean 'karras'" in err
    code, _, err = cli("sample", run, "--grid", "truncate", "--out", tmp_path / "s")
    assert code == 2
    assert "needs start" in err
    assert not (tmp_path / "s").exists()


def test_one_sample_alone_is_the_same_as_in_a_batch(cli, run, tmp_path):
    cli("sample", run, "-n", 8, "--out", tmp_path / "8", "--label", "5", "--sampler", "ddpm", "--steps", 8)
    cli("sample", run, "-n", 1, "--out", tmp_path / "1", "--label", "5", "--sampler", "ddpm", "--steps", 8, "--seed", 6)
    a, b = (
        np.asarray(Image.open(f), np.int16)
        for f in (tmp_path / "8/00006-5-seed6.png", tmp_path / "1/00000-5-seed6.png")
    )
    assert np.abs(a - b).max() <= 1


def test_labels_samplers_guidance_and_weights(cli, run, tmp_path):
    choices = (
        *(["--label", "3"], ["--guidance", "2"], ["--sampler", "heun"], ["--weights", "raw"]),
        *(["--guidance", "0"], ["--label", "none"]),
    )
    for index, words in enumerate(choices):
        code, _, err = cli("sample", run, "-n", 2, "--steps", 3, "--out", tmp_path / str(index), *words)
        assert code == 0, err
    pictures = [Image.open(next((tmp_path / str(i)).glob("00001*.png"))).tobytes() for i in range(6)]
    assert pictures[4] == pictures[5]  # scale 0 is truly unconditional
    assert len(set(pictures)) == 5


def test_unknown_label_lists_the_known(cli, run, tmp_path):
    code, _, err = cli("sample", run, "--label", "eleven", "--out", tmp_path / "s")
    assert code == 2
    assert "0, 1, 2" in err
    assert not (tmp_path / "s").exists()


def test_repro_notices_another_model(cli, run, photos, tmp_path, tiny):
    cli("sample", run, "-n", 1, "--out", tmp_path / "s", "--steps", 2)
    cli("train", "digits", "--out", tmp_path / "other", "--steps", 1, *tiny)
    code, _, err = cli("repro", tmp_path / "s" / "00000-0-seed0.png", "--run", tmp_path / "other")
    assert code == 4
    assert "fingerprint" in err
    code, _, err = cli("repro", tmp_path / "s" / "grid.png")
    assert code == 3
    assert "sheet" in err


def test_info_and_explain(cli, run, tmp_path):
    code, out, _ = cli("info", run)
    assert code == 0
    assert "UNet" in out
    assert "fingerprint" in out
    code, out, _ = cli("info", run, "--json")
    assert json.loads(out)["facts"]["steps"] == 30
    code, _, err = cli("explain", run, "--out", tmp_path / "p.png", "--label", "7")
    assert code == 0, err
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "x.png")
    code, _, err = cli("explain", run, "--out", tmp_path / "q.png", "--image", tmp_path / "x.png")
    assert code == 0, err
    assert Image.open(tmp_path / "q.png").size[0] > 600


def test_inspect_and_doctor(cli, photos):
    code, out, _ = cli("data", "inspect", photos)
    assert code == 0
    assert "broken.JPG" in out
    code, out, _ = cli("data", "inspect", photos, "--json")
    assert json.loads(out)["found"] == 40
    code, out, _ = cli("doctor", "--json")
    assert code == 0
    assert json.loads(out)["torch"]


def test_chinese_class_folders(cli, tmp_path, tiny):
    rng = np.random.default_rng(1)
    for name in ("猫", "狗"):
        (tmp_path / "图片" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (12, 12), np.uint8)).save(tmp_path / "图片" / name / f"照片{i}.png")
    code, out, err = cli("train", tmp_path / "图片", "--out", tmp_path / "跑", "--steps", 2, *tiny)
    assert code == 0, err
    assert "猫" in out
    code, out, err = cli("sample", tmp_path / "跑", "-n", 2, "--label", "猫", "--out", tmp_path / "样本", "--steps", 2)
    assert code == 0, err
    assert (tmp_path / "样本" / "00000-猫-seed0.png").exists()
    assert "猫" in cli("info", tmp_path / "跑")[1]
