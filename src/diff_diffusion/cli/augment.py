"""`diff-diffusion augment`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from diff_diffusion.cli.console import count_progress
from diff_diffusion.cli.sample import load, recipe_of
from diff_diffusion.data import load_image_dataset
from diff_diffusion.errors import ConfigError, DataError
from diff_diffusion.evaluation.augmentation import augment
from diff_diffusion.evaluation.features import train_classifier
from diff_diffusion.pictures import to_image, write_png

FORBIDDEN = set('/\\:*?"<>|') | {chr(i) for i in range(32)}


def run(
    folder: Path, data: str, per_class: int, out: Path, guidance: float | None, seed: int, weights: str, as_json: bool
) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} holds something already: a data set needs a folder of its own, new or empty")
    model = load(folder, weights)
    channels, height, width = model.codec.data.shape
    images = load_image_dataset(data, size=(height, width), channels=channels)
    odd = [name for name in images.class_names if set(name) & FORBIDDEN or name.strip(". ") != name]
    if odd:
        raise DataError(f"the class {odd[0]!r} cannot be a folder's name; rename it in the data and train again")
    train, held_out = images.split()
    judge = train_classifier(train, held_out)
    tally, drawn = augment(
        model, train, held_out, judge, per_class, guidance=guidance, seed=seed, progress=count_progress("augmenting")
    )
    about = recipe_of(model, folder, weights, None, model.recipe.grid, {"scale": model.guiding(guidance).scale})
    for one in drawn:
        home = out / one.label
        home.mkdir(parents=True, exist_ok=True)
        write_png(
            home / f"seed{one.seed}.png",
            to_image(one.image),
            about | {"seed": one.seed, "asked": {"label": one.label, "prompt": None, "cond": []}},
        )
    short = {label: count for label, count in tally.kept.items() if count < per_class}
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(tally)}, ensure_ascii=False))
        return
    typer.echo(f"{sum(tally.kept.values())} of {tally.drawn} samples kept in {out}, a folder for each class")
    judged = f"a classifier that is right on {100 * tally.judge_accuracy:.1f} % of held-out images"
    typer.echo(
        f"dropped: {tally.disagreed} in which {judged} saw another label, {tally.copied} nearer to a training image "
        f"than {tally.closest:.1f} grey values"
    )
    for label, count in short.items():
        typer.echo(f"{label}: only {count} of {per_class}; the model draws too few that pass, so train it longer")
