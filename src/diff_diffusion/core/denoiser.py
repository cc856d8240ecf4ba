"""Denoisers: the posterior of the clean data given noisy data, at any noise level."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from diff_diffusion.cond import Cond, Embedded
from diff_diffusion.core.posterior import Posterior
from diff_diffusion.core.process import Corrupted, Error, Process
from diff_diffusion.core.targets import Target
from diff_diffusion.errors import ConfigError, IncompatibleError, listed

LOG_SNR_LIMIT = 20.0
"""Networks see λ clipped to ±20: beyond it x_t is the data, or the noise, to float32's last digit."""


class Denoiser(ABC):
    """Answers one question: what is x_0, given x_t?"""

    process: Process

    @abstractmethod
    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        """The posterior of x_0. `t` is a float, or a float64 tensor whose shape is a prefix of x_t's."""

    def error(self, corrupted: Corrupted, cond: Cond | None) -> Error:
        """How wrong it is about corrupted data."""
        return self.process.error(corrupted, self(corrupted.x_t, corrupted.t, cond))


class Conditioner(nn.Module):
    """Says conditions as what networks read, at each step. What it is made of is no business of the theory."""

    width: int
    """Of the embedded vector; 0 for none."""
    token_width: int
    """Of the embedded tokens; 0 for none."""
    planes: int
    """Channels of the embedded planes; 0 for none."""

    def embed(self, cond: Cond | None, x_t: Tensor) -> Embedded:
        """What the network reads beside x_t [B, ...], with the stored null where a sample keeps no condition."""
        raise NotImplementedError


class NetworkDenoiser(nn.Module, Denoiser):
    """A network that has learned to denoise, with the meaning of its output.

    The network sees x_t / √(α² + σ²) with the condition's planes as further channels, λ clipped to ±20, and what
    else is embedded of the condition; nothing more, so the process and its scaling can be changed after training.

    Args:
        network: (x [B, ...], log_snr [B] or a longer prefix of x's shape, `Embedded` condition) to an output like x_t.
        process: the forward process.
        target: what the output means.
        conditioner: embeds a `Cond`; None for an unconditional model.

    Raises:
        IncompatibleError: the target cannot be decoded somewhere on the process, or the network takes no embedding of
            the conditioner's widths.
    """

    def __init__(
        self, network: nn.Module, process: Process, target: Target, conditioner: Conditioner | None = None
    ) -> None:
        super().__init__()
        target.check(process)
        width = getattr(network, "cond_width", None)
        embedded = conditioner.width if conditioner is not None else 0
        if width is not None and width != embedded:
            raise IncompatibleError(
                f"the network takes an embedded condition of width {width} and the conditioner gives {embedded}: "
                "they must be equal, and 0 without a conditioner"
            )
        tokens = conditioner.token_width if conditioner is not None else 0
        attends = getattr(network, "token_width", 0)
        if attends not in (0, tokens):  # one that does not attend reads the vector alone
            raise IncompatibleError(
                f"the network attends to tokens of width {attends}, and the conditioner's have width {tokens}"
            )
        self.network = network
        self.process = process
        self.target = target
        self.conditioner = conditioner

    def output(self, x_t: Tensor, t: float | Tensor, cond: Cond | None) -> Tensor:
        """What the network says, in its target's terms."""
        log_snr = self.process.log_snr(t)
        if isinstance(log_snr, Tensor):
            level = log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).to(x_t.device, torch.float32)
            level = level.expand(len(x_t), *level.shape[1:])
        else:
            clipped = min(max(log_snr, -LOG_SNR_LIMIT), LOG_SNR_LIMIT)
            level = x_t.new_full((x_t.shape[0],), clipped, dtype=torch.float32)
        if cond and self.conditioner is None:
            raise ConfigError(f"this model is unconditional: it knows no condition {listed(cond.values)}")
        embedded = self.conditioner.embed(cond, x_t) if self.conditioner is not None else None
        shown = self.process.shown(x_t, t)
        if embedded is not None and embedded.planes is not None:
            shown = torch.cat([shown, embedded.planes.to(shown)], dim=1)
        output: Tensor = self.network(shown, level, embedded)
        return output

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        return self.target.decode(self.output(x_t, t, cond), x_t, self.process, t)

    def error(self, corrupted: Corrupted, cond: Cond | None) -> Error:
        """How wrong it is, in the target's own terms."""
        return self.target.error(self.output(corrupted.x_t, corrupted.t, cond), corrupted, self.process)
