"""Model folders that somebody made to do harm: every hash is right, and config.json asks for something absurd."""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny

from diff_diffusion.errors import CheckpointError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.registry import describe
from diff_diffusion.storage import folder as storage

HUGE = {"width": 4096, "multipliers": [64] * 8, "depth": 32, "channels": 4096, "cond_width": 65536}


def nested(depth: int, leaf: Any) -> Any:
    for _ in range(depth):
        leaf = {"type": "time_map/shifted", "time_map": leaf, "scale": 1.0}
    return leaf


def lists(depth: int) -> Any:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


FLOW = {"type": "time_map/flow"}
ANY: list[Any] = [None, True, -1, 0, 2.5, 10**9, 10**400, -(10**400), 1e308, "x", "", [], {}, ["x"], [[]], {"type": 5}]
ANY += [{"type": "os/system", "command": "touch /tmp/hacked"}, {"type": "__import__"}, {"type": "sampler/heun"}, lists(900)]

# A place in the description, and what to put there. "*" means all of ANY.
CASES: list[tuple[str, Any]] = [
    *((place, "*") for place in ("network", "codec", "recipe", "recipe.process", "recipe.process.time_map")),
    *((place, "*") for place in ("recipe.target", "recipe.objective", "recipe.sampler", "recipe.grid", "conditioner")),
    *((place, "*") for place in ("network.width", "network.multipliers", "network.depth", "network.attention")),
    *((place, "*") for place in ("network.channels", "network.cond_width", "network.dropout", "network.head_width")),
    *((place, "*") for place in ("codec.shape", "codec.mean", "codec.std", "codec.low", "codec.high")),
    *((place, "*") for place in ("conditioner.names", "conditioner.width", "recipe.guidance", "recipe.grid.num_steps")),
    *((place, "*") for place in ("recipe.process.scaling", "recipe.target.row", "recipe.objective.cond_drop")),
    *((place, "*") for place in ("recipe.objective.levels", "recipe.objective.weight", "", "type")),
    ("network", {"type": "network/unet", **HUGE}),
    ("network", {"type": "network/unet", "channels": 1, "evil": 1}),
    ("network", {"type": "model/diffusion"}),
    ("network.multipliers", [1] * 1_000_000),
    ("network.attention", [1] * 1_000_000),
    ("codec.shape", [1 << 20] * 8),
    ("codec.shape", [1 << 40, 8, 8]),
    ("codec.mean", [0.0] * 1_000_000),
    ("codec.std", [-1.0]),
    ("conditioner.width", 1 << 40),
    ("conditioner.names", ["same"] * 3),
    ("conditioner.names", [str(i) for i in range(1_000_001)]),
    ("conditioner.names", [str(i) for i in range(200_000)]),
    ("recipe.process.time_map", {"type": "time_map/tabulated_betas", "betas": [0.5] * 1_000_001}),
    ("recipe.process.time_map", {"type": "time_map/tabulated_betas", "betas": ["x"]}),
    ("recipe.process.time_map", {"type": "time_map/linear_beta", "timesteps": 1e308}),
    ("recipe.process.time_map", {"type": "time_map/sigmoid", "start": -1e308, "end": 1e308}),
    ("recipe.process.time_map", {"type": "time_map/truncated", "time_map": FLOW, "log_snr_min": 1e308}),
    ("recipe.process.time_map", {"type": "time_map/truncated", "time_map": FLOW, "log_snr_min": "x"}),
    ("recipe.process.time_map", nested(100, FLOW)),
    ("recipe.process.time_map", nested(900, FLOW)),
    ("recipe.grid.num_steps", 1_000_001),
]


def cases() -> Iterator[tuple[str, Any]]:
    for place, value in CASES:
        yield from ((place, each) for each in (ANY if value == "*" else [value]))


def forge(model: DiffusionModel, folder: Path, place: str, value: Any) -> None:
    """The model's folder with `value` at `place` of its description."""
    files, config = model.files()
    config = copy.deepcopy(config)
    if not place:
        config["model"] = value
    else:
        *path, last = place.split(".")
        here = config["model"]
        for key in path:
            here = here[key]
        here[last] = value
    storage.write_folder(folder, files, config)


def open_all(folder: Path, report: Path) -> None:
    """Opens every case, and writes what happened: [place, value, what, seconds, MiB]."""
    model = tiny.fresh(tiny.images())
    model.save(folder / "fine")
    good = DiffusionModel.load(folder / "fine")
    rows = []
    for place, value in cases():
        recursion = sys.getrecursionlimit()
        sys.setrecursionlimit(20_000)  # to write what cannot be read
        forge(model, folder / "forged", place, value)
        sys.setrecursionlimit(recursion)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            loaded = DiffusionModel.load(folder / "forged")
            what = "the same" if describe(loaded) == describe(good) else "loaded"
        except CheckpointError as error:
            what = f"CheckpointError: {error}"
        except BaseException as error:
            what = f"{type(error).__name__} escaped: {error}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(place, repr(value)[:60], what[:80], round(time.perf_counter() - start, 2), round(grown), flush=True)
        rows.append([place, repr(value)[:60], what[:3000], time.perf_counter() - start, grown])
    report.write_text(json.dumps(rows))


RUNS = ("exec", "compile", "subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "socket.")
LOADS = ("pickle.", "marshal.", "code.__new__", "ctypes.dlopen", "import")


def watch(folder: Path, report: Path) -> None:
    """Opens what is in `folder` under an audit hook, and writes the events that could run something."""
    DiffusionModel.load(folder / "model").sample(1)  # what is imported when first used is imported now
    events: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith((*RUNS, *LOADS)):
            events.append(f"{event} {arguments!r:.200}")

    sys.addaudithook(hook)
    opened = 0
    for place in sorted(folder.iterdir()):
        try:
            DiffusionModel.load(place)
            opened += 1
        except CheckpointError:
            pass
    told = list(events)
    compile("1", "the hook works", "eval")
    report.write_text(json.dumps({"opened": opened, "events": told, "works": len(events) > len(told)}))
