"""A trained model against what its parts and its facts promise: the jobs of `diff-diffusion verify RUN`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from diff_diffusion.codecs.codec import Codec, learned
from diff_diffusion.codecs.encoded import Encoded
from diff_diffusion.errors import CheckpointError
from diff_diffusion.models import DiffusionModel, Model
from diff_diffusion.models.model import WEIGHTS
from diff_diffusion.storage import folder as storage
from diff_diffusion.verification.check import Check, Job

SIGNAL_LEFT = 1e-3
NUM_SAMPLES = 32
MOST_STEPS = 100
MEAN_OFF, STD_OFF = 0.3, 2.0


def trained(folder: Path) -> list[Job]:
    """The jobs for the model in a folder: a run, a checkpoint of one, or a saved model.

    Raises:
        CheckpointError: there is no model there to check; one that is damaged is a miss.
    """
    storage.read_manifest(folder)
    run = _Run(folder)
    return [
        Job("run", folder.name, partial(check, run))
        for check in (files_are_whole, weights_are_finite, average_moved, codec_inverts, prior_fits, samples_fit)
    ]


class _Run:
    """What the checks share, read once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.tensors = cache(self._tensors)
        self.model = cache(self._model)
        self.samples = cache(self._samples)

    def _tensors(self) -> dict[str, Tensor]:
        return storage.read_safetensors(self.folder, WEIGHTS, storage.read_manifest(self.folder))

    def _model(self) -> Model:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it fell back to another checkpoint: the hashes are a row already
            return Model.load(self.folder)

    def _samples(self) -> tuple[Tensor, str]:
        """What the default sampler draws of every class in turn, and a note of how."""
        model = self.model()
        assert isinstance(model, DiffusionModel)
        steps = min(model.recipe.grid.num_steps, MOST_STEPS)
        cond = None
        if model.class_names:
            cond = [model.class_names[i % len(model.class_names)] for i in range(NUM_SAMPLES)]
        sampler = type(model.recipe.sampler).__name__
        return model.sample(NUM_SAMPLES, cond=cond, steps=steps), f"{NUM_SAMPLES} samples by {sampler} in {steps} steps"

    def check(self, law: str, measured: float | None, high: float, low: float = 0.0, note: str = "") -> Check:
        return Check("run", self.name, law, measured, high, low, note)


def files_are_whole(run: _Run) -> Iterator[Check]:
    """Every file that the manifest names has the sha256 that it states."""
    manifest, bad = storage.read_manifest(run.folder), []
    for name in manifest["sha256"]:
        try:
            storage.read_file(run.folder, name, manifest)
        except CheckpointError as error:
            bad.append(str(error))
    yield run.check("damaged files", len(bad), 0.0, note=bad[0] if bad else f"of {len(manifest['sha256'])}, by sha256")


def weights_are_finite(run: _Run) -> Iterator[Check]:
    """No weight, averaged or raw, is nan or infinite."""
    bad = {name: int((~torch.isfinite(value)).sum()) for name, value in run.tensors().items()}
    worst = max(bad, key=lambda name: bad[name])
    note = f"most in {worst}: use an earlier checkpoint" if bad[worst] else f"in {len(bad)} tensors"
    yield run.check("not finite", sum(bad.values()), 0.0, note=note)


def average_moved(run: _Run) -> Iterator[Check]:
    """The averaged weights are not the raw ones, as after training they never are: ‖ema - raw‖ / ‖raw‖."""
    steps = run.model().facts.get("steps", 0)
    if not steps or "train_state.json" not in storage.read_manifest(run.folder)["sha256"]:
        why = "no step was taken yet" if not steps else "a saved model holds one set of weights"
        yield run.check("EMA moved", None, math.inf, note=why)
        return
    tensors = run.tensors()
    names = sorted(name.removeprefix("ema/") for name in tensors if name.startswith("ema/"))  # a codec has no average
    averaged, raw = (
        torch.cat([tensors[f"{which}/{name}"].double().flatten() for name in names]) for which in ("ema", "raw")
    )
    distance = ((averaged - raw).norm() / raw.norm()).item()
    note = f"relative distance from raw after {steps} steps; 0 means that no average was kept"
    yield run.check("EMA moved", distance, 1.0, 1e-7, note)


