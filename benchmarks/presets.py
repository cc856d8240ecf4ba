"""What each preset reaches on the digits in the same seconds of training: same network, same data, same sampler budget.

    python benchmarks/presets.py [--seconds 30] [--seeds 3] [--nfe 32]

Every training's scores are kept in runs/bench/presets.json, and a run that was cut short goes on from there. Writes
results/presets.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outcome import Outcome, Table

from diff_diffusion import DiffusionModel, TrainSettings, load_image_dataset, train
from diff_diffusion.evaluation.features import train_classifier
from diff_diffusion.evaluation.score import score
from diff_diffusion.presets import fitting
from diff_diffusion.registry import build, describe

KEPT = Path(__file__).parent.parent / "runs" / "bench" / "presets.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nfe", type=int, default=32, help="network evaluations per sample, all presets alike")
    arguments = parser.parse_args()

    data, held_out = load_image_dataset("digits").split()
    classifier = train_classifier(data, held_out)
    names = fitting(DiffusionModel.for_data(data).codec.latent)
    asked = {"seconds": arguments.seconds, "nfe": arguments.nfe, "n": len(held_out), "features": classifier.name}
    done: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if {name: done.get(name) for name in asked} != asked:
        done = {**asked, "presets": {}}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    # Seed by seed, preset by preset, so that a slow spell of the machine hits all alike.
    for seed in map(str, range(arguments.seeds)):
        for name in names:
            rows = done["presets"].setdefault(name, {})
            if seed in rows:
                continue
            model = DiffusionModel.for_data(data, name, seed=int(seed))
            settings = TrainSettings(minutes=arguments.seconds / 60, lr=2e-3, seed=int(seed), precision="fp32")
            *_, last = train(model, data, None, settings, held_out=held_out)
            # One sampler for all, so that the table compares what was learned: multistep on a λ grid.
            recipe = describe(model.recipe) | {
                "sampler": {"type": "sampler/multistep", "order": 2},
                "grid": {"type": "grid/log_snr", "num_steps": arguments.nfe, "log_snr_max": 10.0, "log_snr_min": -10.0},
            }
            model.recipe = build(recipe)
            scores = score(model, data, held_out, classifier, sets=1)
            rows[seed] = {
                "steps": last.step,
                "agreement": scores.agreement,
                "frechet": scores.frechet,
                "floor": scores.frechet_floor,
            }
            KEPT.write_text(json.dumps(done, indent=1) + "\n")
            print(name, seed, rows[seed], flush=True)
    told(done).write()


def told(numbers: Mapping[str, Any]) -> Outcome:
    each = {name: list(rows.values()) for name, rows in numbers["presets"].items() if rows}
    middle = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in each.items()
    }
    rows = []
    for name in sorted(each, key=lambda name: middle[name]["frechet"]):
        frechet, agree = (sorted(row[key] for row in each[name]) for key in ("frechet", "agreement"))
        rows.append(
            [
                f"`{name}`",
                f"{middle[name]['frechet']:.1f} ({frechet[0]:.1f} to {frechet[-1]:.1f})",
                f"{middle[name]['agreement']:.1%} ({agree[0]:.1%} to {agree[-1]:.1%})",
                f"{middle[name]['steps']:.0f}",
            ]
        )
    floor = statistics.median(row["floor"] for rows in each.values() for row in rows)
    return Outcome(
        name="presets",
        title="Presets",
        command="python benchmarks/presets.py",
        said=f"What each preset reaches on the digits in the same {numbers['seconds']:g} s of training: the same "
        f"network, the same data, one sampler for all, multistep 2 with {numbers['nfe']} evaluations.",
        tables=[Table("By Fréchet distance", ["preset", "Fréchet distance", "agreement", "steps"], rows)],
        numbers=numbers,
        notes=[
            f"Medians of {len(next(iter(each.values())))} seeds, with their range; n = {numbers['n']}, features "
            f"{numbers['features']}. Real against real at the same n: {floor:.1f}. Agreement: a classifier sees the "
            "label that was asked for.",
        ],
    )


if __name__ == "__main__":
    main()
