"""How soon samples are as good as 200 evaluations make them: ours beside diffusers' DDIM on the same weights.

    python benchmarks/sampling_speed.py [--data digits fashion] [--turns 5] [--tiny]

One thread. A diffusers UNet2DModel is trained for ε on the linear betas that its DDIMScheduler has by default, once;
its weights and every Fréchet distance are kept in runs/bench/sampling_speed, so a run that was cut short goes on where
it was. Writes results/sampling_speed.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
from fashion import fashion
from outcome import Outcome, Table, Target, interleaved, markdown, ratio
from torch import Tensor, nn

from diff_diffusion import DiffusionModel, ImageDataset, TrainSettings, load_image_dataset, train
from diff_diffusion.codecs.affine import Affine
from diff_diffusion.evaluation.distances import frechet
from diff_diffusion.evaluation.feature_networks import weights_hash
from diff_diffusion.evaluation.features import train_classifier
from diff_diffusion.presets import recipe
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.grid import Grid, LogSnr
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.optimised import optimised
from diff_diffusion.samplers.sampler import Sampler
from diff_diffusion.samplers.unipc import UniPC

HOME = Path(__file__).parent.parent / "runs" / "bench"
WANTED, WITHIN, ENOUGH, BATCH = 4.0, 1.1, 200, 64
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Trial:
    """One data set, a network for it, and what is tried.

    Attributes:
        widths: of the UNet2DModel's levels.
        seconds: of training, processor time.
        n: samples of each Fréchet distance.
        steps: evaluations that ours tries, rising.
        theirs: evaluations that DDIM tries, rising; 50 among them.
    """

    name: str
    widths: tuple[int, ...]
    seconds: float
    n: int
    steps: tuple[int, ...] = (5, 6, 7, 8, 10, 12, 16, 20)
    theirs: tuple[int, ...] = (10, 20, 30, 50, 100)

    def data(self) -> tuple[ImageDataset, ImageDataset]:
        return load_image_dataset("digits").split() if self.name == "digits" else fashion()


TRIALS = {"digits": Trial("digits", (32, 64), 180.0, 1000), "fashion": Trial("fashion", (32, 64, 64), 600.0, 500)}
TINY: dict[str, Any] = {"seconds": 3.0, "n": 70, "steps": (4,), "theirs": (10, 50)}


@register("network/diffusers_unet")
class Unet(nn.Module):
    """diffusers' network, which is asked by the index of a chain's step, asked by λ."""

    def __init__(self, widths: tuple[int, ...], shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.widths, self.shape, levels = widths, shape, len(widths)
        self.unet: Any = diffusers.UNet2DModel(  # type: ignore[no-untyped-call]
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=1,
            block_out_channels=widths,
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
            norm_num_groups=8,
        )
        self.time_map = recipe("ddpm").process.time_map

    def forward(self, x: Tensor, log_snr: Tensor, embedded: None) -> Tensor:
        place = (1000.0 * self.time_map.time(log_snr.double()) - 1.0).clamp(min=0.0).float()
        output: Tensor = self.unet(x, place).sample
        return output


class Bench:
    """One trial: the trained weights, the judge, and what is known of them on disk."""

    def __init__(self, trial: Trial, home: Path) -> None:
        self.trial = trial
        self.data, held_out = trial.data()
        self.judge = train_classifier(self.data, held_out)
        self.reference = self.judge.features(self.data.batch(range(min(len(self.data), 10_000))))
        self.model = self._trained(home / f"{trial.name}.safetensors")
        package: Any = diffusers
        self.pipeline = package.DDIMPipeline(self.model.network.unet, package.DDIMScheduler())
        self.pipeline.set_progress_bar_config(disable=True)
        self.kept = home / f"{trial.name}.json"
        # What the distances are of: other weights, another judge or another n begin anew.
        about = {"n": trial.n, "judge": self.judge.name, "weights": weights_hash(self.model.parameters())}
        known = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        self.found: dict[str, Any] = known if known.get("about") == about else {"about": about, "distances": {}}
        noise = Noise(range(10**6, 10**6 + 32))
        denoiser, *_ = self.model.plan(steps=50)
        with torch.no_grad():
            aligned = optimised(denoiser, self.data.shape, 2, noise=noise)
        self.ways: dict[str, tuple[Sampler, Grid]] = {
            "multistep on λ": (Multistep(order=2), LogSnr(10, 10.0, -10.0)),
            "multistep on its own error": (Multistep(order=2), aligned),
            "unipc on λ": (UniPC(), LogSnr(10, 10.0, -10.0)),
        }

    def _trained(self, path: Path) -> DiffusionModel:
        trial, shape = self.trial, self.data.shape
        torch.manual_seed(0)
        # diffusers' data lie in [-1, 1].
        codec = Affine(shape, [127.5] * shape[0], [127.5] * shape[0])
        model = DiffusionModel(Unet(trial.widths, shape), codec, recipe("ddpm"))
        if not path.exists():
            print(f"{trial.name}: training {model.num_parameters:,} parameters", flush=True)
            settings = TrainSettings(steps=10**6, batch_size=64, precision="fp32")
            end = time.process_time() + trial.seconds
            for record in train(model, self.data, None, settings, stop=lambda: time.process_time() > end):
                if record.step % 200 == 0:
                    print(f"  step {record.step}: loss {record.loss:.4f}", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()

    def theirs(self, steps: int, count: int, first: int = 0) -> Tensor:
        """[count, C, H, W] in [0, 255] by DDIMPipeline."""
        generator = torch.Generator().manual_seed(first)
        images: Tensor = self.pipeline(count, generator, num_inference_steps=steps, output_type="pt").images
        return images.float() * 255

    def ours(self, way: str, steps: int, count: int, first: int = 0) -> Tensor:
        sampler, grid = self.ways[way]
        return self.model.sample(count, seed=first, batch_size=count, steps=steps, sampler=sampler, grid=grid)

    def drawn(self, way: str, steps: int, precision: str, count: int, first: int = 0) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if way == "DDIM":
                return self.theirs(steps, count, first)
            return self.ours(way, steps, count, first)

    def distance(self, way: str, steps: int, precision: str) -> float:
        key, n = f"{way}, {steps}, {precision}", self.trial.n
        if key not in self.found["distances"]:
            batches = [(first, min(BATCH, n - first)) for first in range(0, n, BATCH)]
            samples = torch.cat([self.drawn(way, steps, precision, count, first) for first, count in batches])
            features = self.judge.features(samples.clamp(0, 255).round())
            self.found["distances"][key] = frechet(features, self.reference)
            self.kept.write_text(json.dumps(self.found, indent=1, ensure_ascii=False) + "\n")
            print(f"{self.trial.name}: {key}: {self.found['distances'][key]:.2f}", flush=True)
        return float(self.found["distances"][key])

    def first(self, way: str, steps: tuple[int, ...], precision: str, bound: float) -> int | None:
        """The fewest of `steps` that stay below the bound."""
        return next((count for count in steps if self.distance(way, count, precision) <= bound), None)


def measured(bench: Bench, turns: int) -> tuple[list[Table], list[Target], dict[str, Any]]:
    trial = bench.trial
    theirs = bench.distance("DDIM", ENOUGH, "fp32")
    # At 200 evaluations all of ours are at the end of the same flow.
    ours = bench.distance("multistep on λ", ENOUGH, "fp32")
    rows: list[list[str]] = []
    chosen: dict[tuple[str, str], tuple[str, int]] = {}
    for way in ("DDIM", *bench.ways):
        # Ours must be as good as the better of both; DDIM only as good as itself.
        own = theirs if way == "DDIM" else min(ours, theirs)
        bound = WITHIN * own
        tried = trial.theirs if way == "DDIM" else trial.steps
        for precision in PRECISIONS:
            enough = bench.first(way, tried, precision, bound)
            rows.append([way, precision, f"{own:.2f}", f"{bound:.2f}", "none tried" if enough is None else str(enough)])
            rows[-1].append("" if enough is None else f"{bench.distance(way, enough, precision):.2f}")
            owner = "DDIM" if way == "DDIM" else "ours"
            if enough is not None and enough < chosen.get((owner, precision), (way, ENOUGH))[1]:
                chosen[owner, precision] = (way, enough)
    contestants = {f"DDIM, 50, {precision}": ("DDIM", 50, precision) for precision in PRECISIONS}
    for (_, precision), (way, steps) in chosen.items():
        contestants[f"{way}, {steps}, {precision}"] = (way, steps, precision)
    walks = {label: partial(bench.drawn, *asked, BATCH) for label, asked in contestants.items()}
    times = interleaved(walks, turns)
    columns = [
        "sampler",
        "precision",
        f"at {ENOUGH}",
        f"within {WITHIN - 1:.0%}",
        "evaluations enough",
        "distance there",
    ]
    title = f"{trial.name}: Fréchet distances, n = {trial.n}, {bench.judge.name}"
    tables = [Table(title, columns, rows)]
    base = "DDIM, 50, fp32"
    speeds, ratios = [], {}
    for label, (way, steps, precision) in contestants.items():
        middle, low, high = ratios[label] = ratio(times, base, label)
        share = 1e3 * sorted(times[label])[turns // 2] / BATCH
        distance = bench.distance(way, steps, precision)
        speeds.append([label, f"{distance:.2f}", f"{share:.2f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    columns = ["sampler, evaluations, precision", "Fréchet distance", "ms an image", "times as fast as DDIM-50"]
    tables.append(Table(f"{trial.name}: processor time in batches of {BATCH}", columns, speeds))
    ways = [f"{way}, {steps}, {precision}" for (who, precision), (way, steps) in chosen.items() if who == "ours"]
    best = max((ratios[label][0] for label in ways), default=0.0)
    what = f"{trial.name}: times as fast as DDIM-50 at a distance within 10 % of 200 evaluations'"
    targets = [Target(what, best, WANTED)]
    return tables, targets, {"distances": bench.found["distances"], "seconds": times, "speed-ups": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds of each, to see that it runs; writes no results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    home = HOME / ("sampling_speed_tiny" if arguments.tiny else "sampling_speed")
    tables, targets, numbers = [], [], {}
    for name in arguments.data:
        trial = replace(TRIALS[name], **TINY) if arguments.tiny else TRIALS[name]
        some, promised, numbers[name] = measured(Bench(trial, home), arguments.turns)
        tables += some
        targets += promised
    found = Outcome(
        "sampling_speed",
        "Sampling speed",
        "python benchmarks/sampling_speed.py",
        "Time until samples are as good as those of 200 evaluations, beside 50 steps of DDIM by diffusers' pipeline: "
        "the same UNet2DModel and the same weights, trained for ε on the linear betas of its DDIMScheduler, on digits "
        "(8 × 8) and Fashion-MNIST (28 × 28). Ours are the fewest evaluations, of those tried, that stay within 10 % "
        "of the better of two Fréchet distances at 200 evaluations, its own and DDIM's; DDIM's, of its own.",
        tables,
        targets,
        numbers,
        [
            "Processor time of one thread, samplers taking turns; medians, with the range over turns in brackets.",
            "DDIM in fp32 is what the pipeline does when left alone; bf16 is autocast, around either.",
            "Samplers, grids and numbers of evaluations were tried in their order and the best is shown, so its "
            "distance is a little lucky; all have the same training, of minutes.",
            "x̂_0 is clipped to the data's range by both.",
        ],
    )
    if arguments.tiny:
        print("\n\n".join(markdown(asdict(found))))
    else:
        found.write(["diffusers"])


if __name__ == "__main__":
    main()
