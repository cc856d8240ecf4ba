"""`diff-diffusion plan`."""

from __future__ import annotations

import json

import typer

from diff_diffusion.cli.console import duration
from diff_diffusion.cli.look import rows
from diff_diffusion.cli.prepare import Prepared
from diff_diffusion.training.planning import RunPlan, plan
from diff_diffusion.training.trial import gib


def run(ready: Prepared, as_json: bool) -> None:
    for line in ready.report:
        typer.echo(line, err=as_json)
    planned = plan(ready.description, ready.train_split, ready.settings, ready.codec)
    if as_json:
        typer.echo(json.dumps(planned.to_json(), ensure_ascii=False, indent=2))
        return
    rows(told(planned, len(ready.train_split)))
    for note in planned.notes:
        typer.echo(note)
    for note in advice(planned):
        typer.echo(note)


def told(planned: RunPlan, num_images: int) -> dict[str, str]:
    """A plan in words."""
    settings = planned.settings
    spread = f"median of {planned.repeats}, {planned.fastest_step:.3g} to {planned.slowest_step:.3g}"
    if planned.timed_images < settings.batch_size:
        spread += f"; scaled up from {planned.timed_images} images"
    length = f"{duration(planned.seconds)} for {planned.steps:,} steps"
    if settings.minutes is not None:
        length = f"{settings.minutes:g} minutes: about {planned.steps:,} steps"
    passes = planned.steps * settings.batch_size / num_images
    table = {
        "parameters": f"{planned.parameters / 1e6:.2f} M, on {planned.device}",
        "batch": f"{settings.batch_size}, in {planned.accumulation} × {settings.micro_batch}",
        "precision": settings.precision,
        "threads": str(planned.threads),
        "images/s": per_second(planned.images_per_second),
        "a step": f"{planned.seconds_per_step:.3g} s ({spread})",
        "the run": f"{length}, {passes:.1f} passes over the data",
        "one pass": f"{duration(planned.epoch_seconds)} for {num_images:,} images",
    }
    if planned.memory is not None and planned.free is not None:
        table["memory"] = f"{gib(planned.memory)} at the peak, beside what is loaded now; {gib(planned.free)} are free"
    table["disk"] = f"{gib(planned.disk)} while a checkpoint is written, {gib(planned.checkpoint)} each"
    return table


def advice(planned: RunPlan) -> list[str]:
    """What was measured with other numbers of threads, and whether to take one."""
    rates = planned.images_per_second_by_threads
    if not rates:
        return []
    best = max(rates, key=lambda count: rates[count])
    gain = rates[best] / rates[planned.threads]
    said = "threads measured: " + ", ".join(f"{count}: {per_second(rate)} images/s" for count, rate in rates.items())
    if best != planned.threads and gain > 1.1:
        return [said, f"now, {best} would be {gain:.2f} × as fast: set OMP_NUM_THREADS={best}"]
    return [said]


def per_second(rate: float) -> str:
    """A rate with the figures that matter: "1,234", "56", "1.3"."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
