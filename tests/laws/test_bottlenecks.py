"""Bottlenecks against closed forms: Gaussian rates, every code there and back, a codebook that finds its clusters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from law_examples import parts
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diff_diffusion.codecs.bottleneck import FiniteScalar, Gauss, Tokens
from diff_diffusion.codecs.vector_quantised import VectorQuantised
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.rng import Noise

SEEDS = [3, 1, 4, 1, 5]


def encoded(bottleneck: Any, *sizes: int) -> Tensor:
    """What some encoder gives, wide enough to reach every code's neighbourhood."""
    generator = torch.Generator().manual_seed(0)
    return 2.0 * torch.randn((len(SEEDS), bottleneck.codes_out, *sizes), generator=generator)


@pytest.mark.parametrize("bottleneck", parts("bottleneck"))
@pytest.mark.parametrize("sizes", [(6,), (2, 3), (2, 1, 3)])
def test_a_latent_is_of_its_channels_at_every_place(bottleneck: Any, sizes: tuple[int, ...]) -> None:
    h = encoded(bottleneck, *sizes).requires_grad_()
    passed = bottleneck.train()(h, Noise(SEEDS))
    assert passed.latent.shape == (len(SEEDS), bottleneck.channels, *sizes)
    assert passed.nats.shape == passed.commitment.shape == (len(SEEDS),)
    passed.latent.sum().backward()
    assert h.grad is not None
    assert bool((h.grad.flatten(2).abs().sum(0) > 0).any(1).all()), "no channel of the encoder is left out"


@pytest.mark.parametrize("bottleneck", parts("bottleneck"))
def test_no_sample_sees_another(bottleneck: Any) -> None:
    """Not in evaluation: a codebook that learns is the batch's."""
    h = encoded(bottleneck, 2, 3)
    bottleneck.train()(h, Noise(SEEDS))  # a codebook starts with its first batch
    bottleneck.eval()
    whole, one = bottleneck(h, Noise(SEEDS)), bottleneck(h[1:2], Noise(SEEDS[1:2]))
    torch.testing.assert_close(whole.latent[1:2], one.latent)
    torch.testing.assert_close(whole.nats[1:2], one.nats)
    torch.testing.assert_close(bottleneck.latent(h)[1:2], bottleneck.latent(h[1:2]))


def test_the_gaussian_rate_is_the_divergence() -> None:
    bottleneck, h = Gauss(3), encoded(Gauss(3), 2, 2).double()
    mean, log_variance = bottleneck.moments(h)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(bottleneck(h, Noise(SEEDS)).nats, expected)


def test_a_gaussian_latent_is_drawn_from_its_moments() -> None:
    count = 4000
    h = torch.tensor([0.5, -1.0, 2 * math.log(0.3), 2 * math.log(2.0)]).view(1, 4, 1).expand(count, 4, 1)
    bottleneck, noise = Gauss(2), Noise(range(count))
    drawn = bottleneck(h, noise).latent[..., 0]
    for column, mean, std in zip(drawn.T, (0.5, -1.0), (0.3, 2.0), strict=True):
        assert abs(float(column.mean()) - mean) < 4.5 * std / count**0.5
        assert abs(float(column.std()) - std) < 4.5 * std / (2 * count) ** 0.5
    torch.testing.assert_close(bottleneck.latent(h, noise), bottleneck(h, noise).latent)
    torch.testing.assert_close(bottleneck.latent(h)[0, :, 0], torch.tensor([0.5, -1.0]))


def test_an_encoder_far_off_costs_a_finite_rate() -> None:
    passed = Gauss(1)(torch.tensor([[[0.0], [1e4]], [[0.0], [-1e4]]]), Noise([0, 1]))
    assert bool(torch.isfinite(passed.nats).all())
    assert bool(torch.isfinite(passed.latent).all())


