"""Guidance by evidence that the model was not trained on: Bayes' rule, through the gradient of its log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.errors import ConfigError, IncompatibleError

LogProb = Callable[[Tensor, Tensor, Cond], Tensor]
"""(x_t [B, ...], log_snr [B] in x_t's dtype, cond) to log p(cond | x_t) [B], up to what does not depend on x_t."""


class ClassifierGuided(Denoiser):
    """Classifier guidance: x̂_0 + scale (σ²/α) ∇ log p(cond | x_t). Scale 0 is the model, 1 is Bayes' rule.

    The denoiser is asked without the condition, which the classifier alone knows. So with an exact classifier scale 1
    is the conditional model, and scales mean here what they mean in `ClassifierFree`. Samples that keep no condition
    are not guided. Scale 0 asks no classifier.

    Args:
        denoiser: of a Gaussian process; unconditional, or with a null.
        log_prob: a classifier that knows noise, differentiable in x_t.
        scale: any finite number; above 1 goes beyond Bayes.

    Raises:
        ConfigError: a scale that is not finite; at the call, no condition to guide by, or a log-probability of the
            wrong shape.
        IncompatibleError: a process that is not Gaussian; at the call, a level with no signal.

    Source: Dhariwal & Nichol, arXiv 2105.05233.
    """

    def __init__(self, denoiser: Denoiser, log_prob: LogProb, scale: float = 1.0) -> None:
        if not math.isfinite(scale):
            raise ConfigError(
                f"the guidance scale must be a finite number, not {scale}; 0 means none here, 1 Bayes' rule"
            )
        check_gaussian(self, denoiser)
        self.denoiser = denoiser
        self.process = denoiser.process
        self.log_prob = log_prob
        self.scale = scale

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        posterior = self.denoiser(x_t, t)
        if self.scale == 0.0:
            return posterior
        if not cond:
            raise ConfigError(
                f"classifier guidance of scale {self.scale:g} was asked for without a condition: give one, or scale 0"
            )
        level = torch.as_tensor(self.process.log_snr(t), dtype=torch.float64).to(x_t).expand(len(x_t))
        with graph(x_t) as x:
            log_prob = self.log_prob(x, level, cond)
            if log_prob.shape != (len(x),):
                raise ConfigError(
                    f"log_prob must give one number for each of {len(x)} samples, not shape {list(log_prob.shape)}"
                )
            # Of the sum, as no sample's depends on another's.
            (gradient,) = torch.autograd.grad(log_prob.sum(), x, create_graph=x_t.requires_grad)
        kept = torch.stack([keep.to(x_t.device) for keep in cond.keep.values()]).any(0)
        gradient = torch.where(kept.view(-1, *[1] * (x_t.ndim - 1)), gradient, 0.0)
        return tilted(posterior, self.scale * gradient)


def check_gaussian(guidance: Denoiser, denoiser: Denoiser) -> None:
    """Nothing, or an IncompatibleError where x_t has no gradient."""
    if not isinstance(denoiser.process, Gaussian):
        raise IncompatibleError(
            f"{type(guidance).__name__} follows a gradient in x_t and needs a Gaussian process; this model uses "
            f"{type(denoiser.process).__name__}, for which ClassifierFree fits"
        )


@contextmanager
def graph(x_t: Tensor) -> Iterator[Tensor]:
    """x_t where gradients are recorded, inside of a walk that records none.

    It is x_t itself if its gradient is wanted already, by guidance around this: then ours must be differentiable too.
    """
    with torch.enable_grad():
        yield x_t if x_t.requires_grad else x_t.detach().requires_grad_()


def tilted(posterior: Posterior, gradient: Tensor) -> Posterior:
    """`posterior.tilt`, or an IncompatibleError where σ²/α is infinite."""
    assert isinstance(posterior, GaussianPosterior)
    if not bool(torch.isfinite(torch.as_tensor(posterior.tweedie)).all()):
        raise IncompatibleError(
            "at a level with no signal, α = 0, a gradient in x_t says nothing of x_0: start lower with the grid "
            "truncate, or end the time map in Truncated"
        )
    return posterior.tilt(gradient)
