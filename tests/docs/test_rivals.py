"""The rivals of the comparison are what they are said to be: their losses by closed forms, and their sizes."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diff_diffusion import ImageDataset

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def rivals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rivals")


class Line(nn.Module):
    """A critic with a slope that is known: w · x."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ self.weight)[:, None]


def test_the_gans_losses_of_a_linear_critic(rivals):
    gan = rivals.Gan((1, 8, 8), 8, gamma=0.7)
    gan.critic = Line(torch.linspace(-0.1, 0.2, 64))
    real, z = torch.randn(5, 1, 8, 8), torch.randn(5, rivals.LATENT)
    fake = gan.generator(z).detach()
    gap = ((fake - real).flatten(1) @ gan.critic.weight).detach()
    slope = float((gan.critic.weight.detach() ** 2).sum())
    critics = torch.log1p(gap.exp()).mean() + 0.7 / 2 * (slope + slope)
    assert torch.isclose(gan._critics(real, z), critics, rtol=1e-5)
    assert torch.isclose(gan._generators(real, z), torch.log1p((-gap).exp()).mean(), rtol=1e-5)


def test_each_loss_teaches_its_own_part(rivals):
    """The generator's loss moves no weight of the critic, nor the critic's one of the generator."""
    gan = rivals.Gan((1, 8, 8), 8, gamma=1.0)
    data = ImageDataset.from_arrays(np.random.default_rng(0).integers(0, 256, (8, 8, 8), np.uint8))
    for moved, kept in ((0, 1), (1, 0)):
        before = [[weight.clone() for weight in part.parameters()] for part in gan.parts()]
        losses = gan.losses(torch.randn(4, 1, 8, 8), torch.Generator().manual_seed(0))
        losses[moved]().backward(inputs=list(gan.parts()[moved].parameters()))
        assert all(weight.grad is not None for weight in gan.parts()[moved].parameters())
        assert all(weight.grad is None for weight in gan.parts()[kept].parameters())
        gan.zero_grad(set_to_none=True)
        assert all(torch.equal(*pair) for pair in zip(before[kept], gan.parts()[kept].parameters(), strict=True))
    steps = iter([False, False, True])
    assert rivals.fit(gan, data, 4, 1e-3, 0, lambda: next(steps)) == (3, False)


def test_the_vaes_bound_is_the_best_over_every_variance(rivals):
    vae = rivals.Vae((1, 8, 8), 8)
    real, eps = torch.rand(6, 1, 8, 8) * 2 - 1, torch.randn(6, rivals.LATENT)
    mean, log_var = vae.encoder(real).detach().double().chunk(2, 1)
    drawn = vae.generator((mean + (log_var / 2).exp() * eps).float()).detach()
    posterior = torch.distributions.Normal(mean, (log_var / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    divergence = float(torch.distributions.kl_divergence(posterior, prior).sum(1).mean())
    squared = float(((drawn - real) ** 2).flatten(1).sum(1).mean())
    variances = [math.exp(x / 1000) for x in range(-5000, 5000)]
    best = min(32 * math.log(v) + squared / (2 * v) for v in variances)
    assert math.isclose(float(vae._bound(real, eps).detach()), best - 32 + divergence, rel_tol=1e-5)


@pytest.mark.parametrize("side", [8, 28])
def test_all_have_as_many_parameters(rivals, side):
    generators = importlib.import_module("generators")
    images = np.random.default_rng(0).integers(0, 256, (4, side, side), np.uint8)
    data = ImageDataset.from_arrays(images)
    sizes = [generators.count(generators.made(name, data, 0)) for name in generators.PARTS]
    assert max(sizes) / min(sizes) < 1.05
