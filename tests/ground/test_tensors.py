"""Small arithmetic: the same function on floats and tensors, limits included, and shapes that broadcast by prefix."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from diff_diffusion.tensors import TensorSpec, expand, finite, maths, mean_flat

DOMAINS = {
    "sqrt": (0.0, 1e6),
    "sin": (-10.0, 10.0),
    "cos": (-10.0, 10.0),
    "sinh": (-100.0, 100.0),
    "log1p": (-0.999, 1e9),
    "log": (0.0, 1e9),
    "exp": (-750.0, 1e4),
    "expm1": (-750.0, 1e4),
    "sigmoid": (-745.0, 1e4),
    "softplus": (-745.0, 1e4),
}


def test_every_function_is_tried() -> None:
    own = {name for name in vars(maths(0.0)) if not name.startswith("_")}
    assert own == set(DOMAINS) | {"atan2", "clip"}
    assert own == {name for name in vars(maths(torch.zeros(1))) if not name.startswith("_")}


@pytest.mark.parametrize("name", DOMAINS)
@given(share=st.floats(0.0, 1.0))
@example(share=0.0)
@example(share=1.0)
def test_floats_and_tensors_agree(name: str, share: float) -> None:
    low, high = DOMAINS[name]
    x = low + (high - low) * share
    by_float = getattr(maths(x), name)(x)
    by_tensor = getattr(maths(torch.tensor(x)), name)(torch.tensor(x, dtype=torch.float64)).item()
    assert by_float == pytest.approx(by_tensor, rel=1e-13, abs=1e-300)


@given(x=st.floats(-50.0, 50.0))
@example(x=20.5)
def test_softplus_is_exact(x: float) -> None:
    """torch's own returns x above 20, which is wrong by 2e-9."""
    with mpmath.workdps(40):
        expected = float(mpmath.log(1 + mpmath.exp(x)))
    assert maths(x).softplus(x) == pytest.approx(expected, rel=1e-14)
    assert maths(torch.zeros(1)).softplus(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(
        expected, rel=1e-14
    )


def test_limits_are_values_not_errors() -> None:
    f = maths(0.0)
    assert f.log(0.0) == -math.inf
    assert f.exp(1e4) == f.expm1(1e4) == math.inf
    assert f.exp(-math.inf) == 0.0
    assert (f.sigmoid(math.inf), f.sigmoid(-math.inf)) == (1.0, 0.0)
    assert (f.softplus(math.inf), f.softplus(-math.inf)) == (math.inf, 0.0)
    assert f.clip(3.0, 0.0, 1.0) == 1.0


def test_expand_pads_a_prefix_of_the_shape() -> None:
    x = torch.zeros(2, 3, 4, dtype=torch.float32)
    assert expand(0.5, x) == 0.5
    for shape in [(), (2,), (2, 3), (2, 3, 4)]:
        expanded = expand(torch.ones(shape, dtype=torch.float64), x)
        assert isinstance(expanded, torch.Tensor)
        assert expanded.shape == (*shape, *[1] * (3 - len(shape)))
        assert expanded.dtype == torch.float32


def test_mean_flat_is_a_mean_per_sample() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(mean_flat(x), torch.tensor([5.5, 17.5]))


def test_a_spec_reads_as_a_shape_and_a_range() -> None:
    assert str(TensorSpec((3, 8, 8), 0.0, 255.0)) == "[3, 8, 8] in [0, 255]"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_seen(bad: float) -> None:
    x = torch.zeros(3, 1000)
    assert finite(x)
    x[2, 617] = bad
    assert not finite(x)


def test_infinities_that_cancel_are_seen_and_a_sum_that_overflows_is_finite() -> None:
    assert not finite(torch.tensor([math.inf, -math.inf]))
    assert finite(torch.full((10,), 3e38))
    assert finite(torch.zeros(0))
    assert finite(torch.tensor([True, True]))
