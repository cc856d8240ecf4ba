"""`diff-diffusion train`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import typer

from diff_diffusion.cli.config import to_yaml
from diff_diffusion.cli.console import TrainingLine
from diff_diffusion.cli.lent import codec_of, untrained_codec
from diff_diffusion.cli.prepare import CODEC, Prepared, Request, prepared, stages
from diff_diffusion.core.categorical import Tokens
from diff_diffusion.core.targets import LearnedVariance
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError, DiffusionError, listed
from diff_diffusion.evaluation.copies import SMALL, affordable, look_for_copies
from diff_diffusion.evaluation.records import FOLDER
from diff_diffusion.models import Autoencoder, DiffusionModel, Model, NoisyClassifier
from diff_diffusion.registry import build, describe
from diff_diffusion.training import planning, train
from diff_diffusion.training.checkpoint import checkpoints
from diff_diffusion.training.runtime import Ranks, joined, stop_signals

BEGUN = ("checkpoints", "metrics.jsonl", "config.json")
"""Of which a folder that is a run has at least one."""


def run(request: Request, out: Path, dry_run: bool = False, auto: bool = False, audit: bool = True) -> None:
    """A run by this process, or by all that torchrun started: the first speaks, and what ends them all is said once."""
    with joined() as ranks, open(os.devnull, "w") as nowhere:
        try:
            with redirect_stdout(sys.stdout if ranks.first else nowhere):
                _check(ranks, out, auto)
                if request.latent:
                    _both(ranks, request, out, dry_run, auto, audit)
                else:
                    held = out if _begun(out) else None
                    _one(ranks, _ready(ranks, request, held=held), out, dry_run, auto, audit)
        except DiffusionError:
            if ranks.speaks():
                raise
            time.sleep(1.0)  # torchrun ends all when one has ended, and the one that speaks has yet to
            raise typer.Exit(1) from None


def _check(ranks: Ranks, out: Path, auto: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must be a folder, new or of a run to go on with")
    if out.is_dir() and not any((out / name).exists() for name in (*BEGUN, CODEC)):
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


def _begun(out: Path) -> bool:
    """Whether a folder holds a model; a run that was killed before its first save holds none."""
    return (out / "config.json").exists() or bool(checkpoints(out))


def _ready(ranks: Ranks, request: Request, **known: Any) -> Prepared:
    with ranks.first_then_others():  # what the first found out about every image, the others read in its index
        return prepared(request, not ranks.first, **known)


def _both(ranks: Ranks, request: Request, out: Path, dry_run: bool, auto: bool, audit: bool) -> None:
    """An autoencoder in a folder of its own within the run's, then the diffusion model in its latents.

    Once that has begun the autoencoder learns no more, however long the run becomes.
    """
    first, second = stages(request)
    ready, home, begun = _ready(ranks, first), out / CODEC, _begun(out)
    # What is wrong with the second stage is known before the first takes its time.
    later = _ready(ranks, second, read=ready, codec=untrained_codec(ready.model(), second.preset))
    with torch.device("meta"):
        build(later.description)
        coder = build(ready.description)
    if begun and not (_begun(home) and describe(Model.load(home)) == describe(coder)):
        raise ConfigError(
            f"{out} holds a run without such an autoencoder as this command asks for: give its own options, or another "
            "--out"
        )
    if dry_run:
        typer.echo("# the first of two stages; the second, in its latents, can be told when it is trained", err=True)
    else:
        typer.echo(f"stage 1 of 2: an autoencoder{f', which has learned, in {home}' if begun else ''}")
    if (dry_run or not begun) and not _one(ranks, ready, home, dry_run, auto, audit=True, alone=False):
        return
    typer.echo("stage 2 of 2: a diffusion model in its latents")
    with ranks.first_then_others():
        codec = codec_of(home, ready.train_split, second.preset, held=out if begun else None)
    _one(ranks, _ready(ranks, second, read=ready, codec=codec), out, dry_run, auto, audit)


def _one(ranks: Ranks, ready: Prepared, out: Path, dry_run: bool, auto: bool, audit: bool, alone: bool = True) -> bool:
    """One training; whether it came to its end."""
    if not audit and ready.description["type"] != "model/diffusion":
        raise ConfigError("--no-audit leaves out a search among samples, and this model draws none: leave it out")
    train_split, held_out, settings = ready.train_split, ready.held_out, ready.settings
    for line in ready.report:
        typer.echo(line, err=dry_run)
    if auto:
        settings, lines = planning.chosen(ready.description, train_split, settings, out, ready.codec)
        for line in lines:
            typer.echo(line, err=dry_run)
    if dry_run:
        told = {"data": ready.about_data, "model": ready.description, "train": settings.model_dump(mode="json")}
        typer.echo(to_yaml(told), nl=False)
        return False

    model = ready.model()
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
        return True
    if stopped:
        typer.echo(f"stopped at step {record.step}; saved in {out}. The same command goes on from there")
        return False
    typer.echo(f"done at step {record.step}; saved in {out}")
    if audit and ranks.first and isinstance(model, DiffusionModel):
        search(model, train_split, held_out, out)
    if alone:
        _next(model, out, ready)
    return True


def _next(model: Model, out: Path, ready: Prepared) -> None:
    """What to do now."""
    if isinstance(model, NoisyClassifier):
        label = shlex.quote(model.class_names[0])
        typer.echo(f"now: diff-diffusion sample RUN --classifier {out} --label {label} --guidance 3")
        typer.echo("     where RUN is a model of the same data, such as one that was trained with --unconditional")
    elif isinstance(model, Autoencoder):
        typer.echo(f"held-out PSNR {model.facts['held-out PSNR']:.1f} dB; {out / 'samples'} has what comes back")
        typer.echo(f"now: diff-diffusion train {ready.about_data['path']} --codec {out} --out RUN")
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
    if isinstance(model, Autoencoder):
        latent = " × ".join(map(str, model.latent_shape))
        return [f"autoencoder: {type(model.bottleneck).__name__}, {size}", f"latents: {latent}"]
    assert isinstance(model, DiffusionModel)
    recipe, network = model.recipe, model.network
    process: Any = recipe.process
    if isinstance(process, Tokens):
        how = f"{type(process).__name__} of {process.vocab} tokens"
    else:
        learned = " and its variance" if isinstance(recipe.target, LearnedVariance) else ""
        target: Any = recipe.target.target if isinstance(recipe.target, LearnedVariance) else recipe.target
        how = f"{type(process.time_map).__name__}, scaling {process.scaling}; target {target.row}{learned}"
    steps = recipe.grid.num_steps
    seen = model.codec.latent.shape
    where = [] if seen == model.codec.data.shape else [f"in latents: {' × '.join(map(str, seen))}"]
    return [
        f"model: {type(network).__name__}, {size}",
        *where,
        *(f"asked for {line}" for line in (model.conditioner.summary() if model.conditioner else ["nothing"])),
        f"process: {how}",
        f"sampler: {type(recipe.sampler).__name__} on {type(recipe.grid).__name__}, {steps} steps",
    ]
