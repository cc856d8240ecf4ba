"""Noise is a pure function of (seed of the sample, stream, step): frozen, independent, and of the right law."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise, derive, generator

NORMAL_0 = [0.01914774626493454, 0.2668592929840088, 2.0623881816864014, 0.24196596443653107]
NORMAL_LAST = [0.8882692456245422, 0.052770551294088364]
UNIFORM_7 = [0.36875724234090046, 0.14849136686222997]
DERIVED = 39985987035168720
INTEGERS = [596, 587, 544, 682]
INCREMENTS = [-1.7259496450424194, -1.0548951625823975, -0.6034335494041443]


def test_the_numbers_are_frozen() -> None:
    """Seeds stored with samples must give those samples in ten years. If this fails, the change breaks them."""
    assert Noise([0]).normal((1, 4)).tolist()[0] == NORMAL_0
    assert Noise([2**64 - 1], "train", 3).normal((1, 2)).tolist()[0] == NORMAL_LAST
    assert Noise([7]).fork("level").uniform((1, 2)).tolist()[0] == UNIFORM_7
    assert derive(5, "order", 2) == DERIVED
    assert generator(5, "order", 2).integers(0, 1000, 4).tolist() == INTEGERS


@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    stream=st.sampled_from(["", "sample", "train/eps", "噪声"]),
    step=st.integers(0, 10**6),
)
def test_a_sample_does_not_depend_on_its_batch(seeds: list[int], stream: str, step: int) -> None:
    batch = Noise(seeds, stream, step)
    for draw in ("normal", "uniform"):
        together = getattr(batch, draw)((len(seeds), 3, 2))
        for i, seed in enumerate(seeds):
            assert torch.equal(getattr(Noise([seed], stream, step), draw)((1, 3, 2))[0], together[i])
            assert torch.equal(getattr(batch[i : i + 1], draw)((1, 3, 2))[0], together[i])


def test_repeating_a_draw_repeats_it() -> None:
    noise = Noise([1, 2], step=4)
    assert torch.equal(noise.normal((2, 5)), noise.normal((2, 5)))


def test_steps_never_run_into_each_other() -> None:
    """However many numbers a step draws, the next step's are others; a longer draw begins with the shorter."""
    assert torch.equal(Noise([3]).normal((1, 8))[:, :5], Noise([3]).normal((1, 5)))
    long = Noise([3]).normal((1, 100_000))
    assert not torch.isin(Noise([3], step=1).normal((1, 50)), long).any()


def test_seeds_streams_and_steps_all_differ() -> None:
    draws = [
        Noise([seed], stream, step).normal((1, 6))[0]
        for seed in (0, 1, 2**32, 2**63)
        for stream in ("sample", "train", "sample/eps", "sample/level")
        for step in (0, 1, 2, 2**32)
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)


def test_fork_and_at_name_their_place() -> None:
    noise = Noise([1], "train", 9)
    assert noise.fork("eps") == Noise([1], "train/eps", 9)
    assert noise.at(2) == Noise([1], "train", 2)
    assert noise.fork("a/b") == noise.fork("a").fork("b")
    assert len(Noise(range(5))) == 5
    assert list(Noise(range(5))[1:3].seeds) == [1, 2]


def test_numbers_of_many_seeds_are_standard_normal_and_uniform() -> None:
    """20,000 seeds, one number each: the law holds across seeds, which is how a batch uses it."""
    count = 20_000
    normal = Noise(range(count)).normal((count, 2)).double()
    assert stats.kstest(normal[:, 0].numpy(), "norm").pvalue > 0.01
    assert normal.mean().item() == pytest.approx(0.0, abs=5 / (2 * count) ** 0.5)
    assert normal.var().item() == pytest.approx(1.0, abs=5 * (1 / count) ** 0.5)
    uniform = Noise(range(count)).uniform((count,))
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 0.01
    assert uniform.min() >= 0.0
    assert uniform.max() < 1.0


def test_neighbours_are_uncorrelated() -> None:
    """Seeds i and i + 1, steps i and i + 1, two streams: no correlation above 5 / √n of 20,000 numbers."""
    shape = (1, 20_000)
    base = Noise([11]).normal(shape)[0]
    others = [Noise([12]), Noise([11], step=1), Noise([11], "train"), Noise([11]).fork("eps")]
    for other in others:
        correlation = torch.stack([base, other.normal(shape)[0]]).corrcoef()[0, 1]
        assert abs(correlation.item()) < 5 / 20_000**0.5


def test_global_random_state_is_neither_read_nor_written() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    first = Noise([1, 2]).normal((2, 9)), Noise([1, 2]).uniform((2, 9)), generator(1, "a").random()
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    again = Noise([1, 2]).normal((2, 9)), Noise([1, 2]).uniform((2, 9)), generator(1, "a").random()
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[2] == again[2]


def test_dtypes_follow_the_tensor_they_are_for() -> None:
    noise = Noise([1])
    assert noise.normal((1, 2)).dtype == torch.float32
    assert noise.uniform((1, 2)).dtype == torch.float64
    half = noise.normal((1, 2), like=torch.zeros(1, dtype=torch.float16))
    assert half.dtype == torch.float16
    assert torch.equal(half, noise.normal((1, 2)).half())
    assert noise.normal((1, 2, 3)).shape == (1, 2, 3)
    assert noise.normal((1,)).shape == (1,)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed {seed} is out of range"):
        Noise([0, seed])


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_a_shape_for_another_number_of_samples_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="noise for 2 samples"):
        Noise([1, 2]).normal(shape)


