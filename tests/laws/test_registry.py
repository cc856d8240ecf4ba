"""Laws of the registry: a description is a part and a part is a description; names are for ever."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from law_examples import Description, descriptions, kinds
from torch import nn

from diff_diffusion.registry import arguments, build, describe, names

GOLDEN = Path(__file__).parents[1] / "golden" / "registry_names.txt"
EVERY = [f"{kind}/{name}" for kind in kinds() for name in names(kind)]
DESCRIBED = [description for kind in kinds() for description in descriptions(kind)]


def test_every_registered_part_has_a_way_to_be_built() -> None:
    missing = sorted(set(EVERY) - {description["type"] for description in DESCRIBED})
    assert not missing, f"{missing} need arguments: add a row for each to EXAMPLES in tests/laws/law_examples.py"


def test_names_are_frozen() -> None:
    golden = GOLDEN.read_text(encoding="utf-8").split()
    assert golden == sorted(golden), f"sort {GOLDEN.name}"
    gone = sorted(set(golden) - set(EVERY))
    assert not gone, f"{gone} are in saved models: a registered name is never removed; keep it as an alias"
    new = sorted(set(EVERY) - set(golden))
    assert not new, f"new names {new}: add them to {GOLDEN.name}; they can never be removed after a release"


@pytest.mark.parametrize("description", DESCRIBED, ids=lambda d: d["type"])
def test_build_inverts_describe(description: Description) -> None:
    part = build(description)
    stored = json.loads(json.dumps(describe(part)))
    again = build(stored)
    assert type(again) is type(part)
    assert describe(again) == stored
    if not isinstance(part, nn.Module):
        assert again == part


@pytest.mark.parametrize("description", DESCRIBED, ids=lambda d: d["type"])
def test_what_was_asked_for_is_what_is_described(description: Description) -> None:
    """No argument is renamed, dropped or overwritten on its way through the constructor."""
    stored = describe(build(description))
    for name, value in description.items():
        assert name == "type" or contains(stored[name], value), name


def contains(stored: Any, asked: Any) -> bool:
    """Whether what was asked for is part of what is stored, which also has the defaults and the canonical name."""
    if not isinstance(asked, dict):
        return bool(stored == asked)
    return all(contains(stored.get(name), value) for name, value in asked.items() if name != "type")


@pytest.mark.parametrize("description", DESCRIBED, ids=lambda d: d["type"])
def test_stateless_parts_are_frozen(description: Description) -> None:
    part = build(description)
    if not isinstance(part, nn.Module):
        assert dataclasses.is_dataclass(part)
        first = next(iter(arguments(type(part))), "anything")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, first, None)
