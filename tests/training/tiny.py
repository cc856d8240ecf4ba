"""A run small enough to be done again a hundred times, children to kill, and a disk that fails when told to."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import mmap
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diff_diffusion.cli import main
from diff_diffusion.data import ImageDataset
from diff_diffusion.models import Autoencoder, DiffusionModel
from diff_diffusion.sizing import describe_autoencoder, describe_for_data
from diff_diffusion.training import Record, TrainSettings, checkpoint, loop, train
from diff_diffusion.training.runtime import stop_signals

TENSORS = ("model.safetensors", "train_state.safetensors")


def images(count: int = 20, side: int = 8, classes: int = 3, channels: int = 1, seed: int = 0) -> ImageDataset:
    """Noise, of `classes` classes; 20 images in batches of 8 straddle epochs."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), np.uint8)
    labels = np.arange(count) % classes if classes else None
    return ImageDataset.from_arrays(torch.from_numpy(pixels), labels, [f"class {i}" for i in range(classes)])


def description(data: ImageDataset, preset: str | None = None, **network: Any) -> dict[str, Any]:
    """The smallest U-Net, and two steps of sampling."""
    model = describe_for_data(data, preset)
    width = 8 if data.class_names else 0
    model["network"] |= {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": [], "cond_width": width, **network}
    if model["conditioner"]:
        model["conditioner"]["parts"]["label"]["width"] = width
    model["recipe"]["grid"]["num_steps"] = 2
    return model


def fresh(data: ImageDataset, preset: str | None = None, seed: int = 0, **network: Any) -> DiffusionModel:
    return DiffusionModel.from_description(description(data, preset, **network), seed)


def autoencoder(data: ImageDataset, bottleneck: str) -> Autoencoder:
    """A small one."""
    description = describe_autoencoder(data, bottleneck, factor=2)
    description["network"]["width"] = 8
    return Autoencoder.from_description(description)


LEARNED_MAP = {"type": "process/gaussian", "time_map": {"type": "time_map/learned", "num_units": 8}}
LEARNING: dict[str, dict[str, Any]] = {  # recipes of which a part learns
    "loss_aware": {"objective": {"levels": {"type": "levels/loss_aware", "num_bins": 4}}},
    "learned_uncertainty": {"objective": {"weight": {"type": "weight/learned_uncertainty"}}},
    "learned_map": {
        "process": LEARNED_MAP,
        "target": {"type": "target/linear", "row": "v"},
        "objective": {"weight": {"type": "weight/vlb"}, "levels": {"type": "levels/uniform"}},
    },
}


def learning(name: str) -> DiffusionModel:
    model = description(images(), multipliers=[1])
    changes = dict(LEARNING[name])
    model["recipe"]["objective"] |= changes.pop("objective", {})
    model["recipe"] |= changes
    return DiffusionModel.from_description(model)


def settings(**changes: Any) -> TrainSettings:
    few = {"checkpoint_interval": 4, "eval_interval": 1000, "sample_interval": 1000, "log_interval": 1}
    return TrainSettings(**{"steps": 12, "batch_size": 8, "precision": "fp32", "warmup_steps": 3, **few, **changes})


def run(
    out: Path | None, *, stop_at: int | None = None, multipliers: Sequence[int] = (1, 2), **changes: Any
) -> list[Record]:
    """The tiny run in `out`, to its end or until `stop_at` steps are done; `multipliers` of the network."""
    data, records = images(), list[Record]()
    stop = lambda: stop_at is not None and len(records) + 1 >= stop_at  # noqa: E731
    records.extend(train(fresh(data, multipliers=multipliers), data, out, settings(**changes), stop=stop))
    return records


def ends(out: Path) -> dict[str, bytes]:
    """The bytes that say how a run ended: weights, averages, moments."""
    return {name: (out / name).read_bytes() for name in TENSORS}


def newest(out: Path) -> str:
    return checkpoint.checkpoints(out)[0].name


def told(out: Path) -> list[int]:
    """The steps in a run's journal."""
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def leftovers(out: Path) -> list[str]:
    """Names of unfinished or replaced files and folders anywhere in a run."""
    return sorted(path.name for path in out.rglob(".*"))


# ---- children --------------------------------------------------------------------------------------------------------

context = multiprocessing.get_context("forkserver")
# Importing torch costs seconds, and its optimizers import another second's worth when the first one is made.
context.set_forkserver_preload(["torch", "torch._dynamo", "pytest", "diff_diffusion.cli.train"])


def child(target: Callable[..., None], *args: Any) -> Any:
    """A started process that runs `target`: a fork of one parent that has everything imported, no threads, no GPU."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    process = context.Process(target=_on_one_core, args=(target, *args))
    process.start()
    if before is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = before
    return process


def _on_one_core(target: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    loop.choose_device = lambda: torch.device("cpu")
    target(*args)


def finish(process: Any, limit: float = 60.0) -> int:
    """The exit code of a child."""
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the child still ran after {limit} s")
    code: int = process.exitcode
    return code


class Board:
    """Two numbers that a child shows its parent: the steps it has done, and whether it is saving."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(2))
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 2)

    def show(self, place: int, value: int) -> None:
        self.memory[place] = value % 256

    def wait(self, condition: Callable[..., bool], limit: float = 60.0) -> None:
        end = time.monotonic() + limit
        while not condition(self.memory[0], self.memory[1]):
            assert time.monotonic() < end, "the child never came so far"
            time.sleep(0.0005)


