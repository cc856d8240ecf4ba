"""What benchmarks/latents.py says of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from generators_told import ranged
from outcome import Outcome, Table, Target

WANTED = 26.0
"""Decibels, held out, that an autoencoder of factor 4 or 8 shall have."""
PSNR, SSIM, BITS = "held-out PSNR", "held-out SSIM", "held-out bits per dimension, at most"

Part = dict[str, Any]


def coders(parts: Sequence[Part], judges: Sequence[str]) -> Table:
    """What each autoencoder loses of held-out images."""
    rows = []
    for part in parts:
        facts = part["facts"]
        std = [format(value, ".2f") for value in (min(facts["latent std"]), max(facts["latent std"]))]
        rows.append(
            (
                part["label"],
                " × ".join(map(str, part["latent"])),
                f"{part['parameters']:,}",
                f"{part['images seen']:,}",
                f"{facts[PSNR]:.2f}",
                f"{facts[SSIM]:.3f}",
                f"{facts[BITS]:.2f}",
                " to ".join(std),
                facts.get("codes used", "-"),
                *(f"{part['FD'][judge]:.3g}" for judge in judges),
                f"{1000 * part['decode seconds']:.3g}",
            )
        )
    columns = ["", "latent", "parameters", "images seen", "PSNR, dB", "SSIM", "bits per dimension, at most"]
    columns += ["latent std, by channel", "codes used", *distances(judges), "decoding, ms"]
    return Table("Autoencoders, on the held-out images", columns, rows)


def distances(judges: Sequence[str]) -> list[str]:
    """Columns, one for each feature network; where there are two, the second has random weights."""
    return ["FD", "FD, random weights"][: len(judges)]


def contest(parts: Sequence[Part], floor: dict[str, float], judges: Sequence[str]) -> Table:
    """Every way of drawing from every model beside the floor: the median and the range of the seeds."""
    rows = []
    for name in dict.fromkeys(part["contestant"] for part in parts):
        mine = [part for part in parts if part["contestant"] == name]
        for number, draw in enumerate(mine[0]["drawn"]):
            ways = [part["drawn"][number] for part in mine]
            rows.append(
                (
                    mine[0]["label"] + (f", {draw['label']}" if draw["label"] else ""),
                    f"{mine[0]['parameters']:,}",
                    f"{mine[0]['coder minutes']:g}" if mine[0]["coder"] else "-",
                    ranged([part["minutes"] for part in mine], ".1f"),
                    ranged([part["steps"] for part in mine], ",.0f"),
                    ranged([part["images seen"] for part in mine], ",.0f"),
                    *(ranged([way["FD"][judge] for way in ways], ".3g") for judge in judges),
                    str(draw["steps"]),
                    ranged([way["seconds"] for way in ways], ".3g"),
                )
            )
    rows.append(("real images, held out", *["-"] * 5, *(f"{floor[judge]:.3g}" for judge in judges), "-", "-"))
    columns = ["", "parameters", "autoencoder's minutes", "minutes", "steps", "images seen", *distances(judges)]
    columns += ["steps of sampling", "seconds a sample"]
    return Table("Diffusion in latents and on pixels: median (range) of the seeds", columns, rows)


def outcome(
    autoencoders: Sequence[Part], parts: Sequence[Part], about: dict[str, Any], floor: dict[str, float]
) -> Outcome:
    """All of it. `about` says of what data, for how many minutes, in what precision."""
    judges = about["judges"]
    both = about["minutes"] + about["coder minutes"]
    said = (
        f"Autoencoders train on {about['images']:,} images of {about['data']}, {about['side']} × {about['side']}, for "
        f"{about['coder minutes']:g} minutes of processor time each, with batches of {about['coder batch']}; "
        f"{about['n']} images are held out. Then diffusion models train in their latents for {about['minutes']:g} "
        f"minutes more, and on the pixels for {both:g} minutes, which is as long as both stages together. All of these "
        f"have batches of {about['batch']} and are otherwise the package's defaults, unconditional, in "
        f"{about['precision']} on {about['threads']} thread{'s' if about['threads'] > 1 else ''}. {about['n']} samples "
        "of each, at the default steps unless the table says otherwise, are compared with the training images by the "
        f"Fréchet distance on the features of {judges[0]}"
        + (f", and on those of {judges[1]}" if judges[1:] else "")
        + "; the held-out images in the samples' place, as many, are the floor."
    )
    best = max(
        (part for part in autoencoders if part["asked"]["coder"]["factor"] >= 4), key=lambda part: part["facts"][PSNR]
    )
    what = f"held-out PSNR of the best autoencoder of factor 4 or 8 ({best['label']}), dB"
    pictures = (
        "![held-out images, and what comes back of them](images/autoencoders.png)",
        "![held-out images, and samples](images/latent_samples.png)",
    )
    command = "python benchmarks/latents.py" + (f" --data {about['asked']}" if about["asked"] else "")
    options = {"--minutes": ("minutes", 8.0), "--autoencoder-minutes": ("coder minutes", 4.0)}
    command += "".join(f" {name} {about[key]:g}" for name, (key, usual) in options.items() if about[key] != usual)
    return Outcome(
        name="latents",
        title="Latents",
        command=command,
        said="\n\n".join((said, *pictures)),
        tables=[coders(autoencoders, judges), contest(parts, floor, judges)],
        targets=[Target(what, best["facts"][PSNR], WANTED)],
        numbers={"about": about, "floor": floor, "autoencoders": list(autoencoders), "trainings": list(parts)},
        notes=notes(about),
    )


def notes(about: dict[str, Any]) -> list[str]:
    found = [
        "An autoencoder's Fréchet distance is that of the held-out images as they come back: what its latents lose "
        "beyond the floor, no diffusion in them can win back.",
        "Seeds are those of the diffusion models. There is one autoencoder of each kind, and what works in its "
        "latents shares it; one that is there already, as for a second model on the same data, costs no minutes.",
        "A model's minutes hold the fitting of its codec's statistics, and the encoding of all images; the second "
        "seed finds these encoded. Seconds a sample are processor time, the decoder's included.",
        "The U-Net on pixels has a width of 32 and one block a level, since the default one for this size would take "
        "few steps in the time. Nobody's learning rate was chosen on these data.",
        "Bits per dimension of VQ count every code as equally likely. Masked tokens are drawn in two ways: "
        "by the process itself, and the surest guesses first in 12 steps, as MaskGIT does.",
    ]
    if about["data"] == f"emoji{about['side']}":
        found.append("The emoji are Google's Noto Color Emoji, whose artwork is under the Apache License 2.0.")
    return found
