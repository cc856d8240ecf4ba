"""Model folders that somebody made to do harm: every hash is right, and config.json asks for something absurd."""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import tiny
import torch

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
ANY: list[Any] = [None, -1, 2.5, 10**9, -(10**400), "x", [], ["x"], {"type": 5}, lists(900)]
ANY += [{"type": "os/system", "command": "touch /tmp/hacked"}, {"type": "sampler/heun"}]

# A place in the description, and what to put there; without a value, each of ANY.
PLACES = (
    *("", "type", "network", "codec", "recipe", "conditioner", "codec.shape", "codec.mean", "codec.std", "codec.low"),
    *(
        f"network.{name}"
        for name in ("width", "multipliers", "depth", "attention", "channels", "cond_width", "dropout")
    ),
    *(
        "network.head_width",
        "conditioner.parts",
        "conditioner.parts.label.names",
        "conditioner.parts.label.width",
        "recipe.process",
        "recipe.process.time_map",
    ),
    *("recipe.process.scaling", "recipe.target", "recipe.target.row", "recipe.sampler", "recipe.grid"),
    *("recipe.grid.num_steps", "recipe.guidance", "recipe.objective", "recipe.objective.levels"),
)
CASES: list[tuple[str, Any]] = [
    *((place, value) for place in PLACES for value in ANY),
    ("network", {"type": "network/unet", **HUGE}),
    ("network", {"type": "network/unet", "channels": 1, "evil": 1}),
    ("network", {"type": "model/diffusion"}),
    ("network.multipliers", [1] * 1000),
    ("codec.shape", [1 << 20] * 8),
    ("codec.shape", [1 << 40, 8, 8]),
    ("codec.mean", [0.0] * 1_000_000),
    ("codec.std", [-1.0]),
    ("conditioner.parts.label.width", 1 << 40),
    ("conditioner.parts.label.names", ["same"] * 3),
    ("conditioner.parts.label.names", [str(i) for i in range(1_000_001)]),
    ("conditioner.parts.label.names", [str(i) for i in range(200_000)]),
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


def at(config: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A manifest's entries with `value` at `place` of the model's description."""
    config = copy.deepcopy(config)
    here, keys = config, ["model", *place.split(".")] if place else ["model"]
    for key in keys[:-1]:
        here = here[key]
    here[keys[-1]] = value
    return config


def forge(model: DiffusionModel, folder: Path, place: str, value: Any) -> None:
    """The model's folder with `value` at `place` of its description, and every hash right."""
    files, config = model.files()
    storage.write_folder(folder, files, at(config, place, value))


def open_all(report: Path) -> None:
    """Opens every case, and writes what happened: [place, value, what, seconds, MiB]."""
    model = tiny.fresh(tiny.images(), multipliers=[1])
    files, config = model.files()
    tensors = safetensors.torch.load(b"".join(files["model.safetensors"]))
    good, rows = describe(model), []
    for place, value in CASES:
        manifest = at(config, place, value)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            loaded = DiffusionModel.restore(manifest, tensors, "ema")
            what = "the same" if describe(loaded) == good else "loaded"
            same = all(torch.equal(tensors[f"ema/{name}"], value) for name, value in loaded.state_dict().items())
            what = what if same else "other weights"
        except CheckpointError as error:
            what = f"CheckpointError: {error}"
        except BaseException as error:
            what = f"{type(error).__name__} escaped: {error}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        rows.append([place, repr(value)[:60], what, time.perf_counter() - start, grown])
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
