"""A diffusion model, a GAN and a VAE on the same images, with as many parameters and as long a training.

    python benchmarks/generators.py [--minutes 4] [--only gan,vae] [--seeds 0,1,2]

Fashion-MNIST where it is installed, else scikit-learn's digits. Every contestant trains on one thread for so many
minutes of the processor's time, so that a busy machine favours none; then n samples of each are judged by one
classifier of the real training images. Learning rates, and the GAN's γ, are chosen first, on a seed of their own. Each
training is kept in runs/bench/generators as soon as it is judged, so several processes may share the work by --only and
--seeds; without these what is missing is done, and results/generators.json, docs/images/generators.png and the tables
of docs/compare.md are written. Other minutes or n than the defaults are only printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from fashion import fashion, there
from generators_told import PARTS, outcome, write_page
from outcome import markdown
from rivals import Gan, Trained, Vae, drawn, fit
from torch import Tensor, nn

from diff_diffusion import DiffusionModel, ImageDataset, TrainSettings, __version__, load_image_dataset, train
from diff_diffusion.errors import CheckpointError, DiffusionError
from diff_diffusion.evaluation import manifolds
from diff_diffusion.evaluation.distances import diversity, frechet
from diff_diffusion.evaluation.features import Classifier, load_classifier, save_classifier, train_classifier
from diff_diffusion.pictures import sheet, write_png
from diff_diffusion.sizing import describe_for_data
from diff_diffusion.storage.folder import write_file

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "runs" / "bench" / "generators"
PICTURE = ROOT / "docs" / "images" / "generators.png"
MINUTES, N, SEEDS = 4.0, 2000, (0, 1, 2)
STEPS = (32, 16, 8)
"""Of ours, its default first."""
CHOOSING = 1000
"""The seed that learning rates are chosen on."""
KEPT, SHOWN = 100, 12
SMALL = {"width": 16, "multipliers": [1, 2, 4], "depth": 1, "attention": [4]}
"""The U-Net for 28 × 28; the default would take 50 steps in 4 minutes."""
WIDTHS = {28: 32, 8: 48}
"""Of the rivals' first layer, by the images' side: with it they have the U-Net's number of parameters."""
TRIED: dict[str, list[dict[str, float]]] = {
    "ours": [{"batch_size": 64, "lr": lr} for lr in (3e-4, 1e-3, 3e-3)],
    "gan": [{"batch_size": 32, "lr": lr, "gamma": gamma} for gamma in (0.1, 1.0) for lr in (6e-4, 2e-3, 6e-3)],
    "vae": [{"batch_size": 128, "lr": lr} for lr in (3e-4, 1e-3, 3e-3)],
}
"""Settings that each contestant's own are chosen from, by the Fréchet distance after a quarter of the minutes.

Batches were compared by hand, and little: after 40 seconds the GAN's samples had shapes of clothes with batches of 32
at 2e-3 (FD 378), and none with batches of 64 at 1e-3 (398).
"""


@dataclass(frozen=True)
class Judge:
    """What samples are held against.

    Attributes:
        classifier: of the real training images; its features are compared, and it names classes.
        features: of all training images, float64 [M, 64], in random order.
        held_out: n real images that nobody trained on, whose numbers are the floor.
    """

    classifier: Classifier
    features: Tensor
    held_out: Tensor

    def of(self, images: Tensor) -> dict[str, Any]:
        """The numbers of n images: a Fréchet distance to all training images, the others to n of them."""
        seen, real = self.classifier.features(images), self.features[: len(images)]
        found = manifolds.between(seen, real)
        classes = torch.bincount(self.classifier.labels(images), minlength=len(self.classifier.class_names))
        return {
            "FD": frechet(seen, self.features),
            "precision": manifolds.precision_of(found),
            "recall": manifolds.recall_of(found),
            "density": manifolds.density_of(found),
            "coverage": manifolds.coverage_of(found),
            "spread": diversity(seen) / diversity(real),
            "classes": (classes / len(images)).tolist(),
        }


