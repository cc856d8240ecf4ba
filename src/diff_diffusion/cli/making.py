"""The commands that make something: what they take and what `--help` says. The work is in the modules beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diff_diffusion.cli.options import (
    Bottleneck,
    Classifier,
    Codec,
    Conds,
    Config,
    Data,
    Eye,
    Factor,
    Grid,
    Guidance,
    Json,
    Latent,
    LatentChannels,
    Minutes,
    Model,
    Precision,
    Preset,
    Run,
    Sampler,
    Seed,
    Sets,
    Size,
    Steps,
    TextEncoder,
    TrainSeed,
    TrainSteps,
    Unconditional,
    Weights,
)


def train(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="The run folder. The same command again goes on where it stopped.", show_default=False)
    ],
    steps: TrainSteps = None,
    minutes: Minutes = None,
    size: Size = None,
    seed: TrainSeed = 0,
    preset: Preset = None,
    set_: Sets = None,
    config: Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the whole configuration and stop.")] = False,
    auto: Annotated[
        bool, typer.Option("--auto", help="Measure which micro-batch fits into memory and which precision is fastest.")
    ] = False,
    model: Model = "diffusion",
    classifier: Classifier = False,
    unconditional: Unconditional = False,
    text_encoder: TextEncoder = None,
    latent: Latent = False,
    codec: Codec = None,
    bottleneck: Bottleneck = None,
    factor: Factor = None,
    latent_channels: LatentChannels = None,
    eye: Eye = None,
    no_audit: Annotated[
        bool, typer.Option("--no-audit", help="Do not search for copies of training images at the end.")
    ] = False,
) -> None:
    """Train a model on a folder of images (or `digits`).

    Looks at the data first and says what it found, chooses the model's size from them, trains, and keeps checkpoints.
    Ctrl-C saves and stops; the same command goes on, to the same final weights as if it had never stopped. At the end
    of a run on at most 2,000 images some samples are held against them all, and copies are warned of.

    Captions, classes, numbers, masks and other images in a metadata.csv, .jsonl or .parquet, or captions in .txt files
    beside the images, become what the model can be asked for. `data inspect` shows how they are read; --set
    data.columns.NAME=text (class, number, ignore, …) reads one otherwise.

      diff-diffusion train photos/ --out runs/photos --minutes 30

      diff-diffusion train digits --out runs/digits --steps 2000 --set train.lr=0.0005 --set network.width=48

      diff-diffusion train digits --classifier --out runs/judge --steps 1000

      diff-diffusion train photos/ --latent --out runs/photos --minutes 90
    """
    from diff_diffusion.cli.prepare import Request
    from diff_diffusion.cli.train import run

    request = Request(
        data,
        steps,
        minutes,
        size,
        seed,
        preset,
        tuple(set_ or []),
        config,
        model=model,
        classifier=classifier,
        unconditional=unconditional,
        text_encoder=text_encoder,
        bottleneck=bottleneck,
        factor=factor,
        channels=latent_channels,
        eye=eye,
        codec=codec,
        latent=latent,
    )
    run(request, out, dry_run, auto, not no_audit)


def plan(
    data: Data,
    steps: TrainSteps = None,
    minutes: Minutes = None,
    size: Size = None,
    seed: TrainSeed = 0,
    preset: Preset = None,
    set_: Sets = None,
    config: Config = None,
    model: Model = "diffusion",
    classifier: Classifier = False,
    unconditional: Unconditional = False,
    text_encoder: TextEncoder = None,
    codec: Codec = None,
    bottleneck: Bottleneck = None,
    factor: Factor = None,
    latent_channels: LatentChannels = None,
    eye: Eye = None,
    as_json: Json = False,
) -> None:
    """What `train` with the same options would cost, measured in seconds before anything starts. Writes nothing.

    Does some steps of that very run and prints the micro-batch that fits into memory, the precision, images/s, the time
    for the run and for one pass over the data, memory at the peak, and the disk that checkpoints take. With the number
    of threads as it is and with others, since a core that is busy makes two threads slower than one.

      diff-diffusion plan photos/ --minutes 30

      diff-diffusion plan digits --steps 2000 --set network.width=96 --json

    `train --auto` trains with the micro-batch and the precision that are chosen here.
    """
    from diff_diffusion.cli.plan import run
    from diff_diffusion.cli.prepare import Request, prepared

    request = Request(
        data,
        steps,
        minutes,
        size,
        seed,
        preset,
        tuple(set_ or []),
        config,
        model=model,
        classifier=classifier,
        unconditional=unconditional,
        text_encoder=text_encoder,
        bottleneck=bottleneck,
        factor=factor,
        channels=latent_channels,
        eye=eye,
        codec=codec,
    )
    run(prepared(request), as_json)


def sample(
    run: Run,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="How many.")] = 16,
    out: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("samples"),
    label: Annotated[
        list[str] | None,
        typer.Option(help="A class to draw; may be repeated. All classes in turn if left out; `none`: unconditional."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A caption to draw, of a model trained on captions; may be repeated.")
    ] = None,
    cond: Conds = None,
    even: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Ask for all classes of this condition equally often; repeated: for all combinations."
        ),
    ] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    grid: Grid = None,
    guidance: Guidance = None,
    negative: Annotated[
        str | None, typer.Option(help="A caption or class to move away from, by --guidance above 1.")
    ] = None,
    guidance_how: Annotated[
        str | None,
        typer.Option(help="plain; rescale or apg, which hold back what a large scale spoils; cfgpp, for ddim."),
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(metavar="LOW:HIGH", help="Guide between these times only; 0 is data, 1 noise.")
    ] = None,
    dynamic: Annotated[
        float | None, typer.Option(help="Dynamic thresholding: this quantile of x̂_0 is brought into range, 0.995 say.")
    ] = None,
    autoguide: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Guide away from this smaller or earlier model.")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Guide by this classifier, made by `train --classifier`.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Larger samples than the model's own, height x width, through windows that overlap: 32x96."),
    ] = None,
    wrap: Annotated[
        bool, typer.Option("--wrap", help="With --size: the right edge meets the left, a panorama.")
    ] = False,
    seed: Seed = 0,
    weights: Weights = "ema",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once; it does not change them.")] = 64,
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Draw samples from a trained model: PNGs and a sheet. Needs no data.

    Every PNG carries its seed, what was asked, sampler, grid, guidance and the model's fingerprint, so that
    `repro FILE` can make it again.

      diff-diffusion sample runs/digits -n 8 --label 3 --guidance 1.5 --out threes

      diff-diffusion sample runs/emoji -n 4 --prompt "red heart" --prompt 红心 --guidance 3 --negative 黑色

      diff-diffusion sample runs/plain -n 8 --classifier runs/judge --label 3 --guidance 2

      diff-diffusion sample runs/faces -n 600 --even hair --even glasses
    """
    from diff_diffusion.cli.guiding import request
    from diff_diffusion.cli.sample import run as draw

    asked = request(guidance, negative, guidance_how, guidance_interval, dynamic, autoguide, classifier)
    draw(
        run,
        num,
        out,
        label or [],
        prompt or [],
        cond or [],
        even or [],
        steps,
        sampler,
        grid,
        asked,
        size,
        wrap,
        seed,
        weights,
        batch_size,
        precision,
        as_json,
    )


