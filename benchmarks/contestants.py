"""Who takes part in time_to_quality.py: our training and the peer's, each at its defaults, and one judge of both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fashion import fashion
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
