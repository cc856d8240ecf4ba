"""How a model's samples are guided: one request, made into a denoiser around the model's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import LOG_SNR_LIMIT, Denoiser
from diff_diffusion.errors import ConfigError, IncompatibleError, listed
from diff_diffusion.guidance.evidence import ClassifierGuided
from diff_diffusion.guidance.levels import ClassifierFreePP, Interval
from diff_diffusion.guidance.moves import Project, Rescale
from diff_diffusion.guidance.scale import Autoguided, ClassifierFree, Move
from diff_diffusion.registry import describe
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.sampler import Sampler

if TYPE_CHECKING:
    from diff_diffusion.models.classifier import NoisyClassifier
    from diff_diffusion.models.diffusion import DiffusionModel
    from diff_diffusion.models.model import Model

MOVES: dict[str, Move | None] = {"plain": None, "rescale": Rescale(), "apg": Project(eta=0.0)}
CFGPP = "cfgpp"


@dataclass(frozen=True)
class Guidance:
    """How samples are pushed towards what they are asked to be. A bare number stands for `Guidance(scale)`.

    Args:
        scale: 1 is the conditional model itself, 0 the unconditional one, above 1 goes beyond.
        negative: what to move away from in place of "nothing asked", said like `cond`: a negative prompt.
        how: "plain" extrapolates; "rescale" then restores the contrast; "apg" leaves out the part that only makes
            x̂_0 larger; "cfgpp" is CFG++, for the sampler ddim, whose scale is a blend from 0 to 1.
        interval: the times (low, high], in [0, 1], at which to guide; outside samples follow the plain model.
        dynamic: dynamic thresholding by this quantile of |x̂_0|, such as 0.995; None for none.
        reference: autoguidance: a smaller or earlier model of the same data, moved away from in place of the
            unconditional one.
        classifier: classifier guidance: the model is asked without a condition and a noise-aware classifier adds it.

    Raises:
        ConfigError: an unknown `how`, an interval that is none, or two that exclude each other.
    """

    scale: float = 1.0
    negative: Any = None
    how: str = "plain"
    interval: tuple[float, float] | None = None
    dynamic: float | None = None
    reference: DiffusionModel | None = None
    classifier: NoisyClassifier | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ConfigError(f"the guidance scale must be a finite number, not {self.scale}; 1 means none")
        if self.how not in (*MOVES, CFGPP):
            raise ConfigError(f"guidance is {listed([*MOVES, CFGPP])}, not {self.how!r}")
        if self.interval is not None and not 0.0 <= self.interval[0] < self.interval[1] <= 1.0:
            raise ConfigError(
                f"guidance has an interval of times low < high between 0 (data) and 1 (noise), not {self.interval}"
            )
        sources = {"a negative": self.negative, "a reference": self.reference, "a classifier": self.classifier}
        given = [name for name, source in sources.items() if source is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are different things to be guided by: give one of them")
        if self.how != "plain" and (self.classifier is not None or (self.how == CFGPP and self.reference is not None)):
            raise ConfigError(
                f"guidance {self.how!r} does not go with {given[0]}: it moves away from the unconditional"
            )
        if self.how in ("rescale", "apg") and self.scale < 1.0:
            raise ConfigError(f"{self.how!r} holds back what a scale above 1 spoils, and {self.scale:g} is below")
        if self.idle:
            idle = [*given, *(["an interval"] if self.interval else []), *([self.how] if self.how != "plain" else [])]
            if idle:
                raise ConfigError(f"{listed(idle)} has no effect at guidance 1, which is none: say how much, such as 2")

    @property
    def idle(self) -> bool:
        """Whether it leaves the conditional model as it is."""
        return self.scale == 1.0 and self.classifier is None and self.how != CFGPP

    def knows(self, model: DiffusionModel) -> Model:
        """Who says what conditions mean: the classifier, where one guides, else the model."""
        return self.classifier or model

    def ready(self, model: DiffusionModel, asked: Any, count: int) -> Cond | None:
        """What samples are asked to be, for a walk of `around`."""
        if self.reference is not None:  # two models read texts each in its own way, at each step
            return model.encode(asked, count)
        return self.knows(model).ready(asked, count)

    def around(self, model: DiffusionModel, sampler: Sampler, times: Sequence[float]) -> Denoiser:
        """The model's denoiser, guided. `sampler` and `times` are what will walk it."""
        guided, plain = self._guided(model, sampler, times), model.denoiser
        if self.interval is None and self.classifier is None:
            return guided
        log_snr = model.recipe.process.time_map.log_snr
        first, last = self.interval or (0.0, 1.0)
        low, high = log_snr(last), log_snr(first) if first > 0.0 else math.inf
        if self.classifier is None:
            return Interval(guided, plain, low, high)
        # In pure noise no class can be told, and there σ²/α makes an infinity of what the classifier has wrong.
        unguided = ClassifierGuided(plain, self.classifier.log_prob, 0.0)
        return Interval(guided, unguided, max(low, -LOG_SNR_LIMIT), high)

    def _guided(self, model: DiffusionModel, sampler: Sampler, times: Sequence[float]) -> Denoiser:
        if self.classifier is not None:
            self.classifier.check_fits(model)
            log_prob = partial(self.classifier.log_prob, process=model.recipe.process)
            return ClassifierGuided(model.denoiser, log_prob, self.scale)
        if self.reference is not None:
            self.reference.check_units(model, "the reference")
            if _meaning(self.reference) != _meaning(model):
                raise IncompatibleError(
                    "the reference does not take conditions as the model does: both must have the same, with the same "
                    "classes, ranges and vocabulary"
                )
            return Autoguided(model.denoiser, self.reference.denoiser, self.scale, MOVES[self.how])
        if model.conditioner is None:
            raise ConfigError(
                f"guidance {self.scale:g} needs a conditional model, and this one was trained without conditions"
            )
        negative = model.ready(self.negative, 1)
        covered = negative is not None and all(
            name in negative.values and bool(negative.keep[name].all()) for name in model.conditioner.parts
        )
        objective = model.recipe.objective
        dropped = objective.cond_drop > 0.0 or all(objective.drops.get(name) for name in model.conditioner.parts)
        if not dropped and not covered:
            raise ConfigError(
                f"guidance {self.scale:g} needs a model trained with its condition dropped some of the time, and this "
                "one was trained with cond_drop = 0: use guidance 1, or train with objective.cond_drop = 0.1"
            )
        if self.how == CFGPP:
            if not (isinstance(sampler, Ancestral) and sampler.eta == 0.0):
                raise ConfigError(f"CFG++ is a way to take DDIM's steps: use the sampler ddim, not {sampler}")
            return ClassifierFreePP(model.denoiser, self.scale, times, negative)
        return ClassifierFree(model.denoiser, self.scale, negative, MOVES[self.how])


def _meaning(model: DiffusionModel) -> Any:
    """How a model's conditions are encoded, whatever it makes of them then."""
    parts = model.conditioner.parts if model.conditioner is not None else {}
    own = {"encoder", "width", "token_width", "noise"}
    return {name: {k: v for k, v in describe(part).items() if k not in own} for name, part in parts.items()}
