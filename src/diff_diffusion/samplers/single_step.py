"""Second evaluations within a step. A better solver is a better x̂_0 for the same reverse kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Process
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.sampler import Sampler


@register("sampler/heun")
@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method on the probability-flow ODE in σ/α: two evaluations a step, order 2.

    Averaging the two slopes (x/α - x̂_0) / (σ/α) is the plain step with x̂_0 = (1 - w) D_t + w D_s, w = 1 / (2ρ), where
    ρ is the ratio of the two σ/α. A step to the data, or from no signal, is one evaluation and holds x̂_0.

    Source: Karras et al., arXiv 2206.00364, algorithm 1.
    """

    needs: ClassVar[type[Process]] = Gaussian
    order: int = 2

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process = denoiser.process
        assert isinstance(process, Gaussian)
        first = denoiser(x_t, t, cond)
        x_s = process.reverse(x_t, first, t, s)
        decay = process.decay(t, s)
        if decay > 0.0:
            second = denoiser(x_s, s, cond)
            x_s = process.reverse(x_t, second.extrapolate(first, 0.5 / decay), t, s)
        return x_s, None
