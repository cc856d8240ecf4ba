"""Langevin correction: its stationary law, its pull, and its refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import Posterior
from diff_diffusion.core.process import Process
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.langevin import Corrected
from diff_diffusion.samplers.sampler import Sampler

PROCESS = Gaussian(LinearLogSnr(9.0, -9.0))
VARIANCE = 0.5


class Stay(Sampler):
    """A predictor that does nothing, so that only the corrector acts."""

    needs = Gaussian

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: object, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, None]:
        return x_t, None


class Draws(Noise):
    """Each stream's number is a direction of its own, the first for the start."""

    def normal(self, shape: object, like: Tensor | None = None) -> Tensor:
        out = torch.zeros(len(self.seeds), 1, dtype=torch.float64)
        out[1 + int(self.stream.split("/")[-1]) if "/" in self.stream else 0] = 1.0
        return out


def variance_after(steps: int, snr: float, start: float, s: float) -> float:
    """The exact variance at time s after Langevin steps from N(0, start), for data N(0, 1/2)."""
    noise, denoiser = Draws(range(steps + 1)), GaussianMixture(PROCESS, [[0.0]], [VARIANCE])
    x = math.sqrt(start) * noise.normal(())
    x, _ = Corrected(Stay(), steps, snr).step(denoiser, x, 1.0, s, None, None, noise)
    return (x**2).sum().item()


@pytest.mark.parametrize("s", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("snr", [0.05, 0.16, 0.3])
def test_the_law_of_the_process_is_kept_but_for_the_size_of_a_step(s: float, snr: float) -> None:
    """The stationary variance is V / (1 - snr² σ²/V), V = α² v + σ²: too large by less than 2 snr², and by the
    declared bias up to its square. From there one step changes nothing, and many steps lead there."""
    alpha, sigma = PROCESS.scales(s)
    total = alpha**2 * VARIANCE + sigma**2
    stationary = total / (1.0 - snr**2 * sigma**2 / total)
    assert variance_after(1, snr, stationary, s) == pytest.approx(stationary, rel=1e-12)
    assert stationary / total - 1.0 <= Corrected(snr=snr).bias * (1.0 + 2.0 * snr**2)
    rate = (1.0 - 2.0 * snr**2 * sigma**2 / total) ** 2
    for start in (0.0, 3.0 * total):
        found = variance_after(60, snr, start, s)
        assert found - stationary == pytest.approx(rate**60 * (start - stationary), rel=1e-6, abs=1e-12)


def test_langevin_steps_mend_a_walk_that_ddim_gets_wrong() -> None:
    """Two modes from a start of twice the right spread: the correction brings the moments at λ = 0 nearer."""
    mixture = GaussianMixture(PROCESS, [[-0.6], [0.9]], [0.09, 0.0625], [0.6, 0.4])
    count, s = 2000, PROCESS.time_map.time(0.0)
    noise = Noise(range(count))
    clean = mixture.draw(noise)
    alpha, sigma = PROCESS.scales(s)
    wrong = 2.0 * (alpha * clean + sigma * noise.fork("eps").normal((count, 1)).double())
    right = (alpha * clean).var().item() + sigma**2
    x, _ = Corrected(Stay(), 100, 0.2).step(mixture, wrong, 1.0, s, None, None, noise)
    assert wrong.var().item() > 3.0 * right
    assert x.var().item() == pytest.approx(right, rel=5 * math.sqrt(2 / count) + Corrected(snr=0.2).bias)


def test_the_noise_of_the_correction_is_not_that_of_the_step() -> None:
    """A step that draws noise and its correction draw it independently."""
    noise = Noise(range(2000))
    path = noise.path(0, lambda t: 1.0 - t)
    step = noise.at(3, (path, 0.6, 0.5))
    drawn = torch.cat([n.normal((2000, 1)) for n in (step, step.fork("langevin/0"), step.fork("langevin/1"))], 1)
    assert torch.allclose(drawn.T.corrcoef(), torch.eye(3), atol=5 / math.sqrt(2000))


class Tokens(Stay):
    class Other(Process):
        pass

    needs = Other  # type: ignore[assignment]


def test_bad_correctors_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="Tokens walks a Other one: wrap a sampler such as ddpm"):
        Corrected(Tokens())
    for bad in ({"steps": 0}, {"snr": 0.0}, {"snr": 1.0}):
        with pytest.raises(ConfigError, match="1 step or more, with snr between 0 and 1"):
            Corrected(Ancestral(), **bad)  # type: ignore[arg-type]


def test_a_posterior_is_asked_at_the_level_of_the_correction() -> None:
    asked: list[float] = []

    class Listening(GaussianMixture):
        def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:  # type: ignore[override]
            asked.append(float(t))
            return super().__call__(x_t, t, cond)

    mixture = Listening(PROCESS, [[0.0]], [1.0])
    Corrected(Ancestral(), 2).step(mixture, torch.zeros(1, 1), 0.8, 0.4, None, None, Noise([0]))
    assert asked == [0.8, 0.4, 0.4]
