"""What benchmarks/sampler_choice.py found, in tables and pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from outcome import Outcome, Table

mpl.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).parent.parent / "docs" / "images"
BUDGETS = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
COARSE = (4, 6, 8, 12, 16, 32)
ERRORS = (8, 16, 32, 64, 128)
"""Of the budgets, those that a table has."""

Curve = Sequence[tuple[int, float]]
"""(network evaluations, error)."""


def told(numbers: Mapping[str, Any]) -> Outcome:
    about, modes, digits = numbers["about"], numbers["two modes"], numbers["digits"]
    reference, apart = digits["reference"], "rms to dpmpp_3m, 250 steps"
    return Outcome(
        name="sampler_choice",
        title="Samplers by evaluations",
        command="python benchmarks/sampler_choice.py",
        said="How far each sampler is from the end of its ODE after so many network evaluations: the root mean square "
        "distance, in standard deviations of the data. Two models: the exact denoiser of two modes, whose flow has a "
        f"closed form, and a small network of {digits['train_steps']} steps of training on the digits, whose flow is "
        f"followed with {reference['sampler']}.",
        tables=[
            _table("Two modes, exact denoiser: error after so many evaluations", modes["samplers"], ERRORS, "#.2g"),
            _table("Digits, trained network: error after so many evaluations", digits["samplers"], ERRORS, "#.2g"),
            _table(
                "Digits, `dpmpp_2m` on four grids: error after so many evaluations", digits["grids"], ERRORS, "#.2g"
            ),
            _table("Digits: Fréchet distance after so many evaluations", digits["frechet"], COARSE, ".1f"),
        ],
        numbers=numbers,
        notes=[
            f"{about['n']['two modes']} samples of two modes, {about['n']['digits']} of the digits. Grid: "
            f"{about['grid']}. On two modes, samplers with two evaluations a step take one more than the column says.",
            f"The digits' reference is {reference[apart]:.1e} from 250 steps of `dpmpp_3m`; so sure is it.",
            f"Fréchet distances are of {digits['frechet_n']} samples; as many real images are at "
            f"{digits['frechet_floor']:.1f}.",
            "What the figures say, with curves, is on the page [How to choose a sampler](choosing-a-sampler.md); "
            "`adaptive`, which chooses its own number of evaluations, is there alone.",
        ],
    )


def _table(title: str, curves: Mapping[str, Curve], shown: Sequence[int], form: str) -> Table:
    budgets = COARSE if shown == COARSE else BUDGETS
    places = [budgets.index(budget) for budget in shown]
    rows = [
        [f"`{name}`", *(format(curve[place][1], form) for place in places)]
        for name, curve in curves.items()
        if len(curve) == len(budgets)
    ]
    return Table(title, ["", *map(str, shown)], rows)


# ---- pictures ------------------------------------------------------------------------------------------------------

# Okabe and Ito's colours, told apart by every kind of colour vision. Colour says the family and the marker which of it;
# dashed is two evaluations a step, a hollow marker draws noise.
NOISY = {"ddpm", "dpmpp_2m_sde", "dpmpp_sde", "heun on churn"}
LOOK: dict[str, tuple[str, str, str]] = {
    "ddim": ("#000000", "o", "-"),
    "heun": ("#D55E00", "s", "--"),
    "dpm2": ("#D55E00", "^", "--"),
    "dpmpp_2s": ("#D55E00", "D", "--"),
    "dpmpp_2m": ("#0072B2", "o", "-"),
    "dpmpp_3m": ("#0072B2", "s", "-"),
    "deis": ("#009E73", "^", "-"),
    "lms": ("#009E73", "D", "-"),
    "unipc": ("#CC79A7", "v", "-"),
    "adaptive": ("#E69F00", "*", ":"),
    "ddpm": ("#000000", "s", "-"),
    "dpmpp_2m_sde": ("#0072B2", "s", "-"),
    "dpmpp_sde": ("#D55E00", "D", "--"),
    "heun on churn": ("#D55E00", "^", "--"),
    "log_snr": ("#0072B2", "o", "-"),
    "karras": ("#D55E00", "s", "-"),
    "optimised, order 2": ("#009E73", "D", "-"),
    "uniform": ("#000000", "^", "-"),
}


def draw(axis: Any, found: dict[str, Curve], title: str, ylabel: str, ticks: Iterable[int]) -> None:
    """Curves on logarithmic axes, each named at its right end."""
    for name, curve in found.items():
        colour, marker, line = LOOK[name]
        inside = "white" if name in NOISY else colour
        axis.plot(*zip(*curve, strict=True), color=colour, marker=marker, ls=line, ms=4.8, lw=1.4, mfc=inside)
    axis.set(xscale="log", yscale="log", title=title, xlabel="network evaluations of a sample", ylabel=ylabel)
    axis.set_xticks(list(ticks), [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.grid(True, color="0.9", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylim(bottom=0.5 * axis.get_ylim()[0])  # room for the last names
    label(axis, found)


def label(axis: Any, found: dict[str, Curve]) -> None:
    """The names, at the height of the last point, moved apart where they would touch."""
    low, high = (np.log10(value) for value in axis.get_ylim())
    gap = 0.047 * (high - low)
    right = max(curve[-1][0] for curve in found.values())
    order = sorted(found, key=lambda name: found[name][-1][1])
    places = [float(np.log10(found[name][-1][1])) for name in order]
    for _ in range(400):
        for i, j in itertools.pairwise(range(len(order))):
            lack = gap - (places[j] - places[i])
            if lack > 0:
                places[i], places[j] = places[i] - lack / 2, places[j] + lack / 2
    for name, place in zip(order, places, strict=True):
        nfe, error = found[name][-1]
        colour = LOOK[name][0]
        axis.annotate(
            name,
            (nfe, error),
            (right * 1.25, 10**place),
            color=colour,
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.6},
            annotation_clip=False,
        )


def pictures(found: dict[str, Any]) -> None:
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11})
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 5.2))
    unit = "rms error, in standard deviations of the data"
    draw(axes[0], found["two modes"]["samplers"], "Two modes, exact denoiser", unit, (8, 16, 32, 64, 128))
    draw(axes[1], found["digits"]["samplers"], "Digits, trained network", unit, (8, 16, 32, 64, 128))
    figure.tight_layout(w_pad=6)
    figure.savefig(IMAGES / "sampler_choice.png", dpi=130, facecolor="white", bbox_inches="tight")

    figure, axes = plt.subplots(1, 2, figsize=(12.5, 4.8))
    draw(axes[0], found["digits"]["grids"], "Digits: dpmpp_2m on four grids", unit, (8, 16, 32, 64, 128))
    about = found["digits"]
    quality = "Fréchet distance to the train split"
    draw(axes[1], about["frechet"], "Digits: what is seen of it", quality, COARSE)
    heights = [4, 5, 6, 8, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300]
    low, high = axes[1].get_ylim()
    axes[1].set_yticks([h for h in heights if low <= h <= high], [str(h) for h in heights if low <= h <= high])
    axes[1].set_yticks([], minor=True)
    axes[1].axhline(about["frechet_floor"], color="0.4", lw=1, ls=(0, (4, 3)))
    axes[1].text(COARSE[0], about["frechet_floor"] * 0.97, "real images, same n", va="top", color="0.35", fontsize=9)
    figure.tight_layout(w_pad=7)
    figure.savefig(IMAGES / "grid_choice.png", dpi=130, facecolor="white", bbox_inches="tight")
