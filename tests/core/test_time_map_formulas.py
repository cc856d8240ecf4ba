"""Each time map against its paper's formula, written here independently."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath
import numpy as np
import pytest
import torch

from diff_diffusion.core.time_maps import (
    Cosine,
    Flow,
    LinearBeta,
    LinearLogSnr,
    Shifted,
    Sigmoid,
    TabulatedBetas,
    Truncated,
)
from diff_diffusion.errors import ConfigError

INNER = [1e-6, 0.01, 0.1, 0.25, 0.5, 0.77, 0.9, 0.99, 0.99999]
DDPM_BETAS = np.linspace(1e-4, 0.02, 1000).tolist()


def alpha_bar(log_snr: float) -> float:
    """DDPM's ᾱ = α²."""
    return 1.0 / (1.0 + math.exp(-log_snr))


@pytest.mark.parametrize("betas", [DDPM_BETAS, [0.5], [0.3, 0.001, 0.9, 0.2], [1e-8] * 50], ids=len)
def test_tabulated_betas_is_the_product_of_one_minus_beta(betas: Sequence[float]) -> None:
    time_map, product = TabulatedBetas(betas), mpmath.mpf(1)
    with mpmath.workdps(50):
        for i, beta in enumerate(betas, 1):
            product *= 1 - mpmath.mpf(beta)
            expected = float(mpmath.log(product / (1 - product)))
            assert time_map.log_snr(i / len(betas)) == pytest.approx(expected, rel=1e-12, abs=1e-12)
            assert time_map.time(expected) == pytest.approx(i / len(betas), abs=1e-10)


def test_tabulated_betas_between_its_points() -> None:
    """Linear in λ between points; before the first, σ²/α² proportional to t."""
    time_map = TabulatedBetas([0.1, 0.2, 0.5])
    first, second = time_map.log_snr(1 / 3), time_map.log_snr(2 / 3)
    assert time_map.log_snr(1 / 3 + 0.25 / 3) == pytest.approx(0.75 * first + 0.25 * second, rel=1e-12)
    assert math.exp(-time_map.log_snr(0.25 / 3)) == pytest.approx(0.25 * math.exp(-first), rel=1e-12)
    assert time_map.log_snr(0.0) == math.inf


def test_linear_beta_is_the_integral_of_beta() -> None:
    """ln ᾱ = -∫ β, β(t) = T (β_0 + (β_1 - β_0) t): the VP SDE with β_min = 0.1 and β_max = 20."""
    time_map = LinearBeta()
    for t in INNER:
        integral = 0.1 * t + 0.5 * (20.0 - 0.1) * t * t
        assert math.log(alpha_bar(time_map.log_snr(t))) == pytest.approx(-integral, rel=1e-9)


def test_linear_beta_is_close_to_the_discrete_chain() -> None:
    """λ differs by less than 0.1 at each of DDPM's 1000 steps, by less than 0.016 from step 50 to step 500."""
    continuous, discrete = LinearBeta(), TabulatedBetas(DDPM_BETAS)
    gaps = [abs(continuous.log_snr(i / 1000) - discrete.log_snr(i / 1000)) for i in range(1, 1001)]
    assert max(gaps) < 0.1
    assert max(gaps[49:500]) < 0.016


@pytest.mark.parametrize("offset", [0.008, 0.0, 0.1])
def test_cosine_is_the_papers_formula(offset: float) -> None:
    """ᾱ = f(t) / f(0), f(t) = cos²((t + s) / (1 + s) · π/2): equation 17 of arXiv 2102.09672."""

    def f(t: float) -> mpmath.mpf:
        return mpmath.cos((mpmath.mpf(t) + offset) / (1 + mpmath.mpf(offset)) * mpmath.pi / 2) ** 2

    with mpmath.workdps(50):
        for t in INNER:
            expected = f(t) / f(0)
            assert Cosine(offset).log_snr(t) == pytest.approx(float(mpmath.log(expected / (1 - expected))), rel=1e-9)
    assert Cosine(offset).log_snr(1.0) == -math.inf


