"""Paper names: each a few parts put together. `recipe("edm")` is what its paper trains and how it samples."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diff_diffusion.core.categorical import Absorbing, Logits, Tokens, UniformTokens
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.learned_map import Learned
from diff_diffusion.core.process import Process
from diff_diffusion.core.targets import LearnedVariance, LinearTarget, Target
from diff_diffusion.core.time_maps import (
    Cosine,
    Flow,
    LinearBeta,
    LinearLogSnr,
    SubVp,
    TabulatedBetas,
    TimeMap,
    Truncated,
    zero_terminal_snr,
)
from diff_diffusion.errors import ConfigError, IncompatibleError, listed
from diff_diffusion.objectives.denoising import Objective
from diff_diffusion.objectives.levels import Normal, Uniform
from diff_diffusion.objectives.measures import Nats
from diff_diffusion.objectives.weights import Simple, Unit, Vlb
from diff_diffusion.registry import register
from diff_diffusion.samplers import grid
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.langevin import Corrected
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.sampler import Sampler
from diff_diffusion.samplers.single_step import Heun
from diff_diffusion.samplers.spacing import Spacing
from diff_diffusion.tensors import TensorSpec


@register("recipe/recipe")
@dataclass(frozen=True)
class Recipe:
    """How a model is trained and, unless told otherwise, sampled.

    Args:
        process, target, objective: what training needs.
        sampler, grid: the defaults of sampling.
        guidance: the default guidance scale; 1 is none.
        clip: whether sampling clips x̂_0 to the data's range, which eps needs where little signal is left.
    """

    process: Process
    target: Target
    objective: Objective
    sampler: Sampler
    grid: grid.Grid
    guidance: float = 1.0
    clip: bool = False

    def __post_init__(self) -> None:
        self.objective.check(self.process)
        if self.clip and not isinstance(self.process, Gaussian):
            raise IncompatibleError(f"clip keeps numbers in their range, and {type(self.process).__name__} has tokens")


def ddpm(timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Recipe:
    """DDPM: the discrete linear chain, eps, L_simple, all steps. Source: Ho et al., arXiv 2006.11239."""
    betas = TabulatedBetas(np.linspace(beta_start, beta_end, timesteps).tolist())
    objective = Objective(Uniform(), Simple())
    return Recipe(
        Gaussian(betas), LinearTarget("eps"), objective, Ancestral(eta=1.0), grid.Uniform(timesteps), clip=True
    )


def ddim(
    timesteps: int | None = None,
    beta_start: float | None = None,
    beta_end: float | None = None,
    beta_schedule: str = "linear",
    num_inference_steps: int = 50,
) -> Recipe:
    """DDIM: DDPM's training in continuous time, few deterministic steps. Source: Song et al., arXiv 2010.02502.

    Args:
        timesteps, beta_start, beta_end: of the chain whose continuous limit is taken; 1000, 0.0001 and 0.02.
        beta_schedule: "linear", or "cosine", which has no betas to set.
        num_inference_steps: steps of sampling.

    Raises:
        ConfigError: an unknown beta_schedule, or betas for one that has none.
    """
    given = {"timesteps": timesteps, "beta_start": beta_start, "beta_end": beta_end}
    betas = {name: value for name, value in given.items() if value is not None}
    time_map: TimeMap
    if beta_schedule == "linear":
        time_map = LinearBeta(**betas)  # type: ignore[arg-type]
    elif beta_schedule == "cosine":
        if betas:
            raise ConfigError(f"beta_schedule 'cosine' has no {listed(betas)} to set: leave them out")
        time_map = Truncated(Cosine(), -20.0)
    else:
        raise ConfigError(f"unknown beta_schedule {beta_schedule!r}: it is 'linear' or 'cosine'")
    objective, steps = Objective(Uniform(), Simple()), grid.Uniform(num_inference_steps)
    return Recipe(Gaussian(time_map), LinearTarget("eps"), objective, Ancestral(eta=0.0), steps, clip=True)


def iddpm(timesteps: int = 1000) -> Recipe:
    """Improved DDPM: the cosine map, eps with a learned variance, L_hybrid.

    The end at λ = -20 is where its cap on β puts it. Source: Nichol & Dhariwal, arXiv 2102.09672.
    """
    process = Gaussian(Truncated(Cosine(), -20.0))
    target = LearnedVariance(LinearTarget("eps"), timesteps)
    return Recipe(process, target, Objective(Uniform(), Simple()), Ancestral(1.0), grid.Uniform(timesteps), clip=True)


def vdm(log_snr_max: float = 13.3, log_snr_min: float = -9.0, num_inference_steps: int = 250) -> Recipe:
    """Variational diffusion: the continuous bound itself is the loss, and the time map learns to make it less noisy.

    The map's ends stay as given; the paper's learn too, from 13.3 and -5. Source: Kingma et al., arXiv 2107.00630.
    """
    process = Gaussian(Learned(log_snr_max, log_snr_min))
    objective = Objective(Uniform(), Vlb())
    return Recipe(
        process, LinearTarget("eps"), objective, Ancestral(eta=1.0), grid.Uniform(num_inference_steps), clip=True
    )


def masked_tokens(vocab: int = 256, num_inference_steps: int = 64) -> Recipe:
    """Masked diffusion of tokens, trained on its variational bound. Source: Sahoo et al., "MDLM", arXiv 2406.07524."""
    objective = Objective(Uniform(), Vlb(), measure=Nats())
    return Recipe(Absorbing(vocab), Logits(), objective, Ancestral(eta=1.0), grid.Uniform(num_inference_steps))


def uniform_tokens(vocab: int = 256, num_inference_steps: int = 64) -> Recipe:
    """Uniform diffusion of tokens, trained on its bound. Source: Austin et al., "D3PM", arXiv 2107.03006."""
    objective = Objective(Uniform(), Vlb(), measure=Nats())
    process = UniformTokens(vocab)
    return Recipe(process, Logits(), objective, Ancestral(eta=1.0), grid.Uniform(num_inference_steps))


def edm() -> Recipe:
    """EDM: σ from 0.002 to 80, its F and its levels, Heun on its grid. Source: Karras et al., arXiv 2206.00364."""
    process = Gaussian(LinearLogSnr(12.429, -8.764), "ve")
    objective = Objective(Normal(mean=2.4, std=2.4), Unit())
    return Recipe(process, LinearTarget("edm"), objective, Heun(), grid.Karras(18))


def vp_sde(num_inference_steps: int = 1000) -> Recipe:
    """The variance preserving SDE, β from 0.1 to 20, trained by denoising score matching.

    The paper divides what its network says by σ before it calls it the score, so the network's own output is eps up
    to its sign, and the weight σ² on the score's error is L_simple. Source: Song et al., arXiv 2011.13456.

    Args:
        num_inference_steps: steps of sampling.
    """
    return _score_sde(Gaussian(LinearBeta()), num_inference_steps)


def ve_sde(sigma_min: float = 0.01, sigma_max: float = 50.0, num_inference_steps: int = 1000) -> Recipe:
    """The variance exploding SDE, trained like `vp_sde`, each step corrected by one of Langevin's.

    Source: Song et al., arXiv 2011.13456.

    Args:
        sigma_min, sigma_max: the noise that data of variance 1 are given, from first to last, geometrically.
        num_inference_steps: steps of sampling, of two evaluations each.

    Raises:
        ConfigError: sigmas that are not positive and rising.
    """
    if not 0 < sigma_min < sigma_max:
        raise ConfigError(f"ve_sde needs 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
    levels = LinearLogSnr(-2.0 * math.log(sigma_min), -2.0 * math.log(sigma_max))
    return _score_sde(Gaussian(levels, "ve"), num_inference_steps, Corrected(Ancestral(eta=1.0), steps=1, snr=0.16))


def sub_vp_sde(num_inference_steps: int = 1000) -> Recipe:
    """The sub-VP SDE: the VP SDE's α with σ = 1 - α², trained like `vp_sde`. Source: Song et al., arXiv 2011.13456."""
    return _score_sde(Gaussian(SubVp(LinearBeta()), "sub_vp"), num_inference_steps)


