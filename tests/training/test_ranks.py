"""Several processes do one run: one's numbers, the same weights in all, one that writes and one that speaks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import company
import numpy as np
import pytest
import tiny
import torch

from diff_diffusion.data.loader import Batches
from diff_diffusion.errors import ConfigError
from diff_diffusion.models import DiffusionModel, Model
from diff_diffusion.training import train
from diff_diffusion.training.runtime import Ranks, joined


def alone(out: Path | None = None, recipe: str | None = None, codes: str | None = None, **changes: Any) -> list[float]:
    data = tiny.images()
    model: Model = tiny.learning(recipe) if recipe else tiny.fresh(data, multipliers=[1])
    if codes:
        model = tiny.autoencoder(data, codes)
    return [record.loss for record in train(model, data, out, tiny.settings(**changes))]


# ---- the arithmetic of shares ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("whole", "count"), [(8, 2), (7, 3), (5, 5), (64, 3), (9, 1)])
def test_shares_are_the_batch_in_order_and_as_even_as_can_be(whole: int, count: int) -> None:
    shares = [list(range(whole)[Ranks(rank, count).share(whole)]) for rank in range(count)]
    assert [row for share in shares for row in share] == list(range(whole))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_smaller_than_the_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a batch of 2 cannot be shared by 3 processes: a batch_size of 3 or more"):
        Ranks(0, 3).share(2)


@pytest.mark.parametrize("count", [2, 3])
def test_the_rows_that_processes_read_are_the_batch(count: int) -> None:
    data, shares = tiny.images(), [Ranks(rank, count).share(7) for rank in range(count)]
    for step in range(6):
        whole = Batches(data, 7, seed=3).at(step)
        parts = [Batches(data, 7, seed=3, rows=rows).at(step) for rows in shares]
        assert np.concatenate([part.indices for part in parts]).tolist() == whole.indices.tolist()
        assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
        assert [label for part in parts for label in part.cond["label"]] == whole.cond["label"]


def test_alone_there_is_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert (ranks.rank, ranks.count, ranks.first, ranks.speaks()) == (0, 1, True, True)
        assert ranks.told({"名": 1}) == {"名": 1}
        assert ranks.sums(True, 2.5) == [1.0, 2.5]
        assert ranks.differing({"a": b"1"}) == []


def test_processes_that_cannot_find_each_other_are_told_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2, .*start them with torchrun"), joined():
        pass


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Byte for byte what one does with micro-batches of their parts; and to rounding, what one does with the whole."""
    recipes = [{"name": name, "recipe": name, "saved": False} for name in tiny.LEARNING]
    jobs: list[dict[str, Any]] = [
        {"name": "一号", "steps": 20},
        {"name": "again", "steps": 20, "micro_batch": 4},
        {"name": "odd", "steps": 20, "batch_size": 7, "micro_batch": 2, "saved": False},
        *recipes,
        *({"name": codes, "codes": codes, "steps": 6} for codes in ("kl", "vq")),
        {"name": "small", "batch_size": 1},
        {"name": "other data", "images": [0, 1]},
        {"name": "other seed", "seed": [0, 1]},
        {"name": "not finite", "spoil": "not finite", "steps": 15},
        {"name": "own buffer", "spoil": "own buffer"},
        {"name": "asked", "stop_at": [None, 5]},
        {"name": "minutes", "steps": None, "minutes": 0.002},
    ]
    company.together(company.runs, 2, tmp_path, [dict(job) for job in jobs])
    told = {job["name"]: company.told(tmp_path, job["name"]) for job in jobs}

    for name in ("一号", "odd", *tiny.LEARNING, "kl", "vq", "asked", "minutes"):
        one, other = told[name]
        assert one["error"] is None
        assert one["losses"] == other["losses"]
        assert one["learned"] == other["learned"], name

    halves = alone(tmp_path / "halves", steps=20, micro_batch=4)
    assert told["一号"][0]["losses"] == halves
    assert tiny.ends(tmp_path / "一号") == tiny.ends(tmp_path / "again") == tiny.ends(tmp_path / "halves")
    assert told["一号"][0]["losses"] == pytest.approx(alone(steps=20), rel=1e-5)
    assert told["odd"][0]["losses"] == pytest.approx(alone(steps=20, batch_size=7), rel=1e-5)
    assert told["learned_uncertainty"][0]["losses"] == pytest.approx(alone(recipe="learned_uncertainty"), rel=1e-5)
    for name in ("loss_aware", "learned_map"):
        assert told[name][0]["losses"] == pytest.approx(alone(recipe=name, micro_batch=4), rel=1e-5)

    # An autoencoder's width is the mean of two parts' deviations, which one process alone measures on the whole.
    assert told["kl"][0]["losses"][0] == pytest.approx(alone(codes="kl", steps=6)[0], rel=0.05)
    # Only the first writes.
    assert tiny.told(tmp_path / "一号") == list(range(1, 21))
    assert tiny.leftovers(tmp_path / "一号") == []

    for name, words in {
        "small": "a batch of 1 cannot be shared by 2 processes",
        "other data": "ConfigError: the data, the model differ between the 2 processes",
        "other seed": r"differ between the 2 processes of this run: start all with the same command",
        "not finite": "TrainingError: the loss or its gradient was not finite in 10 steps in a row",
        "own buffer": "ConfigError: mine differ between the 2 processes .*batch normalisation",
    }.items():
        for process in told[name]:
            assert re.search(words, process["error"]), process["error"]
    assert [len(process["losses"]) for process in told["not finite"]] == [9, 9]
    assert [len(process["losses"]) for process in told["asked"]] == [5, 5]
    assert tiny.newest(tmp_path / "asked") == "step-00000005"
    steps = len(told["minutes"][0]["losses"])
    assert tiny.newest(tmp_path / "minutes") == f"step-{steps:08d}"


