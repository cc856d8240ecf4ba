"""Laws of networks: any size in and out, no sample sees another, every weight learns, level and condition matter.

A network with a `vocab` sees tokens, its mask among them, and says logits of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from law_examples import descriptions
from torch import Tensor, nn

from diff_diffusion.cond import Embedded
from diff_diffusion.registry import build
from diff_diffusion.rng import Noise

DESCRIBED = descriptions("network")
SIZES = [(8, 8), (7, 5), (33, 20), (1, 1), (2, 64)]
LENGTH = 4


def ids(described: list[dict[str, object]]) -> Iterator[str]:
    return (f"{str(d['type'])[8:]}-{DESCRIBED.index(d)}" for d in described)


@pytest.fixture(params=DESCRIBED, ids=ids(DESCRIBED))
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Every registered network, freshly made."""
    return made(request.param)


ATTENDING = [d for d in DESCRIBED if getattr(build(d), "token_width", 0)]


@pytest.fixture(params=ATTENDING, ids=ids(ATTENDING))
def attending(request: pytest.FixtureRequest) -> nn.Module:
    """Every registered network that attends to tokens, with no weight at zero."""
    return perturbed(made(request.param))


def made(description: dict[str, object]) -> nn.Module:
    torch.manual_seed(0)
    network = build(description)
    assert isinstance(network, nn.Module)
    return network


def perturbed(network: nn.Module) -> nn.Module:
    """The network with every weight moved, so that nothing is zero any more; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return network.eval()


def inputs(network: nn.Module, count: int = 3, size: tuple[int, int] = (6, 8)) -> tuple[Tensor, Tensor, Embedded]:
    """x, λ, and a condition with all that the network reads; samples have 4, 3, 2, … of `LENGTH` tokens."""
    noise = Noise(range(count))
    token_width = getattr(network, "token_width", 0)
    vector = noise.fork("cond").normal((count, network.cond_width)) if network.cond_width else None
    tokens = noise.fork("tokens").normal((count, LENGTH, token_width)) if token_width else None
    mask = torch.arange(LENGTH) < torch.arange(LENGTH, LENGTH - count, -1)[:, None] if token_width else None
    if vocab := getattr(network, "vocab", 0):
        x = (noise.uniform((count, *size)) * (vocab + 1)).long()
    else:
        x = noise.normal((count, network.channels, *size))
    return x, torch.linspace(-20.0, 20.0, count), Embedded(vector, tokens, mask)


def cast(cond: Embedded, dtype: torch.dtype) -> Embedded:
    return replace(
        cond,
        vector=None if cond.vector is None else cond.vector.to(dtype),
        tokens=None if cond.tokens is None else cond.tokens.to(dtype),
    )


def shape_out(network: nn.Module, x: Tensor) -> tuple[int, ...]:
    return (*x.shape, network.vocab) if hasattr(network, "vocab") else tuple(x.shape)


def numbers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a precision; tokens have none."""
    return x.to(dtype) if x.is_floating_point() else x


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_output_has_the_inputs_shape_and_the_weights_dtype(network: nn.Module, size: tuple[int, int]) -> None:
    x, log_snr, cond = inputs(network, 2, size)
    out = perturbed(network)(x, log_snr, cond)
    assert out.shape == shape_out(network, x)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


def test_double_precision_stays_double(network: nn.Module) -> None:
    x, log_snr, cond = inputs(network)
    network = perturbed(network)
    single = network(x, log_snr, cond)
    double = network.double()(numbers(x, torch.float64), log_snr.double(), cast(cond, torch.float64))
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, rtol=1e-3, atol=1e-3)


def test_half_precision_stays_half(network: nn.Module) -> None:
    """Both ways: weights in bfloat16, whose numbers have 8 bits, and float32 weights whose products alone are."""
    x, log_snr, cond = inputs(network)
    network = perturbed(network)
    single = network(x, log_snr, cond)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x, log_snr, cond)
    half = network.bfloat16()(numbers(x, torch.bfloat16), log_snr, cast(cond, torch.bfloat16))
    assert half.dtype == torch.bfloat16
    for out in (mixed, half):
        assert (out.float() - single).pow(2).mean() < 0.03**2 * single.pow(2).mean()


