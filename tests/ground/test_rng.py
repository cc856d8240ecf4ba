"""Noise is a pure function of (seed of the sample, stream, step): frozen, independent, and of the right law."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise, derive, generator

NORMAL_0 = [0.01914774626493454, 0.2668592929840088, 2.0623881816864014, 0.24196596443653107]
NORMAL_LAST = [0.8882692456245422, 0.052770551294088364]
UNIFORM_7 = [0.36875724234090046, 0.14849136686222997]
DERIVED = 39985987035168720
INTEGERS = [596, 587, 544, 682]


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
