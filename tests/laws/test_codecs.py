"""Laws of codecs: there and back within a stated tolerance, and specs that are true."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from law_examples import parts
from torch import nn

from diff_diffusion.errors import IncompatibleError

every_codec = pytest.mark.parametrize("codec", parts("codec"))
# What is learned gives back what it has learned to; see tests/models/test_autoencoder.py.
exact_codec = pytest.mark.parametrize("codec", [p for p in parts("codec") if not isinstance(p.values[0], nn.Module)])


def data(codec: Any, count: int = 16) -> torch.Tensor:
    """Every kind of value in the data's range, both ends included."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((count, *codec.data.shape), generator=generator)
    x[0], x[1] = 0.0, 1.0
    return codec.data.low + (codec.data.high - codec.data.low) * x


@exact_codec
def test_decode_inverts_encode(codec: Any) -> None:
    """To 1e-5 of the range: a 255th is 400 times that."""
    x = data(codec)
    assert (codec.decode(codec.encode(x)) - x).abs().max() <= 1e-5 * (codec.data.high - codec.data.low)


@exact_codec
def test_bytes_come_back_as_the_same_bytes(codec: Any) -> None:
    if codec.data.high != 255.0:
        pytest.skip("not a codec of bytes")
    x = data(codec).to(torch.uint8)
    assert torch.equal(codec.decode(codec.encode(x)).round().to(torch.uint8), x)


@every_codec
def test_specs_are_true(codec: Any) -> None:
    latent = codec.encode(data(codec))
    whole = codec.latent.whole
    assert latent.dtype == (torch.int64 if whole else torch.float32)
    assert tuple(latent.shape[1:]) == codec.latent.shape
    assert bool((latent >= codec.latent.low).all() & (latent <= codec.latent.high).all())
    assert len(codec.mean) == len(codec.std) == (0 if whole else codec.latent.shape[0])
    decoded = codec.decode(latent if whole else 100.0 * latent)
    assert decoded.dtype == torch.float32
    assert tuple(decoded.shape[1:]) == codec.data.shape
    assert decoded.min() >= codec.data.low
    assert decoded.max() <= codec.data.high


@exact_codec
def test_what_lies_beyond_is_clamped_to_the_datas_range(codec: Any) -> None:
    decoded = codec.decode(100.0 * codec.encode(data(codec)))
    assert decoded.min() == codec.data.low
    assert decoded.max() == codec.data.high


@every_codec
def test_another_shape_is_refused_with_both(codec: Any) -> None:
    wrong = torch.zeros(2, codec.data.shape[0] + 1, *codec.data.shape[1:])
    with pytest.raises(IncompatibleError) as caught:
        codec.encode(wrong)
    assert str(list(codec.data.shape)) in str(caught.value)
    assert str(list(wrong.shape[1:])) in str(caught.value)
    with pytest.raises(IncompatibleError):
        codec.encode(data(codec)[0])