def codec_inverts(run: _Run) -> Iterator[Check]:
    """decode(encode) is the identity on the data's whole range, relative to its width.

    Of an autoencoder, on the model's own samples, which it made: nearer to them than their mean is.
    """
    codec = run.model().codec
    if learned(codec) is not None:
        if isinstance(run.model(), DiffusionModel):
            yield _comes_back(run, codec)
        return
    low, high = codec.data.low, codec.data.high
    values = torch.linspace(low, high, 256)
    data = values.reshape(-1, *[1] * len(codec.data.shape)).expand(-1, *codec.data.shape)
    worst = (codec.decode(codec.encode(data)) - data).abs().max().item() / (high - low)
    yield run.check("decode(encode)", worst, 1e-5, note=f"share of the range {low:g} to {high:g}, 256 values")


def _comes_back(run: _Run, codec: Codec) -> Check:
    samples, note = run.samples()
    back = codec.decode(codec.encode(samples))
    own = (0, *range(2, samples.ndim))
    missed, spread = ((samples - other).double().square().mean() for other in (back, samples.mean(own, keepdim=True)))
    psnr, flat = (
        10.0 * math.log10((codec.data.high - codec.data.low) ** 2 / max(float(error), 1e-12))
        for error in (missed, spread)
    )
    return run.check("decode(encode), PSNR in dB", psnr, math.inf, flat, f"{note}; above that of their mean")


def prior_fits(run: _Run) -> Iterator[Check]:
    """How much of the variance at t = 1 is still the data's, α² / (α² + σ²): sampling starts as if it were none.

    Source: Lin et al., arXiv 2305.08891, for what goes wrong; Stable Diffusion's 0.0047 is their example.
    """
    model = run.model()
    if not isinstance(model, DiffusionModel):
        return  # a classifier is not sampled
    log_snr = model.recipe.process.time_map.log_snr(1.0)
    left = 1.0 / (1.0 + math.exp(-log_snr)) if log_snr > -700.0 else 0.0
    note = f"λ(1) = {log_snr:.3g}"
    if left > SIGNAL_LEFT:
        note += (
            ": samples will keep the data's mean brightness. Train with a time map that ends lower, or at λ = -∞ "
            "(flow; cosine) with target v or velocity"
        )
    yield run.check("signal at t = 1", left, SIGNAL_LEFT, note=note)


def samples_fit(run: _Run) -> Iterator[Check]:
    """The default sampler runs, and its samples have about the data's mean and spread in every channel.

    In units in which the data have mean 0 and standard deviation 1. Four standard errors of the means of
    samples, over a sample's own numbers, are added to the first bound; what is left is for a model that is not perfect.
    """
    model = run.model()
    if not isinstance(model, DiffusionModel):
        return
    samples, note = run.samples()
    codec = model.codec
    latents = (codec.pixels if isinstance(codec, Encoded) else codec).encode(samples).double().flatten(2)
    yield run.check("samples not finite", int((~torch.isfinite(latents)).sum()), 0.0, note=note)
    each = latents.mean(2)
    error = 4.0 * (each.std(0) / NUM_SAMPLES**0.5).max().item()
    yield run.check("channel mean", each.mean(0).abs().max().item(), MEAN_OFF + error, note=f"largest, in stds; {note}")
    spread = latents.transpose(0, 1).flatten(1).std(1)
    off = max(spread.tolist(), key=lambda value: abs(math.log(max(value, 1e-12))))
    yield run.check("channel std", off, STD_OFF, 1.0 / STD_OFF, note=f"farthest from 1; {note}")
