"""Samplers of tokens, beside `ancestral`, which serves every process: tau-leaping, confidence and remasking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.categorical import Absorbing, TokenPosterior, UniformTokens
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.sampler import Sampler


@register("sampler/tau_leaping")
@dataclass(frozen=True)
class TauLeaping(Sampler):
    """Every token jumps or stays, at the reverse rates that the posterior says at the step's start.

    A token leaves with probability 1 - e^(-R), R its rate summed over the step, and goes where the rates say. The first
    step, from no signal, draws from the posterior, as its rates are infinite.

    Source: Campbell et al., arXiv 2205.14987, with at most one jump of a token in a step.
    """

    needs: ClassVar[type[Process]] = UniformTokens
    deterministic: ClassVar[bool] = False

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process, posterior = denoiser.process, denoiser(x_t, t, cond)
        assert isinstance(process, UniformTokens)
        assert isinstance(posterior, TokenPosterior)
        length = process.time_map.log_snr(s) - process.time_map.log_snr(t)
        if s == 0.0 or math.isinf(length):
            return process.reverse(x_t, posterior, t, s, eta=1.0, noise=noise), None
        rates = process.rates(x_t, posterior.mean.double(), t)
        total = rates.sum(-1)
        leaves = noise.fork("leave").uniform(x_t.shape).to(x_t.device) < -torch.expm1(-total * length)
        there = TokenPosterior(rates.log()).sample(noise.fork("there"))
        return torch.where(leaves, there, x_t), None


@register("sampler/confidence")
@dataclass(frozen=True)
class Confidence(Sampler):
    """The surest guesses first: each step unmasks as many tokens as the process would, those with the most confidence.

    Confidence is ln p of the token drawn, plus Gumbel noise of strength `temperature` (1 - α): none of it is left at
    the end. It is no sampler of the model's distribution: sure tokens come first, and samples are less varied.

    Args:
        temperature: 0 unmasks strictly by confidence; higher is more varied.

    Source: Chang et al., "MaskGIT", arXiv 2202.04200.
    """

    needs: ClassVar[type[Process]] = Absorbing
    deterministic: ClassVar[bool] = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature must be at least 0 and finite, not {self.temperature}")

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process, posterior = denoiser.process, denoiser(x_t, t, cond)
        assert isinstance(process, Absorbing)
        assert isinstance(posterior, TokenPosterior)
        drawn = posterior.sample(noise.fork("x_0"))
        alpha = process.keep(s) if s > 0.0 else 1.0
        sure = posterior.logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0].double().flatten(1)
        u = noise.fork("gumbel").uniform(sure.shape).to(sure.device)
        sure = sure - self.temperature * (1.0 - alpha) * torch.log(-torch.log(u.clamp(min=1e-300)))
        hidden = (x_t == process.mask).flatten(1)
        # As many stay hidden as the process would hide, of those hidden now.
        left = min(round((1.0 - alpha) * hidden.shape[1]), hidden.shape[1])
        rank = sure.masked_fill(~hidden, torch.inf).argsort(dim=1, stable=True).argsort(1)
        x_s = torch.where((rank < left) & hidden, process.mask, drawn.flatten(1))
        return x_s.reshape(x_t.shape), None


@register("sampler/remasking")
@dataclass(frozen=True)
class Remasking(Sampler):
    """Ancestral sampling of masks that also hides some tokens again, so that early mistakes can be mended.

    Of the tokens shown, a share σ is hidden in a step, and as many more are shown, so that every marginal stays right.

    Args:
        share: σ as a share of the most that keeps them right, min(1, (1 - α_s) / α_t); 0 is plain ancestral sampling.

    Source: Wang et al., "ReMDM", arXiv 2503.00307 (its rescaled schedule).
    """

    needs: ClassVar[type[Process]] = Absorbing
    deterministic: ClassVar[bool] = False
    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"the share of tokens hidden again must be from 0 to 1, not {self.share}")

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process, posterior = denoiser.process, denoiser(x_t, t, cond)
        assert isinstance(process, Absorbing)
        assert isinstance(posterior, TokenPosterior)
        if s == 0.0:
            return process.reverse(x_t, posterior, t, s, noise=noise), None
        alpha_t, alpha_s = process.keep(t), process.keep(s)
        again = self.share * (min(1.0, (1.0 - alpha_s) / alpha_t) if alpha_t > 0.0 else 1.0)
        # What is shown stays so but for σ, and of what is hidden as much comes out as keeps the share shown at α_s.
        x_0 = posterior.sample(noise.fork("x_0"))
        out = (alpha_s - (1.0 - again) * alpha_t) / (1.0 - alpha_t)
        shown = torch.where(x_t == process.mask, out, 1.0 - again)
        u = noise.fork("choice").uniform(x_t.shape).to(x_t.device)
        return torch.where(u < shown, x_0, process.mask), None
