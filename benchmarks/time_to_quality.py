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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from fashion import fashion
from outcome import Outcome, Table, Target, markdown
from peers import denoising_diffusion_pytorch
from torch import Tensor, nn

from diff_diffusion import DiffusionModel, ImageDataset, Noise, TrainSettings, load_image_dataset, train
from diff_diffusion.core.denoiser import NetworkDenoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.targets import LinearTarget
from diff_diffusion.core.time_maps import TabulatedBetas
from diff_diffusion.evaluation.distances import frechet
from diff_diffusion.evaluation.features import Classifier, train_classifier
from diff_diffusion.guidance.bounds import Clipped
from diff_diffusion.samplers import trajectory
from diff_diffusion.samplers.grid import LogSnr
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.training.ema import Ema

HOME = Path(__file__).parent.parent / "runs" / "bench"
WANTED = 4.0
"""How many times sooner ours is to be there."""
README = {"dim": 64, "dim_mults": (1, 2, 4, 8)}
"""The network in the peer's README, which has no default of its own."""


@dataclass(frozen=True)
class Contest:
    """One data set and what is done on it.

    Attributes:
        seconds: of the peer's training; ours is judged at halvings of it.
        halvings: how many.
        n, sets: samples in a set, and sets, whose Fréchet distances are averaged.
        steps: network evaluations per sample, everybody's.
        check: evaluations of the peer's own DDIM, tried beside on seed 0.
        bf16: whether samples are drawn in it, by all.
        small: a network of the peer with as many parameters as ours.
        pad: black pixels around the peer's images, for the README's network halves a side three times.
    """

    name: str
    seconds: float
    halvings: int
    n: int
    sets: int
    steps: int
    check: tuple[int, ...]
    bf16: bool
    small: dict[str, Any]
    pad: int = 0

    def data(self) -> tuple[ImageDataset, ImageDataset]:
        return load_image_dataset("digits").split() if self.name == "digits" else fashion()


DIGITS = Contest("digits", 120.0, 5, 359, 2, 32, (50, 250), False, {"dim": 32, "dim_mults": (1, 2)})
FASHION = Contest("fashion", 1200.0, 6, 500, 1, 16, (50,), True, {"dim": 40, "dim_mults": (1, 2, 4)}, pad=2)
TINY: dict[str, Any] = {"seconds": 6.0, "halvings": 2, "n": 66, "sets": 1, "steps": 2, "check": (2,)}

Drawn = Callable[[int, int], Tensor]
"""(how many samples, the first one's seed) to images in [0, 255]."""


class Judge:
    """The features that all are measured by, and the real images that they are measured to."""

    def __init__(self, contest: Contest) -> None:
        self.contest = contest
        self.data, held_out = contest.data()
        self.classifier: Classifier = train_classifier(self.data, held_out)
        self.reference = self.classifier.features(self.data.batch(range(min(len(self.data), 10_000))))
        real = self.classifier.features(held_out.batch(range(len(held_out))))
        sets = [part for part in real.split(contest.n) if len(part) == contest.n]
        self.floor = statistics.mean(frechet(part, self.reference) for part in sets)

    def distance(self, drawn: Drawn, sets: int | None = None) -> float:
        n, found = self.contest.n, []
        for first in range(0, n * (sets or self.contest.sets), n):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.contest.bf16):
                samples = drawn(n, first).float()
            # As a picture file would hold them.
            found.append(frechet(self.classifier.features(samples.clamp(0, 255).round()), self.reference))
        return statistics.mean(found)


def ours(judge: Judge, seed: int, reach: float) -> Iterator[dict[str, Any]]:
    """Our defaults, judged on the way; after a quarter of the peer's time only until `reach` is reached."""
    contest, settings = judge.contest, TrainSettings(steps=1_000_000, seed=seed)
    began = time.process_time()
    model = DiffusionModel.for_data(judge.data, seed=seed, conditional=False)
    run = train(model, judge.data, None, settings)
    spent, record = time.process_time() - began, None
    # The run's own average is not to be seen from outside; this one is the same, bit by bit, and costs the run nothing.
    average = Ema(model)
    for halving in range(contest.halvings, -1, -1):
        budget = contest.seconds / 2**halving
        if record is not None and spent >= budget:
            continue
        while spent < budget:
            began = time.process_time()
            record = next(run)
            spent += time.process_time() - began
            average.update(settings.ema_rate(record.step - 1))
        assert record is not None
        grid = LogSnr(contest.steps, 10.0, -10.0)
        with average.swapped():
            found = judge.distance(lambda n, first: model.sample(n, seed=first, grid=grid))  # noqa: B023
        yield {"seconds": spent, "steps": record.step, "frechet": found, "precision": model.facts["precision"]}
        if halving <= 2 and found <= reach:
            break


