"""The U-Net's own: what it refuses, its padding, its attention, its dropout."""

from __future__ import annotations

import pytest
import torch

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.attention import ImageAttention, attend
from diff_diffusion.networks.embeddings import LogSnrEmbedding
from diff_diffusion.networks.unet import UNet
from diff_diffusion.rng import Noise

SMALL = {"channels": 1, "width": 8, "multipliers": (1, 2), "depth": 1, "attention": (), "head_width": 8}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": 0}, "channels must be from 1"),
        ({"width": 0}, "width must be from 8"),
        ({"width": 12}, "multiple of 8"),
        ({"multipliers": ()}, "number of multipliers must be from 1"),
        ({"multipliers": (1,) * 9}, "to 8, not 9"),
        ({"multipliers": (1, 0)}, "multiplier 0"),
        ({"depth": 0}, "depth must be from 1"),
        ({"depth": 10**9}, "depth must be from 1 to 32"),
        ({"attention": (4,)}, r"attention at \[4\].*downsample by \[1, 2\]"),
        ({"attention": (2,), "head_width": 0}, "head_width"),
        ({"cond_width": -1}, "cond_width"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        UNet(**(SMALL | change))  # type: ignore[arg-type]


def test_a_size_that_fits_is_not_padded() -> None:
    """Padding with zeros and cropping is what an odd size gets: the same as padding by hand."""
    torch.manual_seed(0)
    network = UNet(**SMALL)  # type: ignore[arg-type]
    torch.nn.init.normal_(network.leave.weight)
    x = Noise([1]).normal((1, 1, 7, 5))
    by_hand = network(torch.nn.functional.pad(x, (0, 1, 0, 1)), torch.zeros(1))[..., :7, :5]
    assert torch.equal(network(x, torch.zeros(1)), by_hand)


def test_attention_is_softmax_attention() -> None:
    """softmax(q kᵀ / √d) v, head by head."""
    q, k, v = Noise(range(3)).normal((3, 2, 5, 6)).double().unbind(0)
    expected = torch.empty(2, 5, 6, dtype=torch.float64)
    for head in (slice(0, 3), slice(3, 6)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / 3**0.5
        expected[..., head] = scores.softmax(-1) @ v[..., head]
    assert torch.allclose(attend(q, k, v, heads=2), expected, rtol=1e-10)


def test_attention_starts_as_the_identity_and_mixes_places() -> None:
    torch.manual_seed(0)
    attention = ImageAttention(8, 4, torch.nn.GroupNorm(2, 8))
    x = Noise([1]).normal((1, 8, 3, 5))
    assert torch.equal(attention(x), x)
    torch.nn.init.normal_(attention.out.weight)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(attention(x)[0, :, 0, 0].sum(), x)
    assert (gradient[0].abs().sum(0) > 0).all()


def test_attention_keeps_each_place_at_its_place() -> None:
    """Permuting the places of the input permutes the output: no axis is mixed up on the way to tokens and back."""
    torch.manual_seed(0)
    attention = ImageAttention(8, 4, torch.nn.GroupNorm(2, 8)).double()
    torch.nn.init.normal_(attention.out.weight)
    x = Noise([1]).normal((1, 8, 3, 5)).double()
    flipped = attention(x.flip(2, 3))
    assert torch.allclose(flipped.flip(2, 3), attention(x), rtol=1e-10, atol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    network = UNet(**(SMALL | {"dropout": 0.5}))  # type: ignore[arg-type]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, log_snr = Noise([1]).normal((1, 1, 8, 8)), torch.zeros(1)
    assert not torch.equal(network(x, log_snr), network(x, log_snr))
    network.eval()
    assert torch.equal(network(x, log_snr), network(x, log_snr))


def test_the_level_embedding_is_told_apart_at_any_two_levels() -> None:
    """From a fortieth of the range to all of it, no two levels look alike."""
    torch.manual_seed(0)
    embedding = LogSnrEmbedding(32, 16)
    out = embedding(torch.linspace(-20.0, 20.0, 161))
    distance = torch.cdist(out, out) + 1e9 * torch.eye(161)
    assert distance.min() > 1e-3
    assert out.shape == (161, 16)
