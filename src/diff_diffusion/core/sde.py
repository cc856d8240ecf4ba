"""The score view: any Gaussian process as a stochastic differential equation, its score, and its reversals.

The forward process x_t = α x_0 + σ ε has the same marginals as dx = f x dt + g dW with

    f = d ln α / dt,        g² = dσ²/dt - 2 f σ² = -σ² dλ/dt.

The score of its marginals is the posterior mean in other units, ∇ ln p_t = (α x̂_0 - x) / σ², so every exact or learned
denoiser gives the reverse-time SDE and the probability-flow ODE. Times lie inside (0, 1): at the ends dλ/dt may be
infinite. docs/theory/score.md derives each line and runs it.

Source: Song et al., arXiv 2011.13456.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import Posterior
from diff_diffusion.tensors import Real, expand


def score(posterior: Posterior, x_t: Tensor, process: Gaussian, t: float | Tensor) -> Tensor:
    """∇ ln p_t(x_t) = (α x̂_0 - x_t) / σ², by Tweedie's formula; [B, ...] like x_t.

    Args:
        posterior: the answer of a denoiser at (x_t, t).
        t: above 0; a float, or float64 whose shape is a prefix of x_t's.
    """
    alpha, sigma = process.scales(t)
    return (expand(alpha, x_t) * posterior.mean - x_t) / expand(sigma**2, x_t)


def drift(process: Gaussian, t: Real) -> Real:
    """f = d ln α / dt, the rate at which the forward SDE shrinks x; by differentiating the process's own α."""
    if not isinstance(t, Tensor):
        return float(drift(process, torch.tensor(t, dtype=torch.float64)))
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        alpha, _ = process.scales(t)
        if not alpha.requires_grad:  # ve: α is 1
            return torch.zeros_like(t)
        (rate,) = torch.autograd.grad(alpha.log().sum(), t)
    return rate


def diffusion(process: Gaussian, t: Real) -> Real:
    """g² = -σ² dλ/dt, the variance that the forward SDE adds per unit of time."""
    if not isinstance(t, Tensor):
        return float(diffusion(process, torch.tensor(t, dtype=torch.float64)))
    return -(process.scales(t)[1] ** 2) * process.time_map.slope(t)


def reverse_drift(
    denoiser: Denoiser, x_t: Tensor, t: float | Tensor, cond: Cond | None = None, *, eta: float = 1.0
) -> Tensor:
    """dx/dt of the reverse-time SDE, dx = (f x - (1 + η²)/2 g² ∇ ln p_t) dt + η g dW̄, time running from 1 to 0.

    Every η has the forward process's marginals: 1 is Anderson's reversal, 0 the probability-flow ODE. A small step of
    `Gaussian.reverse` with the same eta is a step of this.

    Args:
        x_t: [B, ...].
        t: inside (0, 1); a float, or float64 whose shape is a prefix of x_t's.
        eta: how random the way back is, 0 or more.

    Source: Song et al., arXiv 2011.13456 (η = 1 and 0); Karras et al., arXiv 2206.00364 (the family between).
    """
    process = denoiser.process
    assert isinstance(process, Gaussian)
    time = torch.as_tensor(t, dtype=torch.float64)
    # g² ∇ ln p_t = -dλ/dt (α x̂_0 - x_t): σ is gone, and with it the division that fails near the data.
    pull = process.time_map.slope(time) * (0.5 * (1.0 + eta**2))
    towards = expand(process.scales(time)[0], x_t) * denoiser(x_t, t, cond).mean - x_t
    return expand(drift(process, time), x_t) * x_t + expand(pull, x_t) * towards


def probability_flow(denoiser: Denoiser, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
    """dx/dt = f x - ½ g² ∇ ln p_t = α' x̂_0 + σ' ε̂, the ODE whose flow carries the marginals into each other.

    Args:
        x_t: [B, ...].
        t: inside (0, 1); a float, or float64 whose shape is a prefix of x_t's.

    Returns:
        The velocity, like x_t.
    """
    return reverse_drift(denoiser, x_t, t, cond, eta=0.0)
