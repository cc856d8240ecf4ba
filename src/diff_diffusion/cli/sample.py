"""`diff-diffusion sample` and `repro`."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image

from diff_diffusion import __version__
from diff_diffusion.cli.console import count_progress
from diff_diffusion.errors import CheckpointError, ConfigError, DataError, listed
from diff_diffusion.models import DiffusionModel, sampler_named
from diff_diffusion.pictures import read_recipe, sheet, to_array, to_image, write_png
from diff_diffusion.registry import build, describe
from diff_diffusion.samplers.grid import Grid
from diff_diffusion.training.runtime import choose_device

NONE = "none"
MAX_COLUMNS = 16


def load(run: Path, weights: str) -> DiffusionModel:
    """The model, on the device there is."""
    return DiffusionModel.load(run, weights).to(choose_device())


def chosen_labels(model: DiffusionModel, asked: list[str], num: int) -> list[str | None] | None:
    """A label per sample: those asked for in turn, else all classes in turn; None when nothing is conditional."""
    if model.conditioner is None:
        if asked and asked != [NONE]:
            raise ConfigError(f"--label {asked[0]}: this model was trained without labels, so it takes none")
        return None
    known: list[str | None] = [*asked] if asked else [*model.conditioner.names]
    known = [None if label == NONE and NONE not in model.conditioner.names else label for label in known]
    return [known[i % len(known)] for i in range(num)]


def recipe_of(
    model: DiffusionModel, folder: Path, weights: str, sampler: str | None, times: Grid, guidance: float | None
) -> dict[str, Any]:
    """What a picture says of how it was sampled, but for its seed and label: what `repro` reads."""
    return {
        "version": __version__,
        "run": str(folder),
        "model": model.fingerprint(),
        "weights": weights,
        "sampler": describe(sampler_named(sampler) if sampler else model.recipe.sampler),
        "grid": describe(times),
        "steps": times.num_steps,
        "guidance": model.recipe.guidance if guidance is None else guidance,
    }


def run(
    folder: Path,
    num: int,
    out: Path,
    asked: list[str],
    steps: int | None,
    sampler: str | None,
    grid: str | None,
    guidance: float | None,
    seed: int,
    weights: str,
    batch_size: int,
    as_json: bool,
) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must be a folder, new or not")
    model = load(folder, weights)
    labels = chosen_labels(model, asked, num)
    times = model.chosen_grid(grid, steps)
    recipe = recipe_of(model, folder, weights, sampler, times, guidance)
    model.encode(labels, num)  # a label that is unknown fails before any work
    out.mkdir(parents=True, exist_ok=True)
    show, pieces, files = count_progress("sampling"), [], []
    for first in range(0, num, batch_size):
        count = min(batch_size, num - first)
        some = labels[first : first + count] if labels is not None else None
        piece = model.sample(
            count,
            labels=some,
            seed=seed + first,
            sampler=sampler,
            grid=times,
            guidance=guidance,
            batch_size=batch_size,
        )
        for i, sample in enumerate(piece, start=first):
            label = labels[i] if labels is not None else None
            file = out / f"{i:05d}{_slug(label)}-seed{seed + i}.png"
            write_png(file, to_image(sample), recipe | {"seed": seed + i, "label": label})
            files.append(str(file))
        pieces.append(piece)
        show(first + count, num)
    together = out / "grid.png"
    # Samples come in the order of their labels, so a column a label lines them up.
    heads = [str(label) for label in dict.fromkeys(labels)] if labels is not None else []
    if not 1 < len(heads) <= min(num, MAX_COLUMNS):
        heads = []
    columns = len(heads) or math.ceil(math.sqrt(num))
    write_png(together, sheet(torch.cat(pieces), columns, heads=heads), recipe | {"seed": seed, "labels": labels})
    older = sorted(path.name for path in out.glob("*.png") if str(path) not in {*files, str(together)})
    if as_json:
        typer.echo(json.dumps({"files": files, "sheet": str(together), **recipe}, ensure_ascii=False))
    else:
        typer.echo(f"{num} samples in {out}, together in {together}")
        if older:
            typer.echo(f"{len(older)} other pictures were there before and were left alone: {listed(older, 3)}")


def _slug(label: str | None) -> str:
    """A label as part of a file name: letters and digits of any script, the rest as underscores."""
    if label is None:
        return ""
    kept = "".join(c if c.isalnum() or c in "-_" else "_" for c in unicodedata.normalize("NFC", label))
    return f"-{kept[:40]}"


def reproduce(file: Path, folder: Path | None, out: Path | None) -> None:
    recipe = read_recipe(file)
    if "edit" in recipe:
        raise DataError(
            f"{file} is an edited picture, which repro does not make again; run `edit` with the settings it holds, "
            f"beginning with --image {recipe['image']} --seed {recipe['seed']}"
        )
    if "labels" in recipe:
        raise DataError(f"{file} is a sheet of several samples; repro makes one of the pictures beside it again")
    try:
        home = folder or Path(recipe["run"])
        if not home.exists():
            raise CheckpointError(
                f"the model that made {file.name} was {home}, which is not there: say where with --run"
            )
        model = load(home, recipe["weights"])
        found = model.fingerprint()
        if found != recipe["model"]:
            raise CheckpointError(
                f"{home} holds another model (fingerprint {found}) than the one that made {file.name} "
                f"({recipe['model']}): it was trained further or replaced; name the right folder with --run"
            )
        sample = model.sample(
            1,
            labels=[recipe["label"]] if model.conditioner is not None else None,
            seed=recipe["seed"],
            sampler=build(recipe["sampler"]),
            grid=build(recipe["grid"]),
            guidance=recipe["guidance"],
        )[0]
    except (KeyError, TypeError) as error:
        raise DataError(f"the recipe in {file} is damaged: {error}") from error
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a folder; it must be the file to write")
    target = out or file.with_name(f"{file.stem}-again.png")
    image = to_image(sample)
    write_png(target, image, recipe)
    with Image.open(file) as before:
        difference = _difference(to_array(before), to_array(image))
    same = "identical pixels" if difference == 0 else f"largest difference {difference} of 255"
    typer.echo(f"{target}: {same}")


def _difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int:
    if a.shape != b.shape:
        return 255
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())
