"""The reverse kernel, step after step: DDPM and DDIM, and ancestral sampling of any process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.sampler import Sampler


@register("sampler/ancestral", ddim={"eta": 0.0}, euler={"eta": 0.0}, ddpm={"eta": 1.0}, euler_ancestral={"eta": 1.0})
@dataclass(frozen=True)
class Ancestral(Sampler):
    """x_s ~ q(x_s | x_t, x̂_0).

    Args:
        eta: 0 is DDIM (deterministic; Euler's method on the probability-flow ODE), 1 is DDPM; between is a mixture.

    Source: Ho et al., arXiv 2006.11239; Song et al., arXiv 2010.02502.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        return denoiser.process.reverse(x_t, denoiser(x_t, t, cond), t, s, eta=self.eta, noise=noise), None


def check_eta(eta: float) -> None:
    """Nothing, or a ConfigError for an eta outside [0, 1]."""
    if not 0.0 <= eta <= 1.0:
        raise ConfigError(f"eta must be from 0 (deterministic) to 1 (fully stochastic), not {eta}")
