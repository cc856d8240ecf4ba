"""The trainings of latents.py: autoencoders, and diffusion models in their latents and on pixels; each is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from diff_diffusion import DiffusionModel, ImageDataset, TrainSettings, __version__, train
from diff_diffusion.codecs import Codec
from diff_diffusion.codecs.bottleneck import Tokens
from diff_diffusion.evaluation.distances import frechet
from diff_diffusion.evaluation.feature_networks import FeatureNetwork
from diff_diffusion.models import Autoencoder
from diff_diffusion.sizing import describe_for_data
from diff_diffusion.storage.folder import write_file
from diff_diffusion.training.runtime import autocast

SHOWN, BATCH = 12, 100
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Coder:
    """An autoencoder.

    Attributes:
        label: what tables call it.
        bottleneck, factor: as `Autoencoder.for_data` takes them; the rest is its default.
    """

    label: str
    bottleneck: str
    factor: int


@dataclass(frozen=True)
class Contestant:
    """A diffusion model.

    Attributes:
        label: what tables call it.
        coder: whose latents it works on; None for pixels.
        network: as `DiffusionModel.for_data` takes it.
        size: of its network, where it is not the default for the data.
        draws: how samples are drawn, each as options of `DiffusionModel.sample`, by what tables call it.
    """

    label: str
    coder: str | None = None
    network: str | None = None
    size: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})


CODERS = {
    "kl4": Coder("KL, factor 4", "kl", 4),
    "vq8": Coder("VQ, factor 8", "vq", 8),
}
SMALL = {"width": 32, "multipliers": [1, 2, 4, 4], "depth": 1, "attention": [8]}
"""A U-Net for pixels at a fraction of the default one's cost, which would take few steps in these minutes."""
CONTESTANTS = {
    "dit": Contestant("DiT on KL latents", "kl4", "dit"),
    "pixels": Contestant("U-Net on pixels", size=SMALL),
    "tokens": Contestant(
        "masked VQ tokens", "vq8", draws={"ancestral": {}, "surest first": {"sampler": "confidence", "steps": 12}}
    ),
}


