"""What a run tells: a record per step, and metrics.jsonl."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diff_diffusion.storage.folder import refusals, write_file


@dataclass(frozen=True)
class Record:
    """One optimizer step, or the news of a resumed run.

    Attributes:
        step: optimizer steps done, this one included.
        loss, grad_norm, lr: of this step; the norm is before clipping.
        images_per_second: over the last steps.
        eta_seconds: until the run ends; None when it cannot be told.
        held_out: held-out loss {"mean": …, "levels": [[λ, loss], …]} when it was measured at this step.
        saved: the checkpoint written at this step.
        data_wait: share of the time spent waiting for data.
        skipped: this step's loss or gradient was not finite, so nothing was changed.
        notes: things to tell the user.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    images_per_second: float
    eta_seconds: float | None
    held_out: dict[str, Any] | None = None
    saved: str | None = None
    data_wait: float = 0.0
    skipped: bool = False
    notes: tuple[str, ...] = field(default_factory=tuple)


class Journal:
    """metrics.jsonl of a run: one JSON object a line, with names as in `Record` and the seconds trained.

    What is None, empty or false is left out, and so are numbers that are not finite, which JSON does not have.

    Args:
        path: the file; lines of steps after `step`, which a resumed run does again, are taken out of it.

    Raises:
        CheckpointError: the disk refused.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        kept = "".join(line + "\n" for line in text.split("\n") if _step_of(line) <= step)
        if kept != text:
            write_file(path, kept.encode())

    def write(self, record: Record, seconds: float) -> None:
        row = asdict(record) | {"seconds": round(seconds, 3)}
        said = {key: value for key, value in row.items() if value is not None and value is not False and value != ()}
        with refusals(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(said), ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The same without numbers that are not finite: left out of tables, null in lists."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items() if not _broken(item)}
    if isinstance(value, list | tuple):
        return [None if _broken(item) else _finite(item) for item in value]
    return value


def _broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # damaged: of no step that is known to be done
