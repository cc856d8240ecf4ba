"""Numbers that diffusers' own scheduler tests state, reproduced by this package's samplers. Needs no other package.

Those tests drive a schedule with a made-up network: it answers x · t / (t + 1), t being the scheduler's integer (for
EDM: ln(σ)/4), and start at x = arange(768) / 768 with the batch axis, of 4, running fastest. They state the sum or the
mean of |x| at the end, to four digits. Each run here is that network under a `NetworkDenoiser`, walked by `trajectory`.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diff_diffusion.core.denoiser import Denoiser, NetworkDenoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.targets import LinearTarget
from diff_diffusion.core.time_maps import LinearLogSnr, TabulatedBetas
from diff_diffusion.guidance.bounds import Clipped
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import Sampler, trajectory
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.grid import Karras
from diff_diffusion.samplers.multistep import Multistep

TIMESTEPS = 1000
START = (torch.arange(4 * 3 * 8 * 8) / (4 * 3 * 8 * 8)).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)


class MadeUp(nn.Module):
    """x · label / (label + 1): the label is the chain's integer at that λ, or for EDM a quarter of ln σ."""

    def __init__(self, process: Gaussian, edm: bool = False) -> None:
        super().__init__()
        self.process, self.edm = process, edm

    def forward(self, x: Tensor, log_snr: Tensor, embedded: None) -> Tensor:
        level = float(log_snr[0])
        if self.edm:
            label = 0.25 * math.log(SIGMA_DATA * math.exp(-0.5 * level))
        else:
            label = round(self.process.time_map.time(level) * TIMESTEPS) - 1
        return x * label / (label + 1)


def chain(target: str, beta_start: float = 1e-4, beta_end: float = 0.02) -> NetworkDenoiser:
    """The made-up network on the discrete chain of 1000 linear betas."""
    betas = [beta_start + (beta_end - beta_start) * i / (TIMESTEPS - 1) for i in range(TIMESTEPS)]
    process = Gaussian(TabulatedBetas(betas))
    return NetworkDenoiser(MadeUp(process), process, LinearTarget(target))


def ends(denoiser: Denoiser, sampler: Sampler, times: list[float], x: Tensor) -> list[Tensor]:
    """|x| after each step."""
    return [step.x.abs() for step in trajectory(denoiser, sampler, times, x, noise=Noise(range(4)))]


LEADING = [(TIMESTEPS // 10 * i + 1) / TIMESTEPS for i in reversed(range(10))]
"""Timesteps 900, 800, …, 0 of the chain, counted from 0, as times."""


@pytest.mark.parametrize(
    ("target", "beta_start", "total"),
    [("eps", 1e-4, 172.0067), ("v", 1e-4, 52.5302), ("eps", 0.01, 149.8295)],
    ids=["eps", "v", "beta-0.01"],
)
def test_ddim(target: str, beta_start: float, total: float) -> None:
    denoiser = chain(target, beta_start)
    clipped = Clipped(denoiser, torch.tensor(-1.0), torch.tensor(1.0))
    found = [ends(one, Ancestral(0.0), [*LEADING, 0.0], START)[-1].sum().item() for one in (denoiser, clipped)]
    assert found == pytest.approx([total, total], abs=1e-2)  # their clip to [-1, 1] touches nothing here


def test_ddim_does_not_stop_a_step_before_the_data() -> None:
    """With `set_alpha_to_one=False` the same run ends at the first level of the chain, not at the data: 149.0784.

    So that number is the step from timestep 0 to itself, which changes nothing: our walk one step earlier.
    """
    found = ends(chain("eps", 0.01), Ancestral(0.0), [*LEADING, 0.0], START)
    assert found[-2].sum().item() == pytest.approx(149.0784, abs=1e-2)
    assert found[-1].sum().item() == pytest.approx(149.8295, abs=1e-2)


@pytest.mark.parametrize(("target", "mean"), [("eps", 0.3301), ("v", 0.2251)])
def test_multistep(target: str, mean: float) -> None:
    """Timesteps round(999 i / 10) and, last, 0: DPM-Solver++(2M) stops there, at the first level of the chain."""
    times = [(round((TIMESTEPS - 1) * i / 10) + 1) / TIMESTEPS for i in reversed(range(11))]
    found = ends(chain(target), Multistep(2), [*times, 0.0], START)
    assert found[-2].mean().item() == pytest.approx(mean, abs=1e-4)


SIGMA_DATA = 0.5


def test_edm_euler() -> None:
    """EDM's network for data of standard deviation 1/2: in units of that deviation it is the target "edm"."""
    log_snr_max, log_snr_min = (-2.0 * math.log(sigma / SIGMA_DATA) for sigma in (0.002, 80.0))
    process = Gaussian(LinearLogSnr(log_snr_max, log_snr_min), "ve")
    denoiser = NetworkDenoiser(MadeUp(process, edm=True), process, LinearTarget("edm"))
    times = Karras(10, sigma_min=0.002 / SIGMA_DATA, sigma_max=80.0 / SIGMA_DATA).times(process)
    start = START * math.sqrt(80.0**2 + 1.0)  # what their init_noise_sigma is
    found = ends(denoiser, Ancestral(0.0), times, start / SIGMA_DATA)
    assert SIGMA_DATA * found[-1].sum().item() == pytest.approx(34.1855, abs=1e-3)
