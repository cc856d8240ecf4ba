"""Multistep solvers: past answers of the denoiser make the next step more accurate, at no extra evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.ancestral import check_eta
from diff_diffusion.samplers.quadrature import weights
from diff_diffusion.samplers.sampler import Sampler

History = tuple[tuple[float, Tensor], ...]
"""(λ/2, answer) of past steps, the latest first."""


def mean_of(coefficients: list[float], answers: list[Tensor]) -> Tensor:
    """Σ coefficient · answer, of coefficients whose sum is 1, with as few passes over memory as can be."""
    if len(answers) == 2:
        return torch.lerp(answers[0], answers[1], coefficients[1])
    total = answers[0] * coefficients[0]
    for coefficient, answer in zip(coefficients[1:], answers[1:], strict=True):
        total.add_(answer, alpha=coefficient)
    return total


@register(
    "sampler/multistep",
    dpmpp_2m={"order": 2},
    dpmpp_3m={"order": 3},
    dpmpp_2m_sde={"order": 2, "eta": 1.0},
    dpmpp_3m_sde={"order": 3, "eta": 1.0},
)
@dataclass(frozen=True)
class Multistep(Sampler):
    """x̂_0 interpolated in ln(α/σ) through the last `order` answers, integrated against e^-h. One evaluation a step.

    Order 1 is DDIM; 2 is DPM-Solver++(2M), whose weight 1/2 on the last difference is the exact integral's up to O(h);
    3 integrates the parabola exactly. The first steps have fewer answers and use the orders they can; a step to the
    data, or from no signal, holds x̂_0.

    Args:
        order: 1, 2 or 3.
        eta: 0 solves the ODE; 1 the reverse SDE (order 2 then is SDE-DPM-Solver++(2M)).

    Source: Lu et al., "DPM-Solver++", arXiv 2211.01095. Its third-order multistep form, as commonly copied, takes the
    divided difference for the second derivative, half its size, and measures at order 2; this one measures at 3.
    """

    needs: ClassVar[type[Process]] = Gaussian
    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ConfigError(f"multistep has orders 1, 2 and 3, not {self.order}")
        check_eta(self.eta)

    @property
    def weak_order(self) -> int:
        # A step's one normal number cannot say when in the step its noise came.
        return min(self.order, 2) if self.eta else self.order

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process, past = denoiser.process, state or ()
        assert isinstance(process, Gaussian)
        posterior = denoiser(x_t, t, cond)
        assert isinstance(posterior, GaussianPosterior)
        now, latest = 0.5 * process.log_snr(t), posterior.mean
        if past and process.decay(t, s) > 0.0:
            h = 0.5 * process.log_snr(s) - now
            places = [0.0, *((before - now) / h for before, _ in past)]
            # What the step's noise drowns of x_t, the data must make up for: their density is steeper by that.
            steep = h - 0.5 * math.log1p(self.eta**2 * math.expm1(-2.0 * h))
            rule = [1.0 - 0.5 / places[1], 0.5 / places[1]] if len(places) == 2 else data_weights(places, steep)
            held = mean_of(rule, [latest, *(answer for _, answer in past)])
            posterior = GaussianPosterior(held, posterior.tweedie, posterior.share)
        x_s = process.reverse(x_t, posterior, t, s, eta=self.eta, noise=noise)
        return x_s, ((now, latest), *past)[: self.order - 1] if math.isfinite(now) else ()


def data_weights(places: list[float], h: float) -> list[float]:
    """The weights of answers for x̂_0 at `places` (0 is now, 1 the step's end): its density over a step is e^-(1-r)h."""
    return weights(places, lambda r: math.exp((r - 1.0) * h))


@register("sampler/adams", lms={"order": 4, "variable": "sigma"}, deis={"order": 3, "variable": "log_sigma"})
@dataclass(frozen=True)
class Adams(Sampler):
    """Adams-Bashforth on dx/dσ = ε̂ (σ and x relative to α): ε̂ interpolated through the last `order` answers.

    Args:
        order: 1 (DDIM) to 4.
        variable: what the polynomial is in: "sigma", the linear multistep method of k-diffusion's LMS; "log_sigma",
            DEIS in the logarithm of σ/α.

    Source: Zhang & Chen, "DEIS", arXiv 2204.13902.
    """

    needs: ClassVar[type[Process]] = Gaussian
    order: int = 3
    variable: str = "log_sigma"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ConfigError(f"adams has orders 1 to 4, not {self.order}")
        if self.variable not in ("sigma", "log_sigma"):
            raise ConfigError(f"adams' variable is 'sigma' or 'log_sigma', not {self.variable!r}")

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process, past = denoiser.process, state or ()
        assert isinstance(process, Gaussian)
        posterior = denoiser(x_t, t, cond)
        assert isinstance(posterior, GaussianPosterior)
        if process.decay(t, s) == 0.0:
            return process.reverse(x_t, posterior, t, s), ()
        alpha, sigma = process.scales(t)
        eps = (x_t - alpha * posterior.mean) * (1.0 / sigma)
        now = 0.5 * process.log_snr(t)
        history = ((now, eps), *past)[: self.order]
        if len(history) > 1:
            h = 0.5 * process.log_snr(s) - now
            if self.variable == "sigma":
                shrunk = -math.expm1(-h)
                places = [-math.expm1(now - level) / shrunk for level, _ in history]
                rule = weights(places, lambda r: 1.0)
            else:
                rule = weights([(level - now) / h for level, _ in history], lambda r: math.exp(-r * h))
            # The same step with the x̂_0 that goes with the mean ε̂: x_t = α x̂_0 + σ ε̂ whichever ε̂ is held.
            held = mean_of(rule, [answer for _, answer in history])
            mean = (x_t - sigma * held) * (1.0 / alpha)
            posterior = GaussianPosterior(mean, posterior.tweedie)
        return process.reverse(x_t, posterior, t, s), history[: self.order - 1]
