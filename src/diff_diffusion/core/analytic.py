"""Exact denoisers: the ground truth that samplers, targets and guidance are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.categorical import TokenPosterior, Tokens
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise


class GaussianMixture(Denoiser):
    """The exact denoiser of data drawn from Σ_k w_k N(μ_k, C_k), in any dimension, in float64.

    At time t component k is N(α μ_k, α² C_k + σ² I) and its posterior mean is linear in x_t; the mixture's is the
    average under the responsibilities. Samples of x_t may have any shape [B, ...] with d numbers each.

    A condition named "component" [B] restricts the samples that keep it to one component: an exact conditional model.

    Args:
        process: the Gaussian process that destroys the data.
        means: [K, d].
        covariances: [K, d, d], or [K] for isotropic variances; positive semi-definite.
        weights: K positive numbers; equal when left out.

    Raises:
        ConfigError: shapes that do not match.
    """

    def __init__(
        self,
        process: Gaussian,
        means: Sequence[Sequence[float]] | Tensor,
        covariances: Sequence[float] | Tensor,
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        self.process: Gaussian = process
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2:
            raise ConfigError(f"means must have shape [K, d], not {list(self.means.shape)}")
        count, size = self.means.shape
        full = torch.as_tensor(covariances, dtype=torch.float64)
        if full.shape == (count,):
            full = full[:, None, None] * torch.eye(size, dtype=torch.float64)
        if full.shape != (count, size, size):
            raise ConfigError(
                f"covariances must have shape [{count}] or [{count}, {size}, {size}], not {list(full.shape)}"
            )
        self.covariances = full
        values, self._vectors = torch.linalg.eigh(full)
        self._values = values.clamp(min=0)  # eigh's rounding can leave -1e-17 for a singular covariance
        weights = torch.as_tensor([1.0] * count if weights is None else weights, dtype=torch.float64)
        self.weights = weights / weights.sum()

    def _logits(self, x_t: Tensor, t: float | Tensor, cond: Cond | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log w_k N(x_t; …) up to a constant, [B, K]; and what the posterior means are made of."""
        time = torch.as_tensor(t, dtype=torch.float64).expand(len(x_t))
        alpha, sigma = (scale[:, None, None] for scale in self.process.scales(time))
        centred = x_t.flatten(1).to(torch.float64)[:, None] - alpha * self.means  # [B, K, d]
        rotated = torch.einsum("kde,bkd->bke", self._vectors, centred)
        variances = alpha**2 * self._values + sigma**2
        logits = torch.log(self.weights) - 0.5 * (rotated**2 / variances + torch.log(variances)).sum(-1)
        if cond is not None and "component" in cond.values:
            own = torch.nn.functional.one_hot(cond.values["component"], len(self.means)).bool()
            logits = torch.where(own | ~cond.keep["component"][:, None], logits, -torch.inf)
        return logits, rotated, variances, alpha

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
        logits, rotated, variances, alpha = self._logits(x_t, t, cond)
        shrunk = torch.einsum("kde,bke->bkd", self._vectors, alpha * self._values / variances * rotated)
        mean = torch.einsum("bk,bkd->bd", logits.softmax(-1), self.means + shrunk)
        alphas, sigmas = self.process.scales(torch.as_tensor(t, dtype=torch.float64))
        return GaussianPosterior(mean.reshape(x_t.shape).to(x_t.dtype), sigmas**2 / alphas)

    def log_density(self, x_t: Tensor, t: float, cond: Cond | None = None) -> Tensor:
        """log p_t(x_t), [B], in nats; p(x_t | component) for the samples that keep that condition."""
        logits = self._logits(x_t, t, cond)[0]
        share = torch.log(self.weights).expand_as(logits).masked_fill(torch.isinf(logits), -torch.inf).logsumexp(-1)
        half_log_two_pi = 0.9189385332046727
        return logits.logsumexp(-1) - share - self.means.shape[1] * half_log_two_pi

    def draw(self, noise: Noise, cond: Cond | None = None) -> Tensor:
        """One draw of the data per seed of `noise`, [B, d] float64."""
        count, size = len(noise), self.means.shape[1]
        cumulative = self.weights.cumsum(0)
        which = torch.searchsorted(cumulative, noise.fork("component").uniform((count,)).clamp(max=1 - 1e-12))
        if cond is not None:
            which = torch.where(cond.keep["component"], cond.values["component"], which)
        normal = noise.fork("value").normal((count, size)).to(torch.float64)
        return self.means[which] + torch.einsum("bde,be->bd", self._vectors[which], self._values[which].sqrt() * normal)


class TokenTable(Denoiser):
    """The exact denoiser of sequences with a given joint distribution, by Bayes' rule over all of them, in float64.

    Args:
        process: the process of tokens that destroys the data.
        probabilities: [vocab, vocab, …], an axis for every position; at least 0, not all 0.

    Raises:
        ConfigError: shapes that do not match.
    """

    def __init__(self, process: Tokens, probabilities: Tensor) -> None:
        self.process: Tokens = process
        if probabilities.ndim == 0 or set(probabilities.shape) != {process.vocab}:
            raise ConfigError(
                f"probabilities must have an axis of {process.vocab} for every position, not shape "
                f"{list(probabilities.shape)}"
            )
        self.probabilities = probabilities.double() / probabilities.double().sum()
        grids = torch.meshgrid(*[torch.arange(process.vocab)] * probabilities.ndim, indexing="ij")
        self.sequences = torch.stack([grid.flatten() for grid in grids], 1)  # [N, L]
        # A sequence that cannot be keeps a trace of weight: samplers that draw positions apart can come upon it.
        self._log_prior = torch.log(self.probabilities.flatten()).clamp(min=-500.0)

    def _joint(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """ln p(x_0, x_t) for every sequence, [B, N]."""
        alpha = torch.as_tensor(self.process.keep(torch.as_tensor(t, dtype=torch.float64))).expand(len(x_t))
        here = (x_t[:, None] == self.sequences).double()  # [B, N, L]
        pi = torch.as_tensor(self.process.forgotten(x_t), dtype=torch.float64).expand(x_t.shape)[:, None]
        alpha = alpha[:, None, None]
        return self._log_prior + torch.log(alpha * here + (1.0 - alpha) * pi).sum(-1)

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> TokenPosterior:
        shares = self._joint(x_t, t).softmax(-1)
        own = torch.nn.functional.one_hot(self.sequences, self.process.vocab).double()  # [N, L, vocab]
        return TokenPosterior(torch.log(torch.einsum("bn,nlv->blv", shares, own)))

    def log_density(self, x_t: Tensor, t: float) -> Tensor:
        """ln p_t(x_t), [B], in nats."""
        return self._joint(x_t, t).logsumexp(-1)

    def draw(self, noise: Noise) -> Tensor:
        """One sequence per seed of `noise`, [B, L] int64."""
        total = self.probabilities.flatten().cumsum(0)
        return self.sequences[torch.searchsorted(total, noise.uniform((len(noise),)) * total[-1], right=True)]
