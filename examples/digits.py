"""The main job, end to end, on 1,797 real handwritten digits: train, sample, evaluate, and pictures to look at.

    python examples/digits.py --out demo

About two minutes of training on two cores. Run it again with the same folder and it goes on where it stopped, or shows
what it has.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from diff_diffusion import DiffusionModel, TrainSettings, load_image_dataset, train
from diff_diffusion.cli.console import TrainingLine
from diff_diffusion.evaluation.features import train_classifier
from diff_diffusion.evaluation.figures import curve_figure, process_figure
from diff_diffusion.evaluation.score import score
from diff_diffusion.pictures import sheet, write_png
from diff_diffusion.storage.folder import to_json, write_file
from diff_diffusion.training.runtime import stop_signals

SEEDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where everything goes (default: demo)")
    parser.add_argument("--minutes", type=float, default=1.9, help="training time (default: 1.9)")
    arguments = parser.parse_args()
    run = arguments.out / "run"

    images = load_image_dataset("digits")
    print("\n".join(images.report.lines()), flush=True)
    train_split, held_out = images.split()
    model = DiffusionModel.for_data(train_split)
    settings = TrainSettings(minutes=arguments.minutes, lr=2e-3, sample_interval=100_000)

    with stop_signals() as stop, TrainingLine(None, settings.minutes) as line:
        for record in train(model, train_split, run, settings, held_out=held_out, stop=stop):
            line.show(record)
        if stop():
            raise SystemExit(f"stopped; the same command goes on from {run}")
    model = DiffusionModel.load(run)

    print("evaluating: training a digit classifier on the real images, then sampling three sets", flush=True)
    classifier = train_classifier(train_split, held_out)
    scores = score(model, train_split, held_out, classifier)

    classes = images.class_names
    samples = torch.cat([model.sample(SEEDS, cond=name, seed=0) for name in classes])
    write_png(arguments.out / "samples.png", sheet(samples, SEEDS, classes, [f"seed {i}" for i in range(SEEDS)]))
    process_figure(model, arguments.out / "process.png", image=held_out[0], cond="3")
    curve_figure(run / "metrics.jsonl", arguments.out / "curve.png")
    write_file(arguments.out / "scores.json", to_json(scores.to_json()))

    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    rate = model.facts["images seen"] / last["seconds"]
    low, high = scores.agreement_interval
    rows = [
        ("parameters", f"{model.num_parameters:,}"),
        ("training", f"{last['step']:,} steps in {last['seconds']:.0f} s, {rate:,.0f} images/s"),
        ("held-out loss", f"{model.facts['held-out loss']:.4f}"),
        ("classifier, real held-out digits", f"{scores.classifier_accuracy:.1%} right (n = {scores.n})"),
        (
            "agreement with the asked label",
            f"{scores.agreement:.1%}  [{low:.1%}, {high:.1%}] (n = {scores.sets} x {scores.n})",
        ),
        (
            f"Fréchet distance on {scores.features}",
            f"{scores.frechet:.2f} ± {scores.frechet_spread:.2f} (n = {scores.n}, {scores.sets} sets)",
        ),
        (
            "  real against real, same n",
            f"{scores.frechet_floor:.2f}; ratio {scores.frechet / scores.frechet_floor:.2f}",
        ),
        ("nearest training image, samples", f"{scores.nearest:.1f} grey values RMS (median)"),
        ("  held-out images", f"{scores.nearest_real:.1f}"),
        ("sampling", scores.sampling),
    ]
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    print(f"\nLook at {arguments.out}/samples.png, process.png and curve.png; the model is {run}.")
    print(f"Next: diff-diffusion sample {run} --label 3 -n 16 --out {arguments.out}/threes")


if __name__ == "__main__":
    main()
