"""What a sampler's step costs around the network: ours beside diffusers, one process, one thread.

    python benchmarks/step_overhead.py [--steps 50] [--repeats 200]

Takes a minute. Writes results/step_overhead.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import diffusers
import torch
from outcome import Outcome, Table, Target
from torch import Tensor, nn

from diff_diffusion.core.denoiser import Denoiser, NetworkDenoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.targets import LinearTarget
from diff_diffusion.core.time_maps import LinearBeta
from diff_diffusion.guidance.bounds import Clipped
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import Sampler, trajectory
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.grid import Uniform
from diff_diffusion.samplers.multistep import Multistep

EPS = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGETS = {"DDIM": 1 / 4, "DDIM, x̂_0 clipped": 1 / 4, "2M": 1 / 5}
"""The share of diffusers' time that ours may take."""
WHO = ("ours", "diffusers", "bare")


SAID = """
What a step costs around the network: batch 1, [1, 3, 32, 32], float32, one thread, gradients off. The network is free:
it returns a tensor made before, and the time of a loop that only calls it is taken off. Ours is the walk that a user
runs, `trajectory` over a `NetworkDenoiser`; diffusers' is `scheduler.step` alone; the bare loop is the same update with
its coefficients worked out before.
""".strip()


class Free(nn.Module):
    """A network that costs nothing but its call."""

    def forward(self, x: Tensor, log_snr: Tensor, embedded: None) -> Tensor:
        return EPS


def our_walk(sampler: Sampler, num_steps: int, clip: bool = False) -> Callable[[], None]:
    process = Gaussian(LinearBeta())
    denoiser: Denoiser = NetworkDenoiser(Free(), process, LinearTarget("eps"))
    if clip:
        denoiser = Clipped(denoiser, torch.tensor(-1.0), torch.tensor(1.0))
    times, noise = Uniform(num_steps).times(process), Noise([0])

    def walk() -> None:
        with torch.no_grad():
            for _ in trajectory(denoiser, sampler, times, EPS, noise=noise):
                pass

    return walk


def their_walk(name: str, num_steps: int, **config: Any) -> Callable[[], None]:
    scheduler, free = getattr(diffusers, name)(**config), Free()

    def walk() -> None:
        scheduler.set_timesteps(num_steps)  # it clears a multistep scheduler's history; not timed
        x = EPS
        started = time.thread_time()
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                x = scheduler.step(free(x, timestep, None), timestep, x).prev_sample
        walk.seconds = time.thread_time() - started  # type: ignore[attr-defined]

    return walk


def bare_walk(order: int, num_steps: int, clip: bool = False) -> Callable[[], None]:
    """x_s = k x_t + (α_s - k α_t) x̂_0, k = σ_s/σ_t, with the numbers of each step worked out before."""
    process = Gaussian(LinearBeta())
    steps = []
    for t, s in pairwise(Uniform(num_steps).times(process)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.scales(t), process.scales(s)
        kept = sigma_s / sigma_t
        steps.append((1 / alpha_t, -sigma_t / alpha_t, kept, alpha_s - kept * alpha_t))

    def walk() -> None:
        x, before = EPS, EPS
        free = Free()
        with torch.no_grad():
            for grown, shrunk, kept, share in steps:
                x_0 = torch.add(x * grown, free(x, EPS, None), alpha=shrunk)
                if clip:
                    x_0 = x_0.clamp_(-1.0, 1.0)
                held = x_0
                if order == 2:
                    held, before = torch.add(x_0 * 1.5, before, alpha=-0.5), x_0
                x = torch.add(x * kept, held, alpha=share)

    return walk


def calls_alone(num_steps: int) -> Callable[[], None]:
    free = Free()

    def walk() -> None:
        with torch.no_grad():
            for _ in range(num_steps):
                free(EPS, EPS, None)

    return walk


def measure(walks: dict[str, Callable[[], None]], repeats: int, num_steps: int) -> dict[str, list[float]]:
    """Microseconds a step of each walk in each turn, after two turns that only warm up."""
    found: dict[str, list[float]] = {name: [] for name in walks}
    for turn in range(repeats + 2):
        for name, walk in walks.items():
            started = time.thread_time()
            walk()
            seconds = getattr(walk, "seconds", time.thread_time() - started)
            if turn >= 2:
                found[name].append(1e6 * seconds / num_steps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    n = arguments.steps
    rows = {
        name: (
            our_walk(Ancestral(0.0), n, clip),
            their_walk("DDIMScheduler", n, clip_sample=clip),
            bare_walk(1, n, clip),
        )
        for name, clip in (("DDIM", False), ("DDIM, x̂_0 clipped", True))
    }
    rows["2M"] = our_walk(Multistep(2), n), their_walk("DPMSolverMultistepScheduler", n), bare_walk(2, n)
    walks = {f"{name}/{who}": walk for name, row in rows.items() for who, walk in zip(WHO, row, strict=True)}
    found = measure(walks | {"calls": calls_alone(n)}, arguments.repeats, n)
    calls = found.pop("calls")
    found = {name: [a - b for a, b in zip(values, calls, strict=True)] for name, values in found.items()}
    results: dict[str, dict[str, float]] = {}
    for name, target in TARGETS.items():
        results[name] = {who: statistics.median(found[f"{name}/{who}"]) for who in WHO}
        each = [a / b for a, b in zip(found[f"{name}/ours"], found[f"{name}/diffusers"], strict=True)]
        results[name] |= {"ratio": statistics.median(each), "target": target}
    told(results, n, arguments.repeats).write(["diffusers"])


def told(results: dict[str, dict[str, float]], steps: int = 50, repeats: int = 200) -> Outcome:
    return Outcome(
        name="step_overhead",
        title="A sampler's step",
        command="python benchmarks/step_overhead.py",
        said=SAID,
        tables=[
            Table(
                "A step around the network, µs",
                ["step", "ours", "diffusers", "ours, of diffusers'", "bare loop"],
                [
                    [name, *(f"{row[who]:.1f}" for who in WHO[:2]), f"{row['ratio']:.3f}", f"{row['bare']:.1f}"]
                    for name, row in results.items()
                ],
            )
        ],
        targets=[
            Target(
                f"time of a step of {name}, of diffusers'",
                row["ratio"],
                row["target"],
                at_least=False,
                why=f"a bare loop of the same update takes {row['bare'] / row['diffusers']:.2f} of their time already",
            )
            for name, row in results.items()
        ],
        numbers=results,
        notes=[
            f"Processor time of the thread. Walks of {steps} steps take turns, {repeats} each; the ratio is the median "
            "of the turns'."
        ],
    )


if __name__ == "__main__":
    main()
