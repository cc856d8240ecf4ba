"""How many digits are what they were asked to be, by the scale of guidance: by a classifier on a model that was taught
no classes, and classifier-free on one that was.

    python benchmarks/guidance.py [--runs runs/guidance] [--steps 1000] [--num 1000]

Trains three runs by the command line, or goes on with those in the folder. Writes results/guidance.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from outcome import Outcome, Table

from diff_diffusion import DiffusionModel, load_image_dataset
from diff_diffusion.evaluation.distances import frechet
from diff_diffusion.evaluation.features import train_classifier
from diff_diffusion.evaluation.score import interval
from diff_diffusion.models import Guidance, Model, NoisyClassifier

RUNS = {"unconditional": ["--unconditional"], "classifier": ["--classifier"], "conditional": []}
BY_CLASSIFIER = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0)
CLASSIFIER_FREE = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0)
FACTS = ("steps", "seed", "parameters", "held-out loss")
LEVELS = (None, 4.0, 0.0, -2.0, -4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/guidance"))
    parser.add_argument("--steps", type=int, default=1000, help="of each training")
    parser.add_argument("--num", type=int, default=1000, help="pictures for each scale, as many of each class")
    arguments = parser.parse_args()

    for name, options in RUNS.items():
        words = ["train", "digits", *options, "--out", str(arguments.runs / name), "--steps", str(arguments.steps)]
        subprocess.run([sys.executable, "-c", "from diff_diffusion.cli import main; main()", *words], check=True)
    data, held_out = load_image_dataset("digits").split()
    judge = train_classifier(data, held_out)
    reference = judge.features(data.batch(range(len(data))))
    asked = [str(i % 10) for i in range(arguments.num)]
    wanted = torch.arange(arguments.num) % 10

    def row(model: DiffusionModel, guidance: Guidance) -> dict[str, Any]:
        """One scale: samples of the seeds 0, 1, …, judged."""
        drawn = model.sample(arguments.num, cond=asked, guidance=guidance, batch_size=250).round()
        right = int((judge.labels(drawn) == wanted).sum())
        found = {
            "scale": guidance.scale,
            "agreement": right / arguments.num,
            "interval": interval(right, arguments.num),
            "frechet": frechet(judge.features(drawn), reference),
        }
        print(found, flush=True)
        return found

    models = {name: Model.load(arguments.runs / name) for name in RUNS}
    free, classifier, taught = models.values()
    assert isinstance(free, DiffusionModel)
    assert isinstance(classifier, NoisyClassifier)
    assert isinstance(taught, DiffusionModel)
    result: dict[str, Any] = {
        "n": arguments.num,
        "seeds": f"0 to {arguments.num - 1}, sample i asked to be i mod 10",
        "interval": "Wilson, 95 %",
        "judge": {"features": judge.name, "accuracy": judge.test_accuracy, "n": len(held_out)},
        "frechet of real held-out digits": frechet(judge.features(held_out.batch(range(len(held_out)))), reference),
        "runs": {name: {fact: model.facts[fact] for fact in FACTS} for name, model in models.items()},
        "classifier's accuracy by log-SNR, held out": {
            "clean" if level is None else f"{level:g}": classifier.accuracy(held_out, level) for level in LEVELS
        },
        "sampler": f"{type(free.recipe.sampler).__name__}, {free.recipe.grid.num_steps} steps",
        "classifier guidance": [row(free, Guidance(scale, classifier=classifier)) for scale in BY_CLASSIFIER],
        "classifier-free guidance": [row(taught, Guidance(scale)) for scale in CLASSIFIER_FREE],
    }
    told(result).write()


def told(result: Mapping[str, Any]) -> Outcome:
    tables = []
    for kind in ("classifier guidance", "classifier-free guidance"):
        rows = []
        for row in result[kind]:
            low, high = row["interval"]
            agrees = f"{row['agreement']:.1%} ({low:.1%} to {high:.1%})"
            rows.append([f"{row['scale']:g}", agrees, f"{row['frechet']:.1f}"])
        tables.append(Table(kind.capitalize(), ["scale", "agreement (95 %)", "Fréchet distance"], rows))
    judge, floor = result["judge"], result["frechet of real held-out digits"]
    return Outcome(
        name="guidance",
        title="Guidance",
        command="python benchmarks/guidance.py",
        said=f"How many of {result['n']:,} digits are what they were asked to be, by scale: by a classifier on a model "
        "that was taught no classes, and classifier-free on one that was. The judge is a classifier that saw clean "
        "real digits alone. Agreement says nothing of variety, so the Fréchet distance to the real digits, on the "
        "judge's features, stands beside it.",
        tables=tables,
        numbers=result,
        notes=[
            f"The judge is right about {judge['accuracy']:.1%} of {judge['n']} real held-out digits, whose own Fréchet "
            f"distance is {floor:.1f}.",
            "Intervals are Wilson's. What the figures say is on the page [Guidance](theory/guidance.md).",
        ],
    )


if __name__ == "__main__":
    main()
