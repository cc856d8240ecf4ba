"""The commands that show something: what they take and what `--help` says. The work is in the modules beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diff_diffusion.cli.options import (
    Data,
    Guidance,
    Json,
    Run,
    Sampler,
    Seed,
    Size,
    Steps,
    Weights,
)


def inspect(data: Data, size: Size = None, as_json: Json = False) -> None:
    """What is there, what would be used, what would be skipped and why. Every training starts with the same look."""
    from diff_diffusion.cli.look import inspect as look

    look(data, size, as_json)


def info(run: Run, as_json: Json = False) -> None:
    """What a model is: its parts, its facts, what it can be asked for, and how it was evaluated if it was."""
    from diff_diffusion.cli.look import info as look

    look(run, as_json)


def explain(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="The picture; RUN/process.png if left out.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image to noise; a sample of the model if left out.")] = None,
    label: Annotated[str | None, typer.Option(help="A class to draw in the reverse process.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A caption to draw in the reverse process.")] = None,
    seed: Seed = 0,
) -> None:
    """Draw the process: an image's forward noising, a sample's reverse denoising, and the guess x̂_0 along the way."""
    from diff_diffusion.cli.look import explain as look

    look(run, out, image, label, prompt, seed)


def likelihood(
    run: Run,
    data: Data,
    num: Annotated[int, typer.Option("-n", "--num", min=1, help="Held-out images.")] = 256,
    method: Annotated[
        str, typer.Option(help="bound (the variational bound) or ode (the probability-flow ODE).")
    ] = "bound",
    values: Annotated[
        int, typer.Option(min=2, help="Values that a number of the data can have; 256 for 8 bits.")
    ] = 256,
    weights: Weights = "ema",
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    as_json: Json = False,
) -> None:
    """How many bits a model needs to say held-out images: bits per dimension, with their 95 % interval.

    The images are those that a training run on DATA would hold out. Lower is better; 8 is no knowledge of 8-bit data.

      diff-diffusion likelihood runs/photos photos/

      diff-diffusion likelihood runs/digits digits --values 17 --method ode

    The bound is the sum of what every noise level costs (--json lists them), an upper bound for the sampler with noise
    (ddpm). The ODE's is the density of deterministic samplers, made discrete by noise of a bin's width. Only for a
    perfect model are they the same; see docs/theory/likelihood.md.
    """
    from diff_diffusion.cli.look import likelihood as look

    look(run, data, num, method, values, weights, seed, as_json)


def evaluate(
    run: Run,
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA", help="What it was trained on: a folder of images, or `digits`.", show_default=False
        ),
    ],
    num: Annotated[
        int | None, typer.Option("-n", "--num", min=2, help="Samples; as many as images are held out, 256 to 2000.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="The network that distances are measured on: judge (where there are classes, the default), random, "
            "pixels, inception, or a file: NETWORK.onnx, or a judge-….safetensors of another evaluation.",
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="The judge that another evaluation on the same data left in its folder: the same features then."
        ),
    ] = None,
    captions_judge: Annotated[
        Path | None, typer.Option(help="Likewise the captions-….safetensors that another evaluation left.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER", help="Another evaluation to stand beside: its record.json, its folder, or its run."
        ),
    ] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    weights: Weights = "ema",
    as_json: Json = False,
) -> None:
    """How good a model's samples are, beside real images; and whether they are copies.

      diff-diffusion evaluate runs/digits --data digits

      diff-diffusion evaluate runs/photos --data photos/ -n 2000 --guidance 2

      diff-diffusion evaluate runs/b --data digits --judge runs/a/evaluation/judge-….safetensors --against runs/a

      torchrun --nproc-per-node 2 -m diff_diffusion evaluate runs/digits --data digits

    Fréchet and kernel distance, precision and recall, density and coverage, sliced Wasserstein: each with a 95 %
    interval, and with its floor, the same number for held-out real images. Classes, channels, variety, loss at each
    noise level, and the nearest training image of every sample. The features are those of a classifier trained on the
    training images, or of a random network where they have no labels; a number's name says which. RUN/evaluation gets
    report.html, which needs no network, and record.json; samples are kept there, those of the last two settings, so
    that the same command goes on. An ONNX file takes float32 images [N, C, H, W] from -1 to 1 and gives features. Two
    evaluations are compared only where data, n and feature network are the same, which its hash says.
    """
    from diff_diffusion.cli.evaluate import run as measure

    measure(run, data, num, features, judge, captions_judge, against, steps, sampler, guidance, seed, weights, as_json)


def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, device, precision, optional packages."""
    from diff_diffusion.cli.look import doctor as look

    look(as_json)


def verify(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run or model folder to check too.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what is installed against closed forms, on this machine; and a trained model, if one is named.

    Every registered sampler, process, target, weight, time map and grid, also those that a plugin registered: a
    sampler's convergence order beside the one it declares, the exact variance of its samples, Monte Carlo with its
    bound, whether all scalings give the same samples; residuals of kernels and inverses. No network, no data, well
    under a minute on one core. Exit code 7 when a number is out of its bounds; the row says MISS, and why.

      diff-diffusion verify

      diff-diffusion verify runs/digits --json > verified.json

    With RUN also: files whole, weights finite, the average moved away from the raw weights, the codec inverts, the
    noise at t = 1 hides the data, and samples have the data's mean and spread in each channel.
    """
    from diff_diffusion.cli.verify import run as check

    check(run, as_json)
