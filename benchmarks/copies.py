"""Does `evaluate` tell a model that copies its training images from one that does not?

    python benchmarks/copies.py [--seeds 3] [--seconds 75] [--num 256]

Each seed trains two unconditional models of the digits for the same seconds of steps: one of 20 of them, which it sees
thousands of times, and one of all 1,438. Both are evaluated as `evaluate` does it, with as many samples, and searched
as `train` does it at its end. Writes results/copies.json, and the closest pairs of the first seed, of both models, to
docs/images/copies.png; what is finished is kept under runs/bench/copies, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outcome import Outcome, Table, Target
from PIL import Image

from diff_diffusion import DiffusionModel, ImageDataset, TrainSettings, load_image_dataset, train
from diff_diffusion.evaluation.copies import affordable, look_for_copies
from diff_diffusion.evaluation.evaluate import evaluate
from diff_diffusion.evaluation.score import interval

HOME, PICTURE = Path("runs/bench/copies"), Path("docs/images/copies.png")
FEW, PARTS = 20, {"20 digits": "few", "all digits": "all"}


def data_of(which: str, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """What is trained on, without labels, and what is held out: the same images for both."""
    whole, held_out = load_image_dataset("digits").split()
    rows = np.random.default_rng([seed, FEW]).permutation(len(whole))[:FEW] if which == "few" else range(len(whole))
    return ImageDataset.from_arrays(whole.batch(list(rows)), name="digits"), ImageDataset.from_arrays(
        held_out.batch(range(len(held_out))), name="digits"
    )


def measured(which: str, seed: int, seconds: float, num: int) -> dict[str, Any]:
    """One model, trained and evaluated; from where it is kept, if it was before."""
    home = HOME / f"{which}-{seed}-{seconds:g}s-{num}"
    record = home / "found.json"
    if record.exists():
        return dict(json.loads(record.read_text()))
    train_split, held_out = data_of(which, seed)
    train_split.val = held_out  # so that `evaluate` holds out what both models never saw
    model = DiffusionModel.for_data(train_split, seed=seed)
    settings = TrainSettings(minutes=seconds / 60, batch_size=128, seed=seed, precision="fp32")
    for step in train(model, train_split, settings=settings, held_out=None):
        if step.step % 100 == 0:
            print(f"  {which}, seed {seed}: step {step.step}, loss {step.loss:.3f}", flush=True)
    affords = affordable(model, model.facts["images seen"])
    began = time.process_time()
    quick = look_for_copies(model, train_split, held_out, affords or 64)
    took = time.process_time() - began
    found = evaluate(model, train_split, num)
    home.mkdir(parents=True, exist_ok=True)
    found.pictures["nearest"].save(home / "nearest.png")
    told = {
        "steps": model.facts["steps"],
        "share": found.audit.share,
        "interval": found.audit.share_interval,
        "real share": found.audit.real_share,
        "real interval": found.audit.real_interval,
        "copies": found.audit.copies,
        "search": {
            "affords": affords,
            "n": quick.audit.n,
            "share": quick.audit.share,
            "copies": quick.audit.copies,
            "seconds": took,
        },
        "losses": [found.train_loss["mean"], found.held_out_loss["mean"]],
    }
    record.write_text(json.dumps(told))
    return told


def both_pairs(seconds: float, num: int) -> None:
    """The closest pairs of the first seed's two models, one sheet over the other."""
    sheets = [Image.open(HOME / f"{which}-0-{seconds:g}s-{num}" / "nearest.png") for which in PARTS.values()]
    width, gap = max(sheet.width for sheet in sheets), 12
    page = Image.new("RGB", (width, sum(sheet.height for sheet in sheets) + gap), "white")
    page.paste(sheets[0], (0, 0))
    page.paste(sheets[1], (0, sheets[0].height + gap))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    page.save(PICTURE, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="models of each kind")
    parser.add_argument("--seconds", type=float, default=75.0, help="of training, each")
    parser.add_argument("--num", type=int, default=256, help="samples of each evaluation")
    parser.add_argument("--dry", action="store_true", help="write neither results/ nor docs/: for a smoke run")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {title: [] for title in PARTS}
    rows = []
    for seed in range(asked.seeds):
        for title, which in PARTS.items():
            one = measured(which, seed, asked.seconds, asked.num)
            found[title].append(one)
            share, real = (_said(one[name], one[between]) for name, between in _PAIRS)
            search = f"{'copies' if one['search']['copies'] else 'no sign'} ({one['search']['seconds']:.1f} s)"
            rows.append(
                [
                    f"{title}, seed {seed}",
                    str(one["steps"]),
                    share,
                    real,
                    "copies" if one["copies"] else "no sign",
                    search,
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    totals = []
    for title, ones in found.items():
        n = asked.num * len(ones)
        mean = statistics.fmean(one["share"] for one in ones)
        totals.append(
            [title, _said(mean, interval(mean * n, n)), f"{sum(one['copies'] for one in ones)} of {len(ones)}"]
        )
    few, every = found.values()
    wrong = [one for one in few if not one["copies"]] + [one for one in every if one["copies"]]
    searches = [one["search"]["seconds"] / asked.seconds for one in (*few, *every)]
    accused = sum(not one["search"]["copies"] for one in few) + sum(one["search"]["copies"] for one in every)
    outcome = Outcome(
        name="copies",
        title="Copies of training images",
        command="python benchmarks/copies.py",
        said=f"Unconditional models of digits, {asked.seconds:g} s of training each on one core: of 20 digits, and of "
        f"all 1,438. {asked.num} samples of each are held against all its training images, and so are the same 359 "
        "held-out digits. A copy is nearer to a training image, by pixels and by features, than all but one in a "
        "hundred of these.",
        tables=[
            Table("Each model", ["", "steps", "copies", "of real images", "evaluate", "at the end of train"], rows),
            Table("Together", ["trained on", "copies", "told to copy"], totals),
        ],
        targets=[
            Target("verdicts of evaluate that are wrong", float(len(wrong)), 0.0, at_least=False),
            Target("verdicts at the end of training that are wrong", float(accused), 0.0, at_least=False),
            Target("seconds of that search, of the training's", max(searches), 0.05, at_least=False),
        ],
        numbers={"found": found, "options": {"seeds": asked.seeds, "seconds": asked.seconds, "num": asked.num}},
        notes=[
            "Both models have the same network and training time; the one of 20 digits has seen each of them seventy "
            "times as often.",
            "Intervals are Wilson's, 95 %; together they take samples of several models as one.",
            "Data without labels: the features are of a network of random weights, in both searches.",
        ],
    )
    if not asked.dry:
        both_pairs(asked.seconds, asked.num)
        outcome.write()


_PAIRS = (("share", "interval"), ("real share", "real interval"))


def _said(share: float, between: tuple[float, float]) -> str:
    return f"{100 * share:.1f} % ({100 * between[0]:.1f} to {100 * between[1]:.1f})"


if __name__ == "__main__":
    main()
