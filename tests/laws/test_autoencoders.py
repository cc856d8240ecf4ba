"""The convolutional autoencoder: shapes on one to three axes, what each place sees, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from law_examples import parts

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.autoencoder import ConvAutoencoder

every_autoencoder = pytest.mark.parametrize("network", parts("autoencoder"))


def data(network: Any, side: int = 8) -> torch.Tensor:
    shape = (3, network.channels, *[side] * network.dims)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@every_autoencoder
def test_every_size_is_made_smaller_by_the_factor_and_large_again(network: Any) -> None:
    x = data(network)
    codes = network.encode(x)
    assert codes.shape == (3, network.codes_out, *[8 // network.factor] * network.dims)
    assert network.decode(codes[:, : network.codes_in]).shape == x.shape


@every_autoencoder
def test_no_sample_sees_another_and_every_parameter_learns(network: Any) -> None:
    x = data(network)
    codes = network.encode(x)
    torch.testing.assert_close(codes[1:2], network.encode(x[1:2]), rtol=1e-4, atol=1e-5)
    decoded = network.decode(codes[:, : network.codes_in])
    (codes.pow(2).sum() + decoded.pow(2).sum()).backward()
    # A block ends in a convolution of zeros, which takes gradient first and passes it on after.
    silent = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    blocked = [name for name in silent if not any(part in name for part in ("conv_in", "norm", "qkv"))]
    assert not blocked, blocked


def test_without_attention_no_place_sees_farther_than_the_convolutions_reach() -> None:
    """So that what was trained on small images codes large ones, and tiles of them, the same way."""
    network = ConvAutoencoder(1, 2, 2, width=8, multipliers=(1, 2), depth=1).eval()
    for parameter in network.parameters():  # a fresh block is the identity, and would hide what it sees
        torch.nn.init.normal_(parameter, std=0.2)
    for norm in network.modules():
        if isinstance(norm, torch.nn.GroupNorm):
            norm.forward = lambda x: x  # type: ignore[method-assign]  # statistics are over all places
    x = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[..., -1] += 1.0
    changed = (network.encode(x) - network.encode(other)).abs().amax((0, 1, 2)) > 0
    assert bool(changed[-1])
    assert not bool(changed[:16].any())


def test_sizes_that_do_not_divide_are_refused_with_what_would() -> None:
    network = ConvAutoencoder(1, 2, 2, width=8, multipliers=(1, 1, 1))
    with pytest.raises(ConfigError, match=r"multiples of 4, not \[8, 6\]"):
        network.encode(torch.zeros(1, 1, 8, 6))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 12}, "multiple of 8, not 12"),
        ({"dims": 4}, "dims must be from 1 to 3, not 4"),
        ({"multipliers": ()}, "number of multipliers must be from 1 to 8, not 0"),
        ({"depth": 0}, "depth must be from 1 to 32, not 0"),
        ({"dims": 1, "attention": True}, "dims 2, not 1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ConvAutoencoder(1, 2, 2, **options)
