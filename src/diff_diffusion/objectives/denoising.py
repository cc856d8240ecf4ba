"""The denoising objective: levels × weight × measure, for any denoiser of any process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.learned_map import Learned
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError, IncompatibleError, listed
from diff_diffusion.objectives.levels import Levels, Uniform
from diff_diffusion.objectives.measures import Measure, Squared
from diff_diffusion.objectives.weights import Unit, Weight
from diff_diffusion.registry import build, names, register
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import expand


@dataclass(frozen=True)
class Loss:
    """A batch's loss: its mean (a scalar to differentiate), per sample [B], and the level λ of each [B]."""

    mean: Tensor
    per_sample: Tensor
    log_snr: Tensor


@register("objective/denoising")
@dataclass(frozen=True)
class Objective:
    """E over levels of w(λ) ‖ε - ε̂‖², averaged over a sample's numbers.

    Args:
        levels: the density of training levels.
        weight: w(λ).
        cond_drop: the share of samples trained with their conditions replaced by the null, in [0, 1); what
            classifier-free guidance needs.
        drops: by a condition's name, the share of samples trained without that one, besides.
        measure: what an error costs; its square, unless told otherwise.

    Raises:
        ConfigError: cond_drop or one of drops out of range.
    """

    levels: Levels = field(default_factory=Uniform)
    weight: Weight = field(default_factory=Unit)
    cond_drop: float = 0.1
    measure: Measure = field(default_factory=Squared)
    drops: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, share in {"cond_drop": self.cond_drop, **{f"drops.{n}": s for n, s in self.drops.items()}}.items():
            if not 0.0 <= share < 1.0:
                raise ConfigError(f"{name} must be at least 0 and below 1, not {share}")

    def check(self, process: Process) -> None:
        """Nothing, or an IncompatibleError that says what fits the process."""
        if not isinstance(process, self.measure.needs):
            every = [(name, build({"type": f"measure/{name}"})) for name in names("measure")]
            fits = ", ".join(name for name, other in every if isinstance(process, other.needs))
            needs = " or ".join(kind.__name__ for kind in self.measure.needs)
            raise IncompatibleError(
                f"{type(self.measure).__name__} measures errors of a {needs} process, and this one is "
                f"{type(process).__name__}. Measures that fit: {fits}"
            )
        if isinstance(process.time_map, Learned) and not (self.weight.integral and isinstance(self.levels, Uniform)):
            # A loss that changes with the density of levels would pull them all to where it is least.
            raise IncompatibleError(
                "a learned time map needs a loss that it leaves as it is: levels 'uniform' and an integral's weight, "
                f"'vlb' or 'sigmoid', not {type(self.levels).__name__} and {type(self.weight).__name__}"
            )

    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, cond: Cond | None, noise: Noise, first: int = 0, whole: int | None = None
    ) -> Loss:
        """The loss of clean data x_0 [B, ...], of mean 0 and variance 1.

        Args:
            noise: one key per sample; the level, the dropout and ε come from its streams.
            first, whole: x_0 is samples first, first + 1, … of a batch of `whole`, over which levels are stratified.
                Left out, x_0 is the whole batch.
        """
        count = len(noise)
        if cond:
            unknown = [name for name in self.drops if name not in cond.values]
            if unknown:
                raise ConfigError(f"drops names {listed(unknown)}, and the conditions are {listed(cond.values)}")
            cond = cond.drop(noise.fork("drop").uniform((count,)) < self.cond_drop)
            for name, share in sorted(self.drops.items()):
                cond = cond.drop(noise.fork(f"drop/{name}").uniform((count,)) < share, name)
        t = self.levels.stratified(noise, denoiser.process, first, whole)
        loss = self.at(denoiser, x_0, t, cond, noise.fork("eps"))
        self.levels.record(t, loss.per_sample, denoiser.process)
        if isinstance(denoiser.process.time_map, Learned):
            # Its own aim, the bound's variance, at a value of 0: the gradient is that of the variance's logarithm.
            integrand = loss.per_sample.detach().cpu() * self.levels.density(t, denoiser.process)
            variance = denoiser.process.time_map.variance_loss(loss.log_snr, integrand)
            aim = (variance / variance.detach().clamp(min=1e-300) - 1.0).to(loss.mean)
            loss = Loss(loss.mean + aim, loss.per_sample, loss.log_snr)
        return loss

    def at(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        """The loss at given times t, float64 [B], with nothing dropped: what held-out evaluation asks for."""
        process = denoiser.process
        self.check(process)
        if t.ndim != 1:
            raise ConfigError(f"an objective has a level for each sample, so t must be [B], not {list(t.shape)}")
        error = denoiser.error(process.marginal(x_0, t, noise), cond)
        log_snr = process.time_map.log_snr(t)
        # Under autocast the output may be bfloat16.
        value = error.value.float() if error.value.dtype in (torch.float16, torch.bfloat16) else error.value
        cost = self.measure.of(value, torch.ones_like(t) if self.weight.own else error.gain)
        weight = self.weight.of(log_snr)
        if self.weight.integral:
            weight = weight / self.levels.density(t, process)
        else:
            weight = weight * self.levels.correction(t, process)
        per_sample = cost * expand(weight, cost)
        # What is added is an expectation too: the penalty over the plain levels, a chain's bound over uniform times.
        if self.weight.penalises:
            per_sample = per_sample + self.weight.penalty(log_snr) * expand(self.levels.correction(t, process), cost)
        if error.bound is not None:
            uniform = Uniform().density(t, process) / self.levels.density(t, process)
            per_sample = per_sample + error.bound * expand(uniform, cost)
        return Loss(per_sample.mean(), per_sample, log_snr)
