"""Tiles: what is decoded in parts is the whole; where a decoder norms by all of it, how far from it, and no seam."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diff_diffusion.codecs.tiles import _spans, decoded
from diff_diffusion.networks.autoencoder import ConvAutoencoder
from diff_diffusion.rng import Noise


def enlarged(codes: Tensor) -> Tensor:
    """Of each place alone."""
    return functional.interpolate(codes, scale_factor=2.0, mode="nearest").square()


@pytest.mark.parametrize("sizes", [(40,), (9, 30), (5, 6, 7)])
def test_tiles_are_the_whole_where_places_see_no_others(sizes: tuple[int, ...]) -> None:
    codes = Noise([1, 2, 3]).normal((3, 2, *sizes)).double()
    whole = enlarged(codes)
    seen: list[int] = []
    tiled = decoded(lambda part: (seen.append(part[:, 0].numel()), enlarged(part))[1], codes, 2, at_once=27)
    assert torch.allclose(tiled, whole, rtol=0, atol=1e-12)
    assert max(seen) <= 27
    assert len(seen) > 3


def test_samples_that_fit_are_decoded_whole_and_some_at_a_time() -> None:
    codes, seen = Noise(range(5)).normal((5, 2, 4, 4)), []
    assert torch.equal(decoded(lambda part: (seen.append(len(part)), enlarged(part))[1], codes, 2, 32), enlarged(codes))
    assert seen == [2, 2, 1]


@pytest.mark.parametrize(("size", "side"), [(5, 8), (8, 8), (9, 8), (23, 8), (100, 7), (4, 1)])
def test_tiles_cover_an_axis_and_a_quarter_of_each_other(size: int, side: int) -> None:
    spans = _spans(size, side)
    assert spans[0].start == 0
    assert spans[-1].stop == size
    assert {span.stop - span.start for span in spans} == {min(side, size)}
    for one, other in pairwise(spans):
        assert one.start < other.start <= one.stop - side // 4


def test_gradients_pass() -> None:
    codes = Noise([0]).normal((1, 1, 4, 20)).requires_grad_()
    decoded(enlarged, codes, 2, at_once=16).sum().backward()
    assert torch.allclose(codes.grad, 8 * codes.detach(), atol=1e-5)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def decoder() -> ConvAutoencoder:
    """Whose weights are moved from the zeros that blocks end in."""
    network, draw = ConvAutoencoder(1, 6, 3, width=8, multipliers=(1, 2)), torch.Generator().manual_seed(0)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.15, generator=draw)
    return network.eval()


@torch.no_grad()
def test_there_is_no_seam(decoder: ConvAutoencoder) -> None:
    """Tiles of a decoder that norms by all places say something else; where they begin and end it jumps no more."""
    smooth = functional.interpolate(Noise([3]).normal((1, 3, 4, 36)), size=(16, 288), mode="bicubic")
    whole, tiled = decoder.decode(smooth), decoded(decoder.decode, smooth, 2, at_once=64**2)
    hard = torch.cat([decoder.decode(part) for part in smooth.split(64, -1)], -1)  # as if tiles did not overlap

    def seam(x: Tensor, ends: list[int]) -> float:
        """How much more what tiles change jumps where one ends than elsewhere: 1 is no seam."""
        jumps = ((x - whole)[..., 1:] - (x - whole)[..., :-1]).abs().mean((0, 1, 2))
        at = torch.zeros(len(jumps), dtype=torch.bool)
        at[torch.tensor(ends) - 1] = True
        return float(jumps[at].mean() / jumps[~at].mean())

    ends = {2 * end for span in _spans(288, 64) for end in (span.start, span.stop)} - {0, 576}
    assert seam(tiled, sorted(ends)) < 1.2
    assert seam(hard, [128, 256, 384, 512]) > 3.0
    assert (tiled - whole).square().mean().sqrt() < 0.5 * whole.std()
