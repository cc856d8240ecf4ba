"""Options that several commands have, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder of images (any depth; class folders; or with train/ and val/), a .npy file of them, or a "
        "built-in name: digits.",
        show_default=False,
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run or model folder.", show_default=False)]
Size = Annotated[
    str | None, typer.Option(help="Image size: 64, or 48x64 (height x width). Chosen from the data if left out.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Weights = Annotated[str, typer.Option(help="ema (averaged, better) or raw.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the first sample; sample i has seed SEED + i.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Sampling steps. The model's own number if left out.")]
Sampler = Annotated[str | None, typer.Option(help="ddim, ddpm, heun, dpmpp_2m, … The model's own if left out.")]
Grid = Annotated[
    str | None, typer.Option(help="log_snr, karras, trailing, churn, restart, … The model's own if left out.")
]
Conds = Annotated[
    list[str] | None,
    typer.Option("--cond", metavar="NAME=VALUE", help="Any condition by name: age=30, pos=0.1,0.9, low=small.png."),
]
Guidance = Annotated[
    float | None, typer.Option(help="Classifier-free guidance: 1 is none, 0 unconditional, above 1 stronger.")
]
TrainSteps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")]
Minutes = Annotated[float | None, typer.Option(help="Training time instead of steps; 10 if neither is given.")]
TrainSeed = Annotated[int, typer.Option(min=0, help="Of weights, data order and noise.")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="rectified_flow (the default), edm, ddpm, ddim, iddpm, vdm, vp_sde, ve_sde, sub_vp_sde or zero_snr: "
        "process, target and sampler; masked_tokens or uniform_tokens for the codes of an autoencoder."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one setting of what --dry-run prints; may be repeated."),
]
Config = Annotated[Path | None, typer.Option(help="A YAML file of settings, as --dry-run prints them.")]
Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="diffusion; classifier, which knows noise, for `sample --classifier`; or autoencoder, for --codec.",
    ),
]
Precision = Annotated[
    str, typer.Option(help="fp32, or bf16: about twice as fast where processor or GPU know it, and a little different.")
]
Classifier = Annotated[bool, typer.Option("--classifier", help="The same as --model classifier.")]
Latent = Annotated[
    bool, typer.Option("--latent", help="Train an autoencoder, then a diffusion model in its latents: both in one run.")
]
Codec = Annotated[
    Path | None,
    typer.Option(
        help="Train in the latents of this run of `--model autoencoder`, or of a model that works in some.",
        show_default=False,
    ),
]
Bottleneck = Annotated[
    str | None, typer.Option(help="What an autoencoder's latents are: kl (numbers), vq or fsq (codes). kl if left out.")
]
Factor = Annotated[
    int | None, typer.Option(help="How many times smaller a latent's sides are: 2, 4, 8, … 4 if left out.")
]
LatentChannels = Annotated[
    int | None, typer.Option(min=1, help="How many numbers a latent has at each place: more say more. 4 if left out.")
]
Eye = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|lpips",
        help="Teach an autoencoder also by how pictures look to this: a run of `train --classifier` on them, or LPIPS.",
    ),
]
Unconditional = Annotated[bool, typer.Option("--unconditional", help="Learn nothing of the data's labels and columns.")]
TextEncoder = Annotated[
    Path | None,
    typer.Option(help="Read captions by the pretrained `transformers` model in this folder, frozen; else learn to."),
]
