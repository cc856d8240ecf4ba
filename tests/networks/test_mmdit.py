"""MMDiT's own: the paper's size, its blocks by formula, where the text goes, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Embedded
from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.blocks import Block
from diff_diffusion.networks.embeddings import axial_angles
from diff_diffusion.networks.mmdit import JointBlock, LastBlock, MMDiT
from diff_diffusion.registry import build, describe
from diff_diffusion.rng import Noise

SMALL = {"channels": 1, "token_width": 3, "width": 16, "depth": 2, "heads": 2}


def made(**change: object) -> MMDiT:
    """A small MMDiT with no weight at zero, in evaluation mode."""
    torch.manual_seed(0)
    network = MMDiT(**(SMALL | change))  # type: ignore[arg-type]
    moved(network)
    return network.eval()


def moved(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))


def test_the_papers_size_has_its_released_parameters() -> None:
    """To the last one, the 2 028 328 000 of Stable Diffusion 3 medium, once the differences are undone.

    Depth 24, width 64 · 24, 24 heads; 16 latent channels, text of width 4096 and a vector of 2048. There the vector
    comes through an MLP, the last block makes queries of the text that nobody sees, and queries and keys have no gains.
    """
    depth, token_width, cond_width, channels, patch = 24, 4096, 2048, 16, 2
    d = 64 * depth
    with torch.device("meta"):
        network = MMDiT(
            channels, token_width, patch, d, depth, depth, cond_width=cond_width, positions="sincos"
        )  # fmt: skip
    count = sum(parameter.numel() for parameter in network.parameters())

    def linear(before: int, after: int) -> int:
        return before * after + after

    stream = linear(d, 6 * d) + linear(d, 3 * d) + linear(d, d) + linear(d, 4 * d) + linear(4 * d, d)
    gains = 2 * (d // depth)
    last_text = linear(d, 2 * d) + linear(d, 2 * d) + gains // 2
    level = linear(256, d) + linear(d, d)
    ends = linear(channels * patch**2, d) + linear(d, 2 * d) + linear(d, channels * patch**2)
    text, vector = linear(token_width, d), cond_width * d
    assert count == (2 * depth - 1) * (stream + gains) + last_text + level + ends + text + vector

    their_vector, their_queries = linear(cond_width, d) + linear(d, d), linear(d, d)
    our_gains = (2 * depth - 1) * gains + gains // 2
    assert count - vector + their_vector + their_queries - our_gains == 2_028_328_000


# ---- the blocks -----------------------------------------------------------------------------------------------------


def by_hand(block: Block, x: Tensor, emb: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys [heads, L, pairs], complex and turned, values [heads, L, D], and the rest of the modulation."""
    chunks = (emb @ block.modulation.weight.T + block.modulation.bias)[0].chunk(6)
    inner = (norm(x) * (1 + chunks[1]) + chunks[0]) @ block.qkv.weight.T + block.qkv.bias
    q, k, v = (
        part.reshape(-1, block.heads, part.shape[-1] // block.heads).transpose(0, 1) for part in inner.chunk(3, -1)
    )
    q, k = (complex_pairs(y, gain) * turn for y, gain in ((q, block.gain[0]), (k, block.gain[1])))
    return q, k, v, torch.stack(chunks[2:])


def norm(y: Tensor) -> Tensor:
    return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def complex_pairs(y: Tensor, gain: Tensor) -> Tensor:
    y = y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    return torch.complex(*y.chunk(2, -1))


def after_by_hand(block: Block, x: Tensor, mixed: Tensor, rest: Tensor) -> Tensor:
    gate_a, shift, scale, gate_m = rest
    x = x + gate_a * (mixed @ block.out.weight.T + block.out.bias)
    inner = (norm(x) * (1 + scale) + shift) @ block.mlp[0].weight.T + block.mlp[0].bias
    gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    return x + gate_m * (gelu @ block.mlp[3].weight.T + block.mlp[3].bias)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v of complex pairs, heads side by side: [L, width]."""
    scores = (q @ k.conj().transpose(1, 2)).real / math.sqrt(v.shape[-1])
    return torch.cat(list(scores.softmax(-1) @ v), -1)


@pytest.mark.parametrize("last", [False, True])
def test_a_block_is_the_papers_formula(last: bool) -> None:
    """Each stream's own modulation, matrices and MLP; one softmax over both; the image turned, the text as it is."""
    torch.manual_seed(0)
    block = (LastBlock if last else JointBlock)(8, 2, 16, 0.0).double()
    moved(block)
    noise = Noise([1])
    image, text, emb = (noise.fork(str(n)).normal((1, n, 8)).double() for n in (6, 3, 1))
    emb = emb[:, 0]
    angles = axial_angles(2, 3, 1, 100.0, torch.device("cpu")).double()
    q, k, v, rest = by_hand(block.image, image[0], emb, torch.exp(1j * angles))
    if isinstance(block, LastBlock):
        shift, scale = (emb @ block.modulation.weight.T + block.modulation.bias)[0].chunk(2)
        inner = (norm(text[0]) * (1 + scale) + shift) @ block.kv.weight.T + block.kv.bias
        k_text, v_text = (part.reshape(3, 2, 4).transpose(0, 1) for part in inner.chunk(2, -1))
        k_text = complex_pairs(k_text, block.gain)
        expected_text = text[0]
    else:
        q_text, k_text, v_text, rest_text = by_hand(block.text, text[0], emb, torch.ones(2))
    keys, values = torch.cat([k, k_text], 1), torch.cat([v, v_text], 1)
    if isinstance(block, JointBlock):
        expected_text = after_by_hand(block.text, text[0], softmax_attention(q_text, keys, values), rest_text)
    expected = after_by_hand(block.image, image[0], softmax_attention(q, keys, values), rest)
    out, out_text = block(image, text, emb, angles, None)
    assert torch.allclose(out[0], expected, rtol=1e-9)
    assert torch.allclose(out_text[0], expected_text, rtol=1e-9)


@pytest.mark.parametrize("cls", [JointBlock, LastBlock])
def test_a_fresh_block_is_the_identity(cls: type[JointBlock | LastBlock]) -> None:
    block = cls(8, 2, 16, 0.0)
    image, text = Noise([1, 2]).normal((2, 6, 8)), Noise([1, 2]).normal((2, 3, 8))
    out, out_text = block(image, text, torch.ones(2, 8), None, None)
    assert torch.equal(out, image)
    assert torch.equal(out_text, text)


def test_only_the_last_block_is_a_last_block() -> None:
    assert [type(block) for block in made(depth=3).blocks] == [JointBlock, JointBlock, LastBlock]
    assert [type(block) for block in made(depth=1).blocks] == [LastBlock]


def test_the_text_hears_of_the_image() -> None:
    """What separates this from attention to a fixed text: the first block's text changes with x."""
    network = made()
    seen: list[Tensor] = []
    network.blocks[0].register_forward_hook(lambda *called: seen.append(called[2][1]))
    cond = Embedded(tokens=Noise([1]).normal((1, 4, 3)))
    for i in range(2):
        network(Noise([i]).normal((1, 1, 4, 4)), torch.zeros(1), cond)
    assert (seen[0] - seen[1]).abs().max() > 1e-2


def test_the_whole_is_its_parts() -> None:
    """Level plus vector to every block, patches by loops, the text through a matrix of its own."""
    network = made(channels=2, cond_width=3).double()
    x, vector = Noise([1]).normal((1, 2, 4, 6)).double(), Noise([2]).normal((1, 3)).double()
    tokens = Noise([3]).normal((1, 5, 3)).double()
    mask = torch.tensor([[True, True, False, True, False]])
    log_snr = torch.tensor([-3.0])
    emb = network.level(log_snr) + vector @ network.cond.weight.T
    emb = emb * emb.sigmoid()
    patches = [x[0, :, i : i + 2, j : j + 2].flatten() for i in (0, 2) for j in (0, 2, 4)]
    image = (torch.stack(patches) @ network.enter.weight.T + network.enter.bias)[None]
    text = tokens[:, mask[0]] @ network.enter_text.weight.T + network.enter_text.bias
    angles = axial_angles(2, 3, 2, 100.0, torch.device("cpu"))
    for block in network.blocks:
        image, text = block(image, text, emb, angles, None)
    shift, scale = (emb @ network.modulation.weight.T + network.modulation.bias).chunk(2, dim=-1)
    left = ((norm(image) * (1 + scale) + shift) @ network.leave.weight.T + network.leave.bias).reshape(2, 3, 2, 2, 2)
    expected = torch.cat([torch.cat(list(row), dim=2) for row in left], dim=1)
    assert torch.allclose(network(x, log_snr, Embedded(vector, tokens, mask))[0], expected, rtol=1e-8)


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
def test_positions_tell_every_place_from_every_other(positions: str) -> None:
    network = made(positions=positions, patch=1)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 2] = 3.0
    cond = Embedded(tokens=Noise([1]).normal((1, 4, 3)))
    out = network(x, torch.zeros(1), cond)
    for moved_x, back in ((x.transpose(2, 3), lambda y: y.transpose(2, 3)), (x.flip(3), lambda y: y.flip(3))):
        assert (back(network(moved_x, torch.zeros(1), cond)) - out).abs().max() > 1e-3


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"token_width": 0}, "token_width is 0: where no condition is a text, use dit"),
        ({"token_width": -1}, "an MMDiT's token_width must be from 1 to 65536, not -1"),
        ({"token_width": 10**9}, "token_width must be from 1 to 65536"),
        ({"width": 100, "heads": 6}, "an MMDiT's width must be a multiple of 4 × heads = 24, not 100: 96 would do"),
        ({"depth": 0}, "an MMDiT's depth must be from 1"),
        ({"positions": "learned"}, "an MMDiT's positions must be one of rotary, sincos"),
        ({"dropout": 1.0}, "dropout must be"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MMDiT(**(SMALL | change))  # type: ignore[arg-type]


def test_a_description_without_a_token_width_says_what_to_use() -> None:
    """As it is made for data without texts."""
    with pytest.raises(ConfigError, match="use dit"):
        build({"type": "network/mmdit", "channels": 1})
    assert describe(made())["token_width"] == 3


def test_out_channels_are_what_leaves() -> None:
    network = made(channels=2, out_channels=4)
    assert network(Noise([1]).normal((1, 2, 5, 7)), torch.zeros(1)).shape == (1, 4, 5, 7)


def test_dropout_acts_in_training_only() -> None:
    network = made(dropout=0.5).train()
    x, log_snr = Noise([1]).normal((1, 1, 8, 8)), torch.zeros(1)
    assert not torch.equal(network(x, log_snr), network(x, log_snr))
    network.eval()
    assert torch.equal(network(x, log_snr), network(x, log_snr))