def edit(
    run: Run,
    image: Annotated[Path, typer.Option(help="The picture to change, of any size.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("edited"),
    mask: Annotated[
        Path | None, typer.Option(help="A picture, white where to draw anew; the rest is kept exactly.")
    ] = None,
    extend: Annotated[
        str | None, typer.Option(metavar="L,T,R,B", help="Pixels to draw at its left, top, right and bottom.")
    ] = None,
    colours: Annotated[
        int | None,
        typer.Option(min=2, metavar="K", help="Keep its colours in squares of K pixels, draw all that is finer."),
    ] = None,
    upscale: Annotated[
        int | None, typer.Option(min=2, metavar="K", help="Make it K times larger, by a model trained with shrunk:K.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The class that it should be or become.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="A caption of what it should be or become, of a model trained on captions.")
    ] = None,
    cond: Conds = None,
    from_label: Annotated[
        str | None, typer.Option("--from-label", help="What it is: turn it into --label and keep the rest of it.")
    ] = None,
    from_prompt: Annotated[
        str | None, typer.Option("--from-prompt", help="What it is, in words: turn it into --prompt.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How far the picture is noised before it is denoised: 0.5 if left out, 1 with --colours."),
    ] = None,
    num: Annotated[
        int | None,
        typer.Option("-n", "--num", min=1, help="How many, each with its own seed: 4 if left out, 1 with --upscale."),
    ] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    weights: Weights = "ema",
    as_json: Json = False,
) -> None:
    """Change a picture with a model of pictures like it.

      diff-diffusion edit runs/digits --image 3.png --strength 0.6 -n 8

      diff-diffusion edit runs/digits --image 3.png --mask half.png --label 8

      diff-diffusion edit runs/digits --image 3.png --from-label 3 --label 8

      diff-diffusion edit runs/photos --image sea.png --extend 32,0,32,0

      diff-diffusion edit runs/photos --image painting.png --colours 8 --prompt "a house by the sea"

      diff-diffusion edit runs/sharp --image small.png --upscale 4

    The first makes variations: noised part of the way and denoised again; near 0 little changes, 1 forgets the picture.
    The second draws what is white in the mask and keeps the rest to the last grey value. The third follows the
    probability flow up as a 3 and down as an 8: slant and stroke stay. It has one answer: -n, --seed and --sampler are
    for the others. --extend draws around the picture, --colours makes one of a rough painting. --upscale needs a model
    that was trained with small pictures beside its own, and takes the picture as small as it is; the others bring it
    to the model's size first.
    """
    from diff_diffusion.cli.edit import run as change

    change(
        run,
        image,
        out,
        mask,
        extend,
        colours,
        upscale,
        label,
        prompt,
        cond or [],
        from_label,
        from_prompt,
        strength,
        num,
        steps,
        sampler,
        guidance,
        seed,
        weights,
        as_json,
    )


def augment(
    run: Run,
    data: Data,
    per_class: Annotated[int, typer.Option("--per-class", min=1, help="Pictures of each class.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder for the data set, new or empty.")] = Path("augmented"),
    guidance: Guidance = None,
    seed: Seed = 0,
    weights: Weights = "ema",
    as_json: Json = False,
) -> None:
    """More labelled data: a folder of classes, drawn by a model and checked.

      diff-diffusion augment runs/digits digits --per-class 200 --out more-digits

    DATA is what the model was trained on. A small classifier, trained on the same training images, must see the label
    that was asked for; and a picture nearer to a training image than real pictures come to each other is dropped as a
    copy. What was drawn, dropped and why is told at the end. Whether more data help is for a held-out set to say.
    """
    from diff_diffusion.cli.augment import run as make

    make(run, data, per_class, out, guidance, seed, weights, as_json)


def repro(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG that `sample` made.", show_default=False)],
    run: Annotated[Path | None, typer.Option(help="The model folder, if it has moved.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the new picture goes; beside the old one if left out.")
    ] = None,
) -> None:
    """Make a sample again from the recipe inside its file, and say whether it is the same."""
    from diff_diffusion.cli.sample import reproduce

    reproduce(file, run, out)
