"""Dynamic thresholding: nothing within the range, the paper's formula in units of the range outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.errors import ConfigError
from diff_diffusion.guidance import Clipped, DynamicallyClipped
from diff_diffusion.rng import Noise

LOW, HIGH = torch.tensor([-0.5, -1.0])[:, None, None], torch.tensor([1.5, 3.0])[:, None, None]  # per channel
X = 2.0 * Noise(range(3)).normal((3, 2, 10, 10)).double()


class Says(Denoiser):
    """Its x̂_0 is x_t."""

    def __init__(self) -> None:
        self.process = Gaussian(LinearLogSnr(9.0, -9.0))

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> GaussianPosterior:
        return GaussianPosterior(x_t, 0.1, torch.full_like(x_t, 0.3))


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_it_is_the_papers_formula_in_units_of_the_range(quantile: float) -> None:
    posterior = DynamicallyClipped(Says(), LOW, HIGH, quantile)(X, 0.4)
    assert isinstance(posterior, GaussianPosterior)
    assert posterior.share is not None
    assert bool((posterior.share == 0.3).all())
    centre, half = np.array([0.5, 1.0])[:, None, None], np.array([1.0, 2.0])[:, None, None]
    for sample, mean in zip(X.numpy(), posterior.mean.numpy(), strict=True):
        unit = (sample - centre) / half
        s = max(1.0, np.quantile(np.abs(unit), quantile, method="inverted_cdf"))
        expected = centre + half * np.clip(unit, -s, s) / s
        np.testing.assert_allclose(
            mean, np.clip(sample, LOW.numpy(), HIGH.numpy()) if s == 1.0 else expected, rtol=1e-12, atol=1e-12
        )


def test_samples_within_the_range_are_untouched_whatever_the_others_are() -> None:
    small = 0.5 + 0.1 * X[:1]
    mean = DynamicallyClipped(Says(), LOW, HIGH)(torch.cat([small, X[1:]]), 0.4).mean
    assert torch.equal(mean[:1], small)
    assert torch.equal(mean[1:], DynamicallyClipped(Says(), LOW, HIGH)(X[1:], 0.4).mean)
    assert bool((mean >= LOW).all() & (mean <= HIGH).all())


def test_it_nests_with_clipping_and_takes_half_precision() -> None:
    dynamic = DynamicallyClipped(Says(), LOW, HIGH)
    assert torch.equal(Clipped(dynamic, LOW, HIGH)(X, 0.4).mean, dynamic(X, 0.4).mean)
    assert torch.equal(DynamicallyClipped(Clipped(Says(), LOW, HIGH), LOW, HIGH)(X, 0.4).mean, X.clamp(LOW, HIGH))
    assert torch.allclose(dynamic(X.half(), 0.4).mean.double(), dynamic(X, 0.4).mean, atol=0.01)


def test_a_range_or_a_quantile_that_makes_no_sense_is_refused() -> None:
    for low, high in ((LOW, torch.tensor(torch.inf)), (HIGH, LOW)):
        with pytest.raises(ConfigError, match="finite range"):
            DynamicallyClipped(Says(), low, high)
    for quantile in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="quantile must be"):
            DynamicallyClipped(Says(), LOW, HIGH, quantile)
