"""The page that compares generators has the figures of the benchmark's file, and its table orders what it should."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def told(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("generators_told", BENCHMARKS / "generators_told.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generators_told", module)
    spec.loader.exec_module(module)
    return module


def training(name: str, seed: int, fd: float, recall: float = 0.5, classes: tuple[float, ...] = (0.1,) * 10) -> dict:
    numbers = {"FD": fd, "precision": 0.7, "recall": recall, "coverage": 0.8, "spread": 0.9, "classes": list(classes)}
    drawn = [{"evaluations": 32 if name == "ours" else 1, "ms": 60.0 if name == "ours" else 0.2, **numbers}]
    sizes = {"steps": 500, "images seen": 32000, "parameters": 720000, "of the generator": 300000}
    return {"asked": {"contestant": name, "seed": seed, "lr": 1e-3}, "diverged": False, **sizes, "drawn": drawn}


def test_the_page_has_the_files_figures(told):
    file = BENCHMARKS / "results" / "generators.json"
    if not file.exists():
        pytest.skip("not measured yet")
    page = told.PAGE.read_text(encoding="utf-8")
    assert told.block(json.loads(file.read_text(encoding="utf-8"))) in page


def test_the_page_has_its_marks(told):
    page = told.PAGE.read_text(encoding="utf-8")
    assert [page.count(mark) for mark in told.MARKS] == [1, 1]


def test_an_order_says_where_seeds_overlap(told):
    parts = [training("ours", 0, 20.0), training("ours", 1, 25.0), training("gan", 0, 24.0), training("gan", 1, 30.0)]
    parts += [training("vae", 0, 31.0), training("vae", 1, 32.0)]
    assert told.ordered(parts, "FD", higher=False) == "diffusion ≈ GAN > VAE"
    assert told.ordered(parts, "FD", higher=True) == "VAE > GAN ≈ diffusion"


def test_what_failed_is_counted_and_not_averaged(told):
    gone = training("gan", 0, 24.0, classes=(0.19, 0.01, *(0.1,) * 8))
    lost = training("gan", 1, 0.0) | {"diverged": True, "drawn": []}
    parts = [training("ours", 0, 20.0), gone, lost, training("vae", 0, 30.0)]
    assert told.missing(gone["drawn"][0]) == [1]
    assert (told.collapsed(gone), told.collapsed(lost), told.collapsed(parts[0])) == (True, False, False)
    assert told.values(parts, "gan", "FD") == [24.0]
    stable = told.articles(parts).rows[1]
    assert stable[2].startswith("1 of 2 diverged, 1 collapsed")
    assert [row[-2:] for row in told.seeds(parts).rows] == [("no", "no"), ("no", "yes"), ("yes", "no"), ("no", "no")]
    assert told.rates([gone, lost | {"asked": {**lost["asked"], "lr": 0.003}}, *parts[::3]]).rows[1][1] == (
        "**0.001: 24.0**; 0.003: diverged"
    )
