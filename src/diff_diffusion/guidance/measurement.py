"""Guidance by a measurement y = A(x_0) + noise: an inverse problem solved with a model that never saw one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance.evidence import check_gaussian, graph, tilted
from diff_diffusion.tensors import expand, maths

Operator = Callable[[Tensor], Tensor]
"""A: x_0 [B, ...] to what is measured of it, [B, ...] of any other shape; a row depends on that sample alone."""

VARIANCES = ("unit", "jacobian")


class DPS(Denoiser):
    """Diffusion posterior sampling: tilts by scale · ∇ log N(y; A(x̂_0(x_t)), noise²), for any differentiable A.

    The likelihood is taken at x̂_0 as if x_0 were known, which it is not: where x_0 given x_t varies more than the
    noise, samples are pulled too hard, and vary too little even where A is linear and all else exact (the theory page
    on guidance has the numbers). For a linear A use `PiGDM`. The paper divides the gradient of the squared error by its
    norm and steps x_s by it; here the likelihood is as it stands, so that a sampler need not know of it, and a small
    noise may ask for a smaller scale or smaller steps.

    Args:
        denoiser: of a Gaussian process, differentiable in x_t.
        operator: A, differentiable.
        y: the measurement, one row for all samples or one for each.
        noise: its standard deviation, above 0, in the units of y.
        scale: 0 is the model, 1 this likelihood.

    Raises:
        ConfigError: noise not above 0; a scale that is not finite; at the call, a y of another shape than A(x_0).
        IncompatibleError: a process that is not Gaussian; at the call, a denoiser without gradient, or no signal.

    Source: Chung et al., arXiv 2209.14687.
    """

    def __init__(self, denoiser: Denoiser, operator: Operator, y: Tensor, noise: float, scale: float = 1.0) -> None:
        if not 0.0 < noise < math.inf:
            raise ConfigError(f"DPS needs a measurement noise above 0, not {noise}: PiGDM takes exact measurements")
        if not math.isfinite(scale):
            raise ConfigError(f"the guidance scale must be a finite number, not {scale}; 0 means none here")
        check_gaussian(self, denoiser)
        self.denoiser = denoiser
        self.process = denoiser.process
        self.operator = operator
        self.y = y
        self.noise = noise
        self.scale = scale

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        if self.scale == 0.0:
            return self.denoiser(x_t, t, cond)
        with graph(x_t) as x:
            posterior = self.denoiser(x, t, cond)
            missed = _missed(self.y, self.operator(_differentiable(posterior)))
            log_likelihood = -0.5 * (missed**2).sum() / self.noise**2
            (gradient,) = torch.autograd.grad(log_likelihood, x, create_graph=x_t.requires_grad)
        return tilted(posterior if x_t.requires_grad else _detached(posterior), self.scale * gradient)


class PiGDM(Denoiser):
    """Pseudoinverse guidance: x_0 given x_t is taken for N(x̂_0, C), and conditioned on y = A x_0 + noise exactly.

    x̂_0 + (σ²/α) (∂x̂_0/∂x_t)^T A^T (A C A^T + noise² I)⁻¹ (y - A x̂_0).

    `posterior_variance` says what C is. "unit" is r² = σ²/(α² + σ²), for data of unit variance without correlation.
    "jacobian" is what the denoiser itself says, C = (σ²/α) ∂x̂_0/∂x_t, which for an exact denoiser is Cov[x_0 | x_t]:
    exact for Gaussian data, and the best Gaussian for any other.

    The system is solved by conjugate gradients, each sample until it is as exact as its numbers are, or for
    `iterations`. They end after one for "unit" where A A^T is a multiple of I, as for a mask or an average of blocks.
    Each is a product with A and one with A^T, for "jacobian" one more backward pass of the network. What y cannot say
    (A of lower rank, no noise) is left as it is: that is the pseudoinverse. One evaluation a step, and its gradient.

    Args:
        denoiser: of a Gaussian process, differentiable in x_t.
        operator: A, linear; its transpose comes by automatic differentiation.
        y: the measurement, one row for all samples or one for each.
        noise: its standard deviation, 0 for an exact measurement, in the units of y.
        posterior_variance: "unit" or "jacobian".
        iterations: of the solver, at most.

    Raises:
        ConfigError: an argument out of range; at the call, a y of another shape than A x_0, or an A that is not linear.
        IncompatibleError: a process that is not Gaussian; at the call, a denoiser without gradient, or no signal.

    Source: Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023, for "unit".
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        y: Tensor,
        noise: float = 0.0,
        posterior_variance: str = "unit",
        iterations: int = 50,
    ) -> None:
        if not 0.0 <= noise < math.inf:
            raise ConfigError(f"the measurement noise must be a finite number of at least 0, not {noise}")
        if posterior_variance not in VARIANCES:
            raise ConfigError(f"posterior_variance is one of {', '.join(VARIANCES)}, not {posterior_variance!r}")
        if iterations < 1:
            raise ConfigError(f"the solver needs at least 1 iteration, not {iterations}")
        check_gaussian(self, denoiser)
        self.denoiser = denoiser
        self.process = denoiser.process
        self.operator = operator
        self.y = y
        self.noise = noise
        self.posterior_variance = posterior_variance
        self.iterations = iterations

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        again = x_t.requires_grad  # guidance around this one wants the gradient of our answer
        with graph(x_t) as x:
            posterior = self.denoiser(x, t, cond)
            assert isinstance(posterior, GaussianPosterior)
            tweedie, mean = posterior.tweedie, _differentiable(posterior)
            # A^T v by differentiating A anywhere, since it is linear.
            where = torch.zeros_like(mean, requires_grad=True)
            at_zero = self.operator(where)
            missed = _missed(self.y, self.operator(mean))
            _check_linear(self.operator, mean.detach(), self.y)

            def transposed(v: Tensor) -> Tensor:
                return torch.autograd.grad(at_zero, where, v, retain_graph=True, create_graph=again)[0]

            def pulled(u: Tensor) -> Tensor:
                """(∂x̂_0/∂x_t)^T u."""
                return torch.autograd.grad(mean, x, u, retain_graph=True, create_graph=again)[0]

            def system(v: Tensor) -> Tensor:
                """(A C A^T + noise² I) v."""
                u = transposed(v)
                if self.posterior_variance == "unit":
                    spread = expand(maths(t).sigmoid(-self.process.log_snr(t)), u) * u
                else:
                    spread = expand(tweedie, u) * pulled(u)
                return self.operator(spread) + self.noise**2 * v

            with torch.set_grad_enabled(again):
                solved = _solve(system, missed, self.iterations)
                gradient = pulled(transposed(solved))
        return tilted(posterior if again else _detached(posterior), gradient)


