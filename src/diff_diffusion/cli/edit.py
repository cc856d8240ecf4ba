"""`diff-diffusion edit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from torch.nn import functional

from diff_diffusion import __version__
from diff_diffusion.cli.asked import asked
from diff_diffusion.cli.sample import load
from diff_diffusion.data.images import open_image, pixels, read_image
from diff_diffusion.editing import img2img, inpaint, outpaint, strokes, translate, upscale
from diff_diffusion.errors import ConfigError
from diff_diffusion.pictures import sheet, to_image, write_png
from diff_diffusion.tensors import enlarged

PAPER = 255.0


def run(
    folder: Path,
    image: Path,
    out: Path,
    mask: Path | None,
    extend: str | None,
    colours: int | None,
    upscale_by: int | None,
    label: str | None,
    prompt: str | None,
    cond: list[str],
    from_label: str | None,
    from_prompt: str | None,
    strength: float | None,
    num: int | None,
    steps: int | None,
    sampler: str | None,
    guidance: float | None,
    seed: int,
    weights: str,
    as_json: bool,
) -> None:
    kinds = {"--mask": mask, "--extend": extend, "--colours": colours, "--upscale": upscale_by}
    kinds["--from-label"] = from_label if from_label is not None else from_prompt
    chosen = [name for name, given in kinds.items() if given is not None]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} are different edits: give one of them")
    kind = chosen[0] if chosen else "--strength"
    if strength is not None and kind not in ("--strength", "--colours"):
        raise ConfigError(f"--strength and {kind} are different edits: give one of them")
    turned = kind == "--from-label"
    if turned and label is None and prompt is None:
        raise ConfigError(
            "--from-label and --from-prompt say what the picture is; --label or --prompt must say what it should become"
        )
    idle = {"-n": num, "--seed": seed or None, "--sampler": sampler}
    without = [name for name, given in idle.items() if given is not None]
    if turned and without:
        raise ConfigError(f"{without[0]} has no effect with --from-label: the flow both ways has one answer")
    around = None if extend is None else _sides(extend)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must be a folder, new or not")

    model = load(folder, weights)
    channels, height, width = model.codec.data.shape
    picture = _whole(image, channels) if upscale_by else torch.from_numpy(read_image(image, (channels, height, width)))
    count = 1 if turned else num or (1 if upscale_by else 4)
    several = picture[None].expand(count, -1, -1, -1)
    size = _size(picture, around, upscale_by)
    wish = asked(model, label, prompt, cond, size)
    plan: dict[str, Any] = {"cond": wish, "steps": steps, "guidance": guidance}
    if not turned:
        plan |= {"seed": seed, "sampler": sampler}
    beside = picture[None].float()  # what the results are shown beside
    if mask is not None:
        results = inpaint(model, several, _drawn(mask, height, width), **plan)
    elif around is not None:
        results = outpaint(model, several, around, **plan)
        left, top, right, bottom = around
        beside = functional.pad(beside, (left, right, top, bottom), value=PAPER)
    elif colours is not None:
        results = strokes(model, several, colours, strength=1.0 if strength is None else strength, **plan)
    elif upscale_by is not None:
        results = upscale(model, several, upscale_by, **plan)
        beside = enlarged(picture[None], upscale_by)
    elif turned:
        as_it_is = asked(model, from_label, from_prompt, cond, size)
        results = translate(model, several, from_cond=as_it_is, **plan | {"steps": steps or 64})
    else:
        results = img2img(model, several, strength=0.5 if strength is None else strength, **plan)
    about = {
        "version": __version__,
        "run": str(folder),
        "model": model.fingerprint(),
        "weights": weights,
        "edit": NAMES[kind],
        "image": str(image),
        "mask": None if mask is None else str(mask),
        "extend": extend,
        "colours": colours,
        "upscale": upscale_by,
        "label": label,
        "prompt": prompt,
        "cond": cond,
        "from_label": from_label,
        "from_prompt": from_prompt,
        "strength": strength,
        "steps": steps,
        "sampler": sampler,
        "guidance": guidance,
    }
    _write(out, results, beside, about, seed, as_json)


NAMES = {
    "--mask": "inpaint",
    "--extend": "outpaint",
    "--colours": "strokes",
    "--upscale": "upscale",
    "--from-label": "translate",
    "--strength": "img2img",
}


def _write(out: Path, results: Tensor, beside: Tensor, about: dict[str, Any], seed: int, as_json: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for i, result in enumerate(results):
        file = out / f"{i:05d}-{about['edit']}-seed{seed + i}.png"
        write_png(file, to_image(result), about | {"seed": seed + i})
        files.append(str(file))
    together = out / "grid.png"
    every = torch.cat([beside.expand(-1, results.shape[1], -1, -1), results])
    write_png(together, sheet(every, min(len(every), 8)), about | {"seed": seed})
    if as_json:
        typer.echo(json.dumps({"files": files, "sheet": str(together), **about}, ensure_ascii=False))
    else:
        typer.echo(f"{len(files)} edited in {out}, beside the picture itself in {together}")


def _sides(text: str) -> tuple[int, int, int, int]:
    """LEFT,TOP,RIGHT,BOTTOM."""
    try:
        left, top, right, bottom = (int(side) for side in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--extend is LEFT,TOP,RIGHT,BOTTOM in pixels, such as 0,0,16,0 for 16 at the right, not {text!r}"
        ) from None
    return left, top, right, bottom


def _whole(image: Path, channels: int) -> Tensor:
    """A picture of its own size."""
    opened = open_image(image)
    return torch.from_numpy(pixels(opened, (channels, opened.height, opened.width)))


def _size(picture: Tensor, around: tuple[int, int, int, int] | None, factor: int | None) -> tuple[int, int]:
    """Height and width of the result."""
    left, top, right, bottom = around or (0, 0, 0, 0)
    height, width = picture.shape[-2] + top + bottom, picture.shape[-1] + left + right
    return height * (factor or 1), width * (factor or 1)


def _drawn(mask: Path, height: int, width: int) -> Tensor:
    """True where the mask is white."""
    drawn = torch.from_numpy(read_image(mask, (1, height, width)))[0] > 127
    if not drawn.any():
        raise ConfigError(f"the mask {mask} has nothing white in it: white is what to draw anew")
    return drawn
