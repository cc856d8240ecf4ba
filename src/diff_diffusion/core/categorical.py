"""Token diffusion: x_t ~ Cat(α x_0 + (1 - α) π), token by token, with α = sigmoid(λ).

Masked and uniform diffusion differ in π alone: all of it on a mask, or the same for every token. λ is the one dial here
too: a token is kept with probability α and forgotten with probability 1 - α, whose log-odds it is.

Source: Austin et al., "D3PM", arXiv 2107.03006, for the two processes and the sum over x_0 of their reverse kernels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.core.posterior import Posterior
from diff_diffusion.core.process import Corrupted, Error, Process
from diff_diffusion.core.targets import Target
from diff_diffusion.core.time_maps import Logistic, TimeMap
from diff_diffusion.errors import ConfigError, DiffusionError, IncompatibleError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import Real, expand, maths


@dataclass(frozen=True, slots=True)
class TokenPosterior(Posterior):
    """What each token was, position by position. Its natural parameter is the logits.

    Args:
        logits: [B, ..., vocab]; -inf for what is impossible.
    """

    logits: Tensor

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The probability of every token, [B, ..., vocab]."""
        return self.logits.softmax(-1)

    def extrapolate(self, reference: Posterior, scale: float) -> TokenPosterior:
        assert isinstance(reference, TokenPosterior)
        here, there = self.logits.log_softmax(-1), reference.logits.log_softmax(-1)
        moved = there + scale * (here - there)
        return TokenPosterior(torch.where(torch.isinf(here), here, torch.where(torch.isinf(there), there, moved)))

    def tilt(self, gradient: Tensor) -> TokenPosterior:
        """`gradient` [B, ..., vocab] is log p(y | token) for every token: Bayes' rule in the logits."""
        return TokenPosterior(self.logits + gradient)

    def __getitem__(self, rows: slice) -> TokenPosterior:
        return TokenPosterior(self.logits[rows])

    def sample(self, noise: Noise) -> Tensor:
        """A token for every position, [B, ...] int64."""
        return _draw(self.mean, noise.uniform(self.logits.shape[:-1], like=self.logits.double()))


def _draw(weights: Tensor, u: Tensor) -> Tensor:
    """An index drawn in proportion to weights [..., n], by u in [0, 1) [...]."""
    total = weights.double().cumsum(-1)
    if not bool(torch.isfinite(total[..., -1]).all()):
        raise DiffusionError("a network's logits are not finite: its weights are damaged, or training diverged")
    return (total <= (u * total[..., -1])[..., None]).sum(-1).clamp(max=weights.shape[-1] - 1)