class Indexed(nn.Module):
    """The peer's network, which is asked by the index of a chain's step, asked by λ."""

    def __init__(self, network: nn.Module, chain: TabulatedBetas) -> None:
        super().__init__()
        self.network, self.chain = network, chain

    def forward(self, x: Tensor, log_snr: Tensor, embedded: None) -> Tensor:
        place = self.chain.time(log_snr[:1].double()) * len(self.chain.betas) - 1.0
        output: Tensor = self.network(x, place.clamp(min=0.0).float().expand(len(x)))
        return output


def peer(judge: Judge, seed: int, network: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The peer's trainer at its defaults, its images in memory, judged at the end."""
    contest, package = judge.contest, denoising_diffusion_pytorch()
    module: Any = __import__(package.GaussianDiffusion.__module__, fromlist=["Trainer"])
    torch.manual_seed(seed)
    fits = judge.data.shape[1] % 2 ** (len(network["dim_mults"]) - 1) == 0
    pad = 0 if fits else contest.pad
    pixels = judge.data.batch(range(len(judge.data))).float() / 255
    pixels = nn.functional.pad(pixels, (pad,) * 4)
    unet = package.Unet(**network, channels=1)
    diffusion = package.GaussianDiffusion(
        unet, image_size=pixels.shape[-1], timesteps=1000, sampling_timesteps=min(contest.check)
    )
    silent = module.tqdm
    module.Dataset = lambda *_, **__: pixels  # what would read files
    module.cpu_count = lambda: 0  # and the processes that would
    module.tqdm = lambda *args, **options: silent(*args, **(options | {"disable": True}))
    folder = HOME / "peer"
    folder.mkdir(parents=True, exist_ok=True)
    trainer = module.Trainer(
        diffusion, "", results_folder=folder, calculate_fid=False, train_num_steps=0, save_and_sample_every=10**9
    )
    trainer.dl = _batches(pixels, trainer.batch_size, seed)
    trainer.accelerator.print = lambda *_: None
    spent, told = 0.0, 0.0
    while spent < contest.seconds:
        trainer.train_num_steps = trainer.step + 1
        began = time.process_time()
        trainer.train()
        spent += time.process_time() - began
        if spent >= told + contest.seconds / 10:
            told = spent
            print(f"  {trainer.step} steps in {spent:.0f} of {contest.seconds:g} s", flush=True)
    average = trainer.ema.ema_model.eval()
    chain = TabulatedBetas(diffusion.betas.double().tolist())
    process = Gaussian(chain)
    network_denoiser = NetworkDenoiser(Indexed(average.model, chain), process, LinearTarget("v")).requires_grad_(False)
    denoiser = Clipped(network_denoiser, torch.tensor(-1.0), torch.tensor(1.0))
    times = LogSnr(contest.steps, 10.0, -10.0).times(process)

    def images(x: Tensor) -> Tensor:
        return 255 * (nn.functional.pad(x, (-pad,) * 4) + 1) / 2

    def walked(n: int, first: int) -> Tensor:
        done = []
        for start in range(first, first + n, 64):
            noise = Noise(range(start, min(start + 64, first + n)))
            x = process.prior((len(noise), *pixels.shape[1:]), noise.at(0), 1.0)
            for step in trajectory(denoiser, Multistep(order=2), times, x, noise=noise):
                x = step.x
            done.append(images(x))
        return torch.cat(done)

    def its_own(n: int, first: int) -> Tensor:
        torch.manual_seed(first)
        shapes = [(min(64, n - start), *pixels.shape[1:]) for start in range(0, n, 64)]
        return torch.cat([images(2 * average.ddim_sample(shape) - 1) for shape in shapes])

    ways = {f"multistep, {contest.steps}": judge.distance(walked)}
    for steps in contest.check if seed == 0 else ():
        average.sampling_timesteps = steps
        ways[f"its DDIM, {steps}"] = judge.distance(its_own, 1)
    best = min(ways.values())
    yield {"seconds": spent, "steps": trainer.step, "frechet": best, "ways": ways}


def _batches(pixels: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(pixels), generator=generator).split(size):
            yield pixels[rows]


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
