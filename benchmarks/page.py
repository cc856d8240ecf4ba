"""Writes docs/benchmarks.md from results/*.json, so that no figure in it is typed by hand.

python benchmarks/page.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from outcome import RESULTS, Target, grid, markdown

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
ORDER = (
    *("training_step", "time_to_quality", "sampling_speed", "step_overhead", "costs", "scaling", "gpu"),
    *("generators", "latents", "copies", "presets", "sampler_choice", "guidance", "editing", "augmentation"),
)
"""Sections in this order; others after them, by name."""
OUTCOME = {"name", "title", "command", "said", "tables", "targets", "notes", "machine", "versions"}

HEAD = """
# Benchmarks

Written by `make bench` from the files in `benchmarks/results`, which hold every single measurement. What was wanted
stands beside what was found, and what is missed is said with its reason as far as that is known. Figures without a unit
are ratios, shares and counts.
""".strip()


def outcomes(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The files that are outcomes, in the page's order."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    told = [each for each in found if isinstance(each, dict) and each.keys() >= OUTCOME]
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(told, key=lambda each: (place.get(each["name"], len(ORDER)), each["name"]))


def page(told: list[dict[str, Any]]) -> str:
    facts = [_facts(each) for each in told]
    usual = _usual(facts)
    blocks = [HEAD, *_summary(told)]
    missing = [f"`{name}`" for name in ORDER if name not in {each["name"] for each in told}]
    if missing:
        blocks.append(f"Without a result so far: {', '.join(missing)}.")
    if usual:
        blocks.append(f"Machine and versions, where a section does not say otherwise: {_words(usual)}.")
    for each, found in zip(told, facts, strict=True):
        own = _words({key: fact for key, fact in found.items() if usual.get(key) != fact})
        on = f" *on* {own}" if own else ""
        blocks += [f"## {each['title']}", *markdown(each), f"*Measured by* `{each['command']}`{on}."]
    return "\n\n".join(blocks) + "\n"


def _summary(told: list[dict[str, Any]]) -> list[str]:
    targets = [(each["title"], Target(**values)) for each in told for values in each["targets"]]
    if not targets:
        return []
    met = sum(target.met for _, target in targets)
    rows = [(title, *target.cells) for title, target in targets]
    return [
        f"Targets met: {met} of {len(targets)}.",
        grid(("benchmark", "target", "wanted", "measured", ""), rows),
    ]


def _facts(each: Mapping[str, Any]) -> dict[str, str]:
    """The machine and the versions, each in words; empty where unknown."""
    machine = each["machine"]
    found = {"cpu": machine.get("cpu", "")}
    for key in ("cores", "threads"):
        count = machine.get(key, 0)
        found[key] = f"{count} {key if count > 1 else key[:-1]}" if count else ""
    found |= {"instructions": ", ".join(machine.get("instructions", ())), "gpu": machine.get("gpu", "")}
    return found | {name: f"{name} {version}" for name, version in each["versions"].items()}


def _usual(facts: list[dict[str, str]]) -> dict[str, str]:
    """What more sections share than anything else, to be said only once; threads and GPUs are each section's own."""
    found = {}
    for key in dict.fromkeys(key for each in facts for key in each if key not in ("threads", "gpu")):
        fact, times = Counter(each.get(key, "") for each in facts).most_common(1)[0]
        if fact and times > 1:
            found[key] = fact
    return found


def _words(facts: Mapping[str, str]) -> str:
    return "; ".join(fact for fact in facts.values() if fact)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(outcomes()), encoding="utf-8")
    print(PAGE.name)


if __name__ == "__main__":
    main()
