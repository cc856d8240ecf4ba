"""The U-Net's own: what it refuses, its padding, its attention, its dropout."""

from __future__ import annotations

import pytest
import torch

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.attention import CrossAttention, ImageAttention
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
        ({"token_width": -1, "attention": (2,)}, "token_width must be from 0 to 65536, not -1"),
        ({"group_width": 0}, "group_width must be from 1 to 4096, not 0"),
        ({"token_width": 4}, r"token_width is 4 and nothing attends: name at least one of \[1, 2\] in attention"),
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


def test_channels_are_normed_in_groups_of_a_width() -> None:
    """Or a little more where that divides them, or all; without a width in at most 32 groups of 4 or more."""
    sizes = {"channels": 1, "width": 40, "multipliers": (1, 4), "depth": 1, "attention": ()}

    def widths(**more: int) -> dict[int, int]:
        norms = [m for m in UNet(**sizes, **more).modules() if isinstance(m, torch.nn.GroupNorm)]  # type: ignore[arg-type]
        return {norm.num_channels: norm.num_channels // norm.num_groups for norm in norms}

    assert widths() == {40: 5, 80: 5, 160: 5, 200: 25, 320: 10}
    assert widths(group_width=16) == {40: 20, 80: 16, 160: 16, 200: 20, 320: 16}
    assert set(widths(group_width=400).items()) == {(channels, channels) for channels in widths()}


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_see_channels_last_and_callers_do_not(channels: int) -> None:
    network = UNet(**(SMALL | {"channels": channels}))  # type: ignore[arg-type]
    inside = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m is not network.enter]
    seen: list[bool] = []
    for module in inside:
        module.register_forward_pre_hook(
            lambda _, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
        )
    assert network(Noise([1]).normal((1, channels, 7, 5)), torch.zeros(1)).is_contiguous()
    assert seen == [True] * len(inside)


def test_places_attend_to_tokens_wherever_they_attend_to_one_another() -> None:
    """After it, in the middle too; and without tokens the network is the one it is without a token width."""
    sizes = SMALL | {"multipliers": (1, 2, 2), "attention": (2,), "depth": 2}
    plain, reads = UNet(**sizes), UNet(**sizes, token_width=5)  # type: ignore[arg-type]
    kinds = [type(module) for module in reads.modules() if isinstance(module, CrossAttention | ImageAttention)]
    assert kinds == [ImageAttention, CrossAttention] * (2 + 1 + 3)
    ours = {name for name in reads.state_dict() if name not in plain.state_dict()}
    cross = [name for name, module in reads.named_modules() if isinstance(module, CrossAttention)]
    assert ours == {f"{name}.{own}" for name in cross for own in reads.get_submodule(cross[0]).state_dict()}
    torch.nn.init.normal_(reads.leave.weight)
    plain.load_state_dict({name: value for name, value in reads.state_dict().items() if name not in ours})
    x = Noise([1, 2]).normal((2, 1, 8, 8))
    assert torch.equal(reads(x, torch.zeros(2)), plain(x, torch.zeros(2)))


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
