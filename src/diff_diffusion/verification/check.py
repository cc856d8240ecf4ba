"""What a check is: a number that was measured, and where a right implementation has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One measured number and its bounds.

    Args:
        kind: "sampler", "time_map", …: the registry's kinds, and "run" for a trained model.
        part: which one, by its registered name, aliases in brackets.
        law: what was measured, in a word or two: the column of the table.
        measured: the number; None when the law cannot be asked of this part, and `note` says why.
        high, low: where it must lie, ends included; nan lies nowhere.
        note: what else a reader of a miss wants to know.
    """

    kind: str
    part: str
    law: str
    measured: float | None
    high: float
    low: float = 0.0
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.measured is None or self.low <= self.measured <= self.high

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that JSON cannot say (nan, infinity) as its name."""
        values = asdict(self) | {"passed": self.passed}
        return {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }


@dataclass(frozen=True)
class Job:
    """The checks of one part, to be run when asked."""

    kind: str
    part: str
    work: Callable[[], Iterable[Check]]

    def run(self) -> list[Check]:
        """Its checks. A part that raises has missed: the error is the note."""
        found: list[Check] = []
        try:
            for check in self.work():
                found.append(check)  # noqa: PERF402 - those before an error count
        except Exception as error:
            found.append(Check(self.kind, self.part, "runs", math.nan, 0.0, 0.0, f"{type(error).__name__}: {error}"))
        return found
