"""`data inspect`, `info`, `explain`, `likelihood` and `doctor`: commands that look and change nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer

from diff_diffusion import __version__
from diff_diffusion.cli.asked import asked
from diff_diffusion.cli.config import parse_size
from diff_diffusion.cli.console import count_progress
from diff_diffusion.cli.sample import load
from diff_diffusion.cli.train import chosen
from diff_diffusion.data import load_image_dataset
from diff_diffusion.data.images import read_image
from diff_diffusion.errors import ConfigError, DataError
from diff_diffusion.evaluation.records import FOLDER, read_records
from diff_diffusion.models import Model
from diff_diffusion.registry import describe
from diff_diffusion.training.runtime import choose_device, has_bf16


def inspect(data: str, size: str | None, as_json: bool) -> None:
    images = load_image_dataset(data, size=parse_size(size), progress=count_progress("reading images"))
    if as_json:
        typer.echo(json.dumps(images.report.to_json(), ensure_ascii=False, indent=2))
    else:
        for line in images.report.lines():
            typer.echo(line)


def info(run: Path, as_json: bool) -> None:
    model = Model.load(run)
    fingerprint = model.fingerprint()
    found = evaluated(run, fingerprint)
    if as_json:
        about = {"fingerprint": fingerprint, "facts": model.facts, "evaluation": found, "model": describe(model)}
        typer.echo(json.dumps(about, ensure_ascii=False, indent=2))
        return
    for line in chosen(model):
        typer.echo(line)
    typer.echo(f"fingerprint: {fingerprint}")
    rows(model.facts)
    for name, number in found.items():
        low, high = number["interval"]
        floor = f"real images {number['floor']:.4g}"
        typer.echo(f"{name}: {number['value']:.4g} (95 %: {low:.4g} to {high:.4g}; {floor})")


def evaluated(run: Path, fingerprint: str) -> dict[str, dict[str, Any]]:
    """The numbers of an evaluation in a run that is of these very weights, by name; none of any other."""
    try:
        records = read_records(run / FOLDER)
    except DataError:
        return {}
    told = {record.name: record for record in records if record.setting.model == fingerprint}
    return {name: {"value": r.value, "interval": r.interval, "floor": r.floor} for name, r in told.items()}


def rows(table: Mapping[str, Any]) -> None:
    """A mapping as aligned lines."""
    width = max((len(key) for key in table), default=0)
    for key, value in table.items():
        typer.echo(f"{key:<{width}}  {f'{value:.5g}' if isinstance(value, float) else value}")


def explain(run: Path, out: Path | None, image: Path | None, label: str | None, prompt: str | None, seed: int) -> None:
    from diff_diffusion.evaluation.figures import process_figure

    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a folder; it must be the file to write")
    model = load(run, "ema")
    picture = None
    if image is not None:
        channels, height, width = model.codec.data.shape
        picture = torch.from_numpy(read_image(image, (channels, height, width)))
    target = out or run / "process.png"
    process_figure(model, target, image=picture, cond=asked(model, label, prompt, []), seed=seed)
    typer.echo(f"{target}: forward noising above, reverse denoising and the guess x̂_0 below")


def likelihood(
    run: Path, data: str, num: int, method: str, values: int, weights: str, seed: int, as_json: bool
) -> None:
    from diff_diffusion.evaluation.likelihood import bits_per_dim

    model = load(run, weights)
    _, height, width = model.codec.data.shape
    images = load_image_dataset(data, size=(height, width), channels=model.codec.data.shape[0])
    found = bits_per_dim(
        model,
        images.split()[1],
        method=method,
        num=num,
        values=values,
        seed=seed,
        progress=count_progress("measuring"),
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    error = "" if found.error is None else f" ± {found.error:.3f}"
    typer.echo(
        f"{found.bits:.3f}{error} bits per dimension ({found.method}, {found.n} held-out images, "
        f"{found.values} values, {weights} weights)"
    )
    if found.parts is not None:
        rows({f"{name}, bits": value for name, value in found.parts.items()})


EXTRAS = {"demo": ("sklearn", "matplotlib"), "onnx": ("onnxruntime",), "eval": ("torchmetrics", "torch_fidelity")}


def doctor(as_json: bool) -> None:
    device = choose_device()
    names = ("torch", "numpy", "safetensors", "Pillow", "pydantic", "typer", "rich", "PyYAML")
    about: dict[str, Any] = {
        "diff-diffusion": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: importlib.metadata.version(name) for name in names},
        "device": str(device)
        if device.type == "cpu"
        else f"{device} ({torch.cuda.get_device_name()})"
        if device.type == "cuda"
        else str(device),
        "threads": torch.get_num_threads(),
        "bf16 instructions": has_bf16(device),
        "bf16 matrix speed": f"{_bf16_ratio(device):.2f} × fp32",
        "free disk": f"{shutil.disk_usage('.').free / 2**30:.1f} GiB",
    }
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        about[f"extra [{extra}]"] = f"missing: pip install 'diff-diffusion[{extra}]'" if missing else "installed"
    if as_json:
        typer.echo(json.dumps(about, ensure_ascii=False, indent=2))
    else:
        rows(about)


def _bf16_ratio(device: torch.device) -> float:
    """How much faster a 512 × 512 matrix product is in bf16, best of five."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype, device=device)
        spent = []
        for _ in range(6):
            start = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - start)
        best[dtype] = min(spent[1:])
    return best[torch.float32] / best[torch.bfloat16]
