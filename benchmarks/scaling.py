"""What a second process brings, and what 10⁶ images cost: seconds to the first step, and memory.

Ranks: the same run in one process of one thread and in two of them, in turn; images a second by the wall clock, so that
it wants a machine of its own with two cores. Data: an array file of 10⁵ and of 10⁶ small images, and a folder of 10⁵
files, each started twice; the second start has an index. Data sets are kept under runs/bench/scaling.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --steps 4 --turns 1 --side 16 --images 20000 --files 3000    # a minute, to see it work
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outcome import Outcome, Table, Target
from PIL import Image

from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.models import Model
from diff_diffusion.sizing import describe_for_data
from diff_diffusion.training import TrainSettings, train
from diff_diffusion.training.runtime import Ranks, joined

HOME = Path(__file__).parent.parent / "runs" / "bench" / "scaling"
SMALL = 16
WARM = 2


# ---- ranks -----------------------------------------------------------------------------------------------------------


def timed_run(arguments: argparse.Namespace) -> None:
    """A process's work: some steps, and what they took, into a file if it is the first."""
    side, batch = arguments.side, arguments.batch
    pixels = np.random.default_rng(0).integers(0, 256, (4 * batch, side, side, 3), np.uint8)
    data = ImageDataset.from_arrays(pixels, np.arange(len(pixels)) % 10)
    model = Model.from_description(describe_for_data(data))
    settings = TrainSettings(steps=arguments.steps + WARM, batch_size=batch, precision="fp32")
    spent, add = [0.0], Ranks.add

    def timed_add(ranks: Ranks, tensors: Any) -> None:
        began = time.perf_counter()
        add(ranks, tensors)
        spent[0] += time.perf_counter() - began

    with joined() as ranks:
        Ranks.add = timed_add  # type: ignore[method-assign]
        began = 0.0
        for record in train(model, data, None, settings):
            if record.step == WARM:
                began, spent[0] = time.perf_counter(), 0.0
        seconds = time.perf_counter() - began
        if ranks.first:
            rate = arguments.steps * batch / seconds
            told = {"rate": rate, "adding": spent[0] / seconds, "parameters": model.num_parameters}
            Path(arguments.told).write_text(json.dumps(told))


def in_processes(count: int, threads: int, arguments: argparse.Namespace) -> dict[str, Any]:
    told = HOME / "told.json"
    told.unlink(missing_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    start = torchrun if count > 1 else [sys.executable]
    options = [f"--{name}={getattr(arguments, name)}" for name in ("steps", "batch", "side")]
    # The spin count is the command line's own.
    threading = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "10000"}
    environment = os.environ | threading | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*start, __file__, "--work", "ranks", "--told", str(told), *options], check=True, env=environment)
    found: dict[str, Any] = json.loads(told.read_text())
    return found


def ranks_measured(arguments: argparse.Namespace) -> dict[str, Any]:
    kinds = {"one": (1, 1), "two": (2, 1), "one, two threads": (1, 2)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for turn in range(arguments.turns):
        for name, (count, threads) in kinds.items():
            found[name].append(in_processes(count, threads, arguments))
            print(f"turn {turn + 1}, {name}: {found[name][-1]['rate']:.1f} images/s", flush=True)
    return found


# ---- data ------------------------------------------------------------------------------------------------------------


def array_of(count: int) -> Path:
    path = HOME / f"array-{count}.npy"
    if not path.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (count, SMALL, SMALL), np.uint8)
        np.save(path.with_suffix(".labels.npy"), np.arange(count) % 10)
        np.save(path, pixels)
        time.sleep(3.0)  # a file that is younger is not indexed
    return path


def folder_of(count: int) -> Path:
    path = HOME / f"folder-{count}"
    if not (path / "9").exists() or sum(1 for _ in path.rglob("*.png")) != count:
        shutil.rmtree(path, ignore_errors=True)
        pixels = np.random.default_rng(0).integers(0, 256, (count, SMALL, SMALL), np.uint8)
        for label in range(10):
            (path / str(label)).mkdir(parents=True)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: Image.fromarray(pixels[i]).save(path / str(i % 10) / f"{i:07d}.png"), range(count)))
        print(f"{count:,} files written", flush=True)
        time.sleep(3.0)
    return path


