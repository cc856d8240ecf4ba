"""What a benchmark says, in one shape: `results/NAME.json`, from which `page.py` writes docs/benchmarks.md."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Target:
    """One promise and what was measured of it.

    Attributes:
        what: of which number, in words.
        measured: the number.
        wanted: its bound.
        at_least: whether the bound is from below.
        why: of a miss, its reason as far as it is known.
    """

    what: str
    measured: float
    wanted: float
    at_least: bool = True
    why: str = ""

    @property
    def met(self) -> bool:
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """What, wanted, measured and met, as words of a table's row."""
        missed = f"**missed**{': ' + self.why if self.why else ''}"
        wanted = f"{'≥' if self.at_least else '≤'} {self.wanted:g}"
        return self.what, wanted, f"{self.measured:.3g}", "met" if self.met else missed


@dataclass(frozen=True)
class Table:
    """A title, names of columns, and rows of ready words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Outcome:
    """A benchmark's result.

    Attributes:
        name: the script's, and the file's.
        title: a heading.
        command: that measures it again, from the project's root.
        said: what was done and how, a paragraph or more.
        tables, targets: for people.
        numbers: for programs, and for those who doubt the tables: every single measurement.
        notes: what to know of the numbers, a line each.
    """

    name: str
    title: str
    command: str
    said: str
    tables: Sequence[Table]
    targets: Sequence[Target] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def write(self, peers: Sequence[str] = ()) -> Path:
        """The file, with this machine and the versions of `peers` in it; printed as well."""
        print("\n\n".join(markdown(asdict(self))), flush=True)
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        told = asdict(self) | {"machine": machine(), "versions": versions(peers)}
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    found: dict[str, Any] = {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags],
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions(peers: Sequence[str] = ()) -> dict[str, str]:
    return {name: metadata.version(name) for name in ("diff-diffusion", "torch", "numpy", *peers)}


def interleaved(
    walks: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float] = time.process_time, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of each walk in each turn; they take turns, so that a slow spell of the machine hits all alike.

    The clock is the processor time of the process, so that waiting for a core that is shared counts for nothing; for
    what runs on several threads or another device, give `time.perf_counter` and a machine of one's own.
    """
    found: dict[str, list[float]] = {name: [] for name in walks}
    for turn in range(turns + warm):
        for name, walk in walks.items():
            began = clock()
            walk()
            if turn >= warm:
                found[name].append(clock() - began)
    return found


def ratio(found: Mapping[str, Sequence[float]], of: str, to: str) -> tuple[float, float, float]:
    """The median over turns of one walk's time by another's, with its lowest and highest."""
    each = [a / b for a, b in zip(found[of], found[to], strict=True)]
    return statistics.median(each), min(each), max(each)


def markdown(told: Mapping[str, Any]) -> list[str]:
    """Blocks of Markdown: what was done, the tables, the targets, the notes."""
    blocks = [told["said"]]
    for table in told["tables"]:
        blocks += [f"**{table['title']}**", grid(table["columns"], table["rows"])]
    if told["targets"]:
        blocks.append(grid(("target", "wanted", "measured", ""), [Target(**each).cells for each in told["targets"]]))
    if told["notes"]:
        blocks.append("\n".join(f"- {note}" for note in told["notes"]))
    return blocks


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