def _solve(system: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """`system`⁻¹ b by conjugate gradients, sample by sample: one that is done changes no more, whatever others do."""

    def dot(v: Tensor, w: Tensor) -> Tensor:
        return (v * w).flatten(1).sum(1).view(-1, *[1] * (b.ndim - 1))

    solution, residual, direction = torch.zeros_like(b), b, b
    square = dot(b, b)
    enough = square.detach() * (8 * torch.finfo(b.dtype).eps) ** 2
    going = square > enough
    for _ in range(iterations):
        if not bool(going.any()):
            break
        image = system(direction)
        curvature = dot(direction, image)
        going = going & (curvature > 0)  # a network's Jacobian need not be one of a posterior
        step = torch.where(going, square / torch.where(going, curvature, 1.0), 0.0)
        solution, residual = solution + step * direction, residual - step * image
        before, square = square, torch.where(going, dot(residual, residual), square)
        direction = residual + torch.where(going, square / torch.where(going, before, 1.0), 0.0) * direction
        going = going & (square > enough)
    return solution


def _differentiable(posterior: Posterior) -> Tensor:
    """Its mean, which must carry a gradient."""
    if not posterior.mean.requires_grad:
        raise IncompatibleError(
            "guidance by a measurement needs the gradient of x̂_0 in x_t, and this denoiser's answer carries none: it "
            "must compute without no_grad or detach"
        )
    return posterior.mean


def _detached(posterior: Posterior) -> Posterior:
    """The posterior without the graph that it came from, which would hold a network's memory."""
    assert isinstance(posterior, GaussianPosterior)
    share = None if posterior.share is None else posterior.share.detach()
    return GaussianPosterior(posterior.mean.detach(), posterior.tweedie, share)


def _missed(y: Tensor, measured: Tensor) -> Tensor:
    """y - A(x̂_0)."""
    if y.shape[1:] != measured.shape[1:] or len(y) not in (1, len(measured)):
        raise ConfigError(
            f"the measurement y has shape {list(y.shape)} and A(x_0) {list(measured.shape)}: y needs the same, or one "
            "row for all samples"
        )
    return y.to(measured) - measured


def _check_linear(operator: Operator, x: Tensor, y: Tensor) -> None:
    """Nothing, or a ConfigError where A(-2 x) is not -2 A(x): an offset, an absolute value, a power."""
    with torch.no_grad():
        once, twice = operator(x), operator(-2.0 * x)
        room = 1e-3 * (once.abs().max() + y.abs().max().to(once))
        if bool(((twice + 2.0 * once).abs() > room).any()):
            raise ConfigError("PiGDM needs a linear measurement, and A(-2 x) is not -2 A(x) here: DPS takes any other")