def test_no_sample_sees_another(network: nn.Module) -> None:
    """Everything about sample 1 changes; samples 0 and 2 stay the same, bit by bit."""
    network = perturbed(network)
    x, log_snr, cond = inputs(network)
    before = network(x, log_snr, cond)
    x[1], log_snr[1] = x[1] * 3.0 - 1.0 if x.is_floating_point() else x[1].roll(1, 0), 7.0
    if cond.vector is not None:
        cond.vector[1] = -cond.vector[1]
    if cond.tokens is not None and cond.mask is not None:
        cond.tokens[1], cond.mask[1] = -cond.tokens[1], torch.tensor([False, True, False, True])
    after = network(x, log_snr, cond)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.allclose(after[1], before[1])


def test_every_place_reaches_every_place_it_should(network: nn.Module) -> None:
    """The gradient of the whole output reaches every input number, also at a size that needs padding.

    A token has none: another one there changes what is said of every place.
    """
    network = perturbed(network)
    x, log_snr, cond = inputs(network, 1, (7, 5))
    if not x.is_floating_point():
        out = network(x, log_snr, cond)
        for place in range(x.numel()):
            other = x.clone()
            other.view(-1)[place] = (x.view(-1)[place] + 1) % (network.vocab + 1)
            assert ((network(other, log_snr, cond) - out).abs().amax(-1) > 1e-6).all()
        return
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((network(x, log_snr, cond) ** 2).sum(), x)
    assert (gradient != 0).all()


def test_a_fresh_network_outputs_zero(network: nn.Module) -> None:
    """So that training starts from the target's mean, or from all tokens alike, and not from noise."""
    x, log_snr, cond = inputs(network)
    assert torch.equal(network(x, log_snr, cond), torch.zeros(shape_out(network, x)))


def test_every_parameter_learns(network: nn.Module) -> None:
    """Every row of every matrix, so that no part of one is there for nothing."""
    network = perturbed(network)
    x, log_snr, cond = inputs(network, size=(8, 8))
    (network(x, log_snr, cond) ** 2).sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not rows_learn(p.grad)]
    assert not still
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def rows_learn(gradient: Tensor) -> bool:
    """Whether every row of a matrix has a gradient, or any number of what is none."""
    rows = gradient.flatten(1) if gradient.ndim > 1 else gradient[None]
    return bool((rows != 0).any(dim=1).all())


def test_the_level_changes_the_output(network: nn.Module) -> None:
    """Each λ of ±20 is told from its neighbours, each sample by its own."""
    network = perturbed(network)
    x, _, cond = inputs(network, 1)
    outs = [network(x, torch.tensor([level]), cond) for level in (-20.0, -19.5, 0.0, 0.5, 19.5, 20.0)]
    for i, one in enumerate(outs):
        assert all(distance(one, other) > 1e-3 for other in outs[i + 1 :])


def test_the_condition_changes_the_output(network: nn.Module) -> None:
    if not network.cond_width:
        pytest.skip("no vector")
    network = perturbed(network)
    x, log_snr, cond = inputs(network)
    out = network(x, log_snr, cond)
    assert cond.vector is not None
    assert distance(network(x, log_snr, replace(cond, vector=cond.vector.roll(1, 0))), out) > 1e-3
    assert distance(network(x, log_snr, replace(cond, vector=None)), out) > 1e-3
    assert distance(network(x, log_snr, None), out) > 1e-3


