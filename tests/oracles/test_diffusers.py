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
from shared import MODES, NOISE, Overheard, named
from torch import Tensor

from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.time_maps import Flow, TabulatedBetas
from diff_diffusion.samplers import multistep, trajectory, unipc
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.multistep import data_weights
from diff_diffusion.samplers.sampler import Sampler
from diff_diffusion.samplers.unipc import UniPC

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: `make test` installs it")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its use of numpy

T = 1000
BETAS = {"num_train_timesteps": T, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
TABLE = TabulatedBetas(torch.linspace(1e-4, 0.02, T).tolist())
TO_THE_CHAINS_FIRST = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
"""Multistep schedulers at full order to the last, which ends at timestep 0 instead of at the data."""


class Walks:
    """One mixture, grid and start in the terms of a scheduler of theirs and in ours.

    A scheduler whose noise is larger than 1 walks sigmas, our scaling "ve", and scales what it shows the network; the
    others are our "vp".
    """

    def __init__(self, name: str, num_steps: int = 20, **config: Any) -> None:
        self.scheduler = getattr(diffusers, name)(**BETAS, **config)
        self.scheduler.set_timesteps(num_steps)
        self.scales_input = float(self.scheduler.init_noise_sigma) != 1.0
        self.process = Gaussian(TABLE, "ve" if self.scales_input else "vp")
        self.mixture = GaussianMixture(self.process, **MODES)
        if self.scales_input or config.get("use_exponential_sigmas"):  # with these its timesteps are only near
            levels = self.scheduler.sigmas.double().unique().flip(0).tolist()
            self.times = [self.time(level) for level in levels if level > 0.0]
        else:
            self.times = [(int(timestep) + 1) / T for timestep in self.scheduler.timesteps]
        self.start = self.process.prior((len(NOISE), 2), NOISE.at(0), self.times[0]).double()
        self.drawn: list[Tensor] = []

    def time(self, sigma: float) -> float:
        """The time at which σ/α is `sigma`."""
        return TABLE.time(-2.0 * math.log(sigma))

    def ours(self, sampler: Sampler, times: list[float] | None = None) -> list[Tensor]:
        """x after each step, the last of which holds x̂_0."""
        heard = Overheard(sampler)
        grid = [*(times or self.times), 0.0]
        walk = [step.x for step in trajectory(self.mixture, heard, grid, self.start, noise=NOISE)]
        self.drawn = [draw for draws in heard.drawn for draw in draws]
        return walk

    def theirs(self, **options: Any) -> list[Tensor]:
        """x at each of the grid's times after the first and at the end, with the noise that our last walk drew."""

        def draw(shape: Any, **_: Any) -> Tensor:  # some draw in the last step too, and do not use it
            return self.drawn.pop(0) if self.drawn else torch.full(tuple(shape), 1.0, dtype=torch.float64)

        x, walk = self.start, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules[type(self.scheduler).__module__], "randn_tensor", draw, raising=False)
            for timestep in self.scheduler.timesteps:
                if self.scales_input:
                    # The network is shown x / √(σ² + 1): so the scheduler itself says at which σ it asks.
                    shown = self.scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep).item()
                    t = self.time(math.sqrt(shown**-2 - 1.0))
                else:
                    t = self.times[len(walk)]
                alpha, sigma = self.process.scales(t)
                eps = (x - alpha * self.mixture(x, t).mean) / sigma
                x = self.scheduler.step(eps, timestep, x, **options).prev_sample
                between = not getattr(self.scheduler, "state_in_first_order", True)
                if not between or len(walk) == len(self.times) - 1:
                    walk.append(x)
        assert not self.drawn
        return walk


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
    ids=["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"],
)
def test_samplers_of_the_chain(name: str, scheduler: str, config: dict[str, Any], spacing: str) -> None:
    walks = Walks(scheduler, timestep_spacing=spacing, **config)
    agree(walks.ours(named(name)), walks.theirs())


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
def test_samplers_of_sigmas(name: str, scheduler: str, spacing: str) -> None:
    walks = Walks(scheduler, timestep_spacing=spacing)
    agree(walks.ours(named(name)), walks.theirs())


