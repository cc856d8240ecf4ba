"""What each preset reaches on the digits in the same seconds of training: same network, same data, same sampler budget.

    python benchmarks/presets.py [--seconds 30] [--seeds 3] [--nfe 32]

Interleaved (seed by seed, preset by preset), so that a slow spell of the machine hits all alike. Writes
results/presets.md and results/presets.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path

import torch

from diff_diffusion import DiffusionModel, TrainSettings, __version__, load_image_dataset, train
from diff_diffusion.evaluation.features import train_classifier
from diff_diffusion.evaluation.score import score
from diff_diffusion.presets import RECIPES
from diff_diffusion.registry import build, describe

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nfe", type=int, default=32, help="network evaluations per sample, all presets alike")
    arguments = parser.parse_args()

    data, held_out = load_image_dataset("digits").split()
    classifier = train_classifier(data, held_out)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RECIPES}
    for seed in range(arguments.seeds):
        for name in RECIPES:
            model = DiffusionModel.for_data(data, name, seed=seed)
            settings = TrainSettings(minutes=arguments.seconds / 60, lr=2e-3, seed=seed, precision="fp32")
            *_, last = train(model, data, None, settings, held_out=held_out)
            # One sampler for all, so that the table compares what was learned: multistep on a λ grid.
            recipe = describe(model.recipe) | {
                "sampler": {"type": "sampler/multistep", "order": 2},
                "grid": {"type": "grid/log_snr", "num_steps": arguments.nfe, "log_snr_max": 10.0, "log_snr_min": -10.0},
            }
            model.recipe = build(recipe)
            scores = score(model, data, held_out, classifier, sets=1)
            row = {
                "steps": last.step,
                "agreement": scores.agreement,
                "frechet": scores.frechet,
                "floor": scores.frechet_floor,
            }
            found[name].append(row)
            print(name, seed, row, flush=True)

    lines = [
        f"Digits, {arguments.seconds:g} s of training, {arguments.seeds} seeds, n = {len(held_out)}, multistep 2 with "
        f"{arguments.nfe} evaluations; features {classifier.name}. Real against real at the same n: "
        f"{found['ddpm'][0]['floor']:.2f}.",
        f"diff-diffusion {__version__}, torch {torch.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads.",
        "",
        "| preset | Fréchet distance (median, range) | agreement (median, range) | steps |",
        "|---|---|---|---|",
    ]
    for name, rows in sorted(found.items(), key=lambda item: statistics.median(row["frechet"] for row in item[1])):
        frechet, agree = ([row[key] for row in rows] for key in ("frechet", "agreement"))
        lines.append(
            f"| {name} | {statistics.median(frechet):.1f} ({min(frechet):.1f} to {max(frechet):.1f}) "
            f"| {statistics.median(agree):.1%} ({min(agree):.1%} to {max(agree):.1%}) "
            f"| {statistics.median(row['steps'] for row in rows):.0f} |"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "presets.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (RESULTS / "presets.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