def timed_start(arguments: argparse.Namespace) -> None:
    """A process's work: what `train` does up to the first step and some more, with times and memory."""
    began = time.perf_counter()
    images = load_image_dataset(arguments.data)
    loaded = time.perf_counter() - began
    data, held_out = images.split(0.1)
    description = describe_for_data(data)
    description["network"] |= {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": []}
    settings = TrainSettings(steps=20, batch_size=32, precision="fp32")
    first = 0.0
    for record in train(Model.from_description(description), data, None, settings, held_out=held_out):
        if record.step == 1:
            first = time.perf_counter() - began
    rows = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    memory = {key: int(value.split()[0]) / 1024 for key, value in rows if key in ("RssAnon", "RssFile", "VmHWM")}
    Path(arguments.told).write_text(json.dumps({"load": loaded, "first step": first, "images": len(images), **memory}))


def started(path: Path) -> dict[str, Any]:
    told = HOME / "told.json"
    told.unlink(missing_ok=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(HOME / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--work", "start", "--data", str(path), "--told", str(told)]
    subprocess.run(command, check=True, env=environment)
    found: dict[str, Any] = json.loads(told.read_text())
    return found


def starts_measured(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found = {}
    few = arguments.images // 10
    kinds = {f"array of {count:,}": array_of(count) for count in (few, arguments.images)}
    kinds[f"folder of {arguments.files:,}"] = folder_of(arguments.files)
    for name, path in kinds.items():
        shutil.rmtree(HOME / "cache", ignore_errors=True)
        for which in ("first", "indexed"):
            found[f"{name}, {which}"] = got = started(path)
            print(f"{name}, {which}: {got['first step']:.1f} s, {got['RssAnon']:.0f} MiB", flush=True)
    return found


# ---- both ------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each run")
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind")
    parser.add_argument("--side", type=int, default=32, help="of the images that the ranks train on")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1_000_000, help="in the larger array file")
    parser.add_argument("--files", type=int, default=100_000, help="in the folder")
    for hidden in ("--work", "--told", "--data"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        {"ranks": timed_run, "start": timed_start}[arguments.work](arguments)
        return
    HOME.mkdir(parents=True, exist_ok=True)
    starts, runs = starts_measured(arguments), ranks_measured(arguments)

    rates = {name: [run["rate"] for run in several] for name, several in runs.items()}
    gains = {name: [a / b for a, b in zip(rates[name], rates["one"], strict=True)] for name in rates}
    adding = statistics.median(run["adding"] for run in runs["two"])
    parameters = runs["one"][0]["parameters"] / 1e6
    few, many = (f"array of {count:,}, indexed" for count in (arguments.images // 10, arguments.images))
    grown = starts[many]["RssAnon"] / starts[few]["RssAnon"]
    each = (starts[many]["RssAnon"] - starts[few]["RssAnon"]) * 2**20 / (0.9 * arguments.images)
    Outcome(
        name="scaling",
        title="Two processes, and a million images",
        command="python benchmarks/scaling.py",
        said=f"A U-Net of {parameters:.1f} M parameters, {arguments.side} × {arguments.side} RGB, batch "
        f"{arguments.batch}, fp32, {arguments.steps} steps after {WARM}, by the wall clock; one process with one "
        "thread, two with one each (torchrun, gloo) and one with two threads take turns, "
        f"{arguments.turns} each. Starts are of a process that has imported everything: reading {SMALL} × {SMALL} grey "
        "images in ten classes, choosing a model, one step.",
        tables=[
            Table(
                "Images a second",
                ["processes", "median", "beside one", "lowest to highest"],
                [
                    [
                        name,
                        f"{statistics.median(rates[name]):.1f}",
                        f"{statistics.median(gains[name]):.2f}",
                        f"{min(gains[name]):.2f} to {max(gains[name]):.2f}",
                    ]
                    for name in rates
                ],
            ),
            Table(
                "Starts",
                ["data", "seconds to read", "to the first step", "own memory, MiB", "mapped files, MiB", "peak, MiB"],
                [
                    [
                        name,
                        f"{got['load']:.1f}",
                        f"{got['first step']:.1f}",
                        f"{got['RssAnon']:.0f}",
                        f"{got['RssFile']:.0f}",
                        f"{got['VmHWM']:.0f}",
                    ]
                    for name, got in starts.items()
                ],
            ),
        ],
        targets=[
            Target(
                "two processes on two cores, images/s beside one of one thread", statistics.median(gains["two"]), 1.7
            ),
            Target(f"seconds to the first step, {many}", starts[many]["first step"], 10.0, at_least=False),
            Target(f"own memory with {arguments.images:,} images beside a tenth", grown, 1.25, at_least=False),
        ],
        numbers={"ranks": runs, "starts": starts, "bytes an image": each, "share adding up": adding},
        notes=[
            f"Adding up gradients, and waiting for the other process to have its own, is {adding:.1%} of a step: all "
            "that overlapping it with the backward pass could hide.",
            f"Own memory (RssAnon) grows by {each:.0f} bytes an image: row numbers, labels and the order of the epoch. "
            "Mapped files are the images themselves, in pages that the system takes back when it needs them.",
            "A folder of 10⁶ files was not made: walking it and asking the size and times of each file is what its "
            "indexed start would take, ten times that of 10⁵.",
        ],
    ).write()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
