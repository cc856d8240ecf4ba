"""k-diffusion's samplers beside ours: the same exact denoiser, levels and noise, every intermediate x to 1e-8.

k-diffusion walks sigmas: noise levels of x relative to the data, our σ/α. So in any scaling x/α at our grid's times is
its x at its sigmas, and its `model(x, sigma)` is our posterior mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from shared import MODES, NOISE, Overheard, named
from torch import Tensor

from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.samplers import trajectory
from diff_diffusion.samplers.grid import Karras, LogSnr
from diff_diffusion.samplers.sampler import Sampler
from diff_diffusion.samplers.unipc import UniPC

EDM = LinearLogSnr(-2.0 * math.log(0.002), -2.0 * math.log(80.0))
NUM_STEPS = 12


class Walks:
    """One mixture, grid and start in our terms and in k-diffusion's."""

    def __init__(self, scaling: str, num_steps: int = NUM_STEPS, grid: type[Karras] | type[LogSnr] = Karras) -> None:
        self.process = Gaussian(EDM, scaling)
        self.mixture = GaussianMixture(self.process, **MODES)
        self.times = grid(num_steps).times(self.process)
        scales = [self.process.scales(t) for t in self.times[:-1]]
        self.alphas = [alpha for alpha, _ in scales] + [1.0]
        self.sigmas = torch.tensor([sigma / alpha for alpha, sigma in scales] + [0.0], dtype=torch.float64)
        self.start = self.process.prior((len(NOISE), 2), NOISE.at(0), self.times[0]).double()
        self.drawn: list[Tensor] = []

    def ours(self, sampler: Sampler) -> list[Tensor]:
        """x/α at every time of the grid."""
        heard = Overheard(sampler)
        walk = [step.x for step in trajectory(self.mixture, heard, self.times, self.start, noise=NOISE)]
        self.drawn = [draw for draws in heard.drawn for draw in draws]
        return [x / alpha for x, alpha in zip([self.start, *walk], self.alphas, strict=True)]

    def theirs(self, sample: Callable[..., Tensor], **options: Any) -> list[Tensor]:
        """x at every one of its sigmas."""
        at: list[Tensor] = []

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            t = self.process.time_map.time(-2.0 * math.log(float(sigma[0])))
            return self.mixture(self.process.scales(t)[0] * x, t).mean

        last = sample(
            model,
            self.start / self.alphas[0],
            self.sigmas,
            callback=lambda info: at.append(info["x"].clone()),
            disable=True,
            **options,
        )
        return [*at, last]

    def draws(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The noise that our walk drew, one draw after the other."""
        return self.drawn.pop(0)


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8), f"after {index} steps"


every_scaling = pytest.mark.parametrize("scaling", SCALINGS)


@every_scaling
@pytest.mark.parametrize(
    ("name", "oracle", "options"),
    [
        ("ddim", "sample_euler", {}),
        ("euler", "sample_euler", {}),
        ("heun", "sample_heun", {}),
        ("dpm2", "sample_dpm_2", {}),
        ("dpmpp_2s", "sample_dpmpp_2s_ancestral", {"eta": 0.0}),
        ("dpmpp_2m", "sample_dpmpp_2m", {}),
    ],
    ids=lambda value: value if isinstance(value, str) and not value.startswith("sample_") else "",
)
def test_ode_samplers(k_diffusion: ModuleType, scaling: str, name: str, oracle: str, options: dict[str, Any]) -> None:
    walks = Walks(scaling)
    agree(walks.ours(named(name)), walks.theirs(getattr(k_diffusion, oracle), **options))


@every_scaling
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("ddpm", "sample_euler_ancestral"),
        ("euler_ancestral", "sample_euler_ancestral"),
        ("dpm2_ancestral", "sample_dpm_2_ancestral"),
        ("dpmpp_2s_ancestral", "sample_dpmpp_2s_ancestral"),
        ("dpmpp_2m_sde", "sample_dpmpp_2m_sde"),
        ("dpmpp_sde", "sample_dpmpp_sde"),
    ],
    ids=lambda value: "" if value.startswith("sample_") else value,
)
def test_stochastic_samplers(k_diffusion: ModuleType, scaling: str, name: str, oracle: str) -> None:
    """With the same noise in each step, and in each part of a step."""
    walks = Walks(scaling)
    agree(walks.ours(named(name)), walks.theirs(getattr(k_diffusion, oracle), noise_sampler=walks.draws))
    assert not walks.drawn


@every_scaling
def test_lms_up_to_its_last_step(k_diffusion: ModuleType, scaling: str) -> None:
    """Its linear multistep method extrapolates ε̂ down to the data itself; every sampler here ends by holding x̂_0."""
    walks = Walks(scaling)
    ours, theirs = walks.ours(named("lms")), walks.theirs(k_diffusion.sample_lms)
    agree(ours[:-1], theirs[:-1])
    assert not torch.allclose(ours[-1], theirs[-1], rtol=1e-8, atol=1e-8)
    agree(ours[-1:], [walks.mixture(walks.alphas[-2] * theirs[-2], walks.times[-2]).mean])


# ---- where the formulas differ -------------------------------------------------------------------------------------


def test_third_order_multistep_has_half_the_curvature(k_diffusion: ModuleType) -> None:
    """On x̂_0 = a polynomial in u = ln(α/σ) a step's error is in the open.

    Lines are integrated exactly by both; of u² the other's step lacks half of what the second derivative adds,
    ½ · ∫_0^h e^-(h-w) w² dw. Its first two steps, which know fewer answers, are left out.
    """
    for degree in (0, 1, 2):
        x = torch.ones(1, 1, dtype=torch.float64)
        sigmas = torch.tensor([9.0, 5.0, 3.5, 1.5, 0.8, 0.2, 0.1, 0.0], dtype=torch.float64)
        at: list[Tensor] = []
        k_diffusion.sample_dpmpp_3m_sde(
            lambda x, sigma, k=degree: (-sigma.log()[:, None]) ** k,
            x,
            sigmas,
            eta=0.0,
            disable=True,
            callback=lambda info, at=at: at.append(info["x"].clone()),
        )
        for i in range(2, len(sigmas) - 2):
            start, h = -math.log(sigmas[i]), math.log(sigmas[i] / sigmas[i + 1])
            whole, _ = quad(lambda w, s=start, h=h, k=degree: math.exp(w - h) * (s + w) ** k, 0.0, h)
            curved, _ = quad(lambda w, h=h: math.exp(w - h) * w**2, 0.0, h)
            missing = math.exp(-h) * at[i].item() + whole - at[i + 1].item()
            assert missing == pytest.approx(0.5 * curved if degree == 2 else 0.0, abs=1e-12)


def test_third_order_multistep_goes_to_the_same_place_more_slowly(k_diffusion: ModuleType) -> None:
    """The same ODE's solution, at order 2 where `dpmpp_3m` has 3; each slope within 0.3."""
    exact = Walks("ve", 2049, LogSnr).ours(UniPC(3))[-2]
    ours, theirs = [], []
    for num_steps in (129, 257, 513):
        walks = Walks("ve", num_steps, LogSnr)
        ours.append((walks.ours(named("dpmpp_3m"))[-2] - exact).norm().item())
        theirs.append((walks.theirs(k_diffusion.sample_dpmpp_3m_sde, eta=0.0)[-2] - exact).norm().item())
    assert [math.log2(a / b) for a, b in pairwise(ours)] == pytest.approx([3.0, 3.0], abs=0.3)
    assert [math.log2(a / b) for a, b in pairwise(theirs)] == pytest.approx([2.0, 2.0], abs=0.3)
