"""The learned time map: a monotone network from λ to t, trained to lower the variance of the bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.core.time_maps import TimeMap
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.tensors import Real

_NEWTON_STEPS = 100
"""Bisection alone would need some 50; Newton's steps make it about 6."""


@register("time_map/learned")
class Learned(nn.Module, TimeMap):
    """A map with given ends whose density of levels p(λ) = -dt/dλ is learned.

    With u = (log_snr_max - λ) / (log_snr_max - log_snr_min), t is T(u) = u + Σ_k w_k sigmoid(s_k (u - c_k)), with
    w_k, s_k > 0, moved and stretched so that T(0) = 0 and T(1) = 1. Going from λ to t makes the density explicit;
    λ(t) is found by Newton's method within a bracket, to float64's last digits.

    The continuous-time bound depends on the map only through its two ends, so training moves the density and nothing
    else: only `density`, and so `variance_loss`, gives the parameters a gradient. They are float64 on the CPU always,
    whatever the model around them is moved or cast to.

    It learns as the process's own map. Inside another, such as `Shifted`, it stays as it was made: levels nearly
    uniform in λ.

    Args:
        log_snr_max: λ(0), finite.
        log_snr_min: λ(1), finite.
        num_units: K, from 1 to 4096.

    Raises:
        ConfigError: ends that are not so, or another number of units.

    Source: Kingma et al., "Variational Diffusion Models", arXiv 2107.00630: a monotone network with positive weights,
    given ends, trained for the variance of the bound. Its network goes from t to λ, this one the other way.
    """

    def __init__(self, log_snr_max: float = 12.0, log_snr_min: float = -12.0, num_units: int = 32) -> None:
        super().__init__()
        if not -math.inf < log_snr_min < log_snr_max < math.inf:
            raise ConfigError(
                f"log_snr_min must be below log_snr_max, both finite, not {log_snr_min} and {log_snr_max}"
            )
        if not 1 <= num_units <= 4096:
            raise ConfigError(f"a learned map has 1 to 4096 units, not {num_units}")
        self.log_snr_max, self.log_snr_min, self.num_units = float(log_snr_max), float(log_snr_min), num_units
        # Bumps of density side by side, one width apart: nearly uniform, and each can grow.
        units = torch.ones(num_units, dtype=torch.float64, device="cpu")
        self.centres = nn.Parameter((units.cumsum(0) - 0.5) / num_units)
        self.log_steepness = nn.Parameter(units * math.log(4.0 * num_units))
        self.log_weights = nn.Parameter(units * -math.log(num_units))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Learned:
        return self  # schedule arithmetic is float64 on the CPU: .half(), .to(device) and the like pass it by

    def _rise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """T(u) and dT/du, of u's shape."""
        steepness, weights = self.log_steepness.exp(), self.log_weights.exp()
        ends = torch.sigmoid(steepness * (torch.stack([0.0 * self.centres, 0.0 * self.centres + 1.0]) - self.centres))
        start, whole = weights @ ends[0], 1.0 + weights @ (ends[1] - ends[0])
        gates = torch.sigmoid(steepness * (u[..., None] - self.centres))
        return (u + gates @ weights - start) / whole, (1.0 + (gates * (1.0 - gates)) @ (weights * steepness)) / whole

    @property
    def _span(self) -> float:
        return self.log_snr_max - self.log_snr_min

    def density(self, log_snr: Tensor) -> Tensor:
        """p(λ) = -dt/dλ at levels between the ends, float64, differentiable in the parameters."""
        return self._rise((self.log_snr_max - log_snr) / self._span)[1] / self._span

    def time(self, log_snr: Real) -> Real:
        if not isinstance(log_snr, Tensor):
            return float(self.time(torch.tensor(log_snr, dtype=torch.float64)))
        with torch.no_grad():
            u = ((self.log_snr_max - log_snr) / self._span).clamp(0.0, 1.0)
            return torch.where(u == 1.0, 1.0, self._rise(u)[0].clamp(0.0, 1.0))

    def log_snr(self, t: Real) -> Real:
        if not isinstance(t, Tensor):
            if t in (0.0, 1.0):
                return self.log_snr_min if t else self.log_snr_max
            return float(self.log_snr(torch.tensor(t, dtype=torch.float64)))
        with torch.no_grad():
            u, low, high = t.detach(), torch.zeros_like(t), torch.ones_like(t)
            for _ in range(_NEWTON_STEPS):
                reached, slope = self._rise(u)
                low, high = torch.where(reached <= t, u, low), torch.where(reached >= t, u, high)
                newton = u - (reached - t) / slope
                moved = torch.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
                u = moved
                if bool(((reached - t).abs() <= 2e-15).all()):  # nearer than that T's own rounding decides
                    break
            u = torch.where(t == 1.0, 1.0, torch.where(t == 0.0, 0.0, u))
            slope = self._rise(u)[1]
        u = u + (t - t.detach()) / slope  # u itself, with du/dt for those who differentiate the map
        return self.log_snr_max - self._span * u

    def variance_loss(self, log_snr: Tensor, integrand: Tensor) -> Tensor:
        """An estimate of ∫ E[ℓ²]/p dλ, the second moment of the bound's estimator, to be minimised over the parameters.

        mean(ℓ² / (p_old p)), where p_old, the density that the levels came from, is p without its gradient. λ is held,
        so no gradient passes through the network.

        Args:
            log_snr: levels λ drawn from this map (uniform t), float64 [B].
            integrand: ℓ at each level, [B]: the bound's integrand with respect to λ, such as ½ ‖ε - ε̂‖².

        Returns:
            A scalar whose gradient reaches this map's parameters only.
        """
        level = log_snr.detach().to("cpu", torch.float64)
        density = self.density(level)
        return (integrand.detach().to("cpu", torch.float64) ** 2 / (density.detach() * density)).mean()