def data() -> tuple[ImageDataset, ImageDataset]:
    return fashion() if there() else load_image_dataset("digits").split()


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def made(name: str, real: ImageDataset, seed: int, gamma: float = 1.0) -> DiffusionModel | Gan | Vae:
    """A contestant, untrained."""
    if name == "ours":
        description = describe_for_data(real, conditional=False)
        description["network"] |= SMALL if real.shape[1] > 16 else {}
        return DiffusionModel.from_description(description, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = WIDTHS[real.shape[1]]
        return Gan(real.shape, width, gamma) if name == "gan" else Vae(real.shape, width)


def trained(
    model: DiffusionModel | Gan | Vae, real: ImageDataset, seed: int, how: dict[str, float], seconds: float
) -> Trained:
    """The model after so many seconds of the processor's time."""
    began, said = time.process_time(), 0

    def stop() -> bool:
        nonlocal said
        spent = time.process_time() - began
        if spent // 30 > said:
            said = int(spent // 30)
            print(f"    {spent:.0f} of {seconds:.0f} core-seconds", flush=True)
        return spent >= seconds

    batch_size = int(how["batch_size"])
    if not isinstance(model, DiffusionModel):
        return fit(model, real, batch_size, how["lr"], seed, stop)
    settings = TrainSettings(minutes=1e6, batch_size=batch_size, lr=how["lr"], seed=seed, precision="fp32")
    step = 0
    try:
        for record in train(model, real, None, settings, stop=stop):
            step = record.step
    except DiffusionError:
        return Trained(step, True)
    return Trained(step, False)


def walks(model: DiffusionModel | Gan | Vae, n: int, seed: int, fewer: bool) -> Iterator[tuple[int, Tensor, float]]:
    """How many times the network is asked, n samples as a file would hold them, and ms of processor time each."""

    def timed(evaluations: int, draw: Callable[[int], Tensor]) -> tuple[int, Tensor, float]:
        draw(64)
        began = time.process_time()
        images = draw(n)
        spent = 1000 * (time.process_time() - began) / n
        if not bool(torch.isfinite(images).all()):
            raise DiffusionError("samples hold values that are not finite")
        return evaluations, images.round().clamp(0, 255).to(torch.uint8), spent

    if isinstance(model, DiffusionModel):
        for steps in STEPS[1:2] if fewer else STEPS:
            yield timed(steps, lambda num, steps=steps: model.sample(num, seed=seed * 1_000_000, steps=steps))
    else:
        yield timed(1, lambda num: drawn(model.generator, num, seed))


def key(
    name: str, seed: int, how: dict[str, float], minutes: float, n: int, real: ImageDataset, judge: Judge
) -> tuple[dict[str, Any], str]:
    """All that a training and its numbers depend on, and what its files are called."""
    asked = {"contestant": name, "seed": seed, **how, "minutes": minutes, "n": n, "steps of ours": list(STEPS)}
    asked |= {"data": real.fingerprint(), "judge": judge.classifier.name, "torch": torch.__version__}
    which = "".join(f"-{how[key]:g}" for key in ("lr", "gamma") if key in how) if seed == CHOOSING else ""
    return asked, f"{name}-{seed}{which}-{minutes:g}min-n{n}"


def kept(*asked: Any) -> dict[str, Any] | None:
    """A part that is on disk."""
    wanted, stem = key(*asked)
    path = HOME / f"{stem}.json"
    told: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return told if told is not None and told["asked"] == wanted else None


def part(
    name: str, seed: int, how: dict[str, float], minutes: float, n: int, real: ImageDataset, judge: Judge
) -> dict[str, Any]:
    """One training and what came of it; from its file where it is the same."""
    told = kept(name, seed, how, minutes, n, real, judge)
    if told is not None:
        return told
    asked, stem = key(name, seed, how, minutes, n, real, judge)
    print(f"{name}, seed {seed}, {how}", flush=True)
    model = made(name, real, seed, how.get("gamma", 1.0))
    began = time.process_time()
    went = trained(model, real, seed, how, 60 * minutes)
    told = {"asked": asked, "version": __version__, "steps": went.steps, "diverged": went.diverged}
    told |= {"images seen": went.steps * int(how["batch_size"]), "seconds": time.process_time() - began}
    generator = model.network if isinstance(model, DiffusionModel) else model.generator
    told |= {"parameters": count(model), "of the generator": count(generator), "drawn": []}
    try:
        for evaluations, images, ms in [] if went.diverged else walks(model, n, seed, seed == CHOOSING):
            told["drawn"].append({"evaluations": evaluations, "ms": ms, **judge.of(images)})
            if not told["drawn"][1:]:
                write_png(HOME / f"{stem}.png", sheet(images[:KEPT], 10))
                write_file(HOME / f"{stem}.safetensors", safetensors.torch.save({"images": images[:KEPT]}))
    except DiffusionError as error:
        print(f"    {error}", flush=True)
        told |= {"diverged": True, "drawn": []}
    write_file(HOME / f"{stem}.json", json.dumps(told, indent=1).encode())
    print("   ", {key: value for key, value in told.items() if key != "asked"}, flush=True)
    return told


def judged(real: ImageDataset, held_out: ImageDataset, n: int) -> Judge:
    """The judge, trained once and kept, with what it sees in real images."""
    path = HOME / f"judge-{real.fingerprint()[:8]}.safetensors"
    try:
        classifier = load_classifier(path, real)
    except CheckpointError:
        classifier = train_classifier(real, held_out)
        HOME.mkdir(parents=True, exist_ok=True)
        save_classifier(classifier, real, path)
    home = HOME / f"features-{classifier.name}.safetensors"
    if home.exists():
        features = safetensors.torch.load(home.read_bytes())["features"]
    else:
        rows = torch.randperm(len(real), generator=torch.Generator().manual_seed(0)).tolist()
        features = torch.cat([classifier.features(real.batch(rows[i : i + 1000])) for i in range(0, len(rows), 1000)])
        write_file(home, safetensors.torch.save({"features": features}))
    rows = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:n].tolist()
    return Judge(classifier, features, held_out.batch(rows))


def choices(name: str, minutes: float, n: int, real: ImageDataset, judge: Judge) -> list[dict[str, Any]]:
    """The trainings that a contestant's settings are chosen by: a quarter of the minutes, half the samples."""
    return [part(name, CHOOSING, how, minutes / 4, max(8, n // 2), real, judge) for how in TRIED[name]]


def chosen(tried: list[dict[str, Any]]) -> dict[str, float]:
    """The settings of the training with the least Fréchet distance."""
    best = min(tried, key=lambda told: float("inf") if told["diverged"] else told["drawn"][0]["FD"])
    return {key: best["asked"][key] for key in ("batch_size", "lr", "gamma") if key in best["asked"]}


def picture(real: ImageDataset) -> None:
    """Real images and those of each contestant's first seed, a row pair each."""
    rows = [real.batch(range(2 * SHOWN))]
    for name in PARTS:
        stem = HOME / f"{name}-{SEEDS[0]}-{MINUTES:g}min-n{N}.safetensors"
        rows.append(safetensors.torch.load(stem.read_bytes())["images"][: 2 * SHOWN])
    labels = [word for name in ("real", *PARTS.values()) for word in (name, "")]
    write_png(PICTURE, sheet(torch.cat(rows), SHOWN, labels=labels, cell=56))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of processor time for each training")
    parser.add_argument("--n", type=int, default=N, help="samples that are judged")
    parser.add_argument("--only", default=",".join(PARTS), help="contestants: " + ", ".join(PARTS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    arguments = parser.parse_args()
    names, seeds = arguments.only.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    if not set(names) <= set(PARTS):
        parser.error(f"--only names {arguments.only}; contestants are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    real, held_out = data()
    judge = judged(real, held_out, min(arguments.n, len(held_out)))
    n = len(judge.held_out)
    minutes = arguments.minutes
    tried = {name: choices(name, minutes, n, real, judge) for name in names}
    parts = [part(name, seed, chosen(tried[name]), minutes, n, real, judge) for seed in seeds for name in names]
    if names != list(PARTS) or tuple(seeds) != SEEDS:
        return
    about = {"data": real.name, "images": len(real), "minutes": minutes, "n": n}
    about |= {"judge": judge.classifier.name, "accuracy": judge.classifier.test_accuracy}
    found = outcome(parts, [one for name in names for one in tried[name]], about, judge.of(judge.held_out))
    if (minutes, arguments.n) == (MINUTES, N):
        picture(real)
        found.write()
        write_page()
    else:
        print("\n\n".join(markdown(asdict(found))))


if __name__ == "__main__":
    main()
