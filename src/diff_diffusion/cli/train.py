"""`diff-diffusion train`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from diff_diffusion.cli.config import merged, network_named, parse_size, read_changes, to_yaml
from diff_diffusion.cli.console import TrainingLine, count_progress, duration
from diff_diffusion.core.targets import LearnedVariance
from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.errors import ConfigError, DataError, DiffusionError, listed
from diff_diffusion.evaluation.copies import SMALL, affordable, look_for_copies
from diff_diffusion.evaluation.records import FOLDER
from diff_diffusion.models import DiffusionModel, Model, NoisyClassifier
from diff_diffusion.sizing import describe_classifier, describe_for_data
from diff_diffusion.training import TrainSettings, planning, train
from diff_diffusion.training.runtime import Ranks, joined, stop_signals
from diff_diffusion.training.settings import make_settings

DEFAULT_MINUTES = 10.0
DATA_DEFAULTS = {"path": None, "size": None, "channels": None, "held_out": 0.1, "index": True}


@dataclass(frozen=True)
class Prepared:
    """A run as `train` would start it: everything but the model's weights."""

    about_data: dict[str, Any]
    description: dict[str, Any]
    settings: TrainSettings
    train_split: ImageDataset
    held_out: ImageDataset
    report: list[str]


def prepared(
    data: str,
    steps: int | None,
    minutes: float | None,
    size: str | None,
    seed: int,
    preset: str | None,
    sets: list[str],
    config: Path | None,
    classifier: bool = False,
    unconditional: bool = False,
    text_encoder: Path | None = None,
    quiet: bool = False,
) -> Prepared:
    """What the options of `train` mean for some data.

    Raises:
        ConfigError: an option that is wrong or cannot take effect.
        DataError: data that cannot be used.
    """
    changes = read_changes(config, sets)
    model_changes = changes.get("model")
    if isinstance(model_changes, Mapping) and model_changes.get("type") == "model/classifier":
        classifier = True
    if text_encoder is not None and (classifier or unconditional):
        raise ConfigError("--text-encoder reads captions, and this model would not be asked for any: leave it out")
    if classifier and unconditional:
        raise ConfigError("--unconditional leaves out the labels, which are all that a classifier learns: give one")
    about_data = dict(changes.get("data", {}))
    columns = about_data.pop("columns", {})
    if not isinstance(columns, Mapping):
        raise ConfigError(f"data.columns says a kind for each column, as in data.columns.year=class, not {columns!r}")
    about = merged(DATA_DEFAULTS | {"path": data, "size": size}, about_data, "data.") | {"columns": columns}
    options = {"steps": steps, "minutes": minutes, "seed": seed or None}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if len(given.keys() & {"steps", "minutes"}) == 1:  # one of them on the command line replaces either in the file
        given = {"steps": None, "minutes": None} | given
    asked = {**changes.get("train", {}), **given}
    if asked.get("steps") is None and asked.get("minutes") is None:
        asked["minutes"] = DEFAULT_MINUTES
    make_settings(asked)  # a wrong one fails before the images are read
    images = load_image_dataset(
        about["path"],
        size=_size(about["size"]),
        channels=about["channels"],
        columns=columns,
        progress=None if quiet else count_progress("reading images"),
        index=about["index"],
    )
    train_split, held_out = images.split(about["held_out"])
    settings = make_settings({"batch_size": batch_for(train_split.shape)} | asked)
    if classifier:
        described = describe_classifier(train_split, preset)
    else:
        encoder = str(text_encoder) if text_encoder is not None else None
        described = describe_for_data(train_split, preset, network_named(changes), not unconditional, encoder)
    description = merged(described, changes.get("model", {}), "model.")
    return Prepared(about, description, settings, train_split, held_out, images.report.lines())


def run(*asked: Any) -> None:
    """A run by this process, or by all that torchrun started: the first speaks, and what ends them all is said once."""
    with joined() as ranks, open(os.devnull, "w") as nowhere:
        try:
            with redirect_stdout(sys.stdout if ranks.first else nowhere):
                _run(ranks, *asked)
        except DiffusionError:
            if ranks.speaks():
                raise
            time.sleep(1.0)  # torchrun ends all when one has ended, and the one that speaks has yet to
            raise typer.Exit(1) from None


