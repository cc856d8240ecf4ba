"""`diff-diffusion sample` and `repro`."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from diff_diffusion import __version__
from diff_diffusion.cli.asked import NONE, asked, name_and_value
from diff_diffusion.cli.config import parse_size
from diff_diffusion.cli.console import count_progress
from diff_diffusion.cli.guiding import guidance_of, recorded
from diff_diffusion.codecs.codec import latent_shape
from diff_diffusion.conditions.images import ImageBeside
from diff_diffusion.editing import draw_large
from diff_diffusion.editing.walks import seen
from diff_diffusion.errors import CheckpointError, ConfigError, DataError, DiffusionError, listed
from diff_diffusion.models import DiffusionModel, Guidance, Model, sampler_named
from diff_diffusion.pictures import read_recipe, sheet, to_array, to_image, write_png
from diff_diffusion.registry import build, describe
from diff_diffusion.samplers.grid import Grid
from diff_diffusion.training.runtime import autocast, choose_device

PRECISIONS = ("fp32", "bf16")
MAX_COLUMNS = 16
MAX_PIXELS = 1 << 26


def load(run: Path, weights: str) -> DiffusionModel:
    """The model, on the device there is."""
    return DiffusionModel.load(run, weights).to(choose_device())


def wishes(
    knows: Model, labels: list[str], prompts: list[str], conds: list[str], num: int, even: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What each sample is asked to be, in the words of the command line: labels and prompts in turn.

    All classes in turn where nothing is said. The conditions named in `even` take their classes in turn, each
    combination of them with every label and prompt.
    """
    if not (labels or prompts or conds or even):
        labels = list(knows.class_names)
    said = max(len(labels), len(prompts), 1)
    evened = knows.even(-(-num // said), *even) if even else {}
    return [
        {
            "label": labels[i % len(labels)] if labels else None,
            "prompt": prompts[i % len(prompts)] if prompts else None,
            "cond": [*conds, *(f"{name}={values[i // said]}" for name, values in evened.items())],
        }
        for i in range(num)
    ]


def together(
    knows: Model, wishes: Sequence[Mapping[str, Any]], size: tuple[int, int] | None = None
) -> dict[str, list[Any]] | None:
    """The wishes as lists for each condition, images of `size`; None when nothing is asked."""
    read = cache(lambda label, prompt, cond: asked(knows, label, prompt, cond, size) or {})
    each = [read(wish["label"], wish["prompt"], tuple(wish["cond"])) for wish in wishes]
    names = dict.fromkeys(name for one in each for name in one)
    return {name: [one.get(name) for one in each] for name in names} or None


def recipe_of(
    model: DiffusionModel,
    folder: Path,
    weights: str,
    sampler: str | None,
    times: Grid,
    guidance: Mapping[str, Any],
    precision: str = "fp32",
) -> dict[str, Any]:
    """What a picture says of how it was sampled, but for its seed and what it was asked to be: what `repro` reads."""
    return {
        "version": __version__,
        "run": str(folder),
        "model": model.fingerprint(),
        "weights": weights,
        "sampler": describe(sampler_named(sampler) if sampler else model.recipe.sampler),
        "grid": describe(times),
        "steps": times.num_steps,
        "guidance": guidance,
        "precision": precision,
    }


def canvas(model: DiffusionModel, size: str | None, wrap: bool) -> dict[str, Any]:
    """The size of samples, where it is not the model's own, as recipes say it."""
    if size is None:
        if wrap:
            raise ConfigError("--wrap makes the right edge meet the left of a larger picture: give it a --size")
        return {}
    sides = parse_size(size)
    assert sides is not None
    height, width = sides if isinstance(sides, tuple) else (sides, sides)
    if height * width > MAX_PIXELS:
        raise ConfigError(f"--size {size} is {height * width:,} pixels: at most {MAX_PIXELS:,} are drawn")
    seen(model, model.denoiser, latent_shape(model.codec, height, width))  # one too small fails before any work
    return {"size": (height, width), "wrap": wrap}


def images_of(knows: Model, conds: Sequence[str]) -> dict[str, str]:
    """The sha256 of each image that a condition is, by its path: it may be another when a sample is made again."""
    parts = knows.conditioner.parts if knows.conditioner is not None else {}
    named = [name_and_value(parts, pair) for pair in conds]
    paths = [value for name, value in named if isinstance(parts[name], ImageBeside) and value != NONE]
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths if Path(path).is_file()}


def drawn(model: DiffusionModel, num: int, how: Mapping[str, Any], **asked: Any) -> Tensor:
    """Samples in the precision that `how` says, of the size that it says or else of the model's own."""
    with autocast(model.device, how["precision"]):
        if "size" not in how:
            return model.sample(num, batch_size=num, **asked)
        height, width = how["size"]
        return draw_large(model, num, height, width, wrap=how["wrap"], **asked)


def run(
    folder: Path,
    num: int,
    out: Path,
    labels: list[str],
    prompts: list[str],
    conds: list[str],
    even: list[str],
    steps: int | None,
    sampler: str | None,
    grid: str | None,
    guidance: dict[str, Any],
    size: str | None,
    wrap: bool,
    seed: int,
    weights: str,
    batch_size: int,
    precision: str,
    as_json: bool,
) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision is one of {listed(PRECISIONS)}, not {precision!r}")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must be a folder, new or not")
    model = load(folder, weights)
    guided = guidance_of(model, guidance)
    knows = guided.knows(model)
    wished = wishes(knows, labels, prompts, conds, num, even)
    large = canvas(model, size, wrap)
    cond = together(knows, wished, large.get("size"))
    few = {name: values[:batch_size] for name, values in (cond or {}).items()}
    knows.encode(few or None, min(num, batch_size))  # what is unknown fails before any work
    strange = [name for name in guided.negative or {} if name not in (cond or {})]
    if strange:
        raise ConfigError(f"--negative says a {listed(strange)} to move away from, and samples are asked for none")
    if not guidance and cond is None:
        guided = Guidance()
    times = model.chosen_grid(grid, steps)
    recipe = recipe_of(model, folder, weights, sampler, times, recorded(guidance, guided), precision) | large
    recipe["images"] = images_of(knows, conds)
    model.plan(sampler=sampler, grid=times, guidance=guided, conditional=cond is not None)
    out.mkdir(parents=True, exist_ok=True)
    show, pieces, files = count_progress("sampling"), [], []
    for first in range(0, num, batch_size):
        part = slice(first, min(first + batch_size, num))
        piece = drawn(
            model,
            part.stop - part.start,
            recipe,
            cond={name: values[part] for name, values in cond.items()} if cond else None,
            seed=seed + first,
            sampler=sampler,
            grid=times,
            guidance=guided,
        )
        for i, sample in enumerate(piece, start=first):
            file = out / f"{i:05d}{_slug(wished[i])}-seed{seed + i}.png"
            write_png(file, to_image(sample), recipe | {"seed": seed + i, "asked": wished[i]})
            files.append(str(file))
        pieces.append(piece)
        show(part.stop, num)
    grid_file = out / "grid.png"
    # Samples come in the order of what they were asked to be, so a column for each lines them up.
    heads = list(dict.fromkeys(said for said in map(_said, wished) if said))
    if not 1 < len(heads) <= min(num, MAX_COLUMNS):
        heads = []
    columns = len(heads) or math.ceil(math.sqrt(num))
    write_png(grid_file, sheet(torch.cat(pieces), columns, heads=heads), recipe | {"seed": seed, "sheet of": num})
    older = sorted(path.name for path in out.glob("*.png") if str(path) not in {*files, str(grid_file)})
    if as_json:
        typer.echo(json.dumps({"files": files, "sheet": str(grid_file), **recipe}, ensure_ascii=False))
    else:
        typer.echo(f"{num} samples in {out}, together in {grid_file}")
        if older:
            typer.echo(f"{len(older)} other pictures were there before and were left alone: {listed(older, 3)}")


