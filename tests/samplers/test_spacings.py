"""Grids against their papers' own numbers, and against diffusers' arithmetic for a chain of integer steps."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.time_maps import Cosine, Flow, LinearLogSnr, TabulatedBetas, TimeMap
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import build, describe
from diff_diffusion.samplers.grid import Grid, Karras, LogSnr, Quadratic, Uniform
from diff_diffusion.samplers.quantile import Normal, Quantile
from diff_diffusion.samplers.spacing import Spacing
from diff_diffusion.samplers.transforms import Churn, Restart, Truncate

WIDE = Gaussian(LinearLogSnr(12.0, -12.0))
TABLE_2 = {
    "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
    "linspace": [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1],
    "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
}


@pytest.mark.parametrize("spacing", TABLE_2)
def test_spacings_are_table_2_of_lin_et_al(spacing: str) -> None:
    """T = 1000, 10 steps, counted from 1: arXiv 2305.08891."""
    assert build({"type": f"grid/{spacing}"}) == Spacing(50, 1000, spacing)
    found = Spacing(10, 1000, spacing).times(WIDE)
    assert found == [step / 1000 for step in TABLE_2[spacing]] + [0.0]


@pytest.mark.parametrize("spacing", TABLE_2)
@pytest.mark.parametrize("chain", [1000, 4000])
def test_spacings_are_diffusers(spacing: str, chain: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of this test")
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=chain, timestep_spacing=spacing)
    for num_steps in (2, 3, 7, 10, 16, 20, 50, 64, 333, 999, 1000):
        scheduler.set_timesteps(num_steps)
        steps = scheduler.timesteps.tolist()
        assert Spacing(num_steps, chain, spacing).times(WIDE) == [(step + 1) / chain for step in steps] + [0.0]


def test_step_i_has_the_signal_of_the_first_i_plus_1_betas() -> None:
    """No off-by-one between a chain's steps and times: α² at step i is the product that the chain was trained with."""
    betas = np.linspace(1e-4, 0.02, 1000)
    process, kept = Gaussian(TabulatedBetas(betas.tolist())), np.cumprod(1.0 - betas)
    for t, step in zip(Spacing(10).times(process), TABLE_2["trailing"], strict=False):
        assert process.scales(t)[0] ** 2 == pytest.approx(kept[step - 1], rel=1e-12)


def test_quadratic_is_ddims_tau() -> None:
    """τ_i = c i² with the last at the chain's end: arXiv 2010.02502."""
    found = Quadratic(20).times(WIDE)
    assert found == pytest.approx([(i / 20) ** 2 for i in range(20, -1, -1)], abs=1e-15)


def test_exponential_is_even_in_ln_sigma() -> None:
    grid = build({"type": "grid/exponential", "num_steps": 9})
    assert grid == LogSnr(9)
    process = Gaussian(LinearLogSnr(-2 * math.log(0.01), -2 * math.log(50.0)), "ve")
    sigmas = [process.scales(t)[1] for t in grid.times(process)[:-1]]
    assert sigmas == pytest.approx([50.0 * (0.01 / 50.0) ** (i / 8) for i in range(9)], rel=1e-6)


# ---- equal masses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_map", [LinearLogSnr(12.0, -12.0), LinearLogSnr(2.5, -4.0), Flow(), Cosine()])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 40])
def test_steps_hold_equal_masses_of_a_normal(time_map: TimeMap, num_steps: int) -> None:
    """By integrating the density over each step, ends of the process included."""
    normal = NormalDist(-1.0, 2.5)
    levels = [time_map.log_snr(t) for t in Normal(num_steps, -1.0, 2.5).times(Gaussian(time_map))]
    masses = [normal.cdf(high) - normal.cdf(low) for low, high in pairwise(levels)]
    whole = normal.cdf(time_map.log_snr(0.0)) - normal.cdf(time_map.log_snr(1.0))
    assert masses == pytest.approx([whole / num_steps] * num_steps, rel=1e-7)


KNOTS, DENSITY = [-6.0, -1.0, 0.5, 3.5, 9.0], [0.0, 1.0, 0.2, 0.2, 2.0]


