"""What benchmarks/costs.py found, in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from costs import MEMORY, STARTS, median
from outcome import Outcome, Table, Target

IMPORT, HELP, WRITE = 1.15, 0.3, 1.3

SAID = """
*Starts.* Fresh interpreters in turn; seconds of the processor, user and system, and for `--help` of the clock. The
public names are imported when first used, so that the bare `import` is the price of nothing but a name: what a program
pays is in the rows of a model and of every name.

*Checkpoints.* A folder as training writes it: raw and averaged weights, both moments of AdamW, the sha256 of every file
in its manifest, each file and the folder synced, then renamed. Beside it the same tensors by safetensors' `save_file`
and an fsync, without hashes; in turn, by the clock.

*Memory.* Three training steps in fresh processes: the resident memory at its peak, less what was resident when all was
imported. Random images of 32 × 32 in batches of 16 through the peer's own network, by its trainer at its defaults
and by `train` at ours; diffusers' with averaged weights, as the command of its example has it.
""".strip()


def told(parts: Mapping[str, Any]) -> Outcome:
    tables, targets = zip(
        _starts(parts["import"]), _checkpoints(parts["checkpoint"]), _memory(parts["memory"]), strict=True
    )
    return Outcome(
        name="costs",
        title="Starts, checkpoints and memory",
        command="python benchmarks/costs.py",
        said=SAID,
        tables=tables,
        targets=[target for group in targets for target in group],
        numbers=parts,
        notes=[
            "Memory of the peer's data loading processes is not counted.",
            "denoising-diffusion-pytorch and diffusers train in fp32 unless told otherwise; ours chooses bf16 where it "
            'measures faster, and the row "fp32" is ours told not to.',
        ],
    )


def _starts(found: Mapping[str, Any]) -> tuple[Table, list[Target]]:
    rows, ratios = [], {}
    for name in STARTS:
        used, took = ([each[i] for each in found[name]] for i in (0, 1))
        ratios[name] = median([a / b[0] for a, b in zip(used, found["torch"], strict=True)])
        spread = f"{median(used):.3f} ({min(used):.3f} to {max(used):.3f})"
        rows.append(
            (
                f"`{STARTS[name]}`" if name != "--help" else "`--help`",
                spread,
                f"{median(took):.3f}",
                f"{ratios[name]:.2f}",
            )
        )
    table = Table(
        f"Starts, medians of {len(found['torch'])}",
        ("of a fresh interpreter", "s of the processor", "s", "by torch's"),
        rows,
    )
    heavy = (
        "pydantic, which checks settings, is a third of what comes on top of torch"
        if ratios["every name"] > IMPORT
        else ""
    )
    targets = [
        Target("`import diff_diffusion`, by `import torch`", ratios["diff_diffusion"], IMPORT, at_least=False),
        Target("importing `DiffusionModel`, by `import torch`", ratios["a model"], IMPORT, at_least=False),
        Target(
            "importing every public name, by `import torch`", ratios["every name"], IMPORT, at_least=False, why=heavy
        ),
        Target("`diff-diffusion --help`, s", median([each[1] for each in found["--help"]]), HELP, at_least=False),
    ]
    return table, targets


def _checkpoints(found: Mapping[str, Any]) -> tuple[Table, list[Target]]:
    seconds = found["seconds"]
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["bare"], strict=True)]
    rows = [
        (what, f"{median(seconds[name]):.2f} ({min(seconds[name]):.2f} to {max(seconds[name]):.2f})")
        for name, what in (("ours", "a checkpoint"), ("bare", "`save_file` and fsync"))
    ]
    title = f"{found['parameters'] / 1e6:.0f} M parameters, {found['bytes'] / 2**20:.0f} MiB, medians of {len(ratios)}"
    why = (
        "every number is looked at first, and the sha256 of all bytes runs beside the writing, through the same memory"
    )
    target = Target(
        "a checkpoint, by a bare write of the same", statistics.median(ratios), WRITE, at_least=False, why=why
    )
    return Table(title, ("write", "s"), rows), [target]


def _memory(found: Mapping[str, Any]) -> tuple[Table, list[Target]]:
    rows, targets = [], []
    for peer, names in MEMORY.items():
        taken = {name: median([each["taken"] for each in found[name]]) for name in names}
        for name, what in zip(names, ("its trainer", "`train`", "`train`, fp32"), strict=True):
            peak, imported = (median([each[key] for each in found[name]]) for key in ("peak", "imported"))
            rows.append((peer, what, f"{peak:.0f}", f"{imported:.0f}", f"{taken[name]:.0f}"))
        share = taken[names[1]] / taken[names[0]]
        spread = max(each["taken"] for each in found[names[1]]) - min(each["taken"] for each in found[names[1]])
        apart = taken[names[1]] - taken[names[0]]
        why = f"{apart:.0f} MiB more, and ours differ by {spread:.0f} from run to run" if apart > 0 else ""
        targets.append(Target(f"memory of a training step, by {peer}", share, 1.0, at_least=False, why=why))
    columns = ("network", "loop", "peak, MiB", "of it imported", "taken")
    return Table("Memory of training", columns, rows), targets
