"""Laws of Gaussian processes: scales, Chapman-Kolmogorov, and a reverse kernel that keeps every marginal.

Kernels are linear in what they are given, so their coefficients are read off exactly with zero and one inputs.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from law_examples import gaussians, parts

from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.time_maps import Flow, LinearLogSnr, TimeMap, Truncated
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.rng import Noise

NOISE = Noise([5])
PROBE = NOISE.normal((1, 1)).item()
ONE, ZERO = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)

every_process = pytest.mark.parametrize("process", gaussians())
few = settings(max_examples=10)  # for each of some 40 processes
times = st.floats(1e-4, 1.0)
pairs = st.tuples(times, times).map(sorted).filter(lambda pair: pair[1] - pair[0] > 1e-6)


def renoise_coefficients(process: Gaussian, s: float, t: float) -> tuple[float, float]:
    """x_t = k x_s + a n: (k, a)."""
    added = process.renoise(ZERO, s, t, NOISE).item()
    return process.renoise(ONE, s, t, NOISE).item() - added, added / PROBE


def reverse_coefficients(process: Gaussian, t: float, s: float, eta: float) -> tuple[float, float, float]:
    """x_s = A x_t + B x̂_0 + C n: (A, B, C)."""

    def step(x_t: torch.Tensor, x_0: torch.Tensor) -> float:
        return process.reverse(x_t, GaussianPosterior(x_0, 0.0), t, s, eta=eta, noise=NOISE).item()

    fresh = step(ZERO, ZERO)
    return step(ONE, ZERO) - fresh, step(ZERO, ONE) - fresh, fresh / PROBE


# ---- scales --------------------------------------------------------------------------------------------------------


@every_process
@few
@given(t=st.floats(0.0, 1.0))
@example(t=0.0)
@example(t=1.0)
def test_scales_satisfy_the_scaling_and_the_log_snr(process: Gaussian, t: float) -> None:
    alpha, sigma = process.scales(t)
    identity = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma, "sub_vp": alpha**2 + sigma}
    identity = identity[process.scaling]
    assert identity == pytest.approx(1.0, rel=1e-14)
    log_snr = process.time_map.log_snr(t)
    if abs(log_snr) < 600.0:
        assert 2.0 * math.log(alpha / sigma) == pytest.approx(log_snr, rel=1e-12, abs=1e-12)
    else:
        assert min(alpha, sigma) < 1e-100
    tensors = process.scales(torch.tensor([t], dtype=torch.float64))
    assert [scale.item() for scale in tensors] == pytest.approx([alpha, sigma], rel=1e-12, abs=1e-150)


@every_process
def test_the_prior_has_the_variance_of_unit_data(process: Gaussian) -> None:
    for t in (1.0, 0.7):
        alpha, sigma = process.scales(t)
        std = (process.prior((1, 1), NOISE, t) / PROBE).item()
        assert std == pytest.approx(math.sqrt(alpha**2 + sigma**2), rel=1e-6)
    assert torch.equal(process.prior((1, 1), NOISE), process.prior((1, 1), NOISE, 1.0))


# ---- forward -------------------------------------------------------------------------------------------------------


@every_process
@few
@given(t=st.floats(0.0, 1.0))
@example(t=0.0)
@example(t=1.0)
def test_marginal_is_alpha_x_0_plus_sigma_eps(process: Gaussian, t: float) -> None:
    alpha, sigma = process.scales(t)
    corrupted = process.marginal(2.0 * ONE, torch.tensor([t], dtype=torch.float64), NOISE)
    assert corrupted.x_t.item() == pytest.approx(2.0 * alpha + sigma * PROBE, rel=1e-12)
    assert corrupted.noise.item() == PROBE
    assert corrupted.x_0.item() == 2.0


@every_process
def test_marginal_takes_a_level_per_sample_or_per_frame(process: Gaussian) -> None:
    x_0 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    per_frame = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], dtype=torch.float64)
    both = process.marginal(x_0, per_frame, Noise([1, 2]))
    for i, j in ((0, 1), (1, 2)):
        one = process.marginal(x_0, per_frame[:, j], Noise([1, 2]))
        assert torch.allclose(both.x_t[i, j], one.x_t[i, j], rtol=1e-12)


@every_process
@few
@given(pair=pairs)
@example(pair=(1e-4, 1.0))
@example(pair=(0.5, 0.500002))
def test_chapman_kolmogorov(process: Gaussian, pair: tuple[float, float]) -> None:
    """renoise(marginal(x_0, s), s -> t) has the mean α_t x_0 and the variance σ_t² of marginal(x_0, t)."""
    s, t = pair
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.scales(s), process.scales(t)
    kept, added = renoise_coefficients(process, s, t)
    assert kept * alpha_s == pytest.approx(alpha_t, rel=1e-9, abs=1e-12)
    assert kept**2 * sigma_s**2 + added**2 == pytest.approx(sigma_t**2, rel=1e-9)


@every_process
def test_two_forward_steps_are_one(process: Gaussian) -> None:
    for s, m, t in [(0.1, 0.3, 0.8), (0.01, 0.02, 1.0), (0.4, 0.9, 0.95)]:
        first, second, whole = (renoise_coefficients(process, *pair) for pair in [(s, m), (m, t), (s, t)])
        assert first[0] * second[0] == pytest.approx(whole[0], rel=1e-10, abs=1e-14)
        variance = second[0] ** 2 * first[1] ** 2 + second[1] ** 2
        assert variance == pytest.approx(whole[1] ** 2, rel=1e-10)


def test_renoise_by_monte_carlo() -> None:
    """20,000 draws of s -> t from a fixed x_0: mean and variance of the marginal at t within 5 standard errors."""
    process, count = Gaussian(Flow(), "flow"), 20_000
    x_0 = torch.full((count, 1), 1.5, dtype=torch.float64)
    x_s = process.marginal(x_0, torch.full((count,), 0.3, dtype=torch.float64), Noise(range(count), "first")).x_t
    x_t = process.renoise(x_s, 0.3, 0.6, Noise(range(count), "second"))
    assert x_t.mean().item() == pytest.approx(0.4 * 1.5, abs=5 * 0.6 / count**0.5)
    assert x_t.var().item() == pytest.approx(0.36, abs=5 * 0.36 * (2 / count) ** 0.5)


# ---- reverse -------------------------------------------------------------------------------------------------------


@every_process
@few
@given(pair=pairs, eta=st.sampled_from([0.0, 0.5, 1.0]))
@example(pair=(0.5, 0.500002), eta=0.0)
@example(pair=(0.5, 0.500002), eta=0.5)
@example(pair=(1e-4, 1.0), eta=1.0)
def test_reverse_with_the_true_x_0_keeps_the_marginal(process: Gaussian, eta: float, pair: tuple[float, float]) -> None:
    """Given x_t ~ q(x_t | x_0) and x̂_0 = x_0, x_s is exactly q(x_s | x_0), for any eta."""
    s, t = pair
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.scales(s), process.scales(t)
    from_x, from_mean, fresh = reverse_coefficients(process, t, s, eta)
    assert from_x * alpha_t + from_mean == pytest.approx(alpha_s, rel=1e-9)
    assert from_x**2 * sigma_t**2 + fresh**2 == pytest.approx(sigma_s**2, rel=1e-9)
    if eta == 0.0:
        assert fresh == 0.0


@every_process
@few
@given(pair=pairs)
@example(pair=(1e-4, 1.0))
def test_eta_1_is_the_posterior_of_the_forward_chain(process: Gaussian, pair: tuple[float, float]) -> None:
    """q(x_s | x_t, x_0) by Bayes' rule from q(x_s | x_0) and the forward kernel x_t = k x_s + a n."""
    s, t = pair
    alpha_s, sigma_s = process.scales(s)
    sigma_t = process.scales(t)[1]
    kept, added = renoise_coefficients(process, s, t)
    from_x, from_mean, fresh = reverse_coefficients(process, t, s, 1.0)
    assert from_x == pytest.approx(kept * sigma_s**2 / sigma_t**2, rel=1e-6, abs=1e-12)
    assert from_mean == pytest.approx(alpha_s * added**2 / sigma_t**2, rel=1e-6, abs=1e-9)
    assert fresh**2 == pytest.approx(added**2 * sigma_s**2 / sigma_t**2, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("process", gaussians(finite=True))
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("variance", [0.3, 2.0])
def test_reverse_with_the_exact_posterior_reproduces_the_marginals_variance(
    process: Gaussian, eta: float, variance: float
) -> None:
    """Data N(0, v): x̂_0 = α v x / (α² v + σ²). 400 steps even in λ carry the variance to within 3% of α² v + σ²."""

    def exact(t: float) -> float:
        alpha, sigma = process.scales(t)
        return alpha**2 * variance + sigma**2

    high, low = process.time_map.log_snr(0.0), process.time_map.log_snr(1.0)
    times = [process.time_map.time(low + (high - low) * i / 400) for i in range(400)]
    carried = exact(times[0])
    for t, s in pairwise(times):
        alpha, _ = process.scales(t)
        from_x, from_mean, fresh = reverse_coefficients(process, t, s, eta)
        carried = (from_x + from_mean * alpha * variance / exact(t)) ** 2 * carried + fresh**2
        assert carried == pytest.approx(exact(s), rel=0.03)


@every_process
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_to_the_data_is_the_posterior_mean_without_noise(process: Gaussian, eta: float) -> None:
    mean = torch.tensor([[0.123], [4.5]])
    x_0 = process.reverse(torch.randn(2, 1), GaussianPosterior(mean, 0.0), 0.3, 0.0, eta=eta, noise=Noise([1, 2]))
    assert torch.equal(x_0, mean)


@pytest.mark.parametrize("time_map", [m for m in parts("time_map") if math.isinf(m.values[0].log_snr(1.0))])
@pytest.mark.parametrize("scaling", ["vp", "flow", "sub_vp"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_from_no_signal_is_the_marginal_of_the_held_x_0(time_map: TimeMap, scaling: str, eta: float) -> None:
    """At α = 0 the whole of x_t is noise: x_s = α_s x̂_0 + σ_s (√(1 - η²) x_t + η n)."""
    process = Gaussian(time_map, scaling)
    alpha_s, sigma_s = process.scales(0.8)
    expected = (sigma_s * math.sqrt(1 - eta**2), alpha_s, eta * sigma_s)
    assert reverse_coefficients(process, 1.0, 0.8, eta) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert process.decay(1.0, 0.8) == 0.0


@every_process
@few
@given(pair=pairs)
def test_decay_is_the_share_of_the_noise_to_signal_ratio_kept(process: Gaussian, pair: tuple[float, float]) -> None:
    s, t = pair
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.scales(s), process.scales(t)
    assert process.decay(t, s) == pytest.approx((sigma_s / alpha_s) * (alpha_t / sigma_t), rel=1e-9, abs=1e-30)
    assert process.decay(t, 0.0) == 0.0


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_map", [m for m in parts("time_map") if math.isinf(m.values[0].log_snr(1.0))])
def test_ve_with_an_infinite_end_is_refused_with_the_fix(time_map: TimeMap) -> None:
    with pytest.raises(IncompatibleError, match="Truncated"):
        Gaussian(time_map, "ve")
    Gaussian(Truncated(time_map, -10.0), "ve")


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(ConfigError, match="'vp', 've', 'flow', 'sub_vp'"):
        Gaussian(LinearLogSnr(), "vpp")


def test_a_stochastic_step_without_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise=Noise"):
        Gaussian(LinearLogSnr()).reverse(ONE, GaussianPosterior(ONE, 0.0), 0.9, 0.5, eta=0.5)