def test_lms_up_to_its_last_step() -> None:
    """It extrapolates ε̂ down to the data itself; every sampler here ends by holding x̂_0."""
    walks = Walks("LMSDiscreteScheduler")
    ours, theirs = walks.ours(named("lms")), walks.theirs()
    agree(ours[:-1], theirs[:-1])
    assert apart(ours[-1], theirs[-1]) > 2e-4


def test_deis() -> None:
    """Both interpolate ε̂ in ln(σ/α) and integrate it over σ/α exactly. It stops at timestep 0, before the data."""
    walks = Walks("DEISMultistepScheduler", solver_order=3)
    agree(walks.ours(named("deis"), [*walks.times, 1 / T])[:-1], walks.theirs())


def test_ddim_with_some_fresh_noise() -> None:
    walks = Walks("DDIMScheduler", clip_sample=False)
    agree(walks.ours(Ancestral(0.5)), walks.theirs(eta=0.5))


def test_lcm() -> None:
    """It mixes x_t into x̂_0 by 0.25 / ((10 i)² + 0.25) at timestep i, which is below 1e-5 on its grid."""
    walks = Walks("LCMScheduler")
    agree(walks.ours(named("lcm")), walks.theirs())


def test_dpmpp_2s() -> None:
    """It counts the evaluation in a step's middle as a step: on levels even in ln σ, every second x is ours."""
    walks = Walks("DPMSolverSinglestepScheduler", 21, use_exponential_sigmas=True)
    ours, theirs = walks.ours(named("dpmpp_2s"), walks.times[::2]), walks.theirs()
    agree(ours, [*theirs[1::2], theirs[-1]])


def test_flow_matching() -> None:
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


def curvature(places: list[float]) -> list[float]:
    """The weights of the second divided difference of answers at three places."""
    return [1.0 / math.prod(here - other for other in places if other != here) for here in places]


def half_the_curvature(places: list[float], h: float) -> list[float]:
    """The weights of the parabola through three answers, its second derivative taken as the divided difference."""
    mass, second = (quad(lambda r, k=k: r**k * math.exp((r - 1.0) * h), 0.0, 1.0)[0] for k in (0, 2))
    shares = zip(data_weights(places, h), curvature(places), strict=True)
    return [weight - 0.5 * second / mass * bend for weight, bend in shares]


def a_half_taken_away(places: list[float], h: float) -> list[float]:
    """The same with (1 - e^-h - h) / h² - 1/2 for the last coefficient, where the integral has + 1/2."""
    shares = zip(half_the_curvature(places, h), curvature(places), strict=True)
    return [weight + bend / math.expm1(-h) for weight, bend in shares]


@pytest.mark.parametrize(
    ("name", "algorithm", "rule"),
    [("dpmpp_3m", "dpmsolver++", half_the_curvature), ("dpmpp_3m_sde", "sde-dpmsolver++", a_half_taken_away)],
    ids=["ode", "sde"],
)
def test_third_order_multistep_has_half_the_curvature(
    name: str, algorithm: str, rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps alike, then apart; with half the parabola's second derivative put in ours, alike to the end.

    Its SDE form has besides a sign turned in that term: no quadrature of any parabola.
    """
    walks = Walks("DPMSolverMultistepScheduler", solver_order=3, algorithm_type=algorithm, **TO_THE_CHAINS_FIRST)
    times = [*walks.times, 1 / T]
    ours = walks.ours(named(name), times)[:-1]
    theirs = walks.theirs()
    agree(ours[:2], theirs[:2])
    assert max(map(apart, ours, theirs)) > 1e-3
    monkeypatch.setattr(multistep, "data_weights", rule)
    agree(walks.ours(named(name), times)[:-1], theirs)


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
    walks = Walks("UniPCMultistepScheduler", solver_order=answers, solver_type="bh2", **TO_THE_CHAINS_FIRST)
    times = [*walks.times, 1 / T]
    ours, theirs = walks.ours(UniPC(answers), times)[:-1], walks.theirs()
    if answers == 3:
        agree(ours, theirs)
    else:
        agree(ours[:1], theirs[:1])
        assert max(map(apart, ours, theirs)) > 1e-3
    monkeypatch.setattr(unipc, "data_weights", line_at_the_middle)
    agree(walks.ours(UniPC(answers), times)[:-1], theirs)