def shows_saves(board: Path) -> Board:
    """The board on which this process shows from now on whether it is saving."""
    seen, save = Board(board), checkpoint.save

    def shown(*args: Any) -> Path:
        seen.show(1, 1)
        try:
            return save(*args)
        finally:
            seen.show(1, 0)

    checkpoint.save = shown
    return seen


def train_and_show(out: Path, board: Path, changes: dict[str, Any]) -> None:
    """A child's work: the tiny run, that stops at a signal and shows where it is."""
    seen, data = shows_saves(board), images()
    with stop_signals() as stop:
        for record in train(fresh(data), data, out, settings(**changes), stop=stop):
            seen.show(0, record.step)


def sample_hashes(folder: Path, report: Path, samplers: Sequence[str]) -> dict[str, str]:
    """A hash of what each sampler draws from the model in a folder; in a file, for another process."""
    model = DiffusionModel.load(folder)
    drawn = {name: model.sample(4, cond=[0, 1, 2, 0], seed=9, steps=4, sampler=name) for name in samplers}
    hashes = {name: hashlib.sha256(samples.numpy().tobytes()).hexdigest() for name, samples in drawn.items()}
    report.write_text(json.dumps(hashes))
    return hashes


def command(arguments: list[str], log: Path, board: Path | None = None, cache: Path | None = None) -> None:
    """A child's work: the command line, what it says in `log`."""
    if board is not None:
        shows_saves(board)
    if cache is not None:
        os.environ["XDG_CACHE_HOME"] = str(cache)
    with open(log, "w") as file:
        sys.stdout = sys.stderr = file
        sys.argv = ["diff-diffusion", *arguments]
        main()


def crash_each(prepared: Path, root: Path, count: int) -> None:
    """A child's work: one more step of a copy of `prepared` in root/N, crashing at call N, for every N up to `count`.

    Each in a fork of its own, ended by the call itself: os._exit neither flushes nor cleans up.
    """
    run(None, stop_at=1, multipliers=[1])  # what is set up when first used is set up once, before the forks
    for at in range(1, count + 1):
        shutil.copytree(prepared, root / str(at))
        pid = os.fork()
        if pid == 0:
            with Disk(at).failing():
                run(root / str(at), stop_at=1, multipliers=[1])
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == CRASHED, f"call {at} never came"


def save_and_crash(folder: Path, at: int) -> None:
    """A child's work: another model saved over the one in `folder`, crashing at call `at`."""
    model = fresh(images(), seed=1)
    with Disk(at).failing():
        model.save(folder)


CRASHED = 9

# ---- a disk that fails -----------------------------------------------------------------------------------------------


class _File:
    """A file open for writing whose writes are asked about."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _File:
        self.file.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.file.__exit__(*args)

    def write(self, content: Any) -> int:
        if self.disk.asks("write"):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            self.disk.fails()
        return self.file.write(content)

    def writelines(self, pieces: Iterable[Any]) -> None:
        whole = b"".join(pieces)
        self.write(whole)


class Disk:
    """Counts the calls that change a disk, and fails at number `at`, from 1.

    Args:
        at: which call; 0 never fails, only counts.
        code: the errno to raise; None ends the process at once, as a power cut does. A write is half done then.
        lasting: whether later calls that need space fail too.
    """

    CALLS = ("fsync", "replace", "link", "mkdir", "unlink", "rmdir")
    NEEDS_SPACE = ("fsync", "link", "mkdir", "open", "write")

    def __init__(self, at: int = 0, code: int | None = None, lasting: bool = False) -> None:
        self.at, self.code, self.lasting, self.count, self.called = at, code, lasting, 0, []

    def asks(self, name: str) -> bool:
        self.count += 1
        self.called.append(name)
        later = self.lasting and self.at and self.count > self.at and name in self.NEEDS_SPACE
        return self.count == self.at or bool(later)

    def fails(self) -> None:
        if self.code is None:
            os._exit(CRASHED)
        raise OSError(self.code, os.strerror(self.code))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **options: Any) -> Any:
            if self.asks(name):
                self.fails()
            return call(*args, **options)

        return checked

    def _open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+"):
                return call(path, mode, *args, **options)
            if self.asks("open"):
                self.fails()
            return _File(call(path, mode, *args, **options), self)

        return opened

    @contextmanager
    def failing(self) -> Iterator[Disk]:
        before = {name: getattr(os, name) for name in self.CALLS}
        plain = builtins.open
        for name, call in before.items():
            setattr(os, name, self._wrapped(name, call))
        builtins.open = self._open(plain)  # type: ignore[assignment]
        try:
            yield self
        finally:
            builtins.open = plain
            for name, call in before.items():
                setattr(os, name, call)


READ_ONLY = errno.EROFS
