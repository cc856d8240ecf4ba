"""Figures: the two directions of the process, and the curves of a run. Needs matplotlib, extra [demo]."""

from __future__ import annotations

import io
import json
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.codecs.codec import learned
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.errors import DataError, IncompatibleError, require
from diff_diffusion.models import DiffusionModel
from diff_diffusion.models.model import LABEL
from diff_diffusion.pictures import to_picture
from diff_diffusion.rng import Noise
from diff_diffusion.storage.folder import write_file

COLUMNS = 9


def _pyplot() -> Any:
    require("matplotlib", extra="demo").use("Agg")
    return require("matplotlib.pyplot", extra="demo")


def _write(figure: Any, path: Path, plt: Any) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, facecolor="white")
    plt.close(figure)
    write_file(path, content.getvalue())


def process_figure(
    model: DiffusionModel, path: Path, *, image: Tensor | None = None, cond: Any = None, seed: int = 0
) -> None:
    """Above, an image's forward noising; below, a sample's reverse denoising with the guess x̂_0 at each time.

    Of a model on latents all of them decoded: noise is then what a decoder makes of noise.

    Args:
        image: uint8 [C, H, W] of the model's size; a sample of the model when left out.
        cond: what to draw, one value as in `DiffusionModel.sample`; the first class when left out.

    Raises:
        IncompatibleError: a model of tokens, which are masked or changed and never look noisy.
    """
    process = model.recipe.process
    if not isinstance(process, Gaussian):
        raise IncompatibleError(
            f"the figure shows noise between images, and {type(process).__name__} destroys tokens, which cannot be "
            "decoded half-way: look at samples instead"
        )
    plt = _pyplot()
    if cond is None and model.class_names:
        cond = {LABEL: model.class_names[0]}
    asked = model.asked(cond, 1)
    x, steps = model.walk([seed], asked)
    states, guesses, times = [x], [], []
    with model.evaluating():
        for step in steps:
            times.append(step.t)
            guesses.append(step.x_0 if step.x_0 is not None else states[-1])
            states.append(step.x)
    times, guesses = [*times, 0.0], [*guesses, states[-1]]
    picks = _telling(process, times)

    def seen(x_t: Tensor, t: float) -> Tensor:
        """x_t in data units, scaled to the data's spread, so that noise shows as noise in every scaling."""
        alpha, sigma = process.scales(t)
        return to_picture(model.codec.decode(x_t / (alpha**2 + sigma**2) ** 0.5)[0])

    shown = image[None].float() if image is not None else model.decode(states[-1])
    x_0 = model.codec.encode(shown.to(model.device))
    noise = Noise([seed], "figure")
    rows: list[tuple[str, list[tuple[Tensor, str]]]] = [
        ("forward\nnoising", []),
        ("reverse\ndenoising", []),
        ("guess $\\hat{x}_0$", []),
    ]
    for pick in reversed(picks):
        t = times[pick]
        x_t = process.marginal(x_0, torch.tensor([t], dtype=torch.float64), noise).x_t
        rows[0][1].append((seen(x_t, t), _caption(process, t)))
    for pick in picks:
        rows[1][1].append((seen(states[pick], times[pick]), _caption(process, times[pick])))
        rows[2][1].append((to_picture(model.codec.decode(guesses[pick])[0]), ""))

    figure, axes = plt.subplots(3, len(picks), figsize=(1.35 * len(picks) + 0.9, 5.4), squeeze=False)
    for axes_row, (title, cells) in zip(axes, rows, strict=True):
        for axis, (picture, caption) in zip(axes_row, cells, strict=True):
            axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(caption, fontsize=8)
        axes_row[0].set_ylabel(title, fontsize=11)
    said = [value for (value,) in (asked or {}).values() if isinstance(value, str | int | float)]
    what = " of " + ", ".join(map(_printable, said)) if said else ""
    how = " in latents, seen decoded" if learned(model.codec) is not None else ""
    of_image = "an image" if image is not None else "a sample"
    figure.suptitle(
        f"The process: {of_image} is noised, and a sample{what} is denoised{how} (seed {seed})", fontsize=12
    )
    figure.tight_layout()
    _write(figure, path, plt)


def _printable(value: str | int | float) -> str:
    """matplotlib's own font has no Chinese."""
    return ascii(value) if isinstance(value, str) else f"{value:g}"


def _telling(process: Gaussian, times: list[float]) -> list[int]:
    """Which of a walk's times to show: both ends, and between them the levels where a picture changes most."""
    levels = [process.time_map.log_snr(t) for t in times]
    wanted = [-4.5 + 10.0 * i / (COLUMNS - 3) for i in range(COLUMNS - 2)]
    nearest = [min(range(len(times)), key=lambda k: abs(levels[k] - level)) for level in wanted]
    return sorted({0, *nearest, len(times) - 1})


def _caption(process: Gaussian, t: float) -> str:
    log_snr = process.time_map.log_snr(t)
    level = f"{log_snr:.1f}" if abs(log_snr) < 1e3 else ("∞" if log_snr > 0 else "-∞")
    return f"t = {t:.2f}\nλ = {level}"


def curve_figure(metrics: Path, path: Path) -> None:
    """Training and held-out loss over the steps of a run, and the held-out loss at each noise level.

    Raises:
        DataError: no metrics to draw.
    """
    plt = _pyplot()
    rows = _rows(metrics)
    if not rows:
        raise DataError(f"{metrics} holds no metrics to draw")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    left.plot(
        [row["step"] for row in rows], [row["loss"] for row in rows], color="#9ecae1", lw=0.8, label="training batch"
    )
    losses = [row["loss"] for row in rows]
    reach = max(1, len(rows) // 40)
    trend = [statistics.fmean(losses[max(0, i - reach) : i + reach + 1]) for i in range(len(rows))]
    left.plot([row["step"] for row in rows], trend, color="#3182bd", lw=1.6, label="training, smoothed")
    measured = [row for row in rows if "held_out" in row]
    left.plot(
        [row["step"] for row in measured],
        [row["held_out"]["mean"] for row in measured],
        "o-",
        color="#e6550d",
        ms=3.5,
        label="held out (averaged weights)",
    )
    left.set(xlabel="optimizer step", ylabel="loss", title="Is it learning?")
    left.set_yscale("log")
    for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:g}")
    left.legend(frameon=False)
    for index, row in enumerate(measured):
        age = (index + 1) / len(measured)
        levels = row["held_out"]["levels"]
        last = index == len(measured) - 1
        right.plot(
            [level for level, _ in levels],
            [loss for _, loss in levels],
            color=(0.9, 0.33, 0.05, 0.15 + 0.85 * age**2),
            lw=2 if last else 1,
            label=f"step {row['step']}" if last or index == 0 else None,
        )
    right.invert_xaxis()
    right.set_ylim(bottom=0)
    right.set(
        xlabel="noise level λ = ln(α²/σ²), noisier to the right", ylabel="held-out loss", title="Where is the error?"
    )
    if measured:
        right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _write(figure, path, plt)


def _rows(metrics: Path) -> list[dict[str, Any]]:
    """The steps that tell a loss: not those that were skipped, nor a last line that a crash cut short."""
    rows = []
    for line in metrics.read_text(encoding="utf-8", errors="replace").split("\n") if metrics.exists() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "loss" in row]