def test_killed_processes_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    """One is killed, the other, both: what is left ends by itself, and the same command ends where no crash would."""
    changes = {"steps": 100, "checkpoint_interval": 8, "log_interval": 50}
    company.together(company.shown, 2, tmp_path / "whole", tmp_path, changes)
    for victims, at in (([1], 21), ([0], 45), ([0, 1], 70)):
        for rank in range(2):
            (tmp_path / str(rank)).unlink()
            tiny.Board(tmp_path / str(rank))
        with company.started(company.shown, 2, tmp_path / "run", tmp_path, changes) as processes:
            for rank in victims:
                tiny.Board(tmp_path / str(rank)).wait(lambda step, _, at=at: step >= at)
            for rank in victims:
                os.kill(processes[rank].pid, signal.SIGKILL)
            for rank, process in enumerate(processes):
                assert tiny.finish(process, 20.0) == (-signal.SIGKILL if rank in victims else 0)
        assert tiny.newest(tmp_path / "run") < "step-00000100"
    company.together(company.shown, 2, tmp_path / "run", tmp_path, changes)
    assert tiny.ends(tmp_path / "run") == tiny.ends(tmp_path / "whole")

    # A run goes on in any number of processes, to the same weights but for rounding.
    company.together(company.shown, 2, tmp_path / "more", tmp_path, changes | {"steps": 20})
    data = tiny.images()
    list(train(tiny.fresh(data), data, tmp_path / "more", tiny.settings(**changes | {"steps": 40})))
    list(train(tiny.fresh(data), data, tmp_path / "one", tiny.settings(**changes | {"steps": 40})))
    ours, theirs = (DiffusionModel.load(tmp_path / name, "raw").state_dict() for name in ("more", "one"))
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5) for name in ours)


def test_the_command_speaks_once(tmp_path: Path) -> None:
    """Under torchrun itself; a signal to it stops all at one step. And an error is one line of one process."""
    out = tmp_path / "两个进程"
    tiny_run = ["--set", "train.precision=fp32", "--set", "network.width=8", "--set", "train.sample_interval=1000000"]
    started = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "diff_diffusion"),
            *("train", "digits", "--out", str(out), "--steps", "100000", *tiny_run),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        for _ in range(3000):
            if (out / "metrics.jsonl").exists() or started.poll() is not None:
                break
            time.sleep(0.05)
        started.send_signal(signal.SIGTERM)
        said, complained = started.communicate(timeout=100)
    finally:
        started.kill()
    assert said.count("in 2 processes") == 1, complained
    assert said.count("stopping after this step, and saving") == 1
    assert said.count(f"saved in {out}. The same command goes on from there") == 1
    assert tiny.newest(out) > "step-00000000"

    arguments = ["train", "digits", "--out", str(tmp_path / "bad"), "--steps", "2", "--set", "train.batch_size=1"]
    with company.started(company.command, 2, arguments, tmp_path) as processes:
        codes = [tiny.finish(process) for process in processes]
    assert sorted(codes) == [1, 2]
    errors = [(tmp_path / f"{rank}.err").read_text() for rank in range(2)]
    assert sorted(errors)[0] == ""
    assert sorted(errors)[1].startswith("error: a batch of 1 cannot be shared by 2 processes")
    assert (tmp_path / "1.out").read_text() == ""
