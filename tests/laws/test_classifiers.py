"""Laws of classifiers: any size in, a score of each class out, no sample sees another, every weight learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from law_examples import descriptions
from torch import Tensor, nn

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.encoder import UNetEncoder
from diff_diffusion.registry import build
from diff_diffusion.rng import Noise

SMALL: dict[str, Any] = {"channels": 2, "num_classes": 3, "width": 8, "multipliers": (1, 2), "depth": 1,
                         "attention": (2,), "head_width": 8}  # fmt: skip


@pytest.fixture(params=descriptions("classifier"), ids=lambda d: d["type"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Every registered classifier's network, with every weight moved, so that nothing is zero any more."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    made: nn.Module = build(request.param)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def inputs(network: nn.Module, count: int = 3, size: tuple[int, int] = (6, 8)) -> tuple[Tensor, Tensor]:
    return Noise(range(count)).normal((count, network.channels, *size)), torch.linspace(-20.0, 20.0, count)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (2, 33)], ids=str)
def test_any_size_gives_a_score_of_each_class_that_all_of_it_has_a_part_in(
    network: nn.Module, size: tuple[int, int]
) -> None:
    x, log_snr = inputs(network, 2, size)
    x.requires_grad_()
    out = network(x, log_snr)
    assert out.shape == (2, network.num_classes)
    (gradient,) = torch.autograd.grad((out**2).sum(), x)
    assert (gradient != 0).all()


def test_all_places_count_alike(network: nn.Module) -> None:
    """What the last layer sees is an average over places, whatever their order."""
    x, log_snr = inputs(network)
    before = network(x, log_snr)
    network.norm.register_forward_hook(lambda _, given, out: out.flip(-1))
    assert torch.allclose(network(x, log_snr), before, atol=1e-5)


def test_double_precision_stays_double(network: nn.Module) -> None:
    x, log_snr = inputs(network)
    single = network(x, log_snr)
    double = network.double()(x.double(), log_snr)
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, rtol=1e-3, atol=1e-3)


def test_no_sample_sees_another(network: nn.Module) -> None:
    x, log_snr = inputs(network)
    before = network(x, log_snr)
    x[1], log_snr[1] = x[1] * 3.0 - 1.0, 7.0
    after = network(x, log_snr)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.allclose(after[1], before[1])


def test_every_parameter_learns_and_the_level_matters(network: nn.Module) -> None:
    x, log_snr = inputs(network)
    (network(x, log_snr) ** 2).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert (network(x, log_snr + 0.5) - network(x, log_snr)).abs().max() > 1e-3


def test_a_fresh_one_finds_all_classes_alike() -> None:
    fresh = UNetEncoder(**SMALL)
    assert torch.equal(fresh(*inputs(fresh)), torch.zeros(3, 3))


def test_dropout_drops_in_training_alone() -> None:
    made = UNetEncoder(**SMALL, dropout=0.5)
    nn.init.ones_(made.leave.weight)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, log_snr = inputs(made)
    assert not torch.equal(made.train()(x, log_snr), made(x, log_snr))
    assert torch.equal(made.eval()(x, log_snr), made(x, log_snr))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_classes": 0}, "num_classes must be from 1 to 1000000, not 0"),
        ({"width": 12}, "width must be a multiple of 8, not 12"),
        ({"multipliers": ()}, "the number of multipliers must be from 1 to 8, not 0"),
        ({"multipliers": (1, 65)}, "multiplier 65 must be from 1 to 64"),
        ({"attention": (4,)}, r"attention at \[4\]: this encoder's levels downsample by \[1, 2\]"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
    ],
    ids=str,
)
def test_sizes_out_of_range_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        UNetEncoder(**SMALL | change)
