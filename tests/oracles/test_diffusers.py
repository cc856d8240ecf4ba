"""diffusers' schedulers beside ours: the same exact denoiser, levels and noise, every intermediate x to 1e-4.

Its timesteps i = 0 … 999 are the times (i + 1) / 1000 of `TabulatedBetas` with its own betas; its schedulers that walk
sigmas (Euler, Heun, …) are the scaling "ve". Clipping and thresholding are off. Its tables and updates are float32, so
1e-4 of the norm is what can be asked; most runs are at 1e-6.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.time_maps import Flow, TabulatedBetas
from diff_diffusion.registry import build
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import multistep, trajectory, unipc
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.multistep import Multistep, data_weights
from diff_diffusion.samplers.sampler import Sampler
from diff_diffusion.samplers.unipc import UniPC

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: `make test` installs it")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its use of numpy

MODES = {"means": [[-0.6, 0.3], [0.9, -1.1]], "covariances": [0.09, 0.0625], "weights": [0.6, 0.4]}
NOISE = Noise(range(6))
T = 1000
BETAS = {"num_train_timesteps": T, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
TABLE = TabulatedBetas(torch.linspace(1e-4, 0.02, T).tolist())
TO_THE_CHAINS_FIRST = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
"""Multistep schedulers at full order to the last, which ends at timestep 0 instead of at the data."""


def named(name: str) -> Sampler:
    """A sampler as a user asks for it."""
    sampler = build({"type": f"sampler/{name}"})
    assert isinstance(sampler, Sampler)
    return sampler


def noise_of(step: int, x: Tensor) -> Tensor:
    return NOISE.at(step).normal(x.shape, like=x)


def chain_walk(
    name: str,
    num_steps: int,
    monkeypatch: pytest.MonkeyPatch,
    step_options: dict[str, Any] | None = None,
    **config: Any,
) -> tuple[list[float], list[Tensor]]:
    """The times that an integer-time scheduler visits, and its x after each step, from noise in the scaling "vp"."""
    scheduler = getattr(diffusers, name)(**BETAS, **config)
    scheduler.set_timesteps(num_steps)
    mixture = GaussianMixture(Gaussian(TABLE), **MODES)
    times = [(int(timestep) + 1) / T for timestep in scheduler.timesteps]
    if config.get("use_exponential_sigmas"):  # then its timesteps are only nearby
        times = [TABLE.time(-2.0 * math.log(level)) for level in scheduler.sigmas[:-1].double().tolist()]
    x = mixture.process.prior((len(NOISE), 2), NOISE.at(0), times[0]).double()
    walk = []
    for step, (timestep, t) in enumerate(zip(scheduler.timesteps, times, strict=True), start=1):
        draw = noise_of(step, x)
        monkeypatch.setattr(
            sys.modules[type(scheduler).__module__], "randn_tensor", lambda *_, draw=draw, **__: draw, raising=False
        )
        alpha, sigma = mixture.process.scales(t)
        eps = (x - alpha * mixture(x, t).mean) / sigma
        x = scheduler.step(eps, timestep, x, **step_options or {}).prev_sample
        walk.append(x)
    return times, walk


def sigma_walk(
    name: str, num_steps: int, monkeypatch: pytest.MonkeyPatch, **config: Any
) -> tuple[list[float], list[Tensor]]:
    """The same of a scheduler that walks sigmas, in the scaling "ve"; x at the grid's times only, not between them."""
    scheduler = getattr(diffusers, name)(**BETAS, **config)
    scheduler.set_timesteps(num_steps)
    process = Gaussian(TABLE, "ve")
    mixture = GaussianMixture(process, **MODES)
    levels = scheduler.sigmas[:-1].double().unique().flip(0).tolist()
    times = [process.time_map.time(-2.0 * math.log(level)) for level in levels if level > 0.0]
    x = process.prior((len(NOISE), 2), NOISE.at(0), times[0]).double()
    walk = []
    for timestep in scheduler.timesteps:
        # What the network is shown is x / √(σ² + 1): so it is the scheduler that says at which σ it asks.
        sigma = math.sqrt(scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep).item() ** -2 - 1.0)
        draw = noise_of(len(walk) + 1, x)
        monkeypatch.setattr(
            sys.modules[type(scheduler).__module__], "randn_tensor", lambda *_, draw=draw, **__: draw, raising=False
        )
        eps = (x - mixture(x, process.time_map.time(-2.0 * math.log(sigma))).mean) / sigma
        x = scheduler.step(eps, timestep, x).prev_sample
        if getattr(scheduler, "state_in_first_order", True) or len(walk) == len(times) - 1:
            walk.append(x)
    return times, walk


def ours(sampler: Sampler, times: list[float], scaling: str) -> list[Tensor]:
    """x after each step, the last of which holds x̂_0."""
    mixture = GaussianMixture(Gaussian(TABLE, scaling), **MODES)
    x = mixture.process.prior((len(NOISE), 2), NOISE.at(0), times[0]).double()
    return [step.x for step in trajectory(mixture, sampler, [*times, 0.0], x, noise=NOISE)]


def apart(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / one.norm()).item()


