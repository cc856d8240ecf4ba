"""How good the samples are after how much training: ours and denoising-diffusion-pytorch, each at its own defaults.

    python benchmarks/time_to_quality.py [--contests digits fashion] [--seeds 0 1 2] [--contestants peer small ours]
        [--tiny]

One thread; a contestant's clock is the processor time of its training steps, and what samples and judges them stands
outside of it. Every training is kept in runs/bench/time_to_quality, so a run that was cut short goes on where it was.
Writes results/time_to_quality.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from contestants import DIGITS, FASHION, HOME, README, TINY, Judge, ours, peer
from outcome import Outcome, Table, Target, markdown

WANTED = 4.0
"""How many times sooner ours is to be there."""


def speed_up(curve: list[dict[str, Any]], theirs: dict[str, Any]) -> tuple[float, str]:
    """The peer's seconds by the seconds at which our curve comes to its distance, and "≥" or "<" if only a bound."""
    wanted = theirs["frechet"]
    if curve[0]["frechet"] <= wanted:
        return theirs["seconds"] / curve[0]["seconds"], "≥ "
    for before, after in pairwise(curve):
        if after["frechet"] <= wanted:
            # Straight in the logarithms of both.
            down = math.log(before["frechet"] / wanted) / math.log(before["frechet"] / after["frechet"])
            return theirs["seconds"] / (before["seconds"] * (after["seconds"] / before["seconds"]) ** down), ""
    return theirs["seconds"] / curve[-1]["seconds"], "< "


def trained(judge: Judge, who: str, seed: int, reach: float, home: Path) -> list[dict[str, Any]]:
    """The curve of one training, from the file where it is kept, or measured and kept."""
    contest, path = judge.contest, home / f"{judge.contest.name}-{who}-{seed}.json"
    asked = json.loads(json.dumps(asdict(contest) | {"judge": judge.classifier.name}))
    if path.exists():
        kept = json.loads(path.read_text())
        curve: list[dict[str, Any]] = kept["curve"]
        whole = who != "ours" or curve[-1]["frechet"] <= reach or curve[-1]["seconds"] >= contest.seconds
        if kept["asked"] == asked and whole:
            return curve
    curve, began = [], time.monotonic()
    print(f"{contest.name}, {who}, seed {seed}", flush=True)
    points = (
        ours(judge, seed, reach) if who == "ours" else peer(judge, seed, README if who == "peer" else contest.small)
    )
    for point in points:
        curve.append(point)
        print(f"  {point} ({time.monotonic() - began:.0f} s by the clock)", flush=True)
    home.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"asked": asked, "curve": curve}, indent=1) + "\n")
    return curve


Parts = dict[tuple[str, str, int], list[dict[str, Any]]]
"""Curves by contest, contestant and seed."""