def _score_sde(process: Gaussian, num_steps: int, sampler: Sampler | None = None) -> Recipe:
    sampler, objective = sampler or Ancestral(eta=1.0), Objective(Uniform(), Simple())
    return Recipe(process, LinearTarget("eps"), objective, sampler, grid.Uniform(num_steps), clip=True)


def zero_snr(
    timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, num_inference_steps: int = 50
) -> Recipe:
    """Zero terminal SNR: DDPM's chain rescaled to end in pure noise, v, and steps that begin there.

    Source: Lin et al., arXiv 2305.08891.

    Args:
        timesteps, beta_start, beta_end: of the chain that is rescaled.
        num_inference_steps: steps of sampling.
    """
    betas = zero_terminal_snr(np.linspace(beta_start, beta_end, timesteps).tolist())
    objective, steps = Objective(Uniform(), Unit()), Spacing(num_inference_steps, timesteps, "trailing")
    return Recipe(Gaussian(TabulatedBetas(betas)), LinearTarget("v"), objective, Ancestral(eta=0.0), steps)


def rectified_flow() -> Recipe:
    """The straight path: velocity, logit-normal levels, multistep sampling on a λ grid.

    Source: Liu et al., arXiv 2209.03003; the levels from Esser et al., arXiv 2403.03206.
    """
    process = Gaussian(Flow(), "flow")
    objective = Objective(Normal(mean=0.0, std=2.0), Unit())
    return Recipe(process, LinearTarget("velocity"), objective, Multistep(order=2), grid.LogSnr(32, 10.0, -10.0))


