"""Bits per dimension of models on latents: an encoder that adds noise, a decoder that does nothing, p(z) = N(0, 1)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.codecs.bottleneck import Bottleneck, FiniteScalar, Gauss
from diff_diffusion.core.targets import LinearTarget
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import IncompatibleError
from diff_diffusion.evaluation.evaluate import evaluate
from diff_diffusion.evaluation.likelihood import _gauss_mass, _laplace_mass, bits_per_dim
from diff_diffusion.models import DiffusionModel
from diff_diffusion.presets import recipe

NOISE, MEAN, STD, WIDTH, VALUES = 0.2, 0.3, 1.5, 0.15, 64


class Itself(nn.Module):
    """z ~ N(x, NOISE²), decoded as z."""

    factor = 1

    def encode(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x, 2 * math.log(NOISE))], 1)

    def decode(self, z: Tensor) -> Tensor:
        return z


class White(nn.Module):
    """Says 0, which under target v is the model N(0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, log_snr: Tensor, cond: object = None) -> Tensor:
        return torch.zeros_like(x)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    draw = torch.Generator().manual_seed(0)
    return ImageDataset.from_arrays(torch.randint(60, 200, (96, 1, 6, 6), generator=draw).to(torch.uint8))


def on_latents(density: str = "laplace", width: float | None = WIDTH, bottleneck: Bottleneck | None = None):  # type: ignore[no-untyped-def]
    pixels = Affine((1, 6, 6), (130.0,), (50.0,))
    codec = Autoencoded(Itself(), bottleneck or Gauss(1), pixels, (MEAN,), (STD,), density, width)
    return DiffusionModel(White(), codec, replace(recipe("rectified_flow"), target=LinearTarget("v"))).eval()


def expected(images: Tensor, density: str, log_snr: float | None) -> float:
    """Each number's nats by quadrature over the encoder's noise, in bits; log_snr: where the bound reads z off."""
    x = ((images.double() - 130) / 50).flatten()[:, None]
    eps = torch.linspace(-7, 7, 2001, dtype=torch.float64)
    weight = torch.exp(-0.5 * eps**2) / torch.exp(-0.5 * eps**2).sum()
    z = x + NOISE * eps
    u = (z - MEAN) / STD
    rate = 0.5 * u**2 + 0.5 * math.log(2 * math.pi)
    if log_snr is not None:
        alpha2 = 1 / (1 + math.exp(-log_snr))
        rate = 0.5 * (math.log1p(math.exp(log_snr)) - log_snr + (u**2 - 1) * alpha2 + math.log(2 * math.pi))
        rate = rate + 0.5 * (alpha2 * (1 - alpha2) * u**2 + alpha2**2)
    known = -0.5 * (1 + math.log(2 * math.pi)) - math.log(NOISE / STD)
    cdf = torch.distributions.Laplace(0.0, 1.0).cdf if density == "laplace" else normal
    half = 0.5 * 255 / (VALUES - 1) / 50
    missed = -(x - z.clamp(-130 / 50, 125 / 50)).abs()  # on the side where a tail does not cancel
    mass = cdf((missed + half) / WIDTH) - cdf((missed - half) / WIDTH)
    return float(((rate + known - mass.log()) * weight).sum(1).mean()) / math.log(2)


def normal(x: Tensor) -> Tensor:
    """Its distribution; torch's own is 0 below -9."""
    return 0.5 * torch.special.erfc(-x / math.sqrt(2))


@pytest.mark.parametrize("density", ["laplace", "gauss"])
def test_both_ways_find_the_closed_form(data: ImageDataset, density: str) -> None:
    """And the bound's parts, in bits, are what it is made of."""
    model, held_out = on_latents(density), data.split()[1]
    images = held_out.batch(range(len(held_out)))
    how = {"num": len(held_out), "values": VALUES}
    found = [
        bits_per_dim(model, held_out, **how, num_levels=128, seed=seed)  # type: ignore[arg-type]
        for seed in range(6)
    ]
    log_snr = found[0].log_snr_max
    assert math.exp(-0.5 * log_snr) == pytest.approx(0.5 * NOISE / STD)
    error = (6 * len(held_out) * 36) ** -0.5  # of a mean of numbers whose nats spread by about 1
    mean = sum(each.bits for each in found) / len(found)
    assert mean == pytest.approx(expected(images, density, log_snr), abs=4 * error)
    assert found[0].parts is not None
    assert list(found[0].parts) == ["prior", "levels", "reconstruction", "decoding"]
    assert sum(found[0].parts.values()) == pytest.approx(found[0].bits, rel=1e-9)
    ode = [bits_per_dim(model, held_out, **how, method="ode", num_steps=8, seed=s).bits for s in range(6)]  # type: ignore[arg-type]
    assert sum(ode) / len(ode) == pytest.approx(expected(images, density, None), abs=4 * error)


def test_masses_of_a_bin_are_the_difference_of_the_distribution() -> None:
    """And far out, where that difference is nothing but rounding, the density times the bin."""
    missed, half = torch.tensor([0.0, 0.1, 0.3, 2.0, 40.0]).double(), torch.tensor(0.2).double()
    laws = {_laplace_mass: torch.distributions.Laplace(0.0, 1.0), _gauss_mass: torch.distributions.Normal(0.0, 1.0)}
    for mass, law in laws.items():
        cdf = law.cdf(missed + half) - law.cdf(missed - half)
        found = mass(missed, half)
        assert torch.allclose(found[:4], cdf.log()[:4], rtol=1e-9, atol=0)
        near = law.log_prob(missed[4] - half).item()
        assert near - 5 < found[4].item() < near


def test_what_has_no_density_is_refused_and_left_out_of_an_evaluation(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, why in (
        (on_latents(width=None), "does not say how near"),
        (codes(), "are codes, which have no density"),
    ):
        with pytest.raises(IncompatibleError, match=why):
            bits_per_dim(model, data.split()[1])
    monkeypatch.setattr(DiffusionModel, "fingerprint", lambda self: "these parts are not registered")
    found = evaluate(on_latents(width=None), data, 2, steps=2)
    assert found.bits is None
    assert any(line.startswith("no bits per dimension: this model's autoencoder") for line in found.warnings)
    assert evaluate(on_latents(), data, 2, steps=2).bits is not None


def codes() -> DiffusionModel:
    return on_latents(bottleneck=FiniteScalar((5,)))


def test_numbers_of_another_basis_are_refused(data: ImageDataset) -> None:
    """Of a codec that mixes pixels, no number has the data's even steps."""
    codec = Affine(data.shape, [0.0] * data.shape[0], [1.0] * data.shape[0])
    model = DiffusionModel(White(), codec, replace(recipe("ddim"), target=LinearTarget("v"), clip=False))
    assert math.isfinite(bits_per_dim(model, data, num=2, num_levels=4).bits)

    class Basis:
        """Says all that a codec says, and is none of the package's own."""

        def __getattr__(self, name: str) -> object:
            return getattr(codec, name)

    model.codec = Basis()  # type: ignore[assignment]
    with pytest.raises(IncompatibleError, match="what a Basis gives"):
        bits_per_dim(model, data, num=2, num_levels=4)
