"""UniPC: a multistep predictor whose steps are corrected by the answer that the next step asks for anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.multistep import History, data_weights, mean_of
from diff_diffusion.samplers.sampler import Sampler


class _Last(NamedTuple):
    """The step before: where it started, and the answers that it was predicted with."""

    x: Tensor
    t: float
    history: History


@register("sampler/unipc")
@dataclass(frozen=True)
class UniPC(Sampler):
    """Predict with the last answers; when the answer at the new place comes, take the step again with it too.

    The correction costs no evaluation and gains an order. The last step, to the data, holds x̂_0.

    Args:
        answers: 1, 2 or 3: how many the predictor uses (the paper's p); the corrector uses one more.

    Source: Zhao et al., "UniPC", arXiv 2302.04867 (the data-prediction form; integrals exact, where its B_2(h) variant
    approximates them).
    """

    needs: ClassVar[type[Process]] = Gaussian
    answers: int = 2

    def __post_init__(self) -> None:
        if self.answers not in (1, 2, 3):
            raise ConfigError(f"unipc predicts with 1, 2 or 3 answers, not {self.answers}")

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.answers + 1

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process = denoiser.process
        assert isinstance(process, Gaussian)
        posterior = denoiser(x_t, t, cond)
        assert isinstance(posterior, GaussianPosterior)
        now = 0.5 * process.time_map.log_snr(t)
        past: History = ()
        if isinstance(state, _Last):
            past = state.history
            x_t = _take(process, state.x, state.t, t, ((now, posterior.mean), *past), past[0][0])
        if process.decay(t, s) == 0.0:
            return process.reverse(x_t, posterior, t, s), None
        history = ((now, posterior.mean), *past)[: self.answers]
        return _take(process, x_t, t, s, history, now), _Last(x_t, t, history)


def _take(process: Gaussian, x: Tensor, t: float, s: float, answers: History, start: float) -> Tensor:
    """The step from t to s with the polynomial through `answers`, some of which may lie at s."""
    h = 0.5 * process.time_map.log_snr(s) - start
    rule = data_weights([(level - start) / h for level, _ in answers], h)
    mean = mean_of(rule, [answer for _, answer in answers])
    return process.reverse(x, GaussianPosterior(mean, math.nan), t, s)
