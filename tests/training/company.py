"""Several processes that do one run, as torchrun would start them: the test keeps the store by which they meet."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.distributed as dist

from diff_diffusion.cli import main
from diff_diffusion.errors import DiffusionError
from diff_diffusion.models import Model
from diff_diffusion.training import train
from diff_diffusion.training.runtime import stop_signals


@contextmanager
def started(work: Callable[..., None], count: int, *args: Any) -> Iterator[list[Any]]:
    """Processes that run `work(rank, *args)`; none is left when this ends."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [tiny.child(_among, rank, count, store.port, work, *args) for rank in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def together(work: Callable[..., None], count: int, *args: Any) -> None:
    with started(work, count, *args) as processes:
        assert [tiny.finish(process) for process in processes] == [0] * count


def _among(rank: int, count: int, port: int, work: Callable[..., None], *args: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    work(rank, *args)


# ---- what they do ----------------------------------------------------------------------------------------------------


def runs(rank: int, home: Path, jobs: list[dict[str, Any]]) -> None:
    """Several runs, one after another, each told in home/NAME-RANK.json: its losses, a hash of all it learned, its end.

    A job has a name and changes of `tiny.settings`; "codes", an autoencoder's bottleneck; "recipe"; "seed" or "images"
    by process, "stop_at" by process; "spoil", what goes wrong (see `spoil`); "saved", whether there is a run folder.
    """
    for job in jobs:
        name, told = job.pop("name"), {"losses": [], "error": None}
        data = tiny.images(seed=job.pop("images", [0, 0])[rank])
        recipe, seed = job.pop("recipe", None), job.pop("seed", [0, 0])[rank]
        model = tiny.learning(recipe) if recipe else tiny.fresh(data, seed=seed, multipliers=[1])
        if codes := job.pop("codes", None):
            model = tiny.autoencoder(data, codes)
        stop_at = job.pop("stop_at", [None, None])[rank]
        spoil(model, job.pop("spoil", None), rank)
        out = home / name if job.pop("saved", True) else None
        stop = lambda at=stop_at, told=told: at is not None and len(told["losses"]) + 1 >= at  # noqa: E731
        try:
            for record in train(model, data, out, tiny.settings(**job), stop=stop):
                told["losses"].append(record.loss)
        except DiffusionError as error:
            told["error"] = f"{type(error).__name__}: {error}"
        (home / f"{name}-{rank}.json").write_text(json.dumps(told | {"learned": learned(model)}))


def learned(model: Model) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()


def spoil(model: Model, how: str | None, rank: int) -> None:
    """A loss that is not finite in one process, or a buffer that each fills with its own."""
    objective = model.objective
    if how == "not finite" and rank == 1:
        model.objective = lambda *args: _scaled(objective(*args), float("nan"))
    if how == "own buffer":
        model.register_buffer("mine", torch.zeros(1))
        model.objective = lambda *args: (model.mine.add_(rank), objective(*args))[1]


def _scaled(loss: Any, factor: float) -> Any:
    return type(loss)(loss.mean * factor, loss.per_sample, loss.log_snr)


def shown(rank: int, out: Path, boards: Path, changes: dict[str, Any]) -> None:
    """The tiny run, that shows where it is and stops at a signal."""
    seen, data = tiny.Board(boards / str(rank)), tiny.images()
    with stop_signals() as stop, suppress(DiffusionError):
        for record in train(tiny.fresh(data), data, out, tiny.settings(**changes), stop=stop):
            seen.show(0, record.step)


def command(rank: int, arguments: list[str], home: Path) -> None:
    """The command line, what each says in home/RANK.out and .err, and its exit code."""
    with open(home / f"{rank}.out", "w") as out, open(home / f"{rank}.err", "w") as err:
        sys.stdout, sys.stderr = out, err
        sys.argv = ["diff-diffusion", *arguments]
        main()


def told(home: Path, name: str, count: int = 2) -> list[dict[str, Any]]:
    return [json.loads((home / f"{name}-{rank}.json").read_text()) for rank in range(count)]
