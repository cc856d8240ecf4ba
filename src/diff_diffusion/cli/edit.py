"""`diff-diffusion edit`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import typer

from diff_diffusion import __version__
from diff_diffusion.cli.sample import load
from diff_diffusion.data.images import read_image
from diff_diffusion.editing import img2img, inpaint, translate
from diff_diffusion.errors import ConfigError
from diff_diffusion.pictures import sheet, to_image, write_png


def run(
    folder: Path,
    image: Path,
    mask: Path | None,
    label: str | None,
    from_label: str | None,
    strength: float | None,
    num: int | None,
    out: Path,
    steps: int | None,
    sampler: str | None,
    guidance: float | None,
    seed: int,
    weights: str,
    as_json: bool,
) -> None:
    kinds = {"--mask": mask, "--from-label": from_label, "--strength": strength}
    chosen = [name for name, given in kinds.items() if given is not None]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} are different edits: give one of them")
    if from_label is not None and label is None:
        raise ConfigError("--from-label says what the picture is; --label must say what it should become")
    idle = {"-n": num, "--seed": seed or None, "--sampler": sampler}
    without = [name for name, given in idle.items() if given is not None]
    if from_label is not None and without:
        raise ConfigError(f"{without[0]} has no effect with --from-label: the flow both ways has one answer")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must be a folder, new or not")
    model = load(folder, weights)
    channels, height, width = model.codec.data.shape
    picture = torch.from_numpy(read_image(image, (channels, height, width)))
    several = picture[None].expand(num or 4, -1, -1, -1)
    labels = None if label is None else [label] * len(several)
    plan = {"labels": labels, "seed": seed, "steps": steps, "sampler": sampler, "guidance": guidance}
    if mask is not None:
        kind = "inpaint"
        drawn = torch.from_numpy(read_image(mask, (1, height, width)))[0] > 127
        if not drawn.any():
            raise ConfigError(f"the mask {mask} has nothing white in it: white is what to draw anew")
        results = inpaint(model, several, drawn, **plan)  # type: ignore[arg-type]
    elif from_label is not None:
        kind = "translate"
        results = translate(
            model, picture[None], labels=[label], from_labels=[from_label], steps=steps or 64, guidance=guidance
        )
    else:
        kind = "img2img"
        results = img2img(model, several, strength=0.5 if strength is None else strength, **plan)  # type: ignore[arg-type]
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "version": __version__,
        "run": str(folder),
        "model": model.fingerprint(),
        "weights": weights,
        "edit": kind,
        "image": str(image),
        "mask": None if mask is None else str(mask),
        "label": label,
        "from_label": from_label,
        "strength": strength,
        "steps": steps,
        "sampler": sampler,
        "guidance": guidance,
    }
    files = []
    for i, result in enumerate(results):
        file = out / f"{i:05d}-{kind}-seed{seed + i}.png"
        write_png(file, to_image(result), about | {"seed": seed + i})
        files.append(str(file))
    both = out / "grid.png"
    write_png(
        both, sheet(torch.cat([picture[None].float(), results]), min(1 + len(results), 8)), about | {"seed": seed}
    )
    if as_json:
        typer.echo(json.dumps({"files": files, "sheet": str(both), **about}, ensure_ascii=False))
    else:
        typer.echo(f"{len(files)} edited in {out}, beside the picture itself in {both}")
