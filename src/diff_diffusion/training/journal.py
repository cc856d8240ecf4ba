"""What a run tells: a record per step, and metrics.jsonl."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


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

    Args:
        path: the file; lines of steps after `step`, which a resumed run does again, are taken out of it.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, record: Record, seconds: float) -> None:
        row = {key: value for key, value in asdict(record).items() if value not in (None, (), False)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"seconds": round(seconds, 3)}, ensure_ascii=False) + "\n")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # a line that a crash cut short belongs to a step that is done again