def test_derived_seeds_differ_by_every_part_of_their_path() -> None:
    paths = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", 2), (0, 1, "a")]
    assert len({derive(*path) for path in paths}) == len(paths)
    assert all(0 <= derive(*path) < 2**64 for path in paths)


# ---- Brownian paths ------------------------------------------------------------------------------------------------


class Units(Noise):
    """Each draw is a direction of its own: what is made of draws then shows how, [number of draws] numbers."""

    def __init__(self, count: int, rows: dict[tuple[str, int], int] | None = None) -> None:
        super().__init__(range(count))
        object.__setattr__(self, "rows", {} if rows is None else rows)

    def normal(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        if self._increment is not None:
            return super().normal(shape, like)
        rows: dict[tuple[str, int], int] = self.__dict__["rows"]
        out = torch.zeros(tuple(shape), dtype=torch.float64)
        out[rows.setdefault((self.stream, self.step), len(rows))] = 1.0
        return out


def increments(noise: Noise, places: Sequence[float], leg: int = 0) -> Tensor:
    """The normal numbers of the steps between places τ on a path, [steps, len(noise)]."""
    path, shape = noise.path(leg, lambda t: 1.0 - t), (len(noise), 1)
    steps = [noise.at(i + 1, (path, 1.0 - a, 1.0 - b)) for i, (a, b) in enumerate(pairwise(places))]
    return torch.stack([step.normal(shape)[:, 0] for step in steps])


PLACES = st.lists(st.floats(1e-6, 1.0 - 1e-6), min_size=2, max_size=40, unique=True).map(sorted)


@given(places=PLACES)
def test_increments_of_any_grid_are_independent_and_standard_normal(places: list[float]) -> None:
    """Exactly: as sums of independent draws their covariance is the identity to rounding."""
    found = increments(Units(4000), places)
    assert torch.allclose(found @ found.T, torch.eye(len(found), dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_grid_that_goes_to_both_ends_and_one_of_tiny_steps() -> None:
    for places in ([0.0, 1.0], [0.0, 1e-12, 0.5, 1.0 - 1e-12, 1.0], [0.3 + 1e-13 * i for i in range(20)]):
        found = increments(Units(4000), places)
        assert torch.allclose(found @ found.T, torch.eye(len(found), dtype=torch.float64), rtol=0, atol=1e-9)


def test_two_grids_read_the_same_path() -> None:
    """A step's number is the sum of a finer grid's in its place, up to the two ends, each off by less than the bridge
    over half a step: correlation above 0.9, and 1 where the ends are dyadic."""
    rows: dict[tuple[str, int], int] = {}
    noise = Units(6000, rows)
    for ends, least in (([0.1, 0.37, 0.62, 0.9], 0.9), ([0.125, 0.25, 0.5, 0.875], 1.0 - 1e-12)):
        places = sorted({*(i / 97 for i in range(98)), *ends})
        coarse, fine = increments(noise, ends), increments(noise, places)
        for k, (a, b) in enumerate(pairwise(ends)):
            inside = [i for i, (c, d) in enumerate(pairwise(places)) if a <= c and d <= b]
            total = sum(fine[i] * ((places[i + 1] - places[i]) / (b - a)) ** 0.5 for i in inside)
            assert (coarse[k] @ total).item() >= least


def test_another_leg_is_another_path() -> None:
    found = torch.cat([increments(Units(200, rows), [0.1, 0.4, 0.9], leg) for rows in [{}] for leg in (0, 1)])
    assert torch.allclose(found @ found.T, torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_the_first_part_of_a_step_is_part_of_it() -> None:
    """√(whole) n = √(part) n_1 + √(rest) n_2, whether or not the part was asked for; asking twice changes nothing."""
    noise, shape = Units(300), (300, 1)
    path = noise.path(0, lambda t: 1.0 - t)
    step = noise.at(1, (path, 0.9, 0.5))
    part, whole, again = step.until(0.8).normal(shape), step.normal(shape), step.normal(shape)
    assert (part * part).sum().item() == pytest.approx(1.0)
    assert (whole * whole).sum().item() == pytest.approx(1.0)
    assert (part * whole).sum().item() == pytest.approx((0.1 / 0.4) ** 0.5)
    assert torch.equal(whole, again)


def test_increments_of_many_seeds_are_standard_normal_and_frozen() -> None:
    """The real numbers: 5,000 seeds, moments within 5 standard errors; and for ever the same."""
    count = 5_000
    found = increments(Noise(range(count)), [0.05, 0.31, 0.33, 0.8]).double()
    assert stats.kstest(found.flatten().numpy(), "norm").pvalue > 0.01
    assert torch.allclose(found.cov(), torch.eye(3, dtype=torch.float64), atol=5 * (2 / count) ** 0.5)
    assert found[:, 0].tolist() == pytest.approx(INCREMENTS, abs=1e-6)


def test_a_path_is_read_once_and_a_plain_noise_has_no_parts() -> None:
    noise = Noise([1])
    path = noise.path(0, lambda t: 1.0 - t)
    noise.at(2, (path, 0.5, 0.2)).normal((1, 2))
    with pytest.raises(ConfigError, match="in the order of its steps"):
        noise.at(1, (path, 0.9, 0.5)).normal((1, 2))
    with pytest.raises(ConfigError, match="along a path has parts"):
        noise.until(0.5)
    assert torch.equal(noise.at(2, (path, 0.5, 0.2)).fork("a").normal((1, 2)), noise.at(2).fork("a").normal((1, 2)))
