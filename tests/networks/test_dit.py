"""DiT's own: the paper's sizes, its positions, its modulation, what it refuses, and the patches that training drops."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Embedded
from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.attention import rotated
from diff_diffusion.networks.dit import DiT
from diff_diffusion.networks.embeddings import axial_angles
from diff_diffusion.networks.transformer import LEVEL_FEATURES
from diff_diffusion.registry import build
from diff_diffusion.rng import Noise

SMALL = {"channels": 1, "width": 16, "depth": 2, "heads": 2}
# Layers, width, heads; millions of parameters at patches of 2.
PAPER = {"s": (12, 384, 6, 33), "b": (12, 768, 12, 130), "l": (24, 1024, 16, 458), "xl": (28, 1152, 16, 675)}


def made(**change: object) -> DiT:
    """A small DiT with no weight at zero, in evaluation mode."""
    torch.manual_seed(0)
    network = DiT(**(SMALL | change))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return network.eval()


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# ---- the paper's sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", PAPER)
def test_the_named_sizes_have_the_papers_parameters(size: str, patch: int) -> None:
    """To the last one, by what the paper says is in a block; and its rounded number, once the differences are undone.

    4 latent channels in, 8 out, 1000 classes and a null. Beside the paper's, the condition has a matrix d × d of its
    own here and queries and keys have a gain each; the table of classes is the conditioner's.
    """
    depth, d, heads, millions = PAPER[size]
    with torch.device("meta"):
        network = build(
            {"type": f"network/dit_{size}_{patch}", "channels": 4, "out_channels": 8, "cond_width": d}
        )  # fmt: skip
    level = LEVEL_FEATURES * d + d + d * d + d
    enter = 4 * patch**2 * d + d
    attention = d * 3 * d + 3 * d + d * d + d
    mlp = d * 4 * d + 4 * d + 4 * d * d + d
    modulation = d * 6 * d + 6 * d
    final = d * 2 * d + 2 * d + d * 8 * patch**2 + 8 * patch**2
    papers = level + enter + depth * (attention + mlp + modulation) + final + 1001 * d
    differences = d * d + depth * 2 * (d // heads) - 1001 * d
    assert count(network) == papers + differences
    assert (network.depth, network.width, network.heads, network.positions) == (depth, d, heads, "sincos")
    if patch == 2:
        assert abs(papers / 1e6 - millions) < 0.01 * millions
    assert LEVEL_FEATURES == 256  # the paper's time embedding


# ---- positions ------------------------------------------------------------------------------------------------------


def test_turned_queries_and_keys_meet_at_their_distance_alone() -> None:
    """⟨R(p) q, R(p') k⟩ is the same for every pair of places with one difference of rows and of columns."""
    q, k = Noise([0, 1]).normal((2, 8)).double().unbind(0)
    angles = axial_angles(5, 7, 2, 100.0, torch.device("cpu")).double()

    def turn(x: Tensor) -> Tensor:
        return rotated(x.expand(1, 35, 1, 8), angles)[0, :, 0]

    scores = (turn(q) @ turn(k).T).reshape(5, 7, 5, 7)
    for row, column in ((0, 1), (1, 0), (2, -3), (-4, 6)):
        a, c = max(0, -row), max(0, -column)
        pairs = torch.stack(
            [scores[i, j, i + row, j + column] for i in range(a, 5 - max(0, row)) for j in range(c, 7 - max(0, column))]
        )
        assert torch.allclose(pairs, pairs[0], rtol=1e-5)
    # Another distance, another score; nothing turned at no distance.
    assert torch.allclose(scores[2, 3, 2, 3], q @ k, rtol=1e-6)
    assert (scores[0, 0, 0, 1] - scores[0, 0, 1, 0]).abs() > 1e-3


def test_angles_are_those_of_the_formula() -> None:
    """Row · base^(-i/n) and then column · base^(-i/n), in reading order."""
    angles = axial_angles(3, 4, 2, 100.0, torch.device("cpu"))
    for row in range(3):
        for column in range(4):
            expected = torch.tensor([row, row / 10, column, column / 10])
            assert torch.allclose(angles[4 * row + column], expected)


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
def test_positions_tell_every_place_from_every_other(positions: str) -> None:
    """One bright pixel at another place, or the same picture transposed, is more than a moved output."""
    network = made(positions=positions, patch=1)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 2] = 3.0
    out, turned = network(x, torch.zeros(1)), network(x.transpose(2, 3), torch.zeros(1))
    assert (turned.transpose(2, 3) - out).abs().max() > 1e-3
    flipped = network(x.flip(3), torch.zeros(1)).flip(3)
    assert (flipped - out).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
