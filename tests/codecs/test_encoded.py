"""Codecs with weights: half precision that overflows is done again, and how near the decoded lies is measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.codecs.bottleneck import Gauss
from diff_diffusion.errors import ConfigError, DiffusionError
from diff_diffusion.rng import Noise

PIXELS = Affine((1, 4, 4), (128.0,), (64.0,))
NOISE = 0.1


class Steep(nn.Module):
    """Doubles its latents by way of numbers that half precision has not above 65504: 32768 z."""

    factor = 1

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.up.weight, 2.0**15)
        nn.init.constant_(self.down.weight, 2.0**-14)

    def encode(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x, 2 * math.log(NOISE))], 1)

    def decode(self, z: Tensor) -> Tensor:
        found: Tensor = self.down(self.up(z))
        return found


def codec() -> Autoencoded:
    return Autoencoded(Steep(), Gauss(1), PIXELS, (0.0,), (1.0,))


def test_what_overflows_in_half_precision_is_decoded_again() -> None:
    """Only those samples, and said aloud; the others are as half precision has them."""
    z = 0.1 * Noise(range(3)).normal((3, 1, 4, 4))
    z[1, 0, 0, 0] = 5.0
    exact, half = codec(), codec().half()
    with pytest.warns(UserWarning, match="half precision overflows: such samples are decoded in float32"):
        found = half.decode(z)
    assert found.dtype == torch.float32
    assert torch.equal(found[1], exact.decode(z)[1])
    assert torch.equal(found[[0, 2]], half.decode(z[[0, 2]]))
    assert not torch.equal(found[[0, 2]], exact.decode(z[[0, 2]]))
    assert (found - exact.decode(z)).abs().max() < 0.5
    with pytest.warns(UserWarning, match="half precision"), torch.autocast("cpu", torch.float16):
        cast = exact.decode(z)
    assert torch.allclose(cast[1], exact.decode(z)[1])


def test_weights_that_are_damaged_are_an_error(recwarn: pytest.WarningsRecorder) -> None:
    broken = codec()
    with torch.no_grad():
        broken.network.down.weight.fill_(torch.nan)
    with pytest.raises(DiffusionError, match="decoder makes of 2 of 2 latents is not finite"):
        broken.decode(torch.zeros(2, 1, 4, 4))
    assert not recwarn.list


@pytest.mark.parametrize("density", ["laplace", "gauss"])
def test_the_width_is_how_far_decoded_data_lie_from_the_data(density: str) -> None:
    """x decodes as 2 (x + NOISE ε): misses are N(x, (2 NOISE)²)."""
    x = 0.2 * Noise(range(400)).normal((400, 1, 4, 4))
    fitted = Autoencoded.fit(Steep(), Gauss(1), PIXELS, (PIXELS.decode(part) for part in x.split(50)), density)
    variance = 0.2**2 + (2 * NOISE) ** 2
    expected = math.sqrt(variance * 2 / math.pi) if density == "laplace" else math.sqrt(variance)
    assert fitted.width == pytest.approx(expected, rel=0.04)  # 4 standard errors of 6400 numbers
    assert fitted.density == density
    for wrong in ({"density": "cauchy"}, {"width": 0.0}, {"width": math.inf}):
        with pytest.raises(ConfigError, match="a laplace or a gauss around them"):
            Autoencoded(Steep(), Gauss(1), PIXELS, (0.0,), (1.0,), **wrong)  # type: ignore[arg-type]