def outcome(judges: dict[str, Judge], parts: Parts) -> Outcome:
    tables, targets, ratios = [], [], {}
    for name, judge in judges.items():
        contest, rows = judge.contest, []
        seeds = sorted({seed for at, _, seed in parts if at == name})
        for seed in seeds:
            here = {who: parts[name, who, seed] for at, who, one in parts if (at, one) == (name, seed)}
            for who, label in (("peer", "denoising-diffusion-pytorch"), ("small", "the same, a network of our size")):
                for point in here.get(who, []):
                    ways = ", ".join(f"{way}: {found:.1f}" for way, found in point["ways"].items())
                    rows.append([str(seed), label, *_point(point), ways])
            for point in here.get("ours", []):
                way = f"multistep, {contest.steps}; trained in {point['precision']}"
                rows.append([str(seed), "ours", *_point(point), way])
        columns = ["seed", "contestant", "seconds", "steps", "Fréchet distance", "how sampled"]
        title = f"{name}, n = {contest.n}; real against real at that n: {judge.floor:.2f} ({judge.classifier.name})"
        tables.append(Table(title, columns, rows))
        for who, label in (("peer", "its README's network"), ("small", "a network of our size")):
            both = [seed for seed in seeds if {(name, "ours", seed), (name, who, seed)} <= parts.keys()]
            if not both:
                continue
            found = [speed_up(parts[name, "ours", seed], parts[name, who, seed][-1]) for seed in both]
            each = ratios[f"{name}, {label}"] = [value for value, _ in found]
            told = ", ".join(f"{bound}{value:.1f}" for value, bound in found)
            tables.append(Table(f"{name}, {label}: times sooner there, by seed", ["speed-up"], [[told]]))
            if who == "peer":
                what = f"{name}: times sooner at what the peer reaches in {contest.seconds:g} s, median of {len(both)}"
                targets.append(Target(what, statistics.median(each), WANTED))
    kept = {f"{name} {who} {seed}": curve for (name, who, seed), curve in parts.items()}
    return Outcome(
        "time_to_quality",
        "Time to quality",
        "python benchmarks/time_to_quality.py",
        "Seconds of training on one core until samples are as near to the real images as the peer's are after its time:"
        " 120 s on digits, 8 × 8, and 20 minutes on Fashion-MNIST, 28 × 28. Both train without classes, which the peer "
        "does by default, from the same images; each with its own network, batch, learning rate, average and precision."
        " Fréchet distances of the same number of samples to the same training images, on the features of one "
        "classifier.",
        tables,
        targets,
        {"trainings": kept, "speed-ups": ratios, "floors": {name: judge.floor for name, judge in judges.items()}},
        [
            "Seconds are the processor time of one thread. Ours have the making of the model and the measuring of "
            "precisions in them; the peer's have only its steps.",
            "The peer trains by its own Trainer, untouched, but its images are in memory and not flipped: reading files"
            " is not measured, and digits are not their own mirror images.",
            "Its README's network is Unet(dim=64, dim_mults=(1, 2, 4, 8)), 35.7 million parameters; it halves a side "
            "three times, so Fashion-MNIST gets two black pixels around it, which are cut off again. With a network of "
            "our size it has Unet(dim=32, dim_mults=(1, 2)) on digits and Unet(dim=40, dim_mults=(1, 2, 4)) on "
            "Fashion-MNIST, and its other defaults.",
            "All are sampled by our multistep sampler, the peer's with x̂_0 clipped as its own does; beside it the "
            "first seed's by its own DDIM, and the better counts.",
            "Ours is judged at halvings of the peer's time; between two of them the curve is taken as straight in the "
            "logarithms. ≥: our first point is there already. <: our last is not.",
        ],
    )


def _point(point: dict[str, Any]) -> list[str]:
    return [f"{point['seconds']:.1f}", str(point["steps"]), f"{point['frechet']:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contests", nargs="+", default=["digits", "fashion"], choices=["digits", "fashion"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--contestants", nargs="+", default=["peer", "small", "ours"], choices=["peer", "small", "ours"]
    )
    parser.add_argument("--tiny", action="store_true", help="seconds of each, to see that it runs; writes no results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    home = HOME / ("time_to_quality_tiny" if arguments.tiny else "time_to_quality")
    known = {"digits": DIGITS, "fashion": FASHION}
    contests = [replace(known[name], **TINY) if arguments.tiny else known[name] for name in arguments.contests]
    judges = {contest.name: Judge(contest) for contest in contests}
    # The peers before ours, which trains until it is as good.
    order = [who for who in ("peer", "small", "ours") if who in arguments.contestants]
    parts: Parts = {}
    todo = [(seed, name, who) for seed in arguments.seeds for name in judges for who in order]
    began = time.monotonic()
    for done, (seed, name, who) in enumerate(todo, 1):
        theirs = [curve[-1]["frechet"] for at, curve in parts.items() if (at[0], at[2]) == (name, seed)]
        reach = min(theirs, default=0.0)
        parts[name, who, seed] = trained(judges[name], who, seed, reach, home)
        share = sum(judges[at].contest.seconds for _, at, _ in todo[:done])
        left = (time.monotonic() - began) / share * sum(judges[at].contest.seconds for _, at, _ in todo[done:])
        print(f"{done} of {len(todo)} done; about {left / 60:.0f} minutes left", flush=True)
    found = outcome(judges, parts)
    if arguments.tiny:
        print("\n\n".join(markdown(asdict(found))))
    else:
        found.write(["denoising-diffusion-pytorch", "ema-pytorch", "accelerate"])


if __name__ == "__main__":
    main()
