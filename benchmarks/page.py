"""Writes docs/benchmarks.md from results/*.json, so that no figure in it is typed by hand.

python benchmarks/page.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from outcome import RESULTS, Target, markdown

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
ORDER = (
    *("training_step", "time_to_quality", "sampling_speed", "step_overhead", "costs", "scaling", "gpu"),
    *("generators", "copies", "presets", "sampler_choice", "guidance", "editing", "augmentation"),
)
"""Sections in this order; others after them, by name."""
OUTCOME = {"name", "title", "command", "said", "tables", "targets", "notes", "machine", "versions"}

HEAD = """
# Benchmarks

Written by `make bench` from the files in `benchmarks/results`, which hold every single measurement. What was wanted
stands beside what was found, and what is missed is said with its reason as far as that is known.
""".strip()


def outcomes(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The files that are outcomes, in the page's order."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    told = [each for each in found if isinstance(each, dict) and each.keys() >= OUTCOME]
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(told, key=lambda each: (place.get(each["name"], len(ORDER)), each["name"]))


def page(told: list[dict[str, Any]]) -> str:
    blocks = [HEAD, *_summary(told)]
    for each in told:
        blocks += [f"## {each['title']}", *markdown(each), _measured_on(each)]
    return "\n\n".join(blocks) + "\n"


def _summary(told: list[dict[str, Any]]) -> list[str]:
    rows = []
    for each in told:
        for values in each["targets"]:
            target = Target(**{name: values[name] for name in Target.__dataclass_fields__})
            sign = "≥" if target.at_least else "≤"
            end = "met" if target.met else f"**missed**{': ' + target.why if target.why else ''}"
            rows.append(
                f"| {each['title']} | {target.what} | {sign} {target.wanted:g} | {target.measured:.3g} | {end} |"
            )
    return (
        ["\n".join(["| benchmark | target | wanted | measured | |", "| --- | --- | --- | --- | --- |", *rows])]
        if rows
        else []
    )


def _measured_on(each: dict[str, Any]) -> str:
    machine = each["machine"]
    told = [machine["cpu"], f"{machine['cores']} cores", f"{machine['threads']} threads"]
    told += [", ".join(machine["instructions"])] if machine["instructions"] else []
    told += [machine["gpu"]] if "gpu" in machine else []
    versions = ", ".join(f"{name} {version}" for name, version in each["versions"].items())
    return f"*Measured by* `{each['command']}` *on* {'; '.join(told)}; {versions}."


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(outcomes()), encoding="utf-8")
    print(PAGE.name)


if __name__ == "__main__":
    main()
