"""`diff-diffusion evaluate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import typer
from rich.cells import cell_len

from diff_diffusion.cli.console import count_progress
from diff_diffusion.cli.sample import load
from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.errors import ConfigError
from diff_diffusion.evaluation.beside import ClassRow
from diff_diffusion.evaluation.captions import caption_column
from diff_diffusion.evaluation.dual import Dual, dual_of, load_dual, save_dual
from diff_diffusion.evaluation.evaluate import draw_share, evaluate
from diff_diffusion.evaluation.feature_networks import FeatureNetwork, Pixels, random_features
from diff_diffusion.evaluation.features import Classifier, load_classifier, save_classifier, train_classifier
from diff_diffusion.evaluation.findings import Evaluation
from diff_diffusion.evaluation.outside import inception, onnx_features
from diff_diffusion.evaluation.records import FOLDER, Comparison, Record, read_records, side_by_side
from diff_diffusion.evaluation.report import write_report
from diff_diffusion.models import DiffusionModel
from diff_diffusion.storage.folder import refusals


def run(
    folder: Path,
    data: str,
    num: int | None,
    features: str | None,
    judge: Path | None,
    captions_judge: Path | None,
    against: Path | None,
    steps: int | None,
    sampler: str | None,
    guidance: float | None,
    seed: int,
    weights: str,
    as_json: bool,
) -> None:
    rank, ranks = place()
    others = read_records(against) if against is not None else ()
    model = load(folder, weights)
    channels, height, width = model.codec.data.shape
    reading = count_progress("reading images") if rank == 0 else None
    images = load_image_dataset(data, size=(height, width), channels=channels, progress=reading)
    home = folder / FOLDER
    if rank:
        draw_share(
            model,
            images,
            num,
            rank=rank,
            ranks=ranks,
            seed=seed,
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            folder=home,
        )
        return
    model.check_data(images)  # before a judge is trained
    network = _network(features, images.split()[0])
    given = network if judge is None and isinstance(network, Classifier) else None
    found = evaluate(
        model,
        images,
        num,
        features=network,
        judge=given or _judge(images, judge, home),
        captions_judge=_captions_judge(model, images, captions_judge, home),
        seed=seed,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        weights=weights,
        folder=home,
        ranks=ranks,
        against=others,
        tell=count_progress,
    )
    record, page = write_report(found, home)
    pairs = side_by_side(found.records, others) if others else []
    if as_json:
        told = found.to_json() | {"report": str(page)}
        if against is not None:
            told["against"] = {"of": str(against), "numbers": [_compared(*pair) for pair in pairs]}
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    tell(found)
    if pairs:
        verdict = {"first": "better", "second": "worse", "neither": "intervals overlap"}
        rows = [[f"against {against}", "this", "that", "difference", ""]]
        for one, other, how in pairs:
            numbers = [f"{one.value:.4g}", f"{other.value:.4g}", f"{how.difference:+.4g}"]
            rows.append([one.name, *numbers, verdict[how.better]])
        _lines(rows)
    typer.echo(f"{page}: the same with pictures; {record}: for programs")


def place() -> tuple[int, int]:
    """Which process this is among how many, as torchrun says it; on a machine with accelerators each takes its own.

    Raises:
        ConfigError: numbers that are none.
    """
    said = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if said["WORLD_SIZE"] in (None, "1"):
        return 0, 1
    try:
        rank, ranks, local = (int(said[name] or "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if not 0 <= rank < ranks:
            raise ValueError(rank)
    except ValueError as error:
        raise ConfigError(
            f"{said} do not say which process this is among how many: start them with torchrun"
        ) from error
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(local % torch.accelerator.device_count())
    return rank, ranks


def _network(what: str | None, train: ImageDataset) -> FeatureNetwork | None:
    """The feature network that `--features` names; None for the judge, or random features where there is none."""
    if what == "judge" and (train.labels is None or len(train.class_names) < 2):
        raise ConfigError(f"--features judge needs classes, and {train.name} has none: random, pixels or a file")
    if what in (None, "judge"):
        return None
    if what == "random":
        return random_features(train.shape)
    if what == "pixels":
        return Pixels(train.shape)
    if what == "inception":
        return inception()
    path = Path(what)
    if path.suffix.lower() == ".onnx":
        return onnx_features(path)
    if path.suffix.lower() == ".safetensors":
        return load_classifier(path, train)
    raise ConfigError(
        f"unknown --features {what!r}: judge, random, pixels, inception, or a file: NETWORK.onnx, or a classifier that "
        "another evaluation left, judge-….safetensors"
    )


def _compared(one: Record, other: Record, how: Comparison) -> dict[str, Any]:
    sides = {"value": one.value, "interval": one.interval, "other": other.value, "other_interval": other.interval}
    overlap = how.better == "neither"
    return {"name": one.name, **sides, "difference": how.difference, "overlap": overlap, "better": how.better}


def _judge(images: ImageDataset, file: Path | None, home: Path) -> Classifier | None:
    """The classifier in a file, the one of an earlier evaluation, or a new one; None where there are no labels."""
    train, held_out = images.split()
    if file is not None:
        return load_classifier(file, train)
    if train.labels is None or len(train.class_names) < 2:
        return None
    kept = home / f"judge-{train.fingerprint()[:8]}.safetensors"
    if kept.exists():
        return load_classifier(kept, train)
    judge = train_classifier(train, held_out)
    with refusals(home):
        home.mkdir(parents=True, exist_ok=True)
    save_classifier(judge, train, kept)
    return judge


def _captions_judge(model: DiffusionModel, images: ImageDataset, file: Path | None, home: Path) -> Dual | None:
    """The judge in a file, the one of an earlier evaluation, or a new one; None where no captions are asked for."""
    train, _ = images.split()
    if file is not None:
        return load_dual(file, train)
    column = caption_column(train, model.known(train.columns))
    if column is None:
        return None
    kept = home / f"captions-{train.fingerprint()[:8]}.safetensors"
    if kept.exists():
        return load_dual(kept, train)
    dual = dual_of(train, column)
    with refusals(home):
        home.mkdir(parents=True, exist_ok=True)
    save_dual(dual, train, kept)
    return dual


def tell(found: Evaluation) -> None:
    """Warnings, then tables as aligned lines."""
    for warning in found.warnings:
        typer.echo(f"WARNING: {warning}")
    of = found.setting
    typer.echo(
        f"{found.num} samples ({of.sampler} on {of.grid}, {of.steps} steps, guidance {of.guidance:g}, {of.weights} "
        f"weights), against {of.data}: {of.split}"
    )
    if found.records:
        rows = [["", "samples", "95 %", "real images", "better"]]
        for record in found.records:
            low, high = record.interval
            numbers = [f"{record.value:.4g}", f"{low:.4g} to {high:.4g}", f"{record.floor:.4g}"]
            rows.append([record.name, *numbers, "higher" if record.higher_is_better else "lower"])
        _lines(rows)
    if not found.audit.copies:
        typer.echo(found.audit.verdict)
    for what, table in (("class", found.classes), *((each.name, each.rows) for each in found.attributes)):
        if table:
            _lines(
                [[what, "share", "of real", "as asked", "judge on real", "look real", "real do"], *map(_fares, table)]
            )
    if found.captions is not None:
        shown = found.captions
        share, real = (
            f"{100 * part:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            for part, (low, high) in (shown.share, shown.real)
        )
        typer.echo(
            f"{shown.column}: {share} of {shown.n} samples show their own of {shown.few} captions, {real} of real"
        )
    loss, seen = found.held_out_loss["mean"], found.train_loss["mean"]
    bits = "" if found.bits is None else f"; {found.bits.bits:.3f} bits per dimension"
    typer.echo(f"loss {loss:.4g} on held-out images, {seen:.4g} on training images{bits}")


def _fares(row: ClassRow) -> list[str]:
    shares = (row.share, row.real_share, row.agreement, row.judge, row.precision, row.real_precision)
    off = " (behind)" if row.behind or row.worse else ""
    return [row.name + off, *("-" if share is None else f"{100 * share[0]:.1f} %" for share in shares)]


def _lines(rows: list[list[str]]) -> None:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]  # a Chinese character takes two cells
    for first, *others in rows:
        padded = first + " " * (widths[0] - cell_len(first))
        typer.echo("  ".join([padded, *map(str.rjust, others, widths[1:])]).rstrip())