def test_a_network_reads_what_it_has_a_use_for(network: nn.Module) -> None:
    """Planes are channels of x by the time a network runs; tokens are for those that attend."""
    network = perturbed(network)
    x, log_snr, cond = inputs(network)
    planes = torch.full(x.shape, torch.nan)
    expected = network(x, log_snr, cond)
    assert torch.equal(network(x, log_snr, replace(cond, planes=planes)), expected)
    if not getattr(network, "token_width", 0):
        unread = Noise(range(3)).normal((3, 2, 7))
        assert torch.equal(network(x, log_snr, replace(cond, tokens=unread)), expected)


# ---- tokens ---------------------------------------------------------------------------------------------------------


def test_every_token_changes_the_output(attending: nn.Module) -> None:
    """Each number of each token that there is, and no number of one that there is not."""
    x, log_snr, cond = inputs(attending)
    assert cond.tokens is not None
    cond.tokens.requires_grad_()
    out = attending(x, log_snr, cond)
    (gradient,) = torch.autograd.grad((out**2).sum(), cond.tokens)
    assert torch.equal(gradient != 0, cond.mask[..., None].expand_as(gradient))  # type: ignore[index]
    assert distance(attending(x, log_snr, replace(cond, tokens=-cond.tokens)), out) > 1e-3


def test_what_is_behind_the_mask_changes_nothing(attending: nn.Module) -> None:
    """Other numbers there, bit by bit the same output; none there at all, the same but for rounding."""
    x, log_snr, cond = inputs(attending)
    assert cond.tokens is not None
    assert cond.mask is not None
    out = attending(x, log_snr, cond)
    hidden = torch.where(cond.mask[..., None], cond.tokens, 1e3 * cond.tokens.flip(1) - 7.0)
    assert torch.equal(attending(x, log_snr, replace(cond, tokens=hidden)), out)
    for i, length in enumerate(cond.mask.sum(1)):
        alone = Embedded(None if cond.vector is None else cond.vector[[i]], cond.tokens[[i], :length])
        assert torch.allclose(attending(x[[i]], log_snr[[i]], alone)[0], out[i], rtol=1e-4, atol=1e-5)


def test_tokens_mean_the_same_in_any_order(attending: nn.Module) -> None:
    """Where they stand among the others is said by whoever made them; the mask goes with them."""
    x, log_snr, cond = inputs(attending)
    assert cond.tokens is not None
    assert cond.mask is not None
    order = [2, 0, 3, 1]
    moved = replace(cond, tokens=cond.tokens[:, order], mask=cond.mask[:, order])
    assert torch.allclose(attending(x, log_snr, moved), attending(x, log_snr, cond), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_a_sample_without_tokens_is_one_that_attends_to_none(attending: nn.Module) -> None:
    """All behind the mask, a length of 0, no tokens, no condition: one and the same, finite, with a finite gradient."""
    x, log_snr, cond = inputs(attending)
    assert cond.tokens is not None
    assert cond.mask is not None
    out = attending(x, log_snr, replace(cond, mask=torch.ones_like(cond.mask)))
    none = attending(x, log_snr, replace(cond, tokens=None, mask=None))
    assert torch.isfinite(none).all()
    assert distance(none, out) > 1e-3
    masked = replace(cond, mask=torch.zeros_like(cond.mask))
    empty = replace(cond, tokens=cond.tokens[:, :0], mask=cond.mask[:, :0])
    unmasked = replace(empty, mask=None)
    for nothing in (masked, empty, unmasked):
        assert torch.allclose(attending(x, log_snr, nothing), none, rtol=1e-4, atol=1e-5)
    if cond.vector is None:
        assert torch.equal(attending(x, log_snr, None), none)
    # One sample of a batch without tokens leaves the others theirs.
    cond.mask[1] = False
    mixed = attending(x, log_snr, cond)
    assert torch.allclose(mixed[1], none[1], rtol=1e-4, atol=1e-5)
    cond.tokens.requires_grad_()
    (gradient,) = torch.autograd.grad((attending(x, log_snr, cond) ** 2).sum(), cond.tokens)
    assert torch.isfinite(gradient).all()
    assert torch.equal((gradient != 0).any(-1), cond.mask)