@dataclass(frozen=True)
class Tokens(Process):
    """Token diffusion with some π. Data are int64 of any shape [B, ...], each from 0 to vocab - 1.

    Args:
        vocab: how many tokens the data have.
        time_map: λ(t); the logistic map is α = 1 - t, from all kept to none.
    """

    vocab: int
    time_map: TimeMap = field(default_factory=Logistic)

    def __post_init__(self) -> None:
        if not 2 <= self.vocab <= 10_000_000:
            raise ConfigError(f"vocab must be from 2 to 10,000,000, not {self.vocab}")

    @abstractmethod
    def forgotten(self, tokens: Tensor) -> Tensor | float:
        """π of each token."""

    @abstractmethod
    def forget(self, shape: Sequence[int], noise: Noise) -> Tensor:
        """Draws of π."""

    @abstractmethod
    def bound(self, corrupted: Corrupted, posterior: TokenPosterior) -> Tensor:
        """Nats for a unit of λ at every position: the rate at which the variational bound grows."""

    @abstractmethod
    def settle(self, logits: Tensor, x_t: Tensor, t: float | Tensor) -> Tensor:
        """A network's logits with what x_t itself says about x_0 put in, which no network should have to learn."""

    def keep(self, t: Real) -> Real:
        """α(t), the probability that a token is kept."""
        return maths(t).sigmoid(self.time_map.log_snr(t))

    def marginal(self, x_0: Tensor, t: Tensor, noise: Noise) -> Corrupted:
        if x_0.dtype != torch.int64 or bool((x_0 < 0).any()) or bool((x_0 >= self.vocab).any()):
            seen = f"{x_0.dtype} from {x_0.min().item()} to {x_0.max().item()}" if x_0.numel() else str(x_0.dtype)
            raise ConfigError(f"tokens are int64 from 0 to {self.vocab - 1}, not {seen}")
        kept = noise.fork("keep").uniform(x_0.shape) < expand(self.keep(t.to("cpu", torch.float64)), x_0.cpu().double())
        drawn = self.forget(x_0.shape, noise.fork("value")).to(x_0.device)
        return Corrupted(torch.where(kept.to(x_0.device), x_0, drawn), x_0, drawn, t)

    def renoise(self, x_s: Tensor, s: float, t: float, noise: Noise) -> Tensor:
        kept = noise.fork("keep").uniform(x_s.shape).to(x_s.device) < self.keep(t) / self.keep(s)
        return torch.where(kept, x_s, self.forget(x_s.shape, noise.fork("value")).to(x_s.device))

    def reverse(
        self, x_t: Tensor, posterior: Posterior, t: float, s: float, *, eta: float = 0.0, noise: Noise | None = None
    ) -> Tensor:
        """x_0 from the posterior, then x_s ~ q(x_s | x_t, x_0).

        η = 1 is the forward chain's own reverse. With a = α_t / α_s it is q(x_t | x_s) q(x_s | x_0), a mixture of
        three: stay at x_t, go to x_0, or to a draw of π. η = 0 changes as little as any kernel with the right marginals
        can (DDIM's, for tokens): stay with probability (1 - α_s) / (1 - α_t), else go to x_0. Between, a mixture. For
        masks the two are the same.

        Source: Austin et al., arXiv 2107.03006; Song et al., arXiv 2010.02502, appendix A, for η = 0.
        """
        assert isinstance(posterior, TokenPosterior)
        if noise is None:
            raise ConfigError("a step of tokens draws them, and no noise was given: pass noise=Noise(seeds)")
        x_0 = posterior.sample(noise.fork("x_0"))
        if s == 0.0:
            return x_0
        alpha_t, alpha_s = self.keep(t), self.keep(s)
        step, pi = alpha_t / alpha_s, self.forgotten(x_t)
        stay = step * (alpha_s * (x_t == x_0) + (1.0 - alpha_s) * pi)
        go, again = (1.0 - step) * alpha_s * pi, (1.0 - step) * (1.0 - alpha_s) * pi
        total = stay + go + again
        least = (1.0 - alpha_s) / (1.0 - alpha_t)
        stay = eta * stay / total + (1.0 - eta) * least
        go = eta * go / total + (1.0 - eta) * (1.0 - least)
        u = noise.fork("choice").uniform(x_t.shape).to(x_t.device)
        drawn = self.forget(x_t.shape, noise.fork("value")).to(x_t.device)
        return torch.where(u < stay, x_t, torch.where(u < stay + go, x_0, drawn))

    def prior(self, shape: Sequence[int], noise: Noise, t: float = 1.0) -> Tensor:
        return self.forget(shape, noise)

    def prior_gap(self, x_0: Tensor, t: float) -> Tensor:
        """Infinite where the prior cannot say a token that may still be known: end masks at λ = -∞."""
        alpha, pi = self.keep(t), torch.as_tensor(self.forgotten(x_0), dtype=torch.float64)
        pi = pi.to(x_0.device).expand(x_0.shape)
        kept = alpha + (1.0 - alpha) * pi
        rest = (1.0 - alpha) * (1.0 - pi)
        gap = torch.xlogy(kept, kept) - torch.xlogy(kept, pi)
        if alpha < 1.0:
            gap = gap + rest * math.log1p(-alpha)
        return gap.flatten(1).sum(1)

    def error(self, corrupted: Corrupted, posterior: Posterior) -> Error:
        """The bound's nats at every position, with gain 2: w = ½ dλ is the bound for every family."""
        assert isinstance(posterior, TokenPosterior)
        return Error(self.bound(corrupted, posterior), torch.full_like(corrupted.t.double(), 2.0))

    def reconstruction(self, x_0: Tensor, posterior: Posterior, t: float, bins: Any | None = None) -> Tensor:
        """-ln of the probability of every token."""
        assert isinstance(posterior, TokenPosterior)
        said = posterior.logits.log_softmax(-1).gather(-1, x_0[..., None])[..., 0]
        return -said.double().flatten(1).sum(1)

    def shown(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        return x_t


@register("process/absorbing")
@dataclass(frozen=True)
class Absorbing(Tokens):
    """Masked diffusion: a forgotten token is the mask, whose number is `vocab`.

    Source: Austin et al., arXiv 2107.03006; Sahoo et al., "MDLM", arXiv 2406.07524, for the bound.
    """

    @property
    def mask(self) -> int:
        return self.vocab

    def forgotten(self, tokens: Tensor) -> Tensor:
        return (tokens == self.mask).double()

    def forget(self, shape: Sequence[int], noise: Noise) -> Tensor:
        return torch.full(tuple(shape), self.mask)

    def settle(self, logits: Tensor, x_t: Tensor, t: float | Tensor) -> Tensor:
        """A token that is no mask is x_0's."""
        own = torch.nn.functional.one_hot(x_t.clamp(max=self.vocab - 1), self.vocab).bool()
        known = (x_t != self.mask)[..., None]
        return torch.where(known, torch.zeros_like(logits).masked_fill(~own, -torch.inf), logits)

    def bound(self, corrupted: Corrupted, posterior: TokenPosterior) -> Tensor:
        """α · cross-entropy where a mask is, 0 elsewhere."""
        said = posterior.logits.log_softmax(-1).gather(-1, corrupted.x_0[..., None])[..., 0]
        hidden = corrupted.x_t == self.mask
        return expand(self.keep(corrupted.t), said) * torch.where(hidden, -said, 0.0)


@register("process/uniform_tokens")
@dataclass(frozen=True)
class UniformTokens(Tokens):
    """Uniform diffusion: a forgotten token is any token, so that one can change many times and mistakes be mended.

    Source: Austin et al., arXiv 2107.03006; Campbell et al., arXiv 2205.14987, for the rates that the bound compares.
    """

    def forgotten(self, tokens: Tensor) -> float:
        return 1.0 / self.vocab

    def forget(self, shape: Sequence[int], noise: Noise) -> Tensor:
        return (noise.uniform(shape) * self.vocab).long()

    def settle(self, logits: Tensor, x_t: Tensor, t: float | Tensor) -> Tensor:
        """Bayes' factor: x_t was likelier by 1 + α vocab / (1 - α) if it is what x_0 was."""
        alpha = self.keep(t)
        f = maths(alpha)
        factor = f.log1p(alpha * self.vocab / f.clip(1.0 - alpha, 1e-12, 1.0))
        own = torch.nn.functional.one_hot(x_t, self.vocab).to(logits)
        return logits + own * expand(factor, own)

    def rates(self, x_t: Tensor, x_0: Tensor, t: Tensor | float) -> Tensor:
        """Reverse rates from x_t to every token for a unit of λ, [B, ..., vocab], 0 to x_t itself.

        Given x_0 the rate to y is (1 - α) / vocab · q(y | x_0) / q(x_t | x_0), q(y | x_0) = α [y = x_0] + (1 - α) /
        vocab. It is averaged over the probabilities `x_0`, [B, ..., vocab].
        """
        alpha = expand(self.keep(t), x_0)
        other = (1.0 - alpha) / self.vocab
        same = alpha + other
        here = x_0.gather(-1, x_t[..., None])
        rates = x_0 * same + here * (other**2 / same) + (1.0 - x_0 - here) * other
        return rates.scatter(-1, x_t[..., None], 0.0)

    def bound(self, corrupted: Corrupted, posterior: TokenPosterior) -> Tensor:
        """Σ over tokens of r̂ - r + r ln(r / r̂), r the true reverse rates and r̂ those that the posterior says."""
        said = self.rates(corrupted.x_t, posterior.mean, corrupted.t)
        true = torch.nn.functional.one_hot(corrupted.x_0, self.vocab).to(said)
        true = self.rates(corrupted.x_t, true, corrupted.t)
        return (said - true + torch.xlogy(true, true) - torch.xlogy(true, said.clamp(min=1e-38))).sum(-1)


@register("target/logits")
@dataclass(frozen=True)
class Logits(Target):
    """The network outputs the logits of x_0, [B, ..., vocab]."""

    def check(self, process: Process) -> None:
        if not isinstance(process, Tokens):
            raise IncompatibleError(
                f"target 'logits' needs a process of tokens (absorbing, uniform_tokens), not {type(process).__name__}"
            )

    def decode(self, output: Tensor, x_t: Tensor, process: Tokens, t: float | Tensor) -> TokenPosterior:
        if output.shape != (*x_t.shape, process.vocab):
            raise IncompatibleError(
                f"for tokens {list(x_t.shape)} of a vocabulary of {process.vocab} the network must output logits "
                f"{[*x_t.shape, process.vocab]}, not {list(output.shape)}"
            )
        return TokenPosterior(process.settle(output, x_t, t))

    def error(self, output: Tensor, corrupted: Corrupted, process: Tokens) -> Error:
        return process.error(corrupted, self.decode(output, corrupted.x_t, process, corrupted.t))
