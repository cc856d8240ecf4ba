"""What a start, a checkpoint and the memory of a training step cost, beside torch, safetensors and the peers.

    python benchmarks/costs.py [--only import,checkpoint,memory] [--turns 9] [--tiny]

Takes about a quarter of an hour; what one part found is kept under runs/bench/costs. Writes results/costs.json.
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
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = HERE.parent / "runs" / "bench" / "costs"
PARTS = ("import", "checkpoint", "memory")
STARTS = {
    "torch": "import torch",
    "diff_diffusion": "import diff_diffusion",
    "a model": "from diff_diffusion import DiffusionModel",
    "every name": "from diff_diffusion import *",
    "--help": "import sys; sys.argv = ['diff-diffusion', '--help']; from diff_diffusion.cli import main; main()",
}
MEMORY = {
    "denoising-diffusion-pytorch": ("ddpm theirs", "ddpm ours", "ddpm ours fp32"),
    "diffusers' example": ("diffusers theirs", "diffusers ours", "diffusers ours fp32"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default=",".join(PARTS), help="which of import, checkpoint and memory to measure again"
    )
    parser.add_argument(
        "--turns", type=int, default=9, help="of the starts and of the checkpoints; three of the memory"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a small model and two turns; nothing is written to results"
    )
    parser.add_argument("--kept", type=Path, default=KEPT, help="where finished parts are")
    arguments = parser.parse_args()
    turns, kept = 2 if arguments.tiny else arguments.turns, arguments.kept
    kept.mkdir(parents=True, exist_ok=True)
    for part in arguments.only.split(","):
        found = {"import": starts, "checkpoint": checkpoints, "memory": memory}[part](turns, arguments.tiny, kept)
        (kept / f"{part}.json").write_text(json.dumps(found), encoding="utf-8")
    missing = [part for part in PARTS if not (kept / f"{part}.json").exists()]
    if missing:
        print(f"not measured yet: {', '.join(missing)}")
        return
    import costs_told

    outcome = costs_told.told({part: json.loads((kept / f"{part}.json").read_text()) for part in PARTS})
    if arguments.tiny:
        print("tiny: nothing is written")
    else:
        outcome.write(("safetensors", "denoising-diffusion-pytorch", "diffusers", "accelerate"))


# ---- starts ----------------------------------------------------------------------------------------------------------


def starts(turns: int, tiny: bool, kept: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds of the processor, user and system, and of the clock, of fresh interpreters in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for turn in range(turns + 1):
        for name, code in STARTS.items():
            began = time.perf_counter()
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            assert child.returncode == 0, code
            if turn:  # the first reads the files from the disk
                found[name].append((usage.ru_utime + usage.ru_stime, time.perf_counter() - began))
        print(f"import: turn {turn} of {turns}", flush=True)
    return found


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoints(turns: int, tiny: bool, kept: Path) -> dict[str, Any]:
    """Seconds of a checkpoint as training writes it, and of `save_file` and fsync of the same tensors, in turn."""
    import numpy as np
    import safetensors.torch
    import torch

    from diff_diffusion import DiffusionModel, ImageDataset, TrainSettings
    from diff_diffusion.sizing import describe_for_data
    from diff_diffusion.training import checkpoint

    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    data = ImageDataset.from_arrays(images)
    description = describe_for_data(data)
    if not tiny:
        description["network"].update(width=128, multipliers=[1, 2, 2, 2])
    model = DiffusionModel.from_description(description)
    model.ema = {name: value.detach().clone() for name, value in model.named_parameters()}
    moments = {
        f"{name}/{key}": torch.rand_like(value) if key != "step" else torch.tensor(1.0)
        for name, value in model.named_parameters()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    settings = TrainSettings(steps=1).model_dump(mode="json")
    run, bare = kept / "run", kept / "bare"
    for place in (run, bare):
        shutil.rmtree(place, ignore_errors=True)

    def ours(turn: int) -> None:
        state = checkpoint.TrainState(turn, 1.0, settings, {"name": "random", "images": 64, "fingerprint": ""}, moments)
        checkpoint.save(run, model, state, 2)

    def theirs(turn: int) -> None:
        home = bare / str(turn)
        home.mkdir(parents=True)
        weights = {f"raw/{name}": value for name, value in model.state_dict().items()}
        weights |= {f"ema/{name}": value for name, value in (model.ema or {}).items()}
        for name, tensors in (("model", weights), ("train_state", moments)):
            safetensors.torch.save_file(tensors, home / f"{name}.safetensors")
            with open(home / f"{name}.safetensors", "rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(bare / str(turn - 2), ignore_errors=True)  # as training does, so that both find as free a disk

    found: dict[str, list[float]] = {"ours": [], "bare": []}
    for turn in range(turns + 2):
        for name, write in (("bare", theirs), ("ours", ours)) if turn % 2 else (("ours", ours), ("bare", theirs)):
            os.sync()
            began = time.perf_counter()
            write(turn)
            if turn >= 2:
                found[name].append(time.perf_counter() - began)
        print(f"checkpoint: turn {turn}", {name: values[-1:] for name, values in found.items()}, flush=True)
    size = sum(file.stat().st_size for file in checkpoint.home_of(run, turns + 1).iterdir())
    for place in (run, bare):
        shutil.rmtree(place)
    return {"seconds": found, "bytes": size, "parameters": model.num_parameters}


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(turns: int, tiny: bool, kept: Path) -> dict[str, list[dict[str, float]]]:
    """MiB of fresh processes: when all is imported, and at the peak of three training steps."""
    found: dict[str, list[dict[str, float]]] = {name: [] for names in MEMORY.values() for name in names}
    for turn in range(1 if tiny else 3):
        for name in found:
            words = [sys.executable, str(HERE / "costs_memory.py"), name, *(["--tiny"] if tiny else [])]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"memory: turn {turn}, {name}", found[name][-1], flush=True)
    return found


def median(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
