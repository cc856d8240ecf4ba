"""What a run will cost, measured before it starts, and what `train --auto` chooses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diff_diffusion.codecs.codec import Codec
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import CheckpointError, ConfigError
from diff_diffusion.storage import folder as storage
from diff_diffusion.training import checkpoint
from diff_diffusion.training.settings import TrainSettings
from diff_diffusion.training.trial import Trial


@dataclass(frozen=True)
class RunPlan:
    """What was measured, and what it means for the run.

    Attributes:
        settings: those given, with `micro_batch` and `precision` chosen where they were left open.
        device: where the run would train.
        parameters: of the model.
        accumulation: backward passes a step.
        threads: of the CPU, as the run would have them.
        images_per_second_by_threads: what was measured with that many, most first; empty on other devices.
        seconds_per_step, fastest_step, slowest_step: the median of `repeats` steps, and their ends.
        timed_images: images in each step that was timed; fewer than a batch when a step is slow.
        steps, seconds: of the whole run, without held-out losses, sample sheets and checkpoints.
        epoch_seconds: of one pass over the data.
        memory, free: bytes that training takes at its peak, of those free when it was measured; None where it
            cannot be told. On the CPU, writing a checkpoint is included.
        checkpoint, disk: bytes of one checkpoint, and of all that are there at once.
        notes: why, a line each.
    """

    settings: TrainSettings
    device: str
    parameters: int
    accumulation: int
    threads: int
    images_per_second_by_threads: dict[int, float]
    seconds_per_step: float
    fastest_step: float
    slowest_step: float
    repeats: int
    timed_images: int
    steps: int
    seconds: float
    epoch_seconds: float
    memory: int | None
    free: int | None
    checkpoint: int
    disk: int
    notes: tuple[str, ...]

    @property
    def images_per_second(self) -> float:
        return self.settings.batch_size / self.seconds_per_step

    def to_json(self) -> dict[str, Any]:
        about = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "settings"}
        rate = {"images_per_second": self.images_per_second}
        return {"settings": self.settings.model_dump(mode="json"), **rate, **about}


def plan(
    description: Mapping[str, Any], data: ImageDataset, settings: TrainSettings, codec: Codec | None = None
) -> RunPlan:
    """What `train` would cost with a model of this description, in seconds; nothing is written.

    Steps of the run itself are done on a model of its own, so that what is timed is what will run: reading the batch,
    noise, network, gradient, optimizer and average.

    Args:
        description: of the model, as `describe(model)` or `describe_for_data(data)` give it.
        data: the train split.
        settings: of the run; what they leave open (`micro_batch`, and `precision` "auto") is chosen.
        codec: whose weights the model's codec has, where it has any.

    Raises:
        ConfigError: neither steps nor minutes, or a model that does not fit into memory at all.
        IncompatibleError: data that the model is not for.
    """
    if settings.steps is None and settings.minutes is None:
        raise ConfigError("say how long the run is to train: steps or minutes")
    settings = settings.sized(data.shape)
    with closing(Trial(description, data, settings, codec)) as trial:
        micro, notes = trial.choose()
        times, peak = trial.times(micro)
        written, peak_of_writing = trial.checkpoint()
        per_step = statistics.median(times.steps)
        steps = settings.steps if settings.steps is not None else int(60.0 * (settings.minutes or 0.0) / per_step)
        return RunPlan(
            settings=settings.model_copy(update={"micro_batch": micro, "precision": trial.precision}),
            device=str(trial.device),
            parameters=trial.run.model.num_parameters,
            accumulation=math.ceil(settings.batch_size / micro),
            threads=torch.get_num_threads(),
            images_per_second_by_threads=times.by_threads,
            seconds_per_step=per_step,
            fastest_step=min(times.steps),
            slowest_step=max(times.steps),
            repeats=len(times.steps),
            timed_images=times.images,
            steps=steps,
            seconds=steps * per_step if settings.steps is not None else 60.0 * (settings.minutes or 0.0),
            epoch_seconds=len(data) / settings.batch_size * per_step,
            memory=None if peak is None else max(peak, peak_of_writing),
            free=trial.free,
            checkpoint=written,
            disk=written * (settings.keep_checkpoints + 1),  # the oldest goes when the newest is whole
            notes=tuple(notes),
        )


def chosen(
    description: Mapping[str, Any],
    data: ImageDataset,
    settings: TrainSettings,
    out: Path | None = None,
    codec: Codec | None = None,
) -> tuple[TrainSettings, list[str]]:
    """The settings with micro-batch and precision said, and a line on each: what `train --auto` trains with.

    What is set already stays. A run that has begun in `out` goes on with what it began with; nothing is measured.
    """
    before = _begun(out) if out is not None else None
    if before is not None:
        micro, precision = settings.micro_batch or before["micro_batch"], before["precision"]
        said = [f"micro-batch {micro or 'whole'}, precision {precision}: as the run in {out} has them"]
        precision = settings.precision if settings.precision != "auto" else precision
        return settings.model_copy(update={"micro_batch": micro, "precision": precision}), said
    if settings.micro_batch is not None and settings.precision != "auto":
        return settings, [f"micro-batch {settings.micro_batch}, as set", f"precision {settings.precision}, as set"]
    with closing(Trial(description, data, settings, codec)) as trial:
        micro, notes = trial.choose()
        return settings.model_copy(update={"micro_batch": micro, "precision": trial.precision}), notes


def _begun(out: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder; None when none has begun there, or no checkpoint of it can be read."""
    for home in (*checkpoint.checkpoints(out), out):
        with suppress(CheckpointError):
            settings: dict[str, Any] = storage.read_json(home, checkpoint.STATE_JSON, storage.read_manifest(home))[
                "settings"
            ]
            return settings
    return None
