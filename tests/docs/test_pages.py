"""Every Python block of README and docs runs, in order, one namespace a page; and the docstrings' examples."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import diff_diffusion
from diff_diffusion import registry
from diff_diffusion.core import targets

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def own_parts(monkeypatch):
    """Parts that a page adds are gone after it: other tests of this process go by the registry."""
    monkeypatch.setattr(targets, "ROWS", dict(targets.ROWS))
    yield
    for table in (registry._parts, registry._names):
        for key, value in list(table.items()):
            cls = key if isinstance(key, type) else value[0]
            if cls.__module__ == "__page__":
                del table[key]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, tmp_path, monkeypatch, own_parts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(page), "exec", dont_inherit=True), namespace)


MODULES = sorted(module.name for module in pkgutil.walk_packages(diff_diffusion.__path__, "diff_diffusion."))


def test_a_pages_parts_stay_on_their_page():
    assert not [cls for cls in registry._names if cls.__module__ == "__page__"]
    assert "half_edm" not in targets.ROWS


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    if name.endswith("__main__"):
        pytest.skip("runs the command line")
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_readmes_say_the_same():
    """Same headings in number, same commands and code, same pictures."""
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    for pattern in (r"^#+ ", r"^```\w*$", r"!\[[^]]*\]\(([^)]*)\)", r"^\|"):
        assert len(re.findall(pattern, english, re.MULTILINE)) == len(re.findall(pattern, chinese, re.MULTILINE)), (
            pattern
        )
    code = [re.sub(r"#.*", "", block) for block in re.findall(r"```\w+\n(.*?)```", english, re.DOTALL)]
    code_zh = [re.sub(r"#.*", "", block) for block in re.findall(r"```\w+\n(.*?)```", chinese, re.DOTALL)]
    assert [c.split() for c in code] == [c.split() for c in code_zh]
