"""Predictor and corrector: Langevin steps pull a walk back to the law it should have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.sampler import Sampler


@register("sampler/corrected", predictor_corrector={})
@dataclass(frozen=True)
class Corrected(Sampler):
    """Another sampler's step, then `steps` Langevin steps at the noise level where it ended.

    x ← x + δ (α x̂_0 - x) + √(2δ) σ n with δ = 2 snr²: the score is (α x̂_0 - x) / σ². The paper's step size is
    2 (snr ‖n‖ / ‖score‖)²; here ‖score‖ is ‖n‖ / σ, its size for noisy data, so that a sample depends on no norms of a
    batch and the three scalings agree. Its stationary law is that of the process but for a variance too large by a
    share of up to snr², however many steps.

    The correction leaves the path that past answers lie on, so the sampler forgets them: multistep solvers are DDIM.

    Args:
        sampler: the predictor.
        steps: Langevin steps, one evaluation each, after every step but the last, which ends at the data.
        snr: the size of a step against its noise, above 0 and below 1.

    Raises:
        IncompatibleError: the predictor is for another family of processes.

    Source: Song et al., arXiv 2011.13456 (predictor-corrector samplers).
    """

    needs: ClassVar[type[Process]] = Gaussian
    deterministic: ClassVar[bool] = False
    sampler: Sampler = field(default_factory=lambda: Ancestral(eta=1.0))
    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if not issubclass(Gaussian, self.sampler.needs):
            raise IncompatibleError(
                f"a Langevin corrector needs the score of a Gaussian process, and {type(self.sampler).__name__} walks "
                f"a {self.sampler.needs.__name__} one: wrap a sampler such as ddpm, ddim or heun"
            )
        if self.steps < 1 or not 0.0 < self.snr < 1.0:
            raise ConfigError(
                f"a corrector takes 1 step or more, with snr between 0 and 1, not steps={self.steps}, snr={self.snr}"
            )

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        return self.sampler.adaptive

    @property
    def bias(self) -> float:
        return self.snr**2

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        x, _ = self.sampler.step(denoiser, x_t, t, s, None, cond, noise)
        if s > 0.0:
            process = denoiser.process
            assert isinstance(process, Gaussian)
            alpha, sigma = process.scales(s)
            size = 2.0 * self.snr**2
            for i in range(self.steps):
                answer = denoiser(x, s, cond).mean
                fresh = noise.fork(f"langevin/{i}").normal(x.shape, like=x)
                x = ((1.0 - size) * x).add_(answer, alpha=size * alpha).add_(fresh, alpha=math.sqrt(2.0 * size) * sigma)
        return x, None
