"""Both stages of a latent run under kill -9, wherever it falls: the bytes of a run that was never touched."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

KILLS = 16


def pictures(folder: Path) -> Path:
    for i in range(20):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        (folder / "图").mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / "图" / f"{i}.png")
    return folder


def both(out: Path) -> dict[str, bytes]:
    return {f"{stage}/{name}": data for stage in (".", "codec") for name, data in tiny.ends(out / stage).items()}


def begun(out: Path) -> str:
    """The stage that a run was in when it was killed."""
    return "in its latents" if (out / "checkpoints").exists() else "the autoencoder"


@pytest.mark.parametrize("latents", ["kl", "tokens"])
def test_a_latent_run_that_is_killed_in_either_stage_ends_like_one_that_was_not(tmp_path: Path, latents: str) -> None:
    """Every other kill during a save; the caches of images and of latents are killed along, and used again."""
    sets = ["train.batch_size=8", "train.precision=fp32", "train.warmup_steps=3", "train.log_interval=1"]
    sets += ["train.checkpoint_interval=2", "train.keep_checkpoints=1", "codec.network.width=8", "network.width=8"]
    sets += ["network.heads=2", "network.depth=1"] if latents == "tokens" else ["network.attention=[]"]
    command = ["train", str(pictures(tmp_path / "pictures")), "--latent", "--factor", "2", "--steps", "10"]
    if latents == "tokens":
        command += ["--bottleneck", "fsq", "--preset", "masked_tokens"]
    command += [part for text in sets for part in ("--set", text)]
    log = tmp_path / "log"

    def start(out: Path, board: Path) -> Any:
        return tiny.child(tiny.command, [*command, "--out", str(out)], log, board, out.with_suffix(".cache"))

    expected = tmp_path / "whole"
    board = tiny.Board(tmp_path / "board")
    assert tiny.finish(tiny.child(time.sleep, 0)) == 0  # whoever forks the children has imported everything now
    began = time.monotonic()
    assert tiny.finish(start(expected, tmp_path / "board")) == 0, log.read_text()
    took = time.monotonic() - began
    rng, kills, in_saves, runs = random.Random(0), Counter[str](), 0, 0
    while kills.total() < KILLS:
        out, runs = tmp_path / f"run{runs}", runs + 1
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            process = start(out, tmp_path / "board")
            if kills.total() < KILLS:
                if kills.total() % 2:
                    board.wait(lambda _, saving, child=process: bool(saving or not child.is_alive()))
                    time.sleep(rng.uniform(0, 0.006))
                else:
                    time.sleep(rng.uniform(0.2, 0.8) * took)
                process.kill()
            code = tiny.finish(process)
            if code == -signal.SIGKILL:
                kills[begun(out)] += 1
                in_saves += bool(board.memory[1])
            board.show(1, 0)
        assert code == 0, log.read_text()
        assert both(out) == both(expected)
        assert tiny.told(out) == tiny.told(out / "codec") == list(range(1, 11))
        assert tiny.leftovers(out) == []
    print(f"{dict(kills)}, {in_saves} during a save, in {runs} runs")
    assert in_saves >= 3
    assert min(kills["the autoencoder"], kills["in its latents"]) >= 2
