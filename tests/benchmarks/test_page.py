"""docs/benchmarks.md is what the committed results say, figure by figure."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_written_from_the_results(writer: ModuleType) -> None:
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(writer.outcomes()), "run benchmarks/page.py"


def test_every_command_runs_a_script_that_is_there(writer: ModuleType) -> None:
    for told in writer.outcomes():
        scripts = [word for word in shlex.split(told["command"]) if word.endswith((".py", ".sh"))]
        assert scripts, told["command"]
        assert all((ROOT / script).is_file() for script in scripts), told["command"]


def test_a_miss_is_named_with_its_reason_in_the_summary_and_its_section(writer: ModuleType) -> None:
    targets = [
        {"what": "快", "measured": 2.0, "wanted": 1.5, "at_least": True, "why": ""},
        {"what": "small", "measured": 2.0, "wanted": 1.5, "at_least": False, "why": "磁盘慢"},
    ]
    machine = {"cpu": "a cpu", "cores": 2, "threads": 1, "instructions": []}
    told = {"name": "x", "title": "标题", "command": "python x.py", "said": "What was done.", "tables": [], "notes": []}
    written = writer.page([told | {"targets": targets, "machine": machine, "versions": {"torch": "2"}}])
    assert "| 标题 | 快 | ≥ 1.5 | 2 | met |" in written
    assert "| 标题 | small | ≤ 1.5 | 2 | **missed**: 磁盘慢 |" in written
    assert written.count("**missed**: 磁盘慢") == 2
    assert "*Measured by* `python x.py` *on* a cpu; 2 cores; 1 threads; torch 2." in written
