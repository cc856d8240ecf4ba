"""A second evaluation within a step. A better solver is a better x̂_0 for the same reverse kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.ancestral import check_eta
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


RULES = ("data", "slope")


@register(
    "sampler/midpoint",
    dpm2={"rule": "slope"},
    dpm2_ancestral={"rule": "slope", "eta": 1.0},
    dpmpp_2s={"rule": "data"},
    dpmpp_2s_ancestral={"rule": "data", "eta": 1.0},
)
@dataclass(frozen=True)
class Midpoint(Sampler):
    """The second evaluation in the middle of the step, in ln(σ/α): two evaluations a step, order 2.

    Args:
        rule: "data" holds the x̂_0 found there (DPM-Solver++(2S)); "slope" takes the ODE's slope there (DPM-Solver-2, as
            Karras et al. write it), which is x̂_0 = (1 - w) D_t + w D_mid with w = 1 / ρ_mid.
        eta: 0 solves the ODE; above 0 solves it to a lower noise level and adds the rest as fresh noise.

    Source: Lu et al., arXiv 2211.01095, algorithm 1; arXiv 2206.00927.
    """

    needs: ClassVar[type[Process]] = Gaussian
    rule: str = "data"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"midpoint's rule is one of {', '.join(RULES)}, not {self.rule!r}")
        check_eta(self.eta)

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process = denoiser.process
        assert isinstance(process, Gaussian)
        posterior = denoiser(x_t, t, cond)
        decay = process.decay(t, s)
        if decay > 0.0:
            # Where the deterministic part of the step ends: all the way, or short of it by the fresh noise.
            end = decay * math.sqrt(1.0 - self.eta**2 * (1.0 - decay**2))
            start = process.time_map.log_snr(t)
            middle = process.time_map.time(start - math.log(end))
            half = process.decay(t, middle)
            second = denoiser(process.reverse(x_t, posterior, t, middle), middle, cond)
            posterior = second.extrapolate(posterior, 1.0 / half if self.rule == "slope" else 1.0)
        return process.reverse(x_t, posterior, t, s, eta=self.eta, noise=noise), None


@register("sampler/sde_midpoint", dpmpp_sde={})
@dataclass(frozen=True)
class StochasticMidpoint(Sampler):
    """The reverse SDE with a second evaluation in the middle of the step, in ln(σ/α), reached with the first part of
    the step's own noise: two evaluations a step.

    Both reverse steps begin at x_t, and the second holds the x̂_0 of the middle: SDE-DPM-Solver++(2S) with r = 1/2.

    Args:
        eta: the noise, from 0 (DPM-Solver++(2S)) to 1 (the reverse SDE).

    Source: Lu et al., arXiv 2211.01095, for the solver; k-diffusion's sample_dpmpp_sde for this form.
    """

    needs: ClassVar[type[Process]] = Gaussian
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process = denoiser.process
        assert isinstance(process, Gaussian)
        posterior = denoiser(x_t, t, cond)
        if process.decay(t, s) > 0.0:
            log_snr = process.time_map.log_snr
            middle = process.time_map.time(0.5 * (log_snr(t) + log_snr(s)))
            part = noise.until(middle) if self.eta else None
            x_middle = process.reverse(x_t, posterior, t, middle, eta=self.eta, noise=part)
            posterior = denoiser(x_middle, middle, cond)
        return process.reverse(x_t, posterior, t, s, eta=self.eta, noise=noise), None
