"""Attention by its formula, with a mask, and from an image to tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diff_diffusion.networks.attention import FUSED_ABOVE, CrossAttention, ImageAttention, attend, normed
from diff_diffusion.rng import Noise


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v of one head."""
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def test_attention_is_softmax_attention() -> None:
    """Head by head."""
    q, k, v = Noise(range(3)).normal((3, 2, 5, 6)).double().unbind(0)
    expected = torch.cat([by_hand(q[..., h], k[..., h], v[..., h]) for h in (slice(0, 3), slice(3, 6))], dim=-1)
    assert torch.allclose(attend(q, k, v, heads=2), expected, rtol=1e-10)


def test_a_mask_leaves_keys_out() -> None:
    """As if they were not there, each sample its own; none left is zeros."""
    q = Noise(range(3)).normal((3, 5, 6)).double()
    k, v = Noise(range(2)).normal((2, 3, 4, 6)).double().unbind(0)
    mask = torch.tensor([[True, False, True, True], [False, False, True, False], [False, False, False, False]])
    out = attend(q, k, v, 2, mask)
    for i in range(2):
        alone = attend(q[[i]], k[[i]][:, mask[i]], v[[i]][:, mask[i]], 2)
        assert torch.allclose(out[[i]], alone, rtol=1e-10)
    assert torch.equal(out[2], torch.zeros(5, 6, dtype=torch.float64))
    assert torch.equal(attend(q, k[:, :0], v[:, :0], 2), torch.zeros_like(q))


def test_nothing_to_attend_to_is_safe_in_any_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in one whose softmax over nothing is NaN, and whose gradient would be."""

    def plain(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).masked_fill(~attn_mask, -torch.inf)
        return scores.softmax(-1) @ v

    q, k, v = (x.requires_grad_() for x in Noise(range(3)).normal((3, 2, 4, 6)).unbind(0))
    mask = torch.tensor([[True, False, True, True], [False, False, False, False]])
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", plain)
    out = attend(q, k, v, 2, mask)
    out.pow(2).sum().backward()
    assert torch.equal(out[1], torch.zeros(4, 6))
    for x in (q, k, v):
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert not x.grad[1].any()


@pytest.mark.parametrize("masked", [False, True])
def test_a_gradient_in_bfloat16_needs_no_fused_kernel(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers and gradients are those of float64 within what bfloat16 can say; samples with no key to hear get none."""
    given = Noise(range(3)).normal((3, 2, 5, 32)).unbind(0)
    mask = torch.tensor([[True, False, True, True, False], [False] * 5]) if masked else None
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        q, k, v = (x.to(dtype).requires_grad_() for x in given)
        out = attend(q, k, v, 2, mask)
        out.square().sum().backward()
        found.append([out, *(x.grad for x in (q, k, v))])
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    for exact, half in zip(*found, strict=True):
        assert half.dtype == torch.bfloat16
        assert (half.double() - exact).norm() <= 0.02 * exact.norm()
        assert not masked or not half[1].any()


def test_many_keys_and_walks_use_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of many keys would fill the memory, and without a gradient the fused kernel is the faster one."""
    seen: list[int] = []
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, attn_mask: seen.append(k.shape[-2]) or v
    )
    few, many = (torch.zeros(1, n, 4, dtype=torch.bfloat16, requires_grad=True) for n in (8, FUSED_ABOVE + 1))
    attend(few, few, few, 1)
    attend(many, many, many, 1)
    attend(*[few.detach()] * 3, 1)
    assert seen == [FUSED_ABOVE + 1, 8]


def test_normed_queries_bound_what_attention_can_be() -> None:
    """Root mean square 1 times the gain, whatever the size: a score is at most √d."""
    x, gain = 1e4 * Noise(range(7)).normal((7, 16)), torch.full((16,), 3.0)
    assert torch.allclose(normed(x, gain).pow(2).mean(-1), torch.tensor(9.0))
    assert torch.allclose(normed(x, gain), normed(1e-3 * x, gain), rtol=1e-5)


# ---- within an image ------------------------------------------------------------------------------------------------


def within() -> ImageAttention:
    torch.manual_seed(0)
    return ImageAttention(8, 4, nn.GroupNorm(2, 8)).double()


def test_an_image_attending_starts_as_the_identity_and_mixes_places() -> None:
    attention, x = within(), Noise([1]).normal((1, 8, 3, 5)).double()
    assert torch.equal(attention(x), x)
    nn.init.normal_(attention.out.weight)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(attention(x)[0, :, 0, 0].sum(), x)
    assert (gradient[0].abs().sum(0) > 0).all()


def test_attention_keeps_each_place_at_its_place() -> None:
    """Permuting the places of the input permutes the output: no axis is mixed up on the way to tokens and back."""
    attention, x = within(), Noise([1]).normal((1, 8, 3, 5)).double()
    nn.init.normal_(attention.out.weight)
    flipped = attention(x.flip(2, 3))
    assert torch.allclose(flipped.flip(2, 3), attention(x), rtol=1e-10, atol=1e-12)


# ---- from an image to tokens ----------------------------------------------------------------------------------------


def across() -> CrossAttention:
    torch.manual_seed(0)
    attention = CrossAttention(8, 3, 4, nn.GroupNorm(2, 8)).double()
    with torch.no_grad():
        attention.gain.add_(0.3 * torch.randn(2, 4))
    return attention


def test_cross_attention_is_its_formula() -> None:
    """x + out · attention(normed q of norm(x), normed k and v of the tokens), place by place."""
    attention = across()
    x, tokens = Noise([1]).normal((1, 8, 3, 5)).double(), Noise([2]).normal((1, 4, 3)).double()
    assert torch.equal(attention(x, tokens, None), x)
    nn.init.normal_(attention.out.weight)
    assert attention.heads == 2
    out = attention(x, tokens, None)
    groups = x[0].reshape(2, 60)
    places = (groups - groups.mean(1, keepdim=True)) / (groups.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    places = places.reshape(8, 15).T
    q = places @ attention.q.weight.T + attention.q.bias
    k, v = (tokens[0] @ attention.kv.weight.T + attention.kv.bias).chunk(2, dim=1)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        a, b = (
            y[:, h] / (y[:, h].pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * gain
            for y, gain in ((q, attention.gain[0]), (k, attention.gain[1]))
        )
        heads.append(by_hand(a, b, v[:, h]))
    added = torch.cat(heads, dim=1) @ attention.out.weight.T
    assert torch.allclose(out, x + added.T.reshape(1, 8, 3, 5), rtol=1e-9)


def test_an_image_without_tokens_stays_as_it_is() -> None:
    attention = across()
    nn.init.normal_(attention.out.weight)
    x, tokens = Noise([1, 2]).normal((2, 8, 3, 5)).double(), Noise([1, 2]).normal((2, 4, 3)).double()
    mask = torch.tensor([[True, True, False, True], [False, False, False, False]])
    out = attention(x, tokens, mask)
    assert torch.equal(out[1], x[1])
    assert not torch.allclose(out[0], x[0], atol=1e-2)
