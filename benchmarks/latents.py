"""Autoencoders, and diffusion in their latents beside diffusion on the pixels, for the same minutes of training.

    python benchmarks/latents.py [--data FOLDER or FILE.npz] [--minutes 8] [--autoencoder-minutes 4] [--seeds 0 1]

The data are emoji of 64 × 64, which recipes/emoji/build.py draws with the system's Noto Color Emoji, or makes of an
.npz file; any folder of images will do. Up to 500 images are held out. Every training has so many minutes of the
processor's time, so that a busy machine favours none; what trains on pixels has the autoencoder's minutes as well.
Nothing is asked for by class or caption.

Each training is kept in runs/bench/latents as soon as it is judged, so a run that was stopped goes on, and several
processes may share the work by --only and --seeds, each with the autoencoders that its own models work on. When nothing
is missing, results/latents.json is written, and docs/images/autoencoders.png and latent_samples.png. On accelerators
the processor's time says nothing: hide them.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from emoji_images import folder_of, images
from latents_parts import CODERS, CONTESTANTS, CPU, SHOWN, Plan, coded, coder_stem, competed
from latents_told import outcome
from outcome import markdown

from diff_diffusion import ImageDataset
from diff_diffusion.errors import CheckpointError
from diff_diffusion.evaluation.feature_networks import FeatureNetwork, random_features
from diff_diffusion.evaluation.features import load_classifier, save_classifier, train_classifier
from diff_diffusion.pictures import sheet, write_png
from diff_diffusion.training.runtime import has_bf16

ROOT = Path(__file__).resolve().parents[1]


def judges(real: ImageDataset, held_out: ImageDataset, home: Path, steps: int) -> dict[str, FeatureNetwork]:
    """A classifier of the training images, where they have classes, and a network of random weights."""
    random = {"a network of random weights": random_features(real.shape)}
    if real.labels is None:
        return dict(random)
    path = home / f"judge-{real.fingerprint()[:8]}-{steps}.safetensors"
    try:
        classifier = load_classifier(path, real)
    except CheckpointError:
        print(f"a judge of {len(real.class_names)} classes", flush=True)
        classifier = train_classifier(real, held_out, steps)
        save_classifier(classifier, real, path)
    said = f"a classifier of them, right on {classifier.test_accuracy:.0%} of the held-out images"
    return {said: classifier, **random}


def pictures(plan: Plan, seed: int, home: Path) -> None:
    """Real images above what comes back of them, and above samples; the first that come, and none chosen."""
    real = plan.held_out.batch(range(min(SHOWN, len(plan.held_out)))).float()
    columns = len(real)
    rows = [plan.shown(coder_stem(plan, name))[0] for name in CODERS]
    labels = ["held out", *(coder.label for coder in CODERS.values())]
    write_png(home / "autoencoders.png", sheet(torch.cat([real, *rows]), columns, labels=labels))
    rows, labels = [real], ["held out"]
    for name, who in CONTESTANTS.items():
        rows += plan.shown(plan.stem(name, seed))
        labels += [who.label + (f", {label}" if label else "") for label in who.draws]
    write_png(home / "latent_samples.png", sheet(torch.cat(rows), columns, labels=labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder, or an .npz file as recipes/emoji/build.py takes it")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--minutes", type=float, default=8.0, help="of processor time for each diffusion model")
    parser.add_argument("--autoencoder-minutes", type=float, default=4.0, help="of processor time for each autoencoder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", default=[], help=f"some of {', '.join([*CODERS, *CONTESTANTS])}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a try of a minute, which writes no result")
    arguments = parser.parse_args()
    unknown = set(arguments.only) - {*CODERS, *CONTESTANTS}
    if unknown:
        parser.error(f"--only names {', '.join(sorted(unknown))}; there are {', '.join([*CODERS, *CONTESTANTS])}")
    torch.set_num_threads(arguments.threads)
    tiny, size = arguments.tiny, arguments.size
    home = ROOT / "runs" / "bench" / "latents"
    folder = folder_of(arguments.data, home)
    home, size = (home / "tiny", 16) if tiny else (home, size)
    home.mkdir(parents=True, exist_ok=True)
    real, held_out = images(folder, size, 160 if tiny else None)
    minutes = (0.01, 0.01) if tiny else (arguments.minutes, arguments.autoencoder_minutes)
    precision = "bf16" if has_bf16(CPU) else "fp32"
    who = judges(real, held_out, home, 20 if tiny else 300)
    batches = (8, 8) if tiny else (32, 16)
    plan = Plan(home, real, held_out, who, *minutes, *batches, precision, 2 if tiny else None)

    for name in CODERS:
        if not arguments.only or name in arguments.only:
            coded(plan, name)
    for seed in arguments.seeds:
        for name in CONTESTANTS:
            if not arguments.only or name in arguments.only:
                competed(plan, name, seed)
    coders = {name: coded(plan, name, False) for name in CODERS}
    found = {(name, seed): competed(plan, name, seed, False) for seed in arguments.seeds for name in CONTESTANTS}
    missing = [name for name, told in coders.items() if told is None]
    missing += [f"{name} of seed {seed}" for (name, seed), told in found.items() if told is None]
    if missing:
        print(f"still missing: {', '.join(missing)}")
        return
    about = {"data": folder.name.split("-")[0], "images": len(real), "n": len(held_out), "side": size}
    about |= {"minutes": plan.minutes, "coder minutes": plan.coder_minutes, "threads": arguments.threads}
    about |= {"precision": precision, "batch": plan.batch_size, "coder batch": plan.coder_batch}
    about |= {"asked": arguments.data.name if arguments.data else None, "judges": list(who)}
    floor = plan.distances(held_out.batch(range(len(held_out))))
    parts = [told for told in found.values() if told]
    told = outcome([told for told in coders.values() if told], parts, about, floor)
    pictures(plan, arguments.seeds[0], home if tiny else ROOT / "docs" / "images")
    if tiny:
        print("\n\n".join(markdown(asdict(told))))
    else:
        told.write()


if __name__ == "__main__":
    main()