def _said(wish: Mapping[str, Any]) -> str:
    """What was asked in words, or ""."""
    return " ".join(said for said in (wish["label"], wish["prompt"], *wish["cond"]) if said)


def _slug(wish: Mapping[str, Any]) -> str:
    """What was asked as part of a file name: letters and digits of any script, the rest as underscores."""
    kept = "".join(c if c.isalnum() or c in "-_" else "_" for c in unicodedata.normalize("NFC", _said(wish)))
    return f"-{kept[:40]}" if kept else ""


def reproduce(file: Path, folder: Path | None, out: Path | None) -> None:
    recipe = read_recipe(file)
    if "edit" in recipe:
        raise DataError(
            f"{file} is an edited picture, which repro does not make again; run `edit` with the settings it holds, "
            f"beginning with --image {recipe['image']} --seed {recipe['seed']}"
        )
    if "sheet of" in recipe:
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
        guided = guidance_of(model, recipe["guidance"])
        now = images_of(guided.knows(model), recipe["asked"]["cond"])
        changed = [path for path, was in recipe["images"].items() if now.get(path) != was]
        if changed:
            raise DataError(f"{file} was made from {listed(changed)}, which is another file now, or gone")
        size = tuple(recipe["size"]) if "size" in recipe else None
        sample = drawn(
            model,
            1,
            recipe,
            cond=together(guided.knows(model), [recipe["asked"]], size),
            seed=recipe["seed"],
            sampler=build(recipe["sampler"]),
            grid=build(recipe["grid"]),
            guidance=guided,
        )[0]
    except DiffusionError:
        raise
    except (KeyError, TypeError, ValueError) as error:
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