@pytest.mark.parametrize("levels", [(2, 2), (3,), (8, 5, 4), (2, 1999)])
def test_every_scalar_code_is_reached_and_found_again(levels: tuple[int, ...]) -> None:
    bottleneck = FiniteScalar(levels)
    numbers = torch.arange(bottleneck.size)[:, None]
    latents = bottleneck.embed(numbers)
    assert float(latents.abs().max()) == 1.0
    assert len(latents.flatten(1).unique(dim=0)) == bottleneck.size == math.prod(levels)
    # An encoder that wants a code gives the h whose f(h) is the code's middle.
    half = torch.tensor([(count - 1) / 2 + 1e-3 for count in levels])[:, None]
    offset = torch.tensor([0.5 * (count % 2 == 0) for count in levels])[:, None]
    whole = latents * torch.tensor([float(count // 2) for count in levels])[:, None]
    h = torch.atanh((whole.double() + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(bottleneck.tokens(h), numbers)
    torch.testing.assert_close(bottleneck.latent(h).float(), latents)


def test_scalar_codes_never_leave_their_range() -> None:
    bottleneck = FiniteScalar((2, 3, 8, 2000))
    far = torch.tensor([-1e6, -3.0, 0.0, 3.0, 1e6])[:, None, None].expand(5, 4, 1)
    tokens = bottleneck.tokens(far)
    assert int(tokens[0]) == 0
    assert int(tokens[-1]) == bottleneck.size - 1
    assert bool((bottleneck.latent(far).abs() <= 1.0).all())


def test_the_gradient_of_a_scalar_code_is_that_of_its_bound() -> None:
    bottleneck, h = FiniteScalar((5,)), torch.linspace(-1, 1, 7, dtype=torch.float64).view(7, 1, 1).requires_grad_()
    bottleneck(h, Noise(range(7))).latent.sum().backward()
    half = 2.0 + 1e-3
    assert h.grad is not None
    torch.testing.assert_close(h.grad, half * (1 - torch.tanh(h.detach()) ** 2) / 2.0)


@pytest.mark.parametrize("bottleneck", [FiniteScalar((3, 4)), VectorQuantised(7, 2)], ids=["fsq", "vq"])
def test_tokens_and_latents_are_one_to_one(bottleneck: Any) -> None:
    h = encoded(bottleneck, 2, 3)
    bottleneck.train()(h, Noise(SEEDS))
    tokens = bottleneck.eval().tokens(h)
    assert tokens.shape == (len(SEEDS), 2, 3)
    assert tokens.dtype == torch.int64
    torch.testing.assert_close(bottleneck.embed(tokens), bottleneck.latent(h))
    torch.testing.assert_close(bottleneck(h, Noise(SEEDS)).latent, bottleneck.latent(h))
    nats = bottleneck(h, Noise(SEEDS)).nats
    torch.testing.assert_close(nats, torch.full((len(SEEDS),), 6 * math.log(bottleneck.size)))
    assert isinstance(bottleneck, Tokens)
    for wrong in (-1, bottleneck.size):
        with pytest.raises(IncompatibleError, match=str(bottleneck.size)):
            bottleneck.embed(torch.tensor([[wrong]]))


def test_a_codebook_finds_the_clusters_of_its_data() -> None:
    """Eight tight clusters, more codes: each cluster has one at hand, and next to no code lies anywhere else."""
    generator = torch.Generator().manual_seed(0)
    centres = 4.0 * torch.randn((8, 3), generator=generator)
    bottleneck = VectorQuantised(32, 3, decay=0.8).train()
    for step in range(150):
        chosen = torch.randint(8, (16, 10), generator=generator)
        h = (centres[chosen] + 0.05 * torch.randn((16, 10, 3), generator=generator)).transpose(1, 2)
        bottleneck(h, Noise([1000 * step + i for i in range(16)]))
    apart = torch.cdist(centres, bottleneck.codes)
    assert float(apart.min(1).values.max()) < 0.15
    assert float(bottleneck.usage[apart.min(0).values > 0.3].sum()) < 0.02


def test_a_codebook_averages_what_chose_it() -> None:
    bottleneck = VectorQuantised(2, 1, decay=0.75, least=0.0).train()
    bottleneck.counts.fill_(4.0)
    bottleneck.sums.copy_(torch.tensor([[-4.0], [4.0]]))  # codes at -1 and 1
    h = torch.tensor([[[-2.0, -3.0, 2.0]]])
    bottleneck(h, Noise([0]))
    torch.testing.assert_close(bottleneck.counts, torch.tensor([0.75 * 4 + 0.25 * 2, 0.75 * 4 + 0.25 * 1]))
    torch.testing.assert_close(bottleneck.codes, torch.tensor([[(-3.0 - 1.25) / 3.5], [(3.0 + 0.5) / 3.25]]))


def test_a_codebook_pulls_its_encoder_and_passes_the_decoders_gradient() -> None:
    bottleneck = VectorQuantised(2, 1, commitment=0.25).eval()
    bottleneck.counts.fill_(1.0)
    bottleneck.sums.copy_(torch.tensor([[-1.0], [1.0]]))
    h = torch.tensor([[[0.5, -3.0]]], requires_grad=True)
    passed = bottleneck(h, Noise([0]))
    torch.testing.assert_close(passed.latent, torch.tensor([[[1.0, -1.0]]]))
    torch.testing.assert_close(passed.commitment, torch.tensor([0.25 * (0.25 + 4.0) / 2]))
    (passed.latent * torch.tensor([10.0, 20.0])).sum().backward(retain_graph=True)
    torch.testing.assert_close(h.grad, torch.tensor([[[10.0, 20.0]]]))
    h.grad = None
    passed.commitment.sum().backward()
    torch.testing.assert_close(h.grad, torch.tensor([[[0.25 * (0.5 - 1.0), 0.25 * (-3.0 + 1.0)]]]))


def test_a_codebook_learns_only_in_training() -> None:
    bottleneck, h = VectorQuantised(4, 2), encoded(VectorQuantised(4, 2), 3)
    bottleneck.train()(h, Noise(SEEDS))
    before = bottleneck.codes.clone()
    bottleneck.eval()(h + 1.0, Noise(SEEDS))
    assert torch.equal(bottleneck.codes, before)
    bottleneck.train()(h + 1.0, Noise(SEEDS))
    assert not torch.equal(bottleneck.codes, before)


def test_codes_that_nothing_chooses_start_again() -> None:
    bottleneck = VectorQuantised(3, 1, decay=0.5).train()
    bottleneck.counts.copy_(torch.tensor([50.0, 50.0, 0.1]))
    bottleneck.sums.copy_(bottleneck.counts[:, None] * torch.tensor([[-1.0], [1.0], [100.0]]))
    h = torch.tensor([-1.0, 1.0, 5.0]).repeat(20).view(1, 1, 60)
    for step in range(20):
        bottleneck(h, Noise([step]))
    assert sorted(round(float(code), 1) for code in bottleneck.codes) == [-1.0, 1.0, 5.0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Gauss(0), "from 1 to 4096, not 0"),
        (lambda: FiniteScalar((1, 5)), r"at least 2 in each channel and 2\^24 codes in all, not \[1, 5\]"),
        (lambda: FiniteScalar(()), "at least 2"),
        (lambda: FiniteScalar((4096, 4096, 2)), "24 codes"),
        (lambda: VectorQuantised(size=1), "size must be from 2 to 1048576, not 1"),
        (lambda: VectorQuantised(decay=1.0), "decay must be from"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()
