"""Everything installed against closed forms: the jobs of `diff-diffusion verify`, a part each.

Parts come from the registry, so one that is added elsewhere is checked by being registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.categorical import Logits
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.time_maps import LinearLogSnr, TimeMap
from diff_diffusion.errors import IncompatibleError
from diff_diffusion.registry import names
from diff_diffusion.rng import Noise
from diff_diffusion.verification import objectives, processes, samplers, tokens
from diff_diffusion.verification.check import Check, Job
from diff_diffusion.verification.closed_forms import TwoModes
from diff_diffusion.verification.parts import parts

GRID_COUNTS = range(1, 65)


def installed() -> list[Job]:
    """The jobs, in the order in which a table shows them."""
    maps = {name: time_map for name, time_map in parts("time_map")[0].items() if isinstance(time_map, TimeMap)}
    return [
        *_jobs("sampler", samplers.checks, lambda sampler: issubclass(Gaussian, sampler.needs)),
        *_jobs("sampler", tokens.sampler_checks, _draws_tokens, "token sampler"),
        *_gaussians(maps),
        *(Job("token process", name, partial(tokens.process_checks, name, p)) for name, p in tokens.family().items()),
        *_others("process", {"gaussian", *tokens.family()}),
        *_jobs("target", objectives.target_checks, lambda target: not isinstance(target, Logits)),
        *_jobs("target", tokens.target_checks, lambda target: isinstance(target, Logits), "token target"),
        *_jobs("weight", objectives.weight_checks),
        *_jobs("measure", objectives.measure_checks),
        *_jobs("levels", objectives.levels_checks),
        *_jobs("time_map", processes.time_map_checks),
        *_jobs("grid", partial(processes.grid_checks, maps=maps, counts=GRID_COUNTS)),
        Job("noise", "philox", noise_checks),
        Job("denoiser", "mixture", mixture_checks),
    ]


def _jobs(
    kind: str, checks: Callable[[str, Any], Iterable[Check]], fits: Callable[[Any], bool] | None = None, title: str = ""
) -> list[Job]:
    """A job for every registered part of a kind that `fits`; and, once, for those that could not be made."""
    made, refused = parts(kind)
    jobs = [Job(title or kind, n, partial(checks, n, part)) for n, part in made.items() if fits is None or fits(part)]
    return jobs if title else [*jobs, *(_unchecked(kind, name, why) for name, why in refused.items())]


def _unchecked(kind: str, name: str, why: str) -> Job:
    return Job(kind, name, lambda: [Check(kind, name, "checked", None, 0.0, note=why)])


def _others(kind: str, known: set[str]) -> list[Job]:
    """Parts of a kind whose family has no closed form here."""
    others = [name for name in names(kind, aliases=False) if name not in known]
    return [_unchecked(kind, name, "no closed form for its family here") for name in others]


def _draws_tokens(sampler: Any) -> bool:
    return any(isinstance(process, sampler.needs) for process in tokens.family().values())


def _gaussians(maps: dict[str, TimeMap]) -> Iterator[Job]:
    for scaling in SCALINGS:
        family = []
        for time_map in maps.values():
            try:
                family.append(Gaussian(time_map, scaling))
            except IncompatibleError:  # a map that ends at λ = -∞, under a scaling that has no such end
                continue
        name = f"gaussian, {scaling}"
        yield Job("process", name, partial(processes.gaussian_checks, name, family))


# Drawn once, and the same for ever on every machine: a sample is its seed.
GOLDEN = {
    "normal": (-1.0082303285598755, 0.40660154819488525, 0.24777399003505707, 0.4312838315963745),
    "uniform": (0.14568727925704228, 0.6718022958325266, 0.4482901206824914, 0.4235476203989468),
}


def noise_checks() -> Iterator[Check]:
    """The noise is the one that seeds mean everywhere, and it is normal."""
    noise = Noise([0, 2**63], "sample", 3)
    for name, golden in GOLDEN.items():
        found = getattr(noise, name)((2, 2)).double().flatten().tolist()
        worst = max(abs(a - b) for a, b in zip(found, golden, strict=True))
        yield Check("noise", "philox", name, worst, 1e-6, note="difference from the numbers of these seeds")
    draws = Noise(range(64)).normal((64, 256)).double()
    mean, spread = draws.mean().item() * 128.0, (draws.var().item() - 1.0) * 128.0 / 2**0.5
    yield Check(
        "noise", "philox", "moments", max(abs(mean), abs(spread)), 5.0, note="in standard errors of 16,384 draws"
    )


def mixture_checks() -> Iterator[Check]:
    """`core.analytic`'s mixture, which tests lean on, against the formulas here."""
    worst, x = 0.0, torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
    for scaling in SCALINGS:
        process = Gaussian(LinearLogSnr(9.0, -9.0), scaling)
        ours, theirs = TwoModes(process), GaussianMixture(process, [[-0.6], [0.9]], [0.09, 0.0625], [0.6, 0.4])
        for t in (0.05, 0.3, 0.5, 0.8):
            alpha, sigma = process.scales(t)
            x_t = (alpha + sigma) * x
            worst = max(worst, (ours(x_t, t).mean - theirs(x_t, t).mean).abs().max().item())
    yield Check("denoiser", "mixture", "mean", worst, 1e-10, note="posterior mean, two modes")