def _run(
    ranks: Ranks,
    data: str,
    out: Path,
    steps: int | None,
    minutes: float | None,
    size: str | None,
    seed: int,
    preset: str | None,
    sets: list[str],
    config: Path | None,
    dry_run: bool,
    auto: bool = False,
    classifier: bool = False,
    unconditional: bool = False,
    text_encoder: Path | None = None,
    audit: bool = True,
) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must be a folder, new or of a run to go on with")
    if out.is_dir() and not any((out / name).exists() for name in ("checkpoints", "metrics.jsonl", "config.json")):
        others = sorted(item.name for item in out.iterdir() if not item.name.startswith("."))
        if others:
            raise ConfigError(
                f"--out {out} holds other things ({listed(others, 4)}) and no run: give a folder of its own"
            )
    if auto and ranks.count > 1:
        raise ConfigError(
            f"--auto measures one process alone, and here are {ranks.count}: give --set train.micro_batch=N where a "
            "process's part of the batch is too large for its memory; the precision is measured anyway"
        )
    asked = (steps, minutes, size, seed, preset, sets, config, classifier, unconditional, text_encoder)
    with ranks.first_then_others():  # what the first found out about every image, the others read in its index
        ready = prepared(data, *asked, quiet=not ranks.first)
    if not audit and ready.description["type"] != "model/diffusion":
        raise ConfigError("--no-audit leaves out a search among samples, and this model draws none: leave it out")
    train_split, held_out, settings = ready.train_split, ready.held_out, ready.settings
    for line in ready.report:
        typer.echo(line, err=dry_run)
    if auto:
        settings, lines = planning.chosen(ready.description, train_split, settings, out)
        for line in lines:
            typer.echo(line, err=dry_run)
    if dry_run:
        told = {"data": ready.about_data, "model": ready.description, "train": settings.model_dump(mode="json")}
        typer.echo(to_yaml(told), nl=False)
        return

    model: Model = Model.from_description(ready.description, settings.seed)
    together = f", in {ranks.count} processes" if ranks.count > 1 else ""
    typer.echo(f"training on {len(train_split):,} images, {len(held_out):,} held out{together}")
    for line in chosen(model):
        typer.echo(line)
    line_ = TrainingLine(settings.steps, settings.minutes)
    with stop_signals(lambda: line_.say("stopping after this step, and saving")) as stop, line_:
        record = None
        for record in train(model, train_split, out, settings, held_out=held_out, stop=stop):
            line_.show(record)
        stopped = ranks.sums(stop())[0] > 0 and record is not None and record.step != settings.steps
    if record is None:
        typer.echo(f"{out} is finished: nothing left to do. More --steps or --minutes would go on")
        return
    if stopped:
        typer.echo(f"stopped at step {record.step}; saved in {out}. The same command goes on from there")
        return
    typer.echo(f"done at step {record.step}; saved in {out}")
    if audit and ranks.first and isinstance(model, DiffusionModel):
        search(model, train_split, held_out, out)
    if isinstance(model, NoisyClassifier):
        label = shlex.quote(model.class_names[0])
        typer.echo(f"now: diff-diffusion sample RUN --classifier {out} --label {label} --guidance 3")
        typer.echo("     where RUN is a model of the same data, such as one that was trained with --unconditional")
    else:
        typer.echo(f"now: diff-diffusion sample {out} -n 16 --out samples")


def search(model: DiffusionModel, train_split: ImageDataset, held_out: ImageDataset, out: Path) -> None:
    """Whether the model copies its training images; where they are few, and the run was long enough to afford it."""
    num = affordable(model, model.facts["images seen"])
    if not num or len(train_split) > SMALL:
        return
    try:
        found = look_for_copies(model, train_split, held_out, num)
        picture = found.write(out / FOLDER)
    except DiffusionError as error:  # the run is whole without it
        typer.echo(f"not searched for copies of training images: {error}")
        return
    typer.echo(f"{'WARNING: ' if found.audit.copies else ''}{found.audit.verdict}; the closest pairs are {picture}")


def batch_for(shape: tuple[int, int, int]) -> int:
    """How many images a step trains on, by default: fewer when they are larger, so that steps stay short."""
    side = max(shape[1:])
    return 128 if side <= 16 else 64 if side <= 32 else 32


def _size(size: Any) -> int | tuple[int, int] | None:
    if isinstance(size, list):
        if len(size) != 2 or not all(isinstance(side, int) for side in size):
            raise DataError(f"size {size!r} is neither a number nor two")
        return size[0], size[1]
    return parse_size(size)


def chosen(model: Model) -> list[str]:
    """What was chosen for the data, a line each."""
    shape = " × ".join(map(str, model.codec.data.shape))
    size = f"{model.num_parameters / 1e6:.2f} M parameters, for {shape}"
    if isinstance(model, NoisyClassifier):
        return [
            f"classifier: {type(model.network).__name__}, {size}",
            *(f"tells {line}" for line in model.conditioner.summary()),
            f"noised by: {type(model.process.time_map).__name__}, levels {type(model.levels).__name__}",
        ]
    assert isinstance(model, DiffusionModel)
    recipe, network = model.recipe, model.network
    process: Any = recipe.process
    learned = " and its variance" if isinstance(recipe.target, LearnedVariance) else ""
    target: Any = recipe.target.target if isinstance(recipe.target, LearnedVariance) else recipe.target
    steps = recipe.grid.num_steps
    return [
        f"model: {type(network).__name__}, {size}",
        *(f"asked for {line}" for line in (model.conditioner.summary() if model.conditioner else ["nothing"])),
        f"process: {type(process.time_map).__name__}, scaling {process.scaling}; target {target.row}{learned}",
        f"sampler: {type(recipe.sampler).__name__} on {type(recipe.grid).__name__}, {steps} steps",
    ]


__all__ = ["Prepared", "chosen", "duration", "prepared", "run"]
