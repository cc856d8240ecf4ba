"""Exponential multistep integrators: past answers of the denoiser give a better x̂_0 at no extra evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

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
from diff_diffusion.samplers.sampler import Sampler

History = tuple[tuple[float, Tensor], ...]
"""(λ/2, x̂_0) of past steps, the latest first."""


@register("sampler/multistep", dpmpp_2m={"order": 2}, dpmpp_3m={"order": 3}, dpmpp_2m_sde={"order": 2, "eta": 1.0})
@dataclass(frozen=True)
class Multistep(Sampler):
    """x̂_0 extrapolated in ln(α/σ) from the last `order` answers, integrated against e^-h. One evaluation a step.

    Order 1 is DDIM, 2 is DPM-Solver++(2M), 3 is its third-order form. The first steps have fewer answers and use the
    orders they can; a step to the data, or from no signal, holds x̂_0.

    Args:
        order: 1, 2 or 3.
        eta: 0 solves the ODE; 1 the reverse SDE (order 2 then is SDE-DPM-Solver++(2M)).

    Source: Lu et al., "DPM-Solver++", arXiv 2211.01095.
    """

    needs: ClassVar[type[Process]] = Gaussian
    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ConfigError(f"multistep has orders 1, 2 and 3, not {self.order}")
        if self.eta and self.order == 3:
            raise ConfigError("multistep of order 3 is an ODE solver: use order 2 with eta, or eta=0")
        check_eta(self.eta)

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        return self.eta == 0.0

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process, past = denoiser.process, state or ()
        assert isinstance(process, Gaussian)
        posterior = denoiser(x_t, t, cond)
        assert isinstance(posterior, GaussianPosterior)
        now, latest = 0.5 * process.time_map.log_snr(t), posterior.mean
        if past and process.decay(t, s) > 0.0:
            posterior = posterior.moved(self._correction(latest, now, past, process, s))
        x_s = process.reverse(x_t, posterior, t, s, eta=self.eta, noise=noise)
        history = ((now, latest), *past)[: self.order - 1]
        return x_s, history

    def _correction(self, latest: Tensor, now: float, past: History, process: Gaussian, s: float) -> Tensor:
        """What to add to the latest x̂_0 so that holding it equals integrating the interpolating polynomial."""
        h = 0.5 * process.time_map.log_snr(s) - now
        (before, older), *rest = past
        ratio = (now - before) / h
        slope = (latest - older) * (1.0 / ratio)
        if not rest:
            # DPM-Solver++'s 2M weight, 1/2; it differs from the exact integral's by O(h), which order 2 does not see.
            return 0.5 * slope
        earlier, oldest = rest[0]
        ratio_2 = (before - earlier) / h
        bend = (slope - (older - oldest) * (1.0 / ratio_2)) * (1.0 / (ratio + ratio_2))
        mass = -math.expm1(-h)
        phi_2 = (h - mass) / h
        phi_3 = phi_2 / h - 0.5
        # The second derivative is twice the divided difference `bend`. Published code (dpm-solver, k-diffusion) lacks
        # the 2, which leaves a method of order 2.
        return (phi_2 * (slope + ratio * bend) - 2.0 * phi_3 * bend) * (1.0 / mass)
