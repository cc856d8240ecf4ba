"""`plan DATA` and `train --auto`, as a user types them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diff_diffusion.cli.plan import advice, told
from diff_diffusion.data import load_image_dataset
from diff_diffusion.sizing import describe_for_data
from diff_diffusion.training import TrainSettings, checkpoint, loop, planning, trial
from diff_diffusion.training.planning import RunPlan, plan

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(trial, "_physical_cores", lambda: 1)


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 10 pictures, each with a caption."""
    folder, rng = tmp_path_factory.mktemp("动物"), np.random.default_rng(0)
    for name in ("猫", "small dog"):
        (folder / name).mkdir()
        for index in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name / f"{index}.png")
            (folder / name / f"{index}.txt").write_text(f"第{index}只{name}", encoding="utf-8")
    return folder


def test_a_plan_says_what_a_run_would_cost(
    cli: Cli, animals: Path, tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("plan", animals, "--steps", 40, *tiny)
    assert code == 0, err
    assert "猫" in out
    assert re.search(r"^batch +16, in 1 × 16$", out, re.MULTILINE)
    assert re.search(r"^precision +fp32$", out, re.MULTILINE)
    assert re.search(r"^a step +[\d.e-]+ s \(median of 3, [\d.e-]+ to [\d.e-]+\)$", out, re.MULTILINE)
    assert re.search(r"^the run +\d+:\d\d for 40 steps, 35.6 passes over the data$", out, re.MULTILINE)
    assert re.search(r"^one pass +\d+:\d\d for 18 images$", out, re.MULTILINE)
    assert re.search(r"^memory +\d+ MiB at the peak", out, re.MULTILINE)
    assert "precision fp32, as set" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("--classifier",), ("--unconditional",)], ids=str)
def test_json_is_pure_and_as_the_run(cli: Cli, animals: Path, words: tuple[str, ...], tiny: tuple[str, ...]) -> None:
    code, out, err = cli("plan", animals, "--minutes", 2, "--json", *words, *tiny)
    assert code == 0, err
    assert "猫" in err
    about = json.loads(out)
    settings = about["settings"]
    assert (settings["minutes"], settings["batch_size"], settings["micro_batch"]) == (2, 16, 16)
    assert about["images_per_second"] == pytest.approx(16 / about["seconds_per_step"])
    assert about["fastest_step"] <= about["seconds_per_step"] <= about["slowest_step"]
    assert about["seconds"] == 120
    code, out, _ = cli("train", animals, "--minutes", 2, "--out", "r", "--dry-run", *words, *tiny)
    assert code == 0
    same = yaml.safe_load(out)["train"]
    assert {**same, "micro_batch": 16} == settings


def test_how_long_is_that_of_train_by_default(cli: Cli, animals: Path, tiny: tuple[str, ...]) -> None:
    code, out, _ = cli("plan", animals, "--json", *tiny)
    assert code == 0
    assert json.loads(out)["settings"]["minutes"] == 10


def test_auto_is_what_it_chose(
    cli: Cli, animals: Path, tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "choose_precision", lambda device, step: ("bf16", 2.0))
    line = trial.Line(5, 7 << 20, 1)
    monkeypatch.setattr(trial, "largest_that_fits", lambda peak, *limits: (peak(1), (5, line))[1])
    options = ("--set", "network.width=8", "--set", "train.batch_size=16")
    code, out, err = cli("train", animals, "--out", tmp_path / "自", "--steps", 2, "--auto", *options)
    assert code == 0, err
    assert "micro-batch 4, 4 to a step: 7 MiB at the peak, of " in out
    assert "precision bf16 (bf16 measured 2.00 × the speed of fp32)" in out
    said = ("--set", "train.micro_batch=4", "--set", "train.precision=bf16")
    assert cli("train", animals, "--out", tmp_path / "set", "--steps", 2, *options, *said)[0] == 0

    monkeypatch.setattr(planning, "Trial", lambda *args: pytest.fail("it was measured again"))
    code, out, err = cli("train", animals, "--out", tmp_path / "自", "--steps", 4, "--auto", *options)
    assert code == 0, err
    assert f"micro-batch 4, precision bf16: as the run in {tmp_path / '自'} has them" in out
    assert cli("train", animals, "--out", tmp_path / "set", "--steps", 4, *options, *said)[0] == 0
    for name in ("model.safetensors", checkpoint.STATE_TENSORS):
        assert (tmp_path / "自" / name).read_bytes() == (tmp_path / "set" / name).read_bytes()
    stored = [json.loads((tmp_path / run / checkpoint.STATE_JSON).read_text())["settings"] for run in ("自", "set")]
    assert stored[0] == stored[1]


def test_auto_in_a_dry_run_is_yaml_with_the_choice(cli: Cli, animals: Path, tiny: tuple[str, ...]) -> None:
    words = ("--auto", "--dry-run", "--set", "train.micro_batch=3")
    code, out, err = cli("train", animals, "--out", "r", *words, *tiny)
    assert code == 0, err
    assert yaml.safe_load(out)["train"]["micro_batch"] == 3
    assert "micro-batch 3, as set\nprecision fp32, as set\n" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["digits", "--steps", "5", "--minutes", "1"], 2, "not both"),
        (["digits", "--steps", "0"], 2, "steps"),
        (["digits", "--set", "train.lrr=1"], 2, "lrr"),
        (["digits", "--classifier", "--unconditional"], 2, "unconditional"),
        (["no/such/folder"], 3, "digits"),
        ([], 2, "DATA"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_message(cli: Cli, words: list[str], code: int, says: str) -> None:
    got, _, err = cli("plan", *words)
    assert (got, "Traceback" in err) == (code, False)
    assert says in err


@pytest.fixture(scope="module")
def planned(animals: Path) -> RunPlan:
    data = load_image_dataset(str(animals))
    description = describe_for_data(data)
    description["network"] |= {"width": 8, "depth": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "SECONDS", 0.0)
        patch.setattr(trial, "_physical_cores", lambda: 1)
        return plan(description, data, TrainSettings(steps=3, batch_size=4, precision="fp32"))


def test_another_number_of_threads_is_advised_when_it_is_clearly_faster(planned: RunPlan) -> None:
    def with_rates(**rates: float) -> list[str]:
        counted = {int(name[1:]): rate for name, rate in rates.items()}
        return advice(replace(planned, threads=2, images_per_second_by_threads=counted))

    assert with_rates() == []
    assert with_rates(t2=100.0, t1=105.0) == ["threads measured: 2: 100 images/s, 1: 105 images/s"]
    assert with_rates(t2=100.0, t1=50.0) == ["threads measured: 2: 100 images/s, 1: 50 images/s"]
    assert with_rates(t2=100.0, t1=160.0)[1] == "now, 1 would be 1.60 × as fast: set OMP_NUM_THREADS=1"


def test_what_was_scaled_up_or_is_not_known_is_said(planned: RunPlan) -> None:
    scaled = told(replace(planned, timed_images=2, repeats=3, memory=None), 20)
    assert scaled["a step"].endswith("; scaled up from 2 images)")
    assert "memory" not in scaled
    assert "scaled" not in told(planned, 20)["a step"]
    rates = [told(replace(planned, seconds_per_step=4 / rate), 20)["images/s"] for rate in (1234.4, 10.4, 1.26)]
    assert rates == ["1,234", "10", "1.3"]
