"""`diff-diffusion verify`: jobs with progress, and their checks as tables."""

from __future__ import annotations

import json
import math
import time
from itertools import groupby
from pathlib import Path

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diff_diffusion.cli.console import count_progress
from diff_diffusion.verification import Check, installed, trained

MISSED = 7
"""The exit code when a check was missed."""


def run(folder: Path | None, as_json: bool) -> None:
    torch.set_num_threads(1)  # tensors of a few numbers: threads would only wait for each other
    jobs = installed() + (trained(folder) if folder is not None else [])
    start, show = time.monotonic(), count_progress("verifying")
    checks: list[Check] = []
    for done, job in enumerate(jobs, start=1):
        checks += job.run()
        show(done, len(jobs))
    seconds = time.monotonic() - start
    misses = [check for check in checks if not check.passed]
    if as_json:
        about = {"passed": not misses, "seconds": seconds, "checks": [check.to_json() for check in checks]}
        typer.echo(json.dumps(about, ensure_ascii=False, indent=2))
    else:
        for _, group in groupby(checks, lambda check: check.kind):
            tell(list(group))
        for check in checks:
            if check.measured is None:
                typer.echo(f"not checked: {check.kind} {check.part}, {check.law}: {check.note}")
        for check in misses:
            typer.echo(f"MISS: {check.kind} {check.part}, {check.law}: {value(check)}, {allowed(check)} ({check.note})")
        typer.echo(f"{len(checks)} checks, {len(misses)} missed, {seconds:.0f} s")
    if misses:
        raise typer.Exit(MISSED)


def tell(checks: list[Check]) -> None:
    """One kind's table: a row a part, a column a law, the bounds in the head where all rows share them."""
    laws = list(dict.fromkeys(check.law for check in checks))
    bounds = {law: {allowed(c) for c in checks if c.law == law and c.measured is not None} for law in laws}
    shared = {law: next(iter(found)) if len(found) == 1 else "" for law, found in bounds.items()}
    head = [checks[0].kind.replace("_", " "), *laws]
    under = ["", *(shared[law] for law in laws)]
    rows = []
    for part, group in groupby(checks, lambda check: check.part):
        found = {check.law: check for check in group}
        rows.append([part, *(cell(found.get(law), bare=bool(shared[law])) for law in laws)])
    missed = {check.part for check in checks if not check.passed}
    console = Console()
    if console.is_terminal:
        table = Table(box=SIMPLE_HEAD)
        for i, (title, bound) in enumerate(zip(head, under, strict=True)):
            table.add_column(f"{title}\n{bound}", justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(text, "bold red" if "MISS" in text else "") for text in marked(row, missed)))
        console.print(table)
        return
    lines = [head, under, *(marked(row, missed) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *others = line
        typer.echo("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip())
    typer.echo("")


def marked(row: list[str], missed: set[str]) -> list[str]:
    """A row whose part says that it missed."""
    return [f"MISS {row[0]}", *row[1:]] if row[0] in missed else row


def cell(check: Check | None, bare: bool) -> str:
    """The number of a check, its bounds unless the head has them, and whether it missed."""
    if check is None or check.measured is None:
        return "-"
    text = value(check) if bare else f"{value(check)} {allowed(check)}"
    return text if check.passed else f"{text} MISS"


def value(check: Check) -> str:
    """The measured number: counts whole, numbers near 1 with two decimals, the rest with two digits."""
    measured = check.measured
    assert measured is not None
    if not math.isfinite(measured):
        return str(measured)
    if measured == int(measured) and abs(measured) < 1e6:
        return str(int(measured))
    return f"{measured:.2f}" if 0.1 <= abs(measured) < 100.0 else f"{measured:.1e}"


def allowed(check: Check) -> str:
    """The bounds in words."""
    if check.low > 0.0:
        top = f" to {check.high:.3g}" if check.high < math.inf else ""
        return f"{'from ' if top else 'at least '}{check.low:.2g}{top}"
    return f"<= {check.high:.2g}" if check.high else "none" if isinstance(check.measured, int) else "exactly 0"
