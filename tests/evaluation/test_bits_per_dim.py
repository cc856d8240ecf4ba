"""Bits per dimension of whole models: a network that outputs 0 under target v is exactly the model of white noise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from diff_diffusion.cli.app import app
from diff_diffusion.core.likelihood import Bins
from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.errors import ConfigError
from diff_diffusion.evaluation.likelihood import bits_per_dim
from diff_diffusion.models import DiffusionModel
from diff_diffusion.sizing import describe_for_data

VALUES = 17  # the digits' grey values


def white(side: int = 8) -> tuple[DiffusionModel, ImageDataset]:
    """The model N(0, 1) of digits' latents, as every fresh network with target v is; and held-out images."""
    data = load_image_dataset("digits", size=side)
    description = describe_for_data(data.split()[0])
    description["recipe"]["target"] = {"type": "target/linear", "row": "v"}
    return DiffusionModel.from_description(description), data.split()[1]


def expected_bits(model: DiffusionModel, images: Tensor) -> float:
    """-log2 of a bin's width times N(x + u; 0, 1), averaged over the bin, u uniform, and over the pixels."""
    low, high = model.codec.bounds
    x_0, width = model.codec.encode(images).double(), (high - low).double() / (VALUES - 1)
    nats = 0.5 * (x_0**2 + width**2 / 12) + 0.5 * math.log(2 * math.pi) - torch.log(width)
    return nats.mean().item() / math.log(2)


def expected_bound(model: DiffusionModel, images: Tensor, log_snr: float) -> float:
    """With x̂_0 = α x_t an ε̂ is wrong by α² ε - α σ x_0: ½ ∫ (α⁴ + α² σ² x_0²) dλ = ½ (ln(1 + e^λ) + (x_0² - 1) α²), and
    then the value is read off from N(α x_t, σ²/α²), whose expectation over ε is by Gauss-Hermite quadrature."""
    low, high = model.codec.bounds
    x_0, bins = model.codec.encode(images).double(), Bins((high - low) / (VALUES - 1), low, high)
    alpha2 = 1 / (1 + math.exp(-log_snr))
    levels = 0.5 * (math.log1p(math.exp(log_snr)) + (x_0**2 - 1) * alpha2)
    places, weights = np.polynomial.hermite_e.hermegauss(40)
    reading = torch.zeros_like(x_0)
    for place, weight in zip(places, weights / weights.sum(), strict=True):
        guess = alpha2 * x_0 + math.sqrt(alpha2 * (1 - alpha2)) * place
        reading -= weight * bins.log_probability(x_0, guess, math.exp(-0.5 * log_snr))
    return (levels + reading).mean().item() / math.log(2)


def rows(data: ImageDataset, num: int) -> list[int]:
    return torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:num].tolist()


def test_both_ways_find_the_closed_form() -> None:
    model, data = white()
    bound = bits_per_dim(model, data, num=64, values=VALUES, num_levels=192)
    assert bound.n == 64
    low, high = model.codec.bounds
    half_a_bin = 0.5 * float(((high - low) / (VALUES - 1)).min())
    assert math.exp(-0.5 * bound.log_snr_max) == pytest.approx(half_a_bin, rel=1e-6)  # σ/α where values are read off
    images = data.batch(rows(data, 64))
    assert bound.bits == pytest.approx(expected_bound(model, images, bound.log_snr_max), abs=0.03)
    assert bound.parts is not None
    assert bound.levels is not None
    assert sum(bound.parts.values()) == pytest.approx(bound.bits, rel=1e-9)
    assert sum(bits for _, bits in bound.levels) == pytest.approx(bound.parts["levels"], rel=1e-9)
    ode = bits_per_dim(model, data, method="ode", num=2, values=VALUES, num_steps=8)
    assert ode.bits == pytest.approx(expected_bits(model, data.batch(rows(data, 2))), abs=0.03)
    assert ode.parts is None


def test_large_images_take_hutchinsons_estimate() -> None:
    """A linear flow's divergence is the same for every probe of signs, so here the estimate is exact."""
    model, data = white(16)
    found = bits_per_dim(model, data, method="ode", num=4, values=VALUES, num_steps=16)
    assert found.bits == pytest.approx(expected_bits(model, data.batch(rows(data, 4))), abs=0.03)
    assert bits_per_dim(model, data, method="ode", num=4, values=VALUES, num_steps=16) == found


def test_what_cannot_be_measured_is_refused() -> None:
    model, data = white()
    for wrong in ({"method": "vlb"}, {"num": 0}, {"values": 1}):
        with pytest.raises(ConfigError, match=r"bound, ode|at least 1|from 2"):
            bits_per_dim(model, data, **wrong)  # type: ignore[arg-type]


def test_the_command_says_bits_and_their_error(tmp_path: Path) -> None:
    model, _ = white()
    model.save(tmp_path / "model")
    arguments = ["likelihood", str(tmp_path / "model"), "digits", "-n", "16", "--values", str(VALUES)]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    assert "bits per dimension" in told.output
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(as_json.stdout)
    assert found["n"] == 16
    assert found["values"] == VALUES
    assert 2.0 < found["bits"] < 8.0
    assert len(found["levels"]) == 64