def agree(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    assert [apart(a, b) for a, b in zip(one, other, strict=True)] == pytest.approx([0.0] * len(one), abs=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(
    ("name", "scheduler", "config"),
    [
        ("ddim", "DDIMScheduler", {"clip_sample": False}),
        ("ddpm", "DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small"}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {}),
        ("dpmpp_2m_sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_samplers_of_the_chain(
    name: str, scheduler: str, config: dict[str, Any], spacing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, theirs = chain_walk(scheduler, 20, monkeypatch, timestep_spacing=spacing, **config)
    agree(ours(named(name), times, "vp"), theirs)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("euler", "EulerDiscreteScheduler"),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
        ("heun", "HeunDiscreteScheduler"),
        ("dpm2", "KDPM2DiscreteScheduler"),
        ("dpm2_ancestral", "KDPM2AncestralDiscreteScheduler"),
    ],
)
def test_samplers_of_sigmas(name: str, scheduler: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times, theirs = sigma_walk(scheduler, 20, monkeypatch, timestep_spacing=spacing)
    agree(ours(named(name), times, "ve"), theirs)


def test_lms_up_to_its_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """It extrapolates ε̂ down to the data itself; every sampler here ends by holding x̂_0."""
    times, theirs = sigma_walk("LMSDiscreteScheduler", 20, monkeypatch)
    found = ours(named("lms"), times, "ve")
    agree(found[:-1], theirs[:-1])
    assert apart(found[-1], theirs[-1]) > 2e-4


def test_deis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both interpolate ε̂ in ln(σ/α) and integrate it over σ/α exactly."""
    times, theirs = chain_walk("DEISMultistepScheduler", 20, monkeypatch, solver_order=3)
    found = ours(named("deis"), [*times, 1 / T], "vp")
    agree(found[:-1], theirs)


def test_ddim_with_some_fresh_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    times, theirs = chain_walk("DDIMScheduler", 20, monkeypatch, {"eta": 0.5}, clip_sample=False)
    agree(ours(Ancestral(0.5), times, "vp"), theirs)


def test_dpmpp_2s(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts the evaluation in a step's middle as a step: on levels even in ln σ, every second x is ours."""
    times, theirs = chain_walk("DPMSolverSinglestepScheduler", 21, monkeypatch, use_exponential_sigmas=True)
    agree(ours(named("dpmpp_2s"), times[::2], "vp"), [*theirs[1::2], theirs[-1]])


def test_flow_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Euler step on a velocity from t = 1, where no signal is left, is DDIM in the scaling "flow"."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(20)
    mixture = GaussianMixture(Gaussian(Flow(), "flow"), **MODES)
    times = scheduler.sigmas.double().tolist()
    start = x = NOISE.at(0).normal((len(NOISE), 2)).double()
    theirs = []
    for timestep, t in zip(scheduler.timesteps, times[:-1], strict=True):
        x = scheduler.step((x - mixture(x, t).mean) / t, timestep, x).prev_sample
        theirs.append(x)
    agree([step.x for step in trajectory(mixture, Ancestral(0.0), times, start, noise=NOISE)], theirs)


# ---- where the formulas differ -------------------------------------------------------------------------------------


def half_the_curvature(places: list[float], h: float) -> list[float]:
    """The weights of the parabola through three answers, its second derivative taken as the divided difference."""
    exact = data_weights(places, h)
    mass, second = (quad(lambda r, k=k: r**k * math.exp((r - 1.0) * h), 0.0, 1.0)[0] for k in (0, 2))
    curvature = [1.0 / math.prod(here - other for other in places if other != here) for here in places]
    return [weight - 0.5 * second / mass * share for weight, share in zip(exact, curvature, strict=True)]


def test_third_order_multistep_has_half_the_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps alike, then apart; with half the parabola's second derivative put in ours, alike to the end."""
    config = {"solver_order": 3, **TO_THE_CHAINS_FIRST}
    times, theirs = chain_walk("DPMSolverMultistepScheduler", 20, monkeypatch, **config)
    found = ours(Multistep(3), [*times, 1 / T], "vp")[:-1]
    agree(found[:2], theirs[:2])
    assert max(map(apart, found, theirs)) > 1e-3
    monkeypatch.setattr(multistep, "data_weights", half_the_curvature)
    agree(ours(Multistep(3), [*times, 1 / T], "vp")[:-1], theirs)


def line_at_the_middle(places: list[float], h: float) -> list[float]:
    """For two answers the line's value in the middle of the step, in place of its mean; the exact mean for others."""
    if len(places) != 2:
        return data_weights(places, h)
    first = (0.5 - places[1]) / (places[0] - places[1])
    return [first, 1.0 - first]


@pytest.mark.parametrize("answers", [1, 2, 3])
def test_unipc_approximates_where_it_has_two_answers(answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its B_2(h) matters where it does not solve its system but says 1/2: two answers, weighed as on a line's middle.

    That is the first corrector and the second-order predictor, so order 3 is ours but for its first steps, which are
    short here: alike as it is. With that rule put in ours, every order is alike to the end.
    """
    config = {"solver_order": answers, "solver_type": "bh2", **TO_THE_CHAINS_FIRST}
    times, theirs = chain_walk("UniPCMultistepScheduler", 20, monkeypatch, **config)
    found = ours(UniPC(answers), [*times, 1 / T], "vp")[:-1]
    if answers == 3:
        agree(found, theirs)
    else:
        agree(found[:1], theirs[:1])
        assert max(map(apart, found, theirs)) > 1e-3
    monkeypatch.setattr(unipc, "data_weights", line_at_the_middle)
    agree(ours(UniPC(answers), [*times, 1 / T], "vp")[:-1], theirs)