@pytest.mark.parametrize(("start", "end", "tau"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.3), (-3.0, 3.0, 1.1), (-3, 3, 0.1)])
def test_sigmoid_is_the_papers_formula(start: float, end: float, tau: float) -> None:
    """γ(t) = (σ(end/τ) - σ((t (end - start) + start)/τ)) / (σ(end/τ) - σ(start/τ)): arXiv 2212.11972's code."""

    def logistic(x: mpmath.mpf) -> mpmath.mpf:
        return 1 / (1 + mpmath.exp(-x / mpmath.mpf(tau)))

    with mpmath.workdps(80):
        for t in INNER:
            here = logistic(mpmath.mpf(t) * (end - start) + start)
            gamma = (logistic(mpmath.mpf(end)) - here) / (logistic(mpmath.mpf(end)) - logistic(mpmath.mpf(start)))
            expected = float(mpmath.log(gamma / (1 - gamma)))
            assert Sigmoid(start, end, tau).log_snr(t) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_flow_is_the_straight_path() -> None:
    for t in INNER:
        assert math.exp(-0.5 * Flow().log_snr(t)) == pytest.approx(t / (1 - t), rel=1e-9)


def test_linear_log_snr_covers_edms_range() -> None:
    time_map = LinearLogSnr(12.429216, -8.764053)
    assert math.exp(-0.5 * time_map.log_snr(0.0)) == pytest.approx(0.002, rel=1e-6)
    assert math.exp(-0.5 * time_map.log_snr(1.0)) == pytest.approx(80.0, rel=1e-6)


@pytest.mark.parametrize("shift", [0.5, 3.0, 6.0])
def test_a_shifted_flow_is_stable_diffusion_3s_timestep_shift(shift: float) -> None:
    """t' = s t / (1 + (s - 1) t): equation 23 of arXiv 2403.03206."""
    for t in INNER:
        moved = shift * t / (1 + (shift - 1) * t)
        assert Shifted(Flow(), shift).log_snr(t) == pytest.approx(Flow().log_snr(moved), rel=1e-9, abs=1e-9)


def test_a_shifted_cosine_is_simple_diffusions_resolution_shift() -> None:
    """log SNR at 256² with reference 64²: λ + 2 ln(64 / 256), arXiv 2301.11093."""
    for t in INNER:
        expected = Cosine().log_snr(t) + 2 * math.log(64 / 256)
        assert Shifted(Cosine(), 256 / 64).log_snr(t) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LinearBeta(beta_start=0.0), "beta_start=0.0"),
        (lambda: LinearBeta(beta_end=1.0), "beta_end=1.0"),
        (lambda: LinearBeta(0.02, 0.01), "0.0001 and 0.02"),
        (lambda: LinearBeta(timesteps=0), "1,000,000"),
        (lambda: LinearBeta(beta_start=math.nan), "nan"),
        (lambda: Cosine(offset=-0.1), "0.008"),
        (lambda: Sigmoid(start=3.0, end=-3.0), "below end"),
        (lambda: Sigmoid(tau=0.0), "tau"),
        (lambda: Sigmoid(tau=0.01), "at most 200"),
        (lambda: LinearLogSnr(-1.0, 1.0), "below log_snr_max"),
        (lambda: LinearLogSnr(math.inf, 0.0), "finite"),
        (lambda: TabulatedBetas([]), "not 0"),
        (lambda: TabulatedBetas([1.0]), "not 1.0"),
        (lambda: TabulatedBetas([0.1, 1.0, 0.2]), "not 1.0"),
        (lambda: Shifted(Flow(), 0.0), "1 means none"),
        (lambda: Truncated(Flow(), -math.inf), "finite"),
        (lambda: Truncated(LinearLogSnr(5.0, -5.0), 6.0), "no part"),
    ],
)
def test_bad_arguments_are_refused_with_what_is_allowed(make: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        make()  # type: ignore[operator]


def test_half_precision_never_reaches_a_time_map() -> None:
    """The maps answer in float64 whatever the model's precision, since `scales` is asked on float64 times."""
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    assert LinearBeta().log_snr(t).dtype == torch.float64
