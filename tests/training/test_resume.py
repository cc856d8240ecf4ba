"""A run that stops, is stopped or is killed, and goes on: the same bytes as one that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from diff_diffusion.errors import CheckpointError, ConfigError, IncompatibleError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.training import checkpoint, train

Uninterrupted = Callable[..., Path]


# ---- stopped and gone on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch": 3},
        {"lr_schedule": "cosine"},
        {"batch_size": 20},
        {"batch_size": 7, "seed": 5},
        {"batch_size": 45, "seed": 9, "steps": 6},
        {"ema_decay": 0.0, "weight_decay": 0.1, "grad_clip": 0.01, "betas": (0.5, 0.5), "warmup_steps": 0},
    ],
    ids=str,
)
def test_a_run_that_stopped_ends_like_one_that_did_not(
    changes: dict[str, Any], tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    expected = uninterrupted(**changes)
    last = changes.get("steps", 12)
    done = [record.step for stop_at in (1, 2, 1, None) for record in tiny.run(tmp_path, stop_at=stop_at, **changes)]
    assert done == list(range(1, last + 1))
    assert tiny.ends(tmp_path) == tiny.ends(expected)
    assert tiny.newest(tmp_path) == tiny.newest(expected) == f"step-{last:08d}"
    assert tiny.told(tmp_path) == done
    assert tiny.leftovers(tmp_path) == []


def test_a_run_tells_that_it_was_resumed(tmp_path: Path) -> None:
    assert tiny.run(tmp_path, stop_at=3)[0].notes == ()
    assert tiny.run(tmp_path)[0].notes == ("resumed at step 3",)


def test_another_run_has_other_weights(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    """Or the comparisons above would prove nothing."""
    assert tiny.ends(uninterrupted()) != tiny.ends(uninterrupted(seed=1))
    assert tiny.ends(uninterrupted()) != tiny.ends(uninterrupted(lr_schedule="cosine"))


def test_dropout_is_the_same_after_a_resume(tmp_path: Path) -> None:
    """Dropout draws from torch's global random numbers, which another process starts elsewhere."""
    data = tiny.images()

    def go(out: Path, stop_at: int | None, state: int) -> None:
        done: list[int] = []
        torch.manual_seed(state)
        before = torch.get_rng_state()
        model = tiny.fresh(data, dropout=0.5)
        steps = train(model, data, out, tiny.settings(steps=6), stop=lambda: len(done) + 1 == stop_at)
        done.extend(record.step for record in steps)
        assert torch.equal(torch.get_rng_state(), before)

    go(tmp_path / "whole", None, state=1)
    go(tmp_path / "parts", 2, state=2)
    go(tmp_path / "parts", None, state=3)
    assert tiny.ends(tmp_path / "parts") == tiny.ends(tmp_path / "whole")


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    tiny.run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert tiny.run(tmp_path) == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_goes_on_when_given_more_steps(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    tiny.run(tmp_path, steps=5)
    assert [record.step for record in tiny.run(tmp_path, steps=12)] == list(range(6, 13))
    assert tiny.ends(tmp_path) == tiny.ends(uninterrupted())


def test_what_changes_no_step_may_change(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    tiny.run(tmp_path, stop_at=5)
    free = {"checkpoint_interval": 3, "eval_interval": 2, "log_interval": 2, "keep_checkpoints": 1}
    tiny.run(tmp_path, **free)
    assert tiny.ends(tmp_path) == tiny.ends(uninterrupted())
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000012"]


def test_every_kept_checkpoint_is_a_model_of_its_step(tmp_path: Path) -> None:
    """Its files are linked into the run folder, where the next save must not write through the links."""
    tiny.run(tmp_path, checkpoint_interval=2, keep_checkpoints=3)
    steps = {home.name: DiffusionModel.load(home).facts["steps"] for home in checkpoint.checkpoints(tmp_path)}
    assert steps == {"step-00000012": 12, "step-00000010": 10, "step-00000008": 8}


def test_a_run_is_found_when_its_checkpoints_were_deleted(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    """The run folder holds all that the checkpoint held; starting over would write over a trained model."""
    tiny.run(tmp_path, stop_at=7)
    for home in checkpoint.checkpoints(tmp_path):
        for file in home.iterdir():
            file.unlink()
        home.rmdir()
    assert tiny.run(tmp_path)[0].step == 8
    assert tiny.ends(tmp_path) == tiny.ends(uninterrupted())


def test_a_model_folder_that_is_no_run_is_not_trained_over(tmp_path: Path) -> None:
    data = tiny.images()
    tiny.fresh(data).save(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="train_state"):
        tiny.run(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 0.5}, "lr was 0.001, now 0.5"),
        ({"seed": 3}, "seed was 0, now 3"),
        ({"batch_size": 4}, "batch_size was 8, now 4"),
        ({"ema_decay": 0.5, "warmup_steps": 0}, "ema_decay was 0.9999, now 0.5"),
        ({"precision": "bf16"}, "precision was 'fp32', now 'bf16'"),
        ({"lr_schedule": "cosine"}, "lr_schedule was 'constant', now 'cosine'"),
        ({"betas": (0.8, 0.99)}, "betas was [0.9, 0.99], now [0.8, 0.99]"),
    ],
)
def test_a_run_is_not_continued_with_other_settings(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    tiny.run(tmp_path, stop_at=2)
    before = tiny.ends(tmp_path)
    with pytest.raises(ConfigError) as caught:
        tiny.run(tmp_path, **changes)
    for part in (said, *changes, str(tmp_path)):
        assert part in str(caught.value)
    assert tiny.ends(tmp_path) == before


def test_cosine_has_a_fixed_end(tmp_path: Path) -> None:
    tiny.run(tmp_path, stop_at=2, lr_schedule="cosine")
    with pytest.raises(ConfigError, match="steps was 12, now 24"):
        tiny.run(tmp_path, lr_schedule="cosine", steps=24)


def test_a_run_is_not_continued_with_other_data_or_another_model(tmp_path: Path) -> None:
    tiny.run(tmp_path, stop_at=2)
    other = tiny.images(seed=1)
    with pytest.raises(ConfigError, match=r"the data changed \(was arrays, 20 images; now arrays, 20 images\)"):
        next(train(tiny.fresh(tiny.images()), other, tmp_path, tiny.settings()))
    with pytest.raises(ConfigError, match="the model's description changed"):
        next(train(tiny.fresh(tiny.images(), width=16), tiny.images(), tmp_path, tiny.settings()))


def test_a_run_is_not_continued_in_another_codec_of_the_same_description(tmp_path: Path) -> None:
    """What it learned would be decoded to something else."""
    data = tiny.images()

    def model(seed: int) -> DiffusionModel:
        coder = tiny.autoencoder(data, "fsq")
        with torch.no_grad():
            for weight in coder.network.parameters():
                weight += 0.1 * seed
        return DiffusionModel.for_data(data, codec=coder.as_tokens())

    one = tiny.settings(steps=1)
    list(train(model(0), data, tmp_path, one))
    with pytest.raises(ConfigError, match="the codec has other weights"):
        next(train(model(1), data, tmp_path, one))
    assert list(train(model(0), data, tmp_path, one)) == []


def test_data_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    """Labels are numbers: of other classes they would train silently, and wrongly."""
    model = tiny.fresh(tiny.images())
    for data, said in [
        (tiny.images(classes=2), "class 0, class 1, class 2; arrays has class 0, class 1"),
        (tiny.images(classes=0), "arrays has none"),
        (tiny.images(side=12), r"\[1, 8, 8\]; arrays has \[1, 12, 12\]"),
        (tiny.images(channels=3), r"arrays has \[3, 8, 8\]"),
    ]:
        with pytest.raises(IncompatibleError, match=said):
            next(train(model, data, None, tiny.settings()))
        with pytest.raises(IncompatibleError, match=said):
            next(train(model, tiny.images(), None, tiny.settings(), held_out=data))


def test_precision_is_chosen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second measurement could fall the other way and change the run."""
    from diff_diffusion.training import loop

    answers = iter(["bf16", "fp32"])
    monkeypatch.setattr(loop, "choose_precision", lambda device, step: (next(answers), 2.0))
    tiny.run(tmp_path, stop_at=2, precision="auto")
    state = json.loads((tmp_path / "train_state.json").read_text())
    assert state["settings"]["precision"] == "bf16"
    tiny.run(tmp_path, precision="auto")
    assert json.loads((tmp_path / "train_state.json").read_text())["settings"]["precision"] == "bf16"
    assert next(answers) == "fp32"


# ---- the journal -----------------------------------------------------------------------------------------------------


def test_a_damaged_journal_does_not_stop_a_run(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    tiny.run(tmp_path, stop_at=6)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"\xff\xfe\n", b"7\n", b'{"step": "x"}\n', *lines[3:], lines[0][:9]]))
    tiny.run(tmp_path)
    assert tiny.told(tmp_path) == list(range(1, 13))
    assert tiny.ends(tmp_path) == tiny.ends(uninterrupted())


def test_a_last_line_without_its_end_is_not_continued(tmp_path: Path) -> None:
    tiny.run(tmp_path, stop_at=6)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    tiny.run(tmp_path)
    assert tiny.told(tmp_path) == list(range(1, 13))


def test_the_journal_says_zero_and_is_json(tmp_path: Path) -> None:
    from diff_diffusion.training.journal import Journal, Record

    journal = Journal(tmp_path / "metrics.jsonl", 0)
    nan = float("nan")
    journal.write(Record(1, 0.0, nan, 0.0, 1.0, None, {"mean": nan, "levels": [[1.0, nan]]}, data_wait=0.0), 1.0)

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {
        "step": 1,
        "loss": 0.0,
        "lr": 0.0,
        "images_per_second": 1.0,
        "held_out": {"levels": [[1.0, None]]},
        "data_wait": 0.0,
        "seconds": 1.0,
    }


# ---- killed ----------------------------------------------------------------------------------------------------------

KILLS = 30


def test_a_run_that_is_killed_anywhere_ends_like_one_that_was_not(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    """kill -9 at random moments, every other one during a save; the same command until the run is finished."""
    changes = {"checkpoint_interval": 2, "keep_checkpoints": 1}
    expected, rng = uninterrupted(**changes), random.Random(0)
    kills = in_saves = runs = 0
    while kills < KILLS:
        out, board_path, runs = tmp_path / f"run{runs}", tmp_path / f"board{runs}", runs + 1
        board = tiny.Board(board_path)
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            process = tiny.child(tiny.train_and_show, out, board_path, changes)
            if kills < KILLS:
                if kills % 2:
                    board.wait(lambda _, saving, child=process: bool(saving or not child.is_alive()))
                    time.sleep(rng.uniform(0, 0.03))
                else:
                    time.sleep(rng.uniform(0.05, 0.3))
                process.kill()
            code = tiny.finish(process)
            killed = code == -signal.SIGKILL
            kills, in_saves = kills + killed, in_saves + (killed and bool(board.memory[1]))
            board.show(1, 0)
        assert code == 0
        assert tiny.ends(out) == tiny.ends(expected)
        assert tiny.told(out) == list(range(1, 13))
        assert tiny.leftovers(out) == []
    assert in_saves >= 5
    print(f"{kills} kills, {in_saves} of them during a save, in {runs} runs")


# ---- told to stop ----------------------------------------------------------------------------------------------------


def test_a_signal_saves_within_a_step_and_exits_with_0(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    changes = {"steps": 60, "checkpoint_interval": 1000}
    out, board_path = tmp_path / "run", tmp_path / "board"
    board, rng, code = tiny.Board(board_path), random.Random(0), 0
    for moment in range(10):
        start = board.memory[0]
        process = tiny.child(tiny.train_and_show, out, board_path, changes)
        board.wait(lambda step, _, least=start + 1: step >= least)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(process.pid, [signal.SIGTERM, signal.SIGINT][moment % 2])
        asked = board.memory[0]
        code = tiny.finish(process)
        assert code == 0
        saved = int(tiny.newest(out).removeprefix("step-"))
        # The step in progress is finished, and another may have been between the signal and the look at the board.
        assert asked <= saved <= asked + 2
        if saved == 60:
            break
    assert moment >= 4
    tiny.run(out, **changes)
    assert tiny.ends(out) == tiny.ends(uninterrupted(**changes))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_train_command_stops_at_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        (tmp_path / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png")
    sets = ["network.width=8", "network.attention=[]", "grid.num_steps=2", "train.precision=fp32"]
    sets += ["train.batch_size=8", "train.checkpoint_interval=1000", "train.log_interval=1"]
    command = ["train", str(tmp_path / "pictures"), "--steps", "40", *(part for s in sets for part in ("--set", s))]

    def start(out: str) -> Any:
        return tiny.child(tiny.command, [*command, "--out", str(tmp_path / out)], tmp_path / f"{out}.log")

    assert tiny.finish(start("whole")) == 0
    process, metrics, end = start("parts"), tmp_path / "parts" / "metrics.jsonl", time.monotonic() + 30
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < end
        time.sleep(0.001)
    os.kill(process.pid, number)
    assert tiny.finish(process) == 0
    assert "stopped at step" in (tmp_path / "parts.log").read_text()
    assert tiny.newest(tmp_path / "parts") != "step-00000040"
    DiffusionModel.load(tmp_path / "parts")
    assert tiny.finish(start("parts")) == 0
    assert "done at step 40" in (tmp_path / "parts.log").read_text()
    assert tiny.finish(start("parts")) == 0
    assert "nothing left to do" in (tmp_path / "parts.log").read_text()
    assert tiny.ends(tmp_path / "parts") == tiny.ends(tmp_path / "whole")
