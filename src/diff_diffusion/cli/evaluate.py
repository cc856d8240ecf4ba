"""`diff-diffusion evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.cells import cell_len

from diff_diffusion.cli.console import count_progress
from diff_diffusion.cli.sample import load
from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.evaluation.evaluate import evaluate
from diff_diffusion.evaluation.features import Classifier, load_classifier, save_classifier, train_classifier
from diff_diffusion.evaluation.findings import Evaluation
from diff_diffusion.evaluation.report import write_report
from diff_diffusion.storage.folder import refusals

FOLDER = "evaluation"


def run(
    folder: Path,
    data: str,
    num: int | None,
    judge: Path | None,
    steps: int | None,
    sampler: str | None,
    guidance: float | None,
    seed: int,
    weights: str,
    as_json: bool,
) -> None:
    model = load(folder, weights)
    channels, height, width = model.codec.data.shape
    images = load_image_dataset(
        data, size=(height, width), channels=channels, progress=count_progress("reading images")
    )
    model.check_data(images)  # before a judge is trained
    home = folder / FOLDER
    found = evaluate(
        model,
        images,
        num,
        judge=_judge(images, judge, home),
        seed=seed,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        weights=weights,
        folder=home,
        tell=count_progress,
    )
    record, page = write_report(found, home)
    if as_json:
        typer.echo(json.dumps(found.to_json() | {"report": str(page)}, ensure_ascii=False))
        return
    tell(found)
    typer.echo(f"{page}: the same with pictures; {record}: for programs")


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
    if found.classes:
        rows = [["class", "share", "of real", "as asked", "judge on real"]]
        for row in found.classes:
            shares = (row.share, row.real_share, row.agreement, row.judge)
            told = ["-" if share is None else f"{100 * share[0]:.1f} %" for share in shares]
            rows.append([row.name + (" (behind)" if row.behind else ""), *told])
        _lines(rows)
    loss, seen = found.held_out_loss["mean"], found.train_loss["mean"]
    bits = "" if found.bits is None else f"; {found.bits.bits:.3f} bits per dimension"
    typer.echo(f"loss {loss:.4g} on held-out images, {seen:.4g} on training images{bits}")


def _lines(rows: list[list[str]]) -> None:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]  # a Chinese character takes two cells
    for first, *others in rows:
        padded = first + " " * (widths[0] - cell_len(first))
        typer.echo("  ".join([padded, *map(str.rjust, others, widths[1:])]).rstrip())
