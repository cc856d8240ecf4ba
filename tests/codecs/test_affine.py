"""The affine codec: per-channel statistics of the train split, exact and stored exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from diff_diffusion.codecs import Affine
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import build, describe

DATA = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 5, 4), np.uint8))


@pytest.mark.parametrize("pieces", [1, 3, 40])
def test_fit_is_numpys_mean_and_std(pieces: int) -> None:
    codec = Affine.fit(DATA.chunk(pieces))
    expected = DATA.numpy().astype(np.float64)
    assert list(codec.mean) == pytest.approx(expected.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert list(codec.std) == pytest.approx(expected.std((0, 2, 3)).tolist(), rel=1e-12)
    assert codec.shape == (3, 5, 4)


def test_encoded_data_have_mean_0_and_std_1() -> None:
    latent = Affine.fit([DATA]).encode(DATA).double()
    assert torch.allclose(latent.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6)
    assert torch.allclose(latent.std((0, 2, 3), correction=0), torch.ones(3).double(), rtol=1e-6)


def test_a_channel_that_never_changes_comes_back() -> None:
    data = DATA.clone()
    data[:, 1] = 7
    codec = Affine.fit([data])
    assert codec.std[1] == 1.0
    assert torch.equal(codec.encode(data)[:, 1], torch.zeros(40, 5, 4))
    assert torch.equal(codec.decode(codec.encode(data))[:, 1], torch.full((40, 5, 4), 7.0))


def test_it_is_stored_exactly() -> None:
    codec = Affine.fit([DATA / 3.0], low=-0.1, high=1 / 3)
    again = build(json.loads(json.dumps(describe(codec))))
    assert again == codec
    assert torch.equal(again.encode(DATA), codec.encode(DATA))


def test_decoded_values_are_clamped_to_the_range() -> None:
    codec = Affine((1, 2), [0.5], [2.0], low=0.0, high=1.0)
    assert codec.decode(torch.tensor([[[-9.0, 0.1]]])).tolist() == [[[0.0, pytest.approx(0.7)]]]
    assert codec.decode(torch.tensor([[[9.0, -0.1]]])).tolist() == [[[1.0, pytest.approx(0.3)]]]


def test_half_precision_latents_are_decoded_in_single() -> None:
    codec = Affine((1, 2), [100.0], [50.0])
    assert codec.decode(torch.zeros(1, 1, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (((), [], []), "1 to 8 sizes"),
        (((1, 0), [0.0], [1.0]), "1 to 8 sizes"),
        (((2, 4), [0.0], [1.0, 1.0]), "2 channels need"),
        (((1, 4), [0.0], [0.0]), "std above 0"),
        (((1, 4), [float("nan")], [1.0]), "finite"),
        (((1, 4), [0.0], [float("inf")]), "above 0"),
    ],
)
def test_bad_statistics_are_refused(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Affine(*arguments)  # type: ignore[arg-type]


def test_no_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="no data"):
        Affine.fit([])