def test_without_positions_places_could_be_permuted(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test before: what tells places apart is positions and nothing else."""
    network = made(positions=positions, patch=1)
    monkeypatch.setattr(
        "diff_diffusion.networks.transformer.axial_angles", lambda r, c, n, *_: torch.zeros(r * c, 2 * n)
    )
    x = Noise([1]).normal((1, 1, 4, 4))
    moved = network(x.flip(3).transpose(2, 3), torch.zeros(1)).transpose(2, 3).flip(3)
    assert torch.allclose(moved, network(x, torch.zeros(1)), atol=1e-5)


# ---- patches and blocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_each_patch_comes_back_to_its_place(patch: int) -> None:
    """With tokens passed on as they are, image to tokens to image is the identity on a padded image too."""
    network = made(patch=patch, width=16, channels=1)
    tokens = patch**2
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.enter.weight[:tokens, :tokens] = torch.eye(tokens)
        network.leave.weight[:tokens, :tokens] = torch.eye(tokens)
    x = Noise([1, 2]).normal((2, 1, 7, 5))
    norm, torch.nn.functional.layer_norm = torch.nn.functional.layer_norm, lambda y, *_, **__: y
    try:
        assert torch.equal(network(x, torch.zeros(2)), x)
    finally:
        torch.nn.functional.layer_norm = norm


def test_padding_is_padding_by_hand() -> None:
    network = made(patch=4)
    x = Noise([1]).normal((1, 1, 7, 5))
    by_hand = network(torch.nn.functional.pad(x, (0, 3, 0, 1)), torch.zeros(1))[..., :7, :5]
    assert torch.equal(network(x, torch.zeros(1)), by_hand)


def test_a_block_is_the_papers_formula() -> None:
    """x + g1 · attention(norm(x)(1 + s1) + b1), then the same with the MLP; attention of normed, turned q and k."""
    network = made(width=8, heads=2).double()
    block = network.blocks[0]
    x, emb = Noise([1]).normal((1, 6, 8)).double(), Noise([2]).normal((1, 8)).double()
    angles = axial_angles(2, 3, 1, 100.0, torch.device("cpu")).double()
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
        emb @ block.modulation.weight.T + block.modulation.bias
    ).chunk(6, dim=-1)

    def norm(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    q, k, v = ((norm(x) * (1 + scale_a) + shift_a) @ block.qkv.weight.T + block.qkv.bias).chunk(3, dim=-1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        a, b = (
            y[0, :, part] / (y[0, :, part].pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain
            for y, gain in ((q, block.gain[0]), (k, block.gain[1]))
        )
        za, zb = (torch.view_as_complex(torch.stack(y.chunk(2, -1), -1).contiguous()) for y in (a, b))
        turn = torch.exp(1j * angles)
        scores = ((za * turn) @ (zb * turn).conj().T).real / math.sqrt(4)
        heads.append(scores.softmax(-1) @ v[0, :, part])
    x1 = x + gate_a * (torch.cat(heads, -1) @ block.out.weight.T + block.out.bias)
    inner = (norm(x1) * (1 + scale_m) + shift_m) @ block.mlp[0].weight.T + block.mlp[0].bias
    gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    expected = x1 + gate_m * (gelu @ block.mlp[3].weight.T + block.mlp[3].bias)
    assert torch.allclose(block(x, emb, angles), expected, rtol=1e-9)


def test_the_whole_is_its_parts() -> None:
    """Patches by loops, SiLU of level plus condition to every block, then norm, scale, shift and a matrix."""
    network = made(channels=2, patch=2, cond_width=3).double()
    x, cond = Noise([1]).normal((1, 2, 4, 6)).double(), Noise([2]).normal((1, 3)).double()
    log_snr = torch.tensor([-3.0])
    emb = network.level(log_snr) + cond @ network.cond.weight.T
    emb = emb * emb.sigmoid()
    patches = [x[0, :, i : i + 2, j : j + 2].flatten() for i in (0, 2) for j in (0, 2, 4)]
    tokens = (torch.stack(patches) @ network.enter.weight.T + network.enter.bias)[None]
    angles = axial_angles(2, 3, 2, 100.0, torch.device("cpu"))
    for block in network.blocks:
        tokens = block(tokens, emb, angles)
    shift, scale = (emb @ network.modulation.weight.T + network.modulation.bias).chunk(2, dim=-1)
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    left = ((normed * (1 + scale) + shift) @ network.leave.weight.T + network.leave.bias).reshape(2, 3, 2, 2, 2)
    expected = torch.cat([torch.cat(list(row), dim=2) for row in left], dim=1)
    assert torch.allclose(network(x, log_snr, Embedded(cond))[0], expected, rtol=1e-8)


@pytest.mark.filterwarnings("error")
def test_half_precision_says_the_same_to_its_digits() -> None:
    """Both ways: weights in bfloat16, and float32 weights whose products alone are."""
    network = made(channels=3, width=32, depth=3)
    x, log_snr = Noise([1, 2]).normal((2, 3, 8, 8)), torch.tensor([-5.0, 3.0])
    expected = network(x, log_snr)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x, log_snr)
    half = network.bfloat16()(x.bfloat16(), log_snr)
    assert half.dtype == torch.bfloat16
    for out in (mixed, half):
        assert (out.float() - expected).pow(2).mean() < 0.03**2 * expected.pow(2).mean()


def test_a_fresh_block_is_the_identity_and_its_gates_learn_first() -> None:
    torch.manual_seed(0)
    network = DiT(**SMALL)  # type: ignore[arg-type]
    block = network.blocks[0]
    x = Noise([1, 2]).normal((2, 4, 16))
    out = block(x, torch.ones(2, 16), None)
    assert torch.equal(out, x)
    out.pow(2).sum().backward()
    gates = block.modulation.bias.grad.reshape(6, 16)
    assert (gates[[2, 5]] != 0).all()
    assert (gates[[0, 1, 3, 4]] == 0).all()


def test_a_trained_size_is_not_the_only_one() -> None:
    """Where two sizes share places the outputs are alike: positions are counted, not stretched."""
    network = made(positions="sincos", patch=2)
    x = Noise([1]).normal((1, 1, 8, 8))
    wide = network(torch.cat([x, x], dim=3), torch.zeros(1))
    assert wide.shape == (1, 1, 8, 16)
    assert not torch.allclose(wide[..., :8], wide[..., 8:], atol=1e-2)


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": 0}, "channels must be from 1"),
        ({"patch": 0}, "patch must be from 1 to 64"),
        ({"patch": 65}, "patch must be from 1 to 64"),
        ({"width": 0}, "width must be from 4"),
        ({"width": 100, "heads": 6}, "multiple of 4 × heads = 24, not 100: 96 would do"),
        ({"width": 8, "heads": 4}, "16 would do"),
        ({"depth": 0}, "depth must be from 1"),
        ({"depth": 10**9}, "depth must be from 1 to 128"),
        ({"heads": 0}, "heads must be from 1"),
        ({"cond_width": -1}, "cond_width"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be from 0.5"),
        ({"positions": "learned"}, "positions must be one of rotary, sincos, not 'learned'"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"drop_tokens": 1.0}, "drop_tokens must be"),
        ({"drop_tokens": 0.5, "depth": 1}, "depth of at least 2"),
        ({"out_channels": 5000}, "out_channels"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DiT(**(SMALL | change))  # type: ignore[arg-type]


def test_out_channels_are_what_leaves() -> None:
    network = made(channels=2, out_channels=4, patch=2)
    assert network(torch.zeros(1, 2, 5, 5), torch.zeros(1)).shape == (1, 4, 5, 5)


# ---- what training drops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["dropout", "drop_tokens"])
def test_dropping_acts_in_training_only(option: str) -> None:
    network = made(**{option: 0.5})
    x, log_snr = Noise([1]).normal((1, 1, 8, 8)), torch.zeros(1)
    assert torch.equal(network(x, log_snr), network(x, log_snr))
    network.train()
    assert not torch.equal(network(x, log_snr), network(x, log_snr))


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
def test_with_no_token_dropped_training_is_evaluation(positions: str) -> None:
    """A share that rounds to no token: the way through gather and scatter, in a random order, changes nothing."""
    network = made(positions=positions, drop_tokens=0.01, depth=4)
    x = Noise([1, 2]).normal((2, 1, 8, 6))
    expected = network(x, torch.zeros(2))
    assert torch.allclose(network.train()(x, torch.zeros(2)), expected, atol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
def test_dropped_tokens_enter_the_last_blocks_as_they_came(positions: str) -> None:
    """One of 16 patches, another in each sample, goes through the first three blocks; the fourth sees them all."""
    network = made(drop_tokens=15 / 16, depth=4, positions=positions).train()
    seen: list[tuple[Tensor, Tensor]] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    x = Noise(range(8)).normal((8, 1, 8, 8))
    network(x, torch.zeros(8))
    assert [given.shape[1] for given, _ in seen] == [1, 1, 1, 16]
    first, last = seen[0][0], seen[3][0]
    seen.clear()
    network.eval()(x, torch.zeros(8))
    whole = seen[0][0]
    kept = (whole - first).abs().sum(-1).argmin(1)
    assert len(set(kept.tolist())) > 2
    assert torch.equal(whole[range(8), kept], first[:, 0])
    others = torch.ones(8, 16, dtype=torch.bool)
    others[range(8), kept] = False
    assert torch.equal(last[others], whole[others])
    assert (last[~others] - whole[~others]).abs().max() > 1e-2


def test_dropping_tokens_makes_a_step_cheaper() -> None:
    """Three quarters dropped from three quarters of the blocks leave 7/16 of their work; the clock agrees."""
    times = {}
    x, log_snr = Noise(range(8)).normal((8, 3, 32, 32)), torch.zeros(8)
    for share in (0.0, 0.75):
        network = DiT(3, width=64, depth=8, heads=2, drop_tokens=share)
        taken = []
        for _ in range(3):
            start = time.process_time()
            network(x, log_snr).sum().backward()
            taken.append(time.process_time() - start)
        times[share] = min(taken)
    assert times[0.75] < 0.75 * times[0.0]