RECIPES: dict[str, Callable[..., Recipe]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "edm": edm,
    "iddpm": iddpm,
    "masked_tokens": masked_tokens,
    "rectified_flow": rectified_flow,
    "sub_vp_sde": sub_vp_sde,
    "uniform_tokens": uniform_tokens,
    "vdm": vdm,
    "ve_sde": ve_sde,
    "vp_sde": vp_sde,
    "zero_snr": zero_snr,
}


def fitting(latent: TensorSpec) -> list[str]:
    """The names of the presets for what a codec gives: those for tokens where it is whole numbers."""
    needs = Tokens if latent.whole else Gaussian
    return [name for name in RECIPES if isinstance(recipe(name).process, needs)]


def check_latent(latent: TensorSpec, process: Process) -> None:
    """Nothing, or an IncompatibleError where a process does not destroy what a codec gives, naming what does."""
    given = int(latent.high) + 1 if latent.whole else 0
    known = process.vocab if isinstance(process, Tokens) else 0
    if given != known:
        destroys, gives = (f"tokens of a vocabulary of {n}" if n else "numbers" for n in (known, given))
        raise IncompatibleError(
            f"{type(process).__name__} destroys {destroys}, and the codec gives {gives}: presets that fit are "
            f"{', '.join(fitting(latent))}{f', with vocab={given}' if given else ''}"
        )


def recipe(name: str, **options: Any) -> Recipe:
    """The recipe of that name, with its own arguments.

    Raises:
        ConfigError: no such recipe, or an argument that it does not take.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown preset {name!r}: it is one of {', '.join(RECIPES)}")
    allowed = inspect.signature(RECIPES[name]).parameters
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise ConfigError(f"preset {name!r} takes no {listed(unknown)}: it takes {listed(allowed) or 'no options'}")
    return RECIPES[name](**options)