@pytest.mark.parametrize("time_map", [LinearLogSnr(12.0, -12.0), LinearLogSnr(2.5, -4.0), Flow(), Cosine()])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 40])
def test_steps_hold_equal_masses_of_a_table(time_map: TimeMap, num_steps: int) -> None:
    levels = [time_map.log_snr(t) for t in Quantile(KNOTS, DENSITY, num_steps).times(Gaussian(time_map))]
    ends = [min(max(level, -6.0), 9.0) for level in levels]

    def density(level: float) -> float:
        return float(np.interp(level, KNOTS, DENSITY))

    masses = [quad(density, a, b, points=[k for k in KNOTS if a < k < b] or None)[0] for a, b in pairwise(ends)]
    assert masses == pytest.approx([sum(masses) / num_steps] * num_steps, rel=1e-7)


def test_no_step_ends_where_the_density_is_0() -> None:
    found = Quantile([-4.0, -2.0, -1.9, 1.9, 2.0, 4.0], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0], 16).times(WIDE)
    assert not [t for t in found if -1.9 < WIDE.time_map.log_snr(t) < 1.9]


def test_a_table_comes_back_from_its_description() -> None:
    grid = Quantile(KNOTS, [1, 2, 3, 4, 5], 7)
    assert build(describe(grid)) == grid
    assert build(describe(grid) | {"num_steps": 9}) == grid.with_steps(9)


# ---- transforms ----------------------------------------------------------------------------------------------------

EDM = Gaussian(LinearLogSnr(-2 * math.log(0.002), -2 * math.log(80.0)), "ve")


