"""benchmarks/gpu.py runs: what a GPU measures goes its way on the CPU, and without one it says so in a line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "no GPU is here: torch finds no CUDA device. To see that it runs: --device cpu --tiny\n"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    pytest.importorskip("diffusers")
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_those_that_are_compared_are_of_one_size(gpu: ModuleType) -> None:
    for makers in gpu.networks(32, False).values():
        with torch.device("meta"):
            size = {who: sum(part.numel() for part in make().parameters()) for who, make in makers.items()}
        assert 0.8 < size["ours"] / size["diffusers"] < 1.25


def test_every_network_is_trained_and_sampled_and_told(gpu: ModuleType) -> None:
    device, numbers = torch.device("cpu"), {"peak": 1e12, "correct": {"sound": "yes"}, "training": {}, "latency": {}}
    for name, makers in gpu.networks(8, True).items():
        found = {who: gpu.training(make(), 8, 2, 1, device, True) for who, make in makers.items()}
        assert 0.8 < found["ours"]["operations"] / found["diffusers"]["operations"] < 1.25
        numbers["training"][name] = found
        numbers["latency"][name] = gpu.latency(makers["ours"](), 8, 1, device, True)
    outcome = gpu.told(numbers, "a guess", 2)
    assert [len(table.rows) for table in outcome.tables] == [1, 4, 2]
