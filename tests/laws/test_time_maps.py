"""Laws of time maps: strictly decreasing, with an exact inverse, the same on floats and tensors, and they compose."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from law_examples import parts

from diff_diffusion.core.time_maps import Shifted, TimeMap, Truncated

times = st.floats(0.0, 1.0)
log_snrs = st.floats(-20.0, 20.0)
every_map = pytest.mark.parametrize("time_map", parts("time_map"))


def slope(time_map: TimeMap, t: float) -> float:
    """|dλ/dt|, by a difference small enough for the steep ends."""
    step = min(1e-6, 0.1 * t + 1e-12, 0.1 * (1.0 - t) + 1e-12)
    low, high = max(t - step, 0.0), min(t + step, 1.0)
    return abs(time_map.log_snr(low) - time_map.log_snr(high)) / (high - low)


def in_range(time_map: TimeMap, log_snr: float) -> float:
    return min(max(log_snr, time_map.log_snr(1.0)), time_map.log_snr(0.0))


@every_map
@given(t=times, gap=st.floats(-9.0, 0.0).map(lambda exponent: 10.0**exponent))
@example(t=0.0, gap=1e-9)
@example(t=1.0 - 1e-9, gap=1e-9)
def test_strictly_decreasing(time_map: TimeMap, t: float, gap: float) -> None:
    later = min(t + gap, 1.0)
    if later - t >= 0.5e-9:
        assert time_map.log_snr(t) > time_map.log_snr(later)


@every_map
@given(t=times)
@example(t=0.0)
@example(t=1.0)
@example(t=1e-9)
@example(t=1.0 - 1e-9)
def test_time_inverts_log_snr(time_map: TimeMap, t: float) -> None:
    assert time_map.time(time_map.log_snr(t)) == pytest.approx(t, rel=0, abs=1e-9)


@every_map
@given(log_snr=log_snrs)
@example(log_snr=-20.0)
@example(log_snr=20.0)
def test_log_snr_inverts_time(time_map: TimeMap, log_snr: float) -> None:
    """To 1e-9, and to what one rounding of t moves λ: near t = 1 of a steep map a float cannot say more."""
    wanted = in_range(time_map, log_snr)
    t = time_map.time(wanted)
    allowed = 1e-9 * max(abs(wanted), 1.0) + 4e-16 * slope(time_map, t)
    assert time_map.log_snr(t) == pytest.approx(wanted, rel=0, abs=allowed)


def close(floats: list[float], tensor: torch.Tensor) -> bool:
    """Equal to 1e-12, infinities in the same places."""
    assert tensor.dtype == torch.float64
    return all(
        a == b or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12) for a, b in zip(floats, tensor.tolist(), strict=True)
    )


@every_map
@given(ts=st.lists(times, min_size=1, max_size=4), values=st.lists(log_snrs, min_size=1, max_size=4))
@example(ts=[0.0, 1.0], values=[-math.inf, math.inf, -1e4, 1e4])
def test_floats_and_tensors_agree(time_map: TimeMap, ts: list[float], values: list[float]) -> None:
    assert close([time_map.log_snr(t) for t in ts], time_map.log_snr(torch.tensor(ts, dtype=torch.float64)))
    assert close([time_map.time(v) for v in values], time_map.time(torch.tensor(values, dtype=torch.float64)))


@every_map
def test_tensors_keep_their_shape(time_map: TimeMap) -> None:
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64).reshape(2, 3)
    assert time_map.log_snr(t).shape == (2, 3)
    assert torch.allclose(time_map.time(time_map.log_snr(t)), t, rtol=0, atol=1e-9)
    assert time_map.log_snr(t[0, 0]).shape == ()


@every_map
def test_ends(time_map: TimeMap) -> None:
    start, end = time_map.log_snr(0.0), time_map.log_snr(1.0)
    assert start > end
    assert start > -math.inf
    assert end < math.inf
    assert time_map.time(start) == pytest.approx(0.0, abs=1e-12)
    assert time_map.time(end) == pytest.approx(1.0, abs=1e-12)


@every_map
@pytest.mark.parametrize("beyond", [50.0, 700.0, 1e4, math.inf])
def test_a_level_out_of_range_gives_the_nearer_end(time_map: TimeMap, beyond: float) -> None:
    """Maps whose end is infinite come as near to it as a float says."""
    for log_snr, end in ((beyond, 0.0), (-beyond, 1.0)):
        t = time_map.time(log_snr)
        assert 0.0 <= t <= 1.0
        outside = log_snr >= time_map.log_snr(0.0) or log_snr <= time_map.log_snr(1.0)
        assert t == pytest.approx(end, abs=0.0 if outside else 1e-4)


@every_map
@given(t=times, a=st.floats(0.01, 100.0), b=st.floats(0.01, 100.0))
def test_shifts_compose(time_map: TimeMap, t: float, a: float, b: float) -> None:
    twice, once = Shifted(Shifted(time_map, a), b), Shifted(time_map, a * b)
    assert twice.log_snr(t) == pytest.approx(once.log_snr(t), rel=1e-12, abs=1e-12)
    log_snr = in_range(once, 3.0)
    assert twice.time(log_snr) == pytest.approx(once.time(log_snr), abs=1e-9)
    assert Shifted(time_map, 1.0).log_snr(t) == time_map.log_snr(t)


@every_map
@given(t=times, scale=st.floats(0.1, 10.0))
def test_a_shift_multiplies_the_noise_to_signal_ratio(time_map: TimeMap, t: float, scale: float) -> None:
    before, after = time_map.log_snr(t), Shifted(time_map, scale).log_snr(t)
    if abs(before) < 600.0:
        assert math.exp(-0.5 * after) == pytest.approx(scale * math.exp(-0.5 * before), rel=1e-9)


@every_map
@given(share=st.floats(0.05, 0.95), t=times)
def test_a_truncated_map_is_the_same_map_to_its_end(time_map: TimeMap, share: float, t: float) -> None:
    end = time_map.log_snr(share)
    cut = Truncated(time_map, end)
    assert cut.log_snr(1.0) == pytest.approx(end, rel=1e-9, abs=1e-9)
    assert cut.log_snr(0.0) == time_map.log_snr(0.0)
    assert cut.log_snr(t) == pytest.approx(time_map.log_snr(share * t), rel=1e-7, abs=1e-7)
    assert cut.time(end - 1.0) == 1.0


@every_map
def test_a_truncated_map_cannot_reach_beyond_its_map(time_map: Any) -> None:
    cut = Truncated(time_map, -1e3)
    lowest = time_map.log_snr(1.0)
    assert cut.log_snr(1.0) == pytest.approx(lowest) if math.isfinite(lowest) else cut.log_snr(1.0) < -60.0


@every_map
@pytest.mark.parametrize("t", [1.03e-3, 0.0314, 0.5001, 0.77003, 0.99993])
def test_the_slope_is_the_difference_quotient(time_map: TimeMap, t: float) -> None:
    step = 1e-7
    quotient = (time_map.log_snr(t + step) - time_map.log_snr(t - step)) / (2.0 * step)
    found = time_map.slope(torch.tensor([t, 0.5001], dtype=torch.float64))
    assert found[0].item() == pytest.approx(quotient, rel=1e-4)
    assert (found < 0).all()