@pytest.mark.parametrize(
    ("num_steps", "s_churn", "s_min", "s_max"),
    [(18, 30.0, 0.01, 1.0), (256, 40.0, 0.05, 50.0), (5, 80.0, 0.0, 1e9), (10, 0.0, 0.0, 1e9)],
)
def test_churn_is_algorithm_2(num_steps: int, s_churn: float, s_min: float, s_max: float) -> None:
    """σ̂ = σ + γ σ, γ = min(S_churn/N, √2 - 1) where S_min <= σ <= S_max, then down to the next: arXiv 2206.00364."""
    down = Karras(num_steps)
    sigmas = [*(EDM.scales(t)[1] for t in down.times(EDM)[:-1]), 0.0]
    expected = []
    for sigma in sigmas[:-1]:
        gamma = min(s_churn / num_steps, math.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
        raised = min(sigma * (1 + gamma), 80.0)
        expected += [sigma] if raised == pytest.approx(sigma, rel=1e-9) else [sigma, raised]
    found = Churn(down, s_churn, s_min, s_max).times(EDM)
    assert [EDM.scales(t)[1] for t in found[:-1]] == pytest.approx(expected, rel=1e-7)
    assert found[-1] == 0.0


def test_restart_goes_up_and_down_between_its_ends() -> None:
    grid = Restart(LogSnr(25, 12.0, -12.0), repeats=3, inner=4, low=math.exp(-1.6), high=math.exp(0.5))
    levels = [round(WIDE.time_map.log_snr(t), 6) for t in grid.times(WIDE)[:-2]]
    walk = [float(level) for level in range(-12, 12)]
    once = [-1.0, 0.0, 1.0, 2.0, 3.0]  # 3 is the time of the walk nearest to 3.2
    assert levels == [*walk[:16], *once * 3, *walk[16:]]
    assert grid.num_steps == 25 + 12


def test_another_number_of_steps_is_shared_out_in_proportion() -> None:
    grid = Restart(Karras(30), repeats=2, inner=10)
    shares = {n: (again.grid.num_steps, again.inner) for n in (4, 5, 25, 50, 100) if (again := grid.with_steps(n))}
    assert shares == {4: (2, 1), 5: (3, 1), 25: (15, 5), 50: (30, 10), 100: (60, 20)}


def test_restarts_nest() -> None:
    """The paper's several intervals are restarts of a restart."""
    inner = Restart(LogSnr(25, 12.0, -12.0), repeats=1, inner=2, low=math.exp(-2.0), high=math.exp(-1.0))
    grid = Restart(inner, repeats=2, inner=3, low=math.exp(0.0), high=math.exp(1.0))
    levels = [round(WIDE.time_map.log_snr(t), 6) for t in grid.times(WIDE)]
    assert levels[12:21] == [0.0, *([-2.0, pytest.approx(-4 / 3, abs=1e-5), pytest.approx(-2 / 3, abs=1e-5), 0.0] * 2)]
    assert levels[21:28] == [1.0, 2.0, 3.0, 4.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("grid", [Uniform(8), LogSnr(8), Karras(8)])
def test_truncate_is_the_grid_of_the_process_that_ends_there(grid: Grid) -> None:
    """All its steps, spaced by its own rule: on a λ-linear map the part below `start` is a λ-linear map too."""
    start = 0.7
    part = Gaussian(LinearLogSnr(12.0, WIDE.time_map.log_snr(start)))
    found = Truncate(start, grid).times(WIDE)
    assert found == pytest.approx([start * t for t in grid.times(part)], rel=1e-9)
    assert found[0] == start
    assert Truncate(1.0, grid).times(WIDE) == grid.times(WIDE)


def test_truncate_serves_maps_without_an_end() -> None:
    found = Truncate(0.5, LogSnr(5, 8.0, -8.0)).times(Gaussian(Flow(), "flow"))
    assert [Flow().log_snr(t) for t in found[:-1]] == pytest.approx([0.0, 2.0, 4.0, 6.0, 8.0], abs=1e-9)


# ---- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Spacing(10, 1000, "middle"), "leading, trailing, linspace, not 'middle'"),
        (lambda: Spacing(11, 10), "its 11 steps from a chain at least as long.*not of 10: use fewer steps"),
        (lambda: Spacing(10, 10**7), "at most 1,000,000, not of 10000000"),
        (lambda: Normal(10, 0.0, 0.0), "std > 0, not 0.0 and 0.0"),
        (lambda: Normal(10, math.nan), "finite mean"),
        (lambda: Normal(10, 500.0, 1.0).times(WIDE), "nothing in this process.*from 12 to -12"),
        (lambda: Quantile([0.0], [1.0]), "from 2 to 10,000 knots with a density at each, not 1 and 1"),
        (lambda: Quantile([0.0, 1.0], [1.0]), "not 2 and 1"),
        (lambda: Quantile([1.0, 0.0], [1.0, 1.0]), "rise and are finite"),
        (lambda: Quantile([0.0, math.inf], [1.0, 1.0]), "rise and are finite"),
        (lambda: Quantile([0.0, 1.0], [1.0, -0.5]), "nowhere below 0"),
        (lambda: Quantile([0.0, 1.0], [0.0, 0.0]), "somewhere above it"),
        (lambda: Quantile([0.0, 1.0], [1.0, math.nan]), "is finite"),
        (lambda: Quantile([20.0, 30.0], [1.0, 1.0]).times(WIDE), "nothing in this process"),
        (lambda: Churn(s_churn=-1.0), "s_churn >= 0.*s_churn=-1.0"),
        (lambda: Churn(s_min=3.0, s_max=2.0), "s_min <= s_max"),
        (lambda: Restart(repeats=0), "repeats and inner of at least 1"),
        (lambda: Restart(Karras(1)), "a grid of at least 2 steps"),
        (lambda: Restart(low=2.0, high=2.0), "low < high"),
        (lambda: Restart(repeats=2).with_steps(3), "at least 4 steps, one for each repeat and two for the walk, not 3"),
        (lambda: Restart().with_steps(10**7), "not 10000000"),
        (lambda: Restart(low=1e-9, high=1e-8).times(WIDE), "has no part of this walk"),
        (lambda: Truncate(0.0), "above 0 and at most 1, not 0.0"),
        (lambda: Truncate(1.5), "not 1.5"),
        (lambda: build({"type": "grid/truncate"}), "needs start"),
    ],
)
def test_what_is_no_grid_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
