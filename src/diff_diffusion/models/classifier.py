"""NoisyClassifier: which class noisy data are of, at any noise level; it guides models that were taught no classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.codecs.codec import Codec
from diff_diffusion.cond import Cond
from diff_diffusion.conditions.conditions import Conditions
from diff_diffusion.conditions.labels import ClassLabel
from diff_diffusion.core.denoiser import LOG_SNR_LIMIT
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.learned_map import Learned
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError, IncompatibleError, listed
from diff_diffusion.models.model import LABEL, LEVELS, Model
from diff_diffusion.objectives.denoising import Loss
from diff_diffusion.objectives.levels import Levels, Uniform
from diff_diffusion.presets import check_latent
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise, derive
from diff_diffusion.sizing import describe_classifier
from diff_diffusion.tensors import expand, maths

if TYPE_CHECKING:
    from diff_diffusion.data import ImageDataset
    from diff_diffusion.models.diffusion import DiffusionModel

BATCH = 128
MAX_IMAGES = 512
"""Of held-out data, that the fact of a run is measured on."""


@register("model/classifier")
class NoisyClassifier(Model):
    """p(label | x_t) at every noise level, for `Guidance(classifier=…)`.

    The network sees x_t / √(α² + σ²) and λ, as a denoiser's does. So one classifier guides models of any process and
    scaling, if their codec is the same.

    Args:
        network: (x [B, *shape], log_snr [B]) to a score of each class [B, K].
        codec: from data units to what the network works on; that of the model to be guided.
        process: at whose levels it is trained.
        conditioner: of the one condition "label", a class: its names.
        levels: the density of training levels.

    Raises:
        ConfigError: a conditioner of something else.
        IncompatibleError: a network of another number of classes, a process that is not Gaussian, or one that learns.

    Source: Dhariwal & Nichol, arXiv 2105.05233.

    >>> from diff_diffusion.data import load_image_dataset
    >>> classifier = NoisyClassifier.for_data(load_image_dataset("digits"))  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module,
        codec: Codec,
        process: Gaussian,
        conditioner: Conditions,
        levels: Levels | None = None,
    ) -> None:
        super().__init__()
        label = conditioner.parts.get(LABEL)
        if len(conditioner.parts) != 1 or not isinstance(label, ClassLabel):
            raise ConfigError(
                f"a classifier tells the classes of one condition, {LABEL!r}, not {listed(conditioner.summary())}"
            )
        if not isinstance(process, Gaussian):
            raise IncompatibleError(
                f"a classifier guides by its gradient in x_t, which needs a Gaussian process, not "
                f"{type(process).__name__}"
            )
        check_latent(codec.latent, process)
        if isinstance(process.time_map, Learned):
            raise IncompatibleError(
                "a classifier has nothing to teach a learned time map: give it any other, since it guides models of "
                "all of them"
            )
        scores = getattr(network, "num_classes", len(label.names))
        if scores != len(label.names):
            raise IncompatibleError(f"the network scores {scores} classes, and the labels are {len(label.names)}")
        self.network, self.codec, self.process = network, codec, process
        self.levels = levels or Uniform()
        self.asks = conditioner
        self.learns = nn.ModuleDict({"levels": self.levels} if isinstance(self.levels, nn.Module) else {})
        self.facts: dict[str, Any] = {}
        self.ema: dict[str, Tensor] | None = None

    @property
    def conditioner(self) -> Conditions:
        return self.asks

    @classmethod
    def for_data(
        cls,
        data: ImageDataset,
        preset: str | None = None,
        seed: int = 0,
        codec: Codec | None = None,
        **options: Any,
    ) -> NoisyClassifier:
        """A classifier of the classes of `data`, sized by its resolution, for models that `for_data` makes of it.

        Args:
            data: the train split that the model to be guided is made for: its statistics are the codec.
            preset: whose process it is trained on; "rectified_flow" if not said.
            seed: of the initial weights.
            codec: that of a model on latents, for a classifier that guides it; pixels when left out.
            options: arguments of the preset.

        Raises:
            ConfigError: data without classes; an unknown preset or option.
        """
        classifier = cls.from_description(describe_classifier(data, preset, codec, **options), seed)
        classifier.take_weights(codec)
        return classifier

    # ---- trained --------------------------------------------------------------------------------------------------

    def objective(
        self, latents: Tensor, cond: Cond | None, noise: Noise, first: int = 0, whole: int | None = None
    ) -> Loss:
        t = self.levels.stratified(noise, self.process, first, whole)
        loss = self.loss_at(latents, t, cond, noise.fork("eps"))
        weighed = loss.per_sample * self.levels.correction(t, self.process).to(loss.per_sample)
        kept = self._label(cond)[1].cpu()
        self.levels.record(t[kept], weighed.cpu()[kept], self.process)
        return Loss(weighed.mean(), weighed, loss.log_snr)

    def held_out_levels(self, count: int) -> Tensor:
        strata = torch.arange(count, dtype=torch.float64) % LEVELS
        return self.levels.draw((strata + 0.5) / LEVELS, self.process)

    def loss_at(self, latents: Tensor, t: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        """-ln p(label | x_t), nats; 0 where a sample has no label."""
        label, kept = self._label(cond)
        log_snr = self.process.time_map.log_snr(t)
        x_t = self.process.marginal(latents, t, noise).x_t
        scores = self.scores(self.process.shown(x_t, t), log_snr)
        cost = functional.cross_entropy(scores.float(), label, reduction="none")
        per_sample = torch.where(kept, cost, 0.0)
        return Loss(per_sample.mean(), per_sample, log_snr)

    def held_out_facts(self, data: ImageDataset) -> dict[str, Any]:
        if not data.known(LABEL):
            return {}
        return {"held-out accuracy": self.accuracy(data, num=MAX_IMAGES)}

    def sheet(self, examples: Mapping[str, Any] | None = None, images: Tensor | None = None) -> Image | None:
        return None

    # ---- asked ----------------------------------------------------------------------------------------------------

    def scores(self, shown: Tensor, log_snr: Tensor) -> Tensor:
        """ln p(label | x_t) of each class up to a constant, [B, K].

        Args:
            shown: x_t / √(α² + σ²).
            log_snr: λ [B]; beyond the levels that it was trained at the nearest of them is told.
        """
        scores: Tensor = self.network(shown, log_snr.clamp(*self.levels_known).to(shown.device, torch.float32))
        return scores

    @property
    def levels_known(self) -> tuple[float, float]:
        """The λ of the most and of the least noise that it was trained at."""
        low, high = (min(max(self.process.log_snr(t), -LOG_SNR_LIMIT), LOG_SNR_LIMIT) for t in (1.0, 0.0))
        return low, high

    def log_prob(self, x_t: Tensor, log_snr: Tensor, cond: Cond, process: Process | None = None) -> Tensor:
        """ln p(label | x_t), nats [B], differentiable in x_t; 0 where a sample has no label.

        Args:
            x_t: [B, *shape], in the codec's units.
            log_snr: λ [B].
            cond: the labels, as `encode` makes them.
            process: what x_t is noised by, for its scaling; the classifier's own when left out.

        Raises:
            ConfigError: no label is asked for.
        """
        label, kept = self._label(cond)
        process = process or self.process
        assert isinstance(process, Gaussian)  # or x_t would have no gradient
        alpha, sigma = SCALINGS[process.scaling](maths(log_snr.double()), log_snr.double())
        with self.evaluating():
            scores = self.scores(expand((alpha**2 + sigma**2) ** -0.5, x_t) * x_t, log_snr)
        log_prob = functional.log_softmax(scores, -1).gather(1, label[:, None])[:, 0]
        return torch.where(kept, log_prob, 0.0)

    def _label(self, cond: Cond | None) -> tuple[Tensor, Tensor]:
        if cond is None or LABEL not in cond.values:
            has = listed(cond.values) if cond else "nothing"
            raise ConfigError(f"a classifier is asked for a label of {listed(self.class_names, 12)}, not for {has}")
        return cond.values[LABEL], cond.keep[LABEL]

    def check_fits(self, model: DiffusionModel) -> None:
        """Nothing, or an IncompatibleError that says why it cannot guide `model`."""
        self.check_units(model, "the classifier")

    @torch.no_grad()
    def accuracy(self, data: ImageDataset, log_snr: float | None = None, num: int | None = None) -> float:
        """The share of labelled images that it gets right: of the first `num`, noised to λ, or clean.

        Args:
            data: with the classifier's classes.
            log_snr: the level; None for clean images.
            num: all where None.

        Raises:
            ConfigError: other classes, or no image with a label.
        """
        names = data.columns[LABEL].names if LABEL in data.columns else ()
        if names != self.class_names:
            raise ConfigError(
                f"the classifier tells {listed(self.class_names, 12)}; {data.name} has {listed(names, 12) or 'none'}"
            )
        right, count = 0, 0
        for first in range(0, min(len(data), num or len(data)), BATCH):
            rows = range(first, min(first + BATCH, len(data), num or len(data)))
            label, kept = self._label(self.encode(self.known(data.cond(rows)), len(rows)))
            x = self.codec.encode(data.batch(rows).to(self.device))
            if log_snr is not None:
                alpha, sigma = SCALINGS["vp"](maths(log_snr), log_snr)
                noise = Noise([derive(0, "accuracy", row) for row in rows])
                x = alpha * x + sigma * noise.normal(x.shape, like=x)
            level = torch.full((len(x),), math.inf if log_snr is None else log_snr)
            with self.evaluating():
                found = self.scores(x, level).argmax(-1)
            right, count = right + int(((found == label) & kept).sum()), count + int(kept.sum())
        if not count:
            raise ConfigError(f"no image of {data.name} has a label, so there is nothing to be right about")
        return right / count


assert isinstance(NoisyClassifier.conditioner, property)  # describe() reads constructor arguments by name
