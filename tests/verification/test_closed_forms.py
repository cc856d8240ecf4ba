"""What `verify` measures against is right: outside oracles for the flow, the bounds and the arithmetic of noise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.rng import Noise
from diff_diffusion.verification import tokens
from diff_diffusion.verification.closed_forms import Impulses, TwoModes, distance_bound


def test_the_flow_is_the_solved_ode() -> None:
    """dz/du = x̂_0 - z in u = ln(α/σ), z = x/α, to 1e-11."""
    process = Gaussian(LinearLogSnr(12.0, -12.0))
    mixture = TwoModes(process)
    x = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64)

    def slope(u: float, z: Any) -> Any:
        t = process.time_map.time(2.0 * u)
        return mixture(process.scales(t)[0] * torch.from_numpy(z), t).mean.numpy() - z

    start = (x / process.scales(1.0)[0]).numpy()
    solved = solve_ivp(slope, (-6.0, 6.0), start, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    found = mixture.carried(x, 1.0, 0.0) / process.scales(0.0)[0]
    assert found.tolist() == pytest.approx(solved.tolist(), abs=1e-10)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_flow_keeps_the_distribution_function(scaling: str) -> None:
    process = Gaussian(LinearLogSnr(6.0, -6.0), scaling)
    mixture = TwoModes(process)
    x = process.scales(0.9)[1] * torch.linspace(-1.5, 1.5, 5, dtype=torch.float64)
    there = mixture.carried(x, 0.9, 0.2)
    before, after = (mixture.share_below(y, *process.scales(t)) for y, t in ((x, 0.9), (there, 0.2)))
    assert torch.allclose(before, after, rtol=0, atol=1e-13)
    assert torch.allclose(mixture.carried(there, 0.2, 0.9), x, rtol=1e-9)


@pytest.mark.parametrize("count", [100, 8000])
def test_kolmogorovs_bound_is_above_the_exact_quantile_and_near_it(count: int) -> None:
    exact = stats.kstwo.isf(1e-6, count)
    assert exact <= distance_bound(count) < 1.05 * exact


def test_total_variations_bound_holds_and_is_no_wider_than_needed() -> None:
    p = tokens.JOINT.flatten()
    found = [
        tokens.distance(torch.multinomial(p, 500, True, generator=torch.Generator().manual_seed(i)), p)
        for i in range(400)
    ]
    assert max(found) < tokens.distance_bound(p, 500) < 3.0 * max(found)
    assert sorted(found)[380] < tokens.distance_bound(p, 500, chance=0.05)


def test_impulses_of_a_path_are_independent_and_of_variance_1() -> None:
    """Steps read in parts (until, then the whole) and whole: W's increments, each as a vector of responses."""
    noise = Impulses(12)
    path, times = noise.path(0, lambda t: (1.0 - t) ** 2), [1.0, 0.7, 0.5, 0.1]
    steps = [noise.at(i, (path, t, s)) for i, (t, s) in enumerate(pairwise(times), start=1)]
    shape = (12, 1)
    part = steps[0].until(0.8).normal(shape)
    rows = torch.cat([noise.at(0).normal(shape), *(step.normal(shape) for step in steps)], 1)
    assert torch.allclose(rows.T @ rows, torch.eye(4).double(), atol=1e-12)
    assert torch.equal(steps[0].normal(shape), rows[:, 1:2])
    assert (part.T @ rows[:, 1:2]).item() == pytest.approx(math.sqrt(0.2**2 / 0.3**2))
    assert part.norm().item() == pytest.approx(1.0)
    assert rows[-1].abs().max() == 0.0
    # The same as the package's own path, by Monte Carlo: Cov(part, whole) with one clock.
    real = Noise(range(4000))
    along = (real.path(0, lambda t: (1.0 - t) ** 2), 1.0, 0.7)
    half = real.at(1, along).until(0.8).normal((4000, 1))
    whole = real.at(1, along).normal((4000, 1))
    assert (half * whole).mean().item() == pytest.approx(2.0 / 3.0, abs=5 / 4000**0.5)
