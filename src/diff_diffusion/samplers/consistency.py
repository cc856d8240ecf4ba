"""Consistency sampling: the answer is taken for a sample, and made noisy again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Process
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.sampler import Sampler


@register("sampler/consistency", lcm={})
@dataclass(frozen=True)
class Consistency(Sampler):
    """x_s = α_s f(x_t) + σ_s n, n fresh: for models that answer with the end of the ODE's path, in 1 to 8 steps.

    Where f(x_t) has the law of the data, as a consistency function's answers have, x_s has the law of the process at s,
    and samples of 1 step and of 100 have the same. A denoiser's answer is a mean instead, without the spread about it,
    and each step loses that spread again: on a fine grid samples of a Gaussian have half its variance.

    Source: Song et al., "Consistency Models", arXiv 2303.01469, algorithm 1; Luo et al., "Latent Consistency Models",
    arXiv 2310.04378.
    """

    needs: ClassVar[type[Process]] = Gaussian
    deterministic: ClassVar[bool] = False

    @property
    def bias(self) -> float:
        return 0.5

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process = denoiser.process
        assert isinstance(process, Gaussian)
        answer = denoiser(x_t, t, cond).mean
        if s == 0.0:
            return answer, None
        alpha, sigma = process.scales(s)
        return torch.add(alpha * answer, noise.normal(x_t.shape, like=x_t), alpha=sigma), None
