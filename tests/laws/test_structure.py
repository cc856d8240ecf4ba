"""Laws of structure: layers, a light import, sorted public names, and nothing that could run a stranger's file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diff_diffusion

SRC = Path(diff_diffusion.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
PACKAGES = sorted(path for path in FILES if path.name == "__init__.py")

# DESIGN section 3. A file imports its own part and the rows before its own; parts of one row never import each other,
# but for the ground, which is one part. What is not named here is a door: it may import anything, and nothing it.
GROUND = {"_version", "errors", "registry", "rng", "tensors", "cond"}
ROWS: list[set[str]] = [
    GROUND,
    {"core"},
    {"conditions", "networks", "codecs", "samplers", "guidance", "objectives", "data", "storage"},
    {"presets", "pictures"},
    {"sizing"},
    {"models"},
    {"editing", "training", "tuning", "evaluation", "safety", "verification"},
]
NARROW = {"storage": GROUND, "data": GROUND | {"core"}}  # parts that know less than their row may


def row_of(part: str) -> int:
    return next((i for i, row in enumerate(ROWS) if part in row), len(ROWS))


def may_import(part: str, other: str) -> bool:
    if part == "__main__":  # a door to a door
        return other == "cli"
    if part == other or (part in GROUND and other in GROUND):
        return True
    return row_of(other) < row_of(part) and other in NARROW.get(part, {other})


def part_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; `from a import b` gives both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def found(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("path", [p for p in FILES if p != SRC / "__init__.py"], ids=lambda p: str(p.relative_to(SRC)))
def test_a_file_imports_its_own_part_and_lower_rows_only(path: Path) -> None:
    part = part_of(path)
    for line, name in imports(found(path)):
        names = name.split(".")
        if names[0] == "diff_diffusion" and len(names) > 1:
            other = "_version" if names[1] == "__version__" else names[1]
            # A public name of the package itself is a row the rule cannot see: import it from where it lives.
            assert (SRC / other).is_dir() or (SRC / f"{other}.py").exists(), f"{path.name}:{line}: {name}"
            assert may_import(part, other), f"{path.relative_to(SRC)}:{line}: {part} must not import {other}"


def test_the_import_rule_can_say_no() -> None:
    assert may_import("samplers", "core")
    assert may_import("models", "storage")
    assert may_import("cli", "training")
    assert may_import("rng", "errors")
    for part, other in [
        ("core", "samplers"),
        ("samplers", "guidance"),
        ("storage", "core"),
        ("data", "objectives"),
        ("presets", "models"),
        ("models", "training"),
        ("errors", "core"),
        ("training", "cli"),
        ("evaluation", "training"),
    ]:
        assert not may_import(part, other), (part, other)


def test_every_part_has_its_row_or_is_a_door() -> None:
    doors = {"cli", "serving", "utils", "__init__", "__main__"}
    strangers = {part_of(path) for path in FILES} - set().union(*ROWS) - doors
    assert not strangers, f"give {sorted(strangers)} a row in ROWS, or name them doors"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_here_can_run_a_file(path: Path) -> None:
    """No pickle in any dress, no torch.load, no eval; torch.distributed only where training starts."""
    banned = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    tree = found(path)
    where = path.relative_to(SRC)
    for line, name in imports(tree):
        assert name.split(".")[0] not in banned, f"{where}:{line}: {name}"
        assert name not in ("torch.load", "torch.save"), f"{where}:{line}: {name}"
        if name.startswith("torch.distributed"):
            assert str(where) == "training/runtime.py", f"{where}:{line}: only training/runtime.py knows {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted = f"{node.value.id}.{node.attr}"
            assert dotted not in ("torch.load", "torch.save", "torch.jit"), f"{where}:{node.lineno}: {dotted}"
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in ("eval", "exec", "compile", "__import__"), f"{where}:{node.lineno}: {called}"
            pickled = [k for k in node.keywords if k.arg == "allow_pickle" and getattr(k.value, "value", True)]
            assert not pickled, f"{where}:{node.lineno}: allow_pickle"


@pytest.mark.parametrize("path", PACKAGES, ids=lambda p: str(p.relative_to(SRC)))
def test_public_names_are_sorted_and_there(path: Path) -> None:
    module = __import__(".".join(["diff_diffusion", *path.parent.relative_to(SRC).parts]), fromlist=["__all__"])
    public = getattr(module, "__all__", [])
    assert list(public) == sorted(public)
    assert len(set(public)) == len(public)
    missing = [name for name in public if not hasattr(module, name)]
    assert not missing, missing


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.read_text(encoding="utf-8").strip()], ids=lambda p: str(p.relative_to(SRC))
)
def test_every_module_says_what_it_is(path: Path) -> None:
    if path.name not in ("_version.py", "__main__.py"):
        assert ast.get_docstring(found(path)), path


HEAVY = (
    "torch",
    "numpy",
    "PIL",
    "torchvision",
    "transformers",
    "sklearn",
    "matplotlib",
    "pydantic",
    "typer",
    "safetensors",
)


def test_importing_the_package_costs_nothing() -> None:
    code = f"import sys, diff_diffusion; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert run(code) == ""


def test_importing_leaves_the_collecting_of_garbage_as_it_was() -> None:
    code = (
        "import gc, diff_diffusion as d; d.Noise; print(gc.isenabled()); gc.disable(); d.train; print(gc.isenabled())"
    )
    assert run(code).split() == ["True", "False"]


def test_the_core_needs_no_optional_package() -> None:
    """What samples and trains needs torch and numpy; pictures, plots and downloads come when asked for."""
    code = (
        "import sys, diff_diffusion.registry as r; r.names('sampler'); import diff_diffusion.presets\n"
        "heavy = ('PIL', 'torchvision', 'transformers', 'sklearn', 'scipy', 'matplotlib', 'typer', 'requests')\n"
        "print(*[name for name in heavy if name in sys.modules])"
    )
    assert run(code) == ""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
