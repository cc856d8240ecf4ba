"""What was found, used and skipped in a data set, and why: the same account at every start of a training."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diff_diffusion.errors import listed

NAMED = 20  # skipped files that lines() names; the JSON names them all


@dataclass
class DataReport:
    """The account of one data set.

    Args:
        name: the path or built-in name.
        found: how many image files there are, `used + held_out + skipped`.
        used: how many are trained on.
        held_out: how many the source itself keeps from training.
        shape: (C, H, W) of every item.
        size_why: why that height and width.
        channels_why: why that many channels.
        heights, widths: the smallest, median and largest of the images as they lie.
        modes: how many images there are of each pixel format, by Pillow's name.
        skipped: the names of the images that are not used, by reason.
        others: how many files of other types there are, by extension.
        classes: how many training images each class has; empty without classes.
        columns: what is known of the training images beside their class, in words; empty where nothing is.
        notes: what was understood or left alone.
        warnings: what may spoil a training.
        replaced: files that broke during training, and the reason; others take their place. Filled as it happens,
            in the process that reads them.
    """

    name: str
    found: int
    used: int
    held_out: int
    shape: tuple[int, int, int]
    size_why: str
    channels_why: str
    heights: tuple[int, float, int]
    widths: tuple[int, float, int]
    modes: dict[str, int]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The account as text, one row a line."""
        channels, height, width = self.shape
        rows = [("data", self.name), ("found", f"{self.found} images{_others(self.others)}")]
        held_out = f"{self.held_out} held out by the source" if self.held_out else "a share of them to be held out"
        rows.append(("used", f"{self.used} to train on, {held_out}"))
        rows.extend(("skipped", text) for text in skipped_lines(self.skipped, NAMED))
        rows.append(("sizes", f"height {_range(self.heights)}, width {_range(self.widths)}"))
        rows.append(("formats", _counts(self.modes)))
        rows.append(("size", f"{height}×{width} (height × width): {self.size_why}"))
        rows.append(("channels", f"{channels}: {self.channels_why}"))
        if self.classes:
            rows.append(("classes", f"{len(self.classes)}: {_counts(self.classes)}"))
        rows.extend(("columns", f"{name}: {text}") for name, text in self.columns.items())
        rows.extend(("note", note) for note in self.notes)
        rows.extend(("warning", warning) for warning in self.warnings)
        if self.replaced:
            broken = [f"{name} ({reason})" for name, reason in sorted(self.replaced.items())]
            rows.append(("replaced", f"{len(broken)} files broke during training: {listed(broken, NAMED)}"))
        # A label is shown once for the rows that share it.
        shown = [label if i == 0 or rows[i - 1][0] != label else "" for i, (label, _) in enumerate(rows)]
        return [f"{label:<10}{printable(text)}" for label, (_, text) in zip(shown, rows, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """The account as JSON data, every skipped file named."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


def skipped_lines(skipped: Mapping[str, list[str]], limit: int) -> list[str]:
    """How many files there are for each reason, and the names of the first `limit` of them all."""
    lines = []
    for reason, names in skipped.items():
        shown = list(itertools.islice(names, max(limit, 0)))
        limit -= len(shown)
        more = ", …" if 0 < len(shown) < len(names) else ""
        lines.append(f"{len(names)} {reason}" + (": " if shown else "") + ", ".join(shown) + more)
    return lines


def printable(name: str) -> str:
    """`name`, with what no terminal or JSON file can hold (bytes of a name that is not UTF-8) written as \\udc…."""
    return name.encode("utf-8", "backslashreplace").decode()


def short(value: object) -> str:
    """As much of a stranger's value as fits a line, with nothing in it that a terminal would obey."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:58]}…" + (shown[0] if isinstance(value, str) else "")


def _plain(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _others(others: Mapping[str, int]) -> str:
    kinds = listed(f"{count} {kind}" for kind, count in others.items())
    return f", {sum(others.values())} other files ({kinds})" if others else ""


def _counts(counts: Mapping[str, int]) -> str:
    return listed(f"{name} ({count})" for name, count in counts.items())


def _range(spread: tuple[int, float, int]) -> str:
    low, median, high = spread
    return f"{low}" if low == high else f"{low} to {high} (median {median:g})"
