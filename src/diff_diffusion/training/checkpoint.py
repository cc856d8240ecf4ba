"""Checkpoints of a run: a model folder plus what the next step needs, in safetensors and JSON.

RUN/checkpoints/step-00000500/ is written whole or not at all; then its files are published into RUN itself, so that a
run folder is a model folder of its latest state. A reader that finds RUN damaged takes the newest whole checkpoint.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diff_diffusion.errors import CheckpointError
from diff_diffusion.models import Model
from diff_diffusion.models.model import WEIGHTS
from diff_diffusion.storage import folder as storage
from diff_diffusion.tensors import finite

STATE_JSON, STATE_TENSORS = "train_state.json", "train_state.safetensors"


@dataclass
class TrainState:
    """Where a run stands, beside its weights: after `step` optimizer steps."""

    step: int
    seconds: float
    settings: dict[str, Any]
    data: dict[str, Any]
    moments: dict[str, Tensor]


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the newest first, whole or not."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)


def home_of(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is."""
    return run / "checkpoints" / f"step-{step:08d}"


def save(run: Path, model: Model, state: TrainState, keep: int) -> Path:
    """A checkpoint of the model and the state, published into the run; older ones than the last `keep` are removed.

    Raises:
        CheckpointError: weights or moments that are not finite, or a disk that refused; earlier checkpoints are intact.
    """
    bad = next((name for name, value in state.moments.items() if not finite(value)), None)
    if bad is not None:
        raise CheckpointError(f"refusing to write a training state that is not finite: {bad}")
    files, config = model.files()
    about = {"step": state.step, "seconds": state.seconds, "settings": state.settings, "data": state.data}
    files |= {STATE_JSON: storage.to_json(about), STATE_TENSORS: storage.to_safetensors(state.moments)}
    home = home_of(run, state.step)
    storage.write_folder(home, files, config)
    storage.publish(home, run)
    # Damaged ones of later steps, which the run was resumed in front of, do not count as kept.
    for old in [place for place in checkpoints(run) if place.name <= home.name][keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return home


def latest(run: Path, mend: bool = True) -> tuple[Model, TrainState, list[str]] | None:
    """The newest whole checkpoint: the model with its raw weights (and `ema`), the state, and what was passed over.

    None when the run has no checkpoint yet.

    The run folder holds its files when this returns, and nothing unfinished; with `mend` false it is left as it is.

    Raises:
        CheckpointError: there are checkpoints and none is whole, or the disk refused.
    """
    for left in (run, run / "checkpoints", run / "samples") if mend else ():
        storage.clear_unfinished(left)
    problems: list[str] = []
    # The run folder last: it is never newer, but it is all there is when someone has deleted the checkpoints.
    for home in (*checkpoints(run), *([run] if (run / storage.MANIFEST).exists() else [])):
        try:
            manifest = storage.read_manifest(home)
            model = Model.restore(manifest, storage.read_safetensors(home, WEIGHTS, manifest), "raw")
            model.facts = storage.read_json(home, "facts.json", manifest)
            about = storage.read_json(home, STATE_JSON, manifest)
            state = TrainState(**about, moments=storage.read_safetensors(home, STATE_TENSORS, manifest))
        except (CheckpointError, TypeError) as error:
            problems.append(str(error))
            continue
        if mend and not _published(home, run):  # the save was cut short
            storage.publish(home, run)
        return model, state, problems
    if problems:
        raise CheckpointError(f"no checkpoint of {run} is whole: {'; '.join(problems)}")
    return None


def _published(home: Path, run: Path) -> bool:
    told, published = home / storage.MANIFEST, run / storage.MANIFEST
    return published.exists() and told.read_bytes() == published.read_bytes()
