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
    assert "*Measured by* `python x.py` *on* a cpu; 2 cores; 1 thread; torch 2." in written


def test_what_most_share_is_said_once_and_the_rest_where_it_is_so(writer: ModuleType) -> None:
    told = {"title": "标题", "command": "python x.py", "said": "", "tables": [], "targets": [], "notes": []}
    machine = {"cpu": "a cpu", "cores": 2, "instructions": ["avx2"]}
    of = {
        "gpu": (machine | {"threads": 1, "gpu": "a gpu"}, {"torch": "2", "peer": "7"}),
        "costs": (machine | {"threads": 1}, {"torch": "2", "peer": "7"}),
        "copies": (machine | {"cpu": "another"}, {"torch": "3"}),
        "presets": ({}, {}),
        "scaling": (machine | {"threads": 1}, {"torch": "2"}),
    }
    written = writer.page([told | {"name": name, "machine": on, "versions": has} for name, (on, has) in of.items()])
    head, *sections = written.split("## 标题")
    assert "otherwise: a cpu; 2 cores; avx2; torch 2." in head
    ends = [section.partition("*Measured by* `python x.py`")[2].strip() for section in sections]
    assert ends == [
        "*on* 1 thread; a gpu; peer 7.",
        "*on* 1 thread; peer 7.",
        "*on* another; torch 3.",
        ".",
        "*on* 1 thread.",
    ]
    missing = head.partition("Without a result so far: ")[2].partition(".")[0]
    assert missing == ", ".join(f"`{name}`" for name in writer.ORDER if name not in of)


def test_the_page_says_how_many_targets_are_met(writer: ModuleType) -> None:
    machine = {"cpu": "a cpu", "cores": 2, "threads": 1, "instructions": []}
    told = {"title": "", "command": "", "said": "", "tables": [], "notes": [], "machine": machine, "versions": {}}
    targets = [
        {"what": "", "measured": measured, "wanted": 2.0, "at_least": at_least, "why": ""}
        for measured, at_least in ((1.0, True), (1.0, False), (2.0, True), (2.0, False))
    ]
    each = [told | {"name": str(number), "targets": targets[:number]} for number in (0, 3, 4)]
    assert "Targets met: 5 of 7." in writer.page(each)
    assert "Targets met" not in writer.page(each[:1])


def test_makefile_and_readme_name_what_the_page_tells(writer: ModuleType) -> None:
    makefile, readme = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", Path("benchmarks", "README.md"))
    )
    scripts = ["gpu.sh" if name == "gpu" else f"{name}.py" for name in writer.ORDER]
    assert all((ROOT / "benchmarks" / script).is_file() for script in scripts)
    assert [script for script in scripts if f"benchmarks/{script}" not in makefile] == []
    assert [line.split("`")[1] for line in readme.splitlines() if line.startswith("- ")] == scripts