@dataclass(frozen=True)
class Plan:
    """What all trainings share, and where they are kept.

    Attributes:
        home: of all files.
        real, held_out: the images.
        judges: feature networks, the first the one that counts.
        minutes, coder_minutes: of processor time for a diffusion model, and for an autoencoder.
        batch_size, coder_batch: of theirs.
        precision: of everybody's training and sampling.
        steps: of sampling; None for each model's default.
    """

    home: Path
    real: ImageDataset
    held_out: ImageDataset
    judges: dict[str, FeatureNetwork]
    minutes: float
    coder_minutes: float
    batch_size: int
    coder_batch: int
    precision: str
    steps: int | None

    def distances(self, images: Tensor) -> dict[str, float]:
        """Fréchet distances of n images, as a picture file would hold them, to all training images."""
        whole = images.round().clamp(0, 255).to(torch.uint8)
        real = self.real.batch(range(len(self.real)))
        return {name: frechet(judge.features(whole), judge.features(real)) for name, judge in self.judges.items()}

    def asked(self, **more: Any) -> dict[str, Any]:
        """All that a training and its numbers depend on."""
        shared = {"data": self.real.fingerprint(), "n": len(self.held_out), "precision": self.precision}
        shared |= {"judges": [judge.name for judge in self.judges.values()], "threads": torch.get_num_threads()}
        return shared | {"torch": torch.__version__, "version": __version__} | more

    def kept(self, stem: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """What a training came to, where it is on disk."""
        path = self.home / f"{stem}.json"
        told: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return told if told is not None and told["asked"] == asked else None

    def keep(self, stem: str, told: dict[str, Any], images: Sequence[Tensor]) -> dict[str, Any]:
        """The same, written with the first few images of each kind; the record last, as it says that all is there."""
        shown = {str(number): some[:SHOWN].contiguous() for number, some in enumerate(images)}
        write_file(self.home / f"{stem}.safetensors", safetensors.torch.save(shown))
        write_file(self.home / f"{stem}.json", json.dumps(told, indent=1, ensure_ascii=False).encode())
        print("   ", {key: value for key, value in told.items() if key != "asked"}, flush=True)
        return told

    def shown(self, stem: str) -> list[Tensor]:
        found = safetensors.torch.load((self.home / f"{stem}.safetensors").read_bytes())
        return [found[name] for name in sorted(found, key=int)]

    def stem(self, name: str, seed: int) -> str:
        return f"{name}-{seed}-{self.minutes:g}+{self.coder_minutes:g}min"


class Clock:
    """True once the process has used so many minutes of the processor's time since `began`; says how it goes on."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.began, self.said = minutes, time.process_time(), 0

    @property
    def spent(self) -> float:
        return (time.process_time() - self.began) / 60

    def __call__(self) -> bool:
        if int(2 * self.spent) > self.said:
            self.said = int(2 * self.spent)
            print(f"    {self.spent:.1f} of {self.minutes:g} core-minutes", flush=True)
        return self.spent >= self.minutes


def coder_stem(plan: Plan, name: str) -> str:
    return f"{name}-{plan.coder_minutes:g}min"


def coder_asked(plan: Plan, name: str) -> dict[str, Any]:
    return plan.asked(coder=asdict(CODERS[name]), minutes=plan.coder_minutes, batch_size=plan.coder_batch)


def coded(plan: Plan, name: str, train_it: bool = True) -> dict[str, Any] | None:
    """One autoencoder and what it loses; from its file where it is the same, None where it is not there and shall not
    train."""
    coder, asked = CODERS[name], coder_asked(plan, name)
    told = plan.kept(coder_stem(plan, name), asked)
    if told is not None or not train_it:
        return told
    print(coder.label, flush=True)
    model = Autoencoder.for_data(plan.real, coder.bottleneck, factor=coder.factor)
    clock, step = Clock(plan.coder_minutes), 0
    how = settings(plan, 0, plan.coder_batch)
    for record in train(model, plan.real, None, how, held_out=plan.held_out, stop=clock):
        step = record.step
    model.save(plan.home / coder_stem(plan, name))  # before a codec is made of it, whose weights do not learn
    images = plan.held_out.batch(range(len(plan.held_out)))
    codec = codec_of(model, plan.real)
    began = time.process_time()
    latents = [codec.encode(part) for part in images.split(BATCH)]
    spent = time.process_time() - began
    back = torch.cat([codec.decode(latent) for latent in latents])
    took = time.process_time() - began - spent
    told = {"asked": asked, "label": coder.label, "steps": step, "images seen": step * plan.coder_batch}
    told |= {"parameters": model.num_parameters, "facts": model.facts, "FD": plan.distances(back)}
    told |= {"latent": list(model.latent_shape)}
    told |= {"encode seconds": spent / len(images), "decode seconds": took / len(images)}
    return plan.keep(coder_stem(plan, name), told, [back])


def codec_of(model: Autoencoder, real: ImageDataset) -> Codec:
    """Latents, or where these are codes of a finite number, the codes' numbers."""
    return model.as_tokens() if isinstance(model.bottleneck, Tokens) else model.as_codec(real)


def settings(plan: Plan, seed: int, batch_size: int) -> TrainSettings:
    """The defaults but for the batch; the clock ends the run, and nothing is measured within."""
    options: dict[str, Any] = {"minutes": 1e6, "eval_interval": 10**9, "precision": plan.precision}
    return TrainSettings(**options, batch_size=batch_size, seed=seed)


def competed(plan: Plan, name: str, seed: int, train_it: bool = True) -> dict[str, Any] | None:
    """One diffusion model and what is drawn of it; from its file where it is the same, None where it is not there and
    shall not train."""
    who, stem = CONTESTANTS[name], plan.stem(name, seed)
    minutes = plan.minutes + (0.0 if who.coder else plan.coder_minutes)
    coder = coder_asked(plan, who.coder) if who.coder else None
    asked = plan.asked(contestant=asdict(who), coder=coder, seed=seed, minutes=minutes, steps=plan.steps)
    asked |= {"batch_size": plan.batch_size}
    told = plan.kept(stem, asked)
    if told is not None or not train_it:
        return told
    if who.coder:
        coded(plan, who.coder)
    print(f"{who.label}, seed {seed}", flush=True)
    # From here on it is all the model's own time: its codec's statistics, and what the encoder says of every image.
    clock, step = Clock(minutes), 0
    codec = None
    if who.coder:
        codec = codec_of(Autoencoder.load(plan.home / coder_stem(plan, who.coder)), plan.real)
    description = describe_for_data(plan.real, network=who.network, conditional=False, codec=codec)
    description["network"] |= who.size
    model = DiffusionModel.from_description(description, seed)
    model.take_weights(codec)
    for record in train(model, plan.real, None, settings(plan, seed, plan.batch_size), stop=clock):
        step = record.step
    told = {"asked": asked, "contestant": name, "label": who.label, "seed": seed, "coder": who.coder}
    told |= {"minutes": clock.spent, "coder minutes": plan.coder_minutes if who.coder else 0.0}
    told |= {"parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad)}
    told |= {"steps": step, "images seen": step * plan.batch_size, "drawn": []}
    shown = []
    for label, options in who.draws.items():
        options = options | ({"steps": plan.steps} if plan.steps else {})
        images, seconds = drawn(plan, model, seed, options)
        steps = options.get("steps", model.recipe.grid.num_steps)
        told["drawn"].append({"label": label, "steps": steps, "seconds": seconds, "FD": plan.distances(images)})
        shown.append(images)
    return plan.keep(stem, told, shown)


def drawn(plan: Plan, model: DiffusionModel, seed: int, options: dict[str, Any]) -> tuple[Tensor, float]:
    """n samples in data units, and seconds of processor time for each."""
    n, first = len(plan.held_out), 1_000_000 * seed
    with autocast(CPU, plan.precision):
        model.sample(2, seed=first, **options)
        began, pieces = time.process_time(), []
        for start in range(0, n, BATCH):
            pieces.append(model.sample(min(BATCH, n - start), seed=first + start, batch_size=BATCH, **options))
            print(f"    {min(start + BATCH, n)} of {n} samples", flush=True)
        spent = time.process_time() - began
    return torch.cat(pieces), spent / n
