"""Laws of grids: n steps down, from a time in (0, 1] to exactly 0, for every n and every time map.

Grids of continuous time start at exactly 1 and fall all the way. A chain's `leading` steps and a truncated grid start
later; churn and restart also go up, which is the forward kernel's and no step. This is where other libraries broke:
steps off by one, a last time that is not the data, two equal times.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_examples import Description, descriptions, parts

from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Process
from diff_diffusion.core.time_maps import Flow, LinearLogSnr, TimeMap
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import build
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.sampler import check_times
from diff_diffusion.samplers.spacing import Spacing
from diff_diffusion.samplers.transforms import Churn, Restart, Truncate

GRIDS = descriptions("grid")
every_grid = pytest.mark.parametrize("description", GRIDS, ids=[f"{d['type'][5:]}-{len(d)}" for d in GRIDS])
every_map = pytest.mark.parametrize("time_map", parts("time_map"))
NUMBERS = [*range(1, 21), 33, 64, 250, 333, 1000]


def check(grid: grids.Grid, process: Process) -> None:
    found = grid.times(process)
    down = [t for t, s in pairwise(found) if t > s]
    assert len(down) == grid.num_steps
    assert found[0] == 1.0 if starts_at_1(grid) else 0.0 < found[0] <= 1.0
    assert found[-1] == 0.0
    assert all(0.0 <= t <= 1.0 for t in found)
    assert len(down) == len(found) - 1 or goes_up(grid)
    assert all(type(t) is float for t in found)
    check_times(found)


def starts_at_1(grid: grids.Grid) -> bool:
    if isinstance(grid, Truncate) or (isinstance(grid, Spacing) and grid.spacing == "leading"):
        return False
    return not isinstance(grid, Churn | Restart) or starts_at_1(grid.grid)


def goes_up(grid: grids.Grid) -> bool:
    return isinstance(grid, Churn | Restart) or (isinstance(grid, Truncate) and goes_up(grid.grid))


def fewest(grid: grids.Grid) -> int:
    """Of steps: a restart's walk takes two and each of its repeats one."""
    inner = fewest(grid.grid) if isinstance(grid, Churn | Restart | Truncate) else 1
    return max(inner, 2) + grid.repeats if isinstance(grid, Restart) else inner


@every_grid
@every_map
def test_a_grid_goes_from_noise_to_0_on_every_map(description: Description, time_map: TimeMap) -> None:
    grid = build(description)
    assert isinstance(grid, grids.Grid)
    for num_steps in NUMBERS:
        if num_steps >= fewest(grid):
            check(grid.with_steps(num_steps), Gaussian(time_map))


@every_grid
@settings(max_examples=40)
@given(num_steps=st.integers(5, 1000), high=st.floats(0.5, 40.0), low=st.floats(-40.0, -0.5))
def test_a_grid_is_one_on_maps_of_any_range(description: Description, num_steps: int, high: float, low: float) -> None:
    grid, process = build(description).with_steps(num_steps), Gaussian(LinearLogSnr(high, low))
    try:
        check(grid, process)
    except ConfigError as error:  # its own range is not this process's
        assert "has no part of" in str(error)  # noqa: PT017


@every_grid
def test_another_number_of_steps_changes_nothing_else(description: Description) -> None:
    grid = build(description)
    assert isinstance(grid, grids.Grid)
    assert grid.with_steps(grid.num_steps) == grid
    for num_steps in (fewest(grid), 7, 23):
        again = grid.with_steps(num_steps)
        assert type(again) is type(grid)
        assert again.num_steps == num_steps
    for num_steps in (0, -1, 10**7, fewest(grid) - 1):
        with pytest.raises(ConfigError, match=rf"steps.*not.* {num_steps}|its {num_steps} steps"):
            grid.with_steps(num_steps)


def test_uniform_for_every_number_of_steps() -> None:
    process = Gaussian(Flow())
    for num_steps in range(1, 1001):
        found = grids.Uniform(num_steps).times(process)
        check(grids.Uniform(num_steps), process)
        assert all(
            t == pytest.approx(1 - i / num_steps, abs=1e-15) for i, t in list(enumerate(found))[:: num_steps // 4 + 1]
        )


@pytest.mark.parametrize("time_map", [LinearLogSnr(12.0, -12.0), Flow()], ids=["linear_log_snr", "flow"])
def test_log_snr_is_evenly_spaced_in_log_snr(time_map: TimeMap) -> None:
    """From the noise to λ = 10 in even steps, then one step to the data."""
    found = grids.LogSnr(21, 10.0, -10.0).times(Gaussian(time_map))
    levels = [time_map.log_snr(t) for t in found[1:-1]]
    assert levels == pytest.approx([-10.0 + i for i in range(1, 21)], abs=1e-9)


def test_karras_is_equation_5_on_edms_range() -> None:
    """σ_i = (σ_max^(1/ρ) + i/(N-1) (σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ and σ_N = 0: arXiv 2206.00364."""
    process = Gaussian(LinearLogSnr(-2 * math.log(0.002), -2 * math.log(80.0)), "ve")
    for count in (2, 18, 40, 256):
        found = grids.Karras(count).times(process)
        for i, t in enumerate(found[:-1]):
            expected = (80 ** (1 / 7) + i / (count - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
            assert process.scales(t)[1] == pytest.approx(expected, rel=1e-7)
        assert found[-1] == 0.0


@pytest.mark.parametrize("rho", [1.0, 3.0])
def test_karras_respects_its_own_range_inside_the_processs(rho: float) -> None:
    process = Gaussian(LinearLogSnr(20.0, -20.0), "ve")
    found = grids.Karras(11, rho, 0.05, 10.0).times(process)
    ratios = [process.scales(t)[1] for t in found[1:-1]]
    roots = [10 ** (1 / rho) + i / 10 * (0.05 ** (1 / rho) - 10 ** (1 / rho)) for i in range(1, 11)]
    assert ratios == pytest.approx([root**rho for root in roots], rel=1e-9)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: grids.Uniform(0), "from 1 to 1,000,000, not 0"),
        (lambda: grids.LogSnr(-3), "not -3"),
        (lambda: grids.Karras(10**7), "not 10000000"),
        (lambda: grids.Karras(10, 7.0, 80.0, 0.002), "sigma_min < sigma_max"),
        (lambda: grids.Karras(10, -1.0), "rho > 0"),
    ],
)
def test_bad_arguments_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("grid", "time_map"),
    [
        (grids.LogSnr(10, -5.0, 5.0), Flow()),
        (grids.LogSnr(10), LinearLogSnr(30.0, 13.0)),
        (grids.Karras(10), LinearLogSnr(-20.0, -30.0)),
    ],
)
def test_a_range_outside_the_process_is_refused(grid: grids.Grid, time_map: TimeMap) -> None:
    """Its times would rise, which a walk takes for steps to more noise."""
    with pytest.raises(ConfigError, match="change the grid's range"):
        grid.times(Gaussian(time_map))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([1.0], "at least two"),
        ([], "at least two"),
        ([1.0, 0.5], "exactly 0.*not at 0.5"),
        ([1.0, 1e-12], "exactly 0"),
        ([1.5, 0.0], r"\[0, 1\]"),
        ([1.0, -0.5, 0.0], r"\[0, 1\]"),
        ([1.0, math.nan, 0.0], r"\[0, 1\]"),
        ([1.0, 0.5, 0.5, 0.0], "stays at 0.5"),
    ],
)
def test_times_that_are_no_grid_are_refused(bad: list[float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_times(bad)
