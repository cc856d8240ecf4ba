"""The example programs run as a user would run them, at small size."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    words = (sys.executable, *words)
    return subprocess.run(
        [str(w) for w in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_articles_program(tmp_path):
    from sklearn.datasets import load_digits

    digits = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    for split, rows in (("train", range(40)), ("val", range(40, 50))):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in rows:
            Image.fromarray(digits[i]).save(tmp_path / "data" / split / f"{i}.png")
    program = ROOT / "examples" / "articles" / "diff_diffusion_library.py"
    done = run(program, "data", "--steps", 12, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 12: loss" in done.stdout
    assert (tmp_path / "out" / "checkpoint_12" / "model.safetensors").exists()
    assert Image.open(tmp_path / "out" / "sample.png").size[0] > 100


def test_the_demo(tmp_path):
    done = run(ROOT / "examples" / "digits.py", "--out", "demo", "--minutes", "0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("samples.png", "process.png", "curve.png", "scores.json", "run/config.json"):
        assert (tmp_path / "demo" / name).exists(), name
    assert "agreement with the asked label" in done.stdout
    assert "real against real" in done.stdout
    rate = re.search(r"steps in \d+ s, ([\d,]+) images/s", done.stdout)
    assert rate is not None
    assert int(rate[1].replace(",", "")) > 0
