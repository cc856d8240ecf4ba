"""Laws of prediction targets: what a perfect network outputs decodes to x_0, and one gain makes all errors ε's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from law_examples import UNET, parts, scalings
from torch import Tensor, nn

from diff_diffusion.core.denoiser import NetworkDenoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.process import Corrupted
from diff_diffusion.core.targets import ROWS, LinearTarget
from diff_diffusion.core.time_maps import Cosine, Flow, LinearLogSnr, Truncated
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.networks.unet import UNet
from diff_diffusion.rng import Noise

LEVELS = LinearLogSnr(20.0, -20.0)
TIMES = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)  # λ = 20, 19, …, -20
every_target = pytest.mark.parametrize("target", [p for p in parts("target") if isinstance(p.values[0], LinearTarget)])
every_scaling = pytest.mark.parametrize("process", scalings(LEVELS), ids=SCALINGS)


def data(count: int, size: int = 3) -> Tensor:
    return Noise(range(count), "data").normal((count, size)).double()


@every_target
@every_scaling
def test_decode_inverts_encode(target: LinearTarget, process: Gaussian) -> None:
    """x_0 comes back at every λ in ±20 to 1e-13 of the larger of 1 and σ/α: float64's rounding of x_t, no more."""
    x_0 = data(41)
    corrupted = process.marginal(x_0, TIMES, Noise(range(41)))
    output = target.encode(x_0, corrupted.noise, process, TIMES)
    decoded = target.decode(output, corrupted.x_t, process, TIMES).mean
    worst = (decoded - x_0).abs().amax(1)
    assert (worst <= 1e-13 * torch.exp(-0.5 * process.time_map.log_snr(TIMES)).clamp(min=1.0) * 8.0).all()


@every_target
@every_scaling
def test_floats_and_tensors_decode_alike(target: LinearTarget, process: Gaussian) -> None:
    x_t, output = data(4), data(4) + 1.0
    for t in (0.0, 0.3, 1.0):
        by_float = target.decode(output, x_t, process, t)
        by_tensor = target.decode(output, x_t, process, torch.full((4,), t, dtype=torch.float64))
        assert torch.allclose(by_float.mean, by_tensor.mean, rtol=1e-10, atol=1e-10)
        assert by_float.tweedie == pytest.approx(by_tensor.tweedie[0].item(), rel=1e-12)
        alpha, sigma = process.scales(t)
        assert by_float.tweedie == pytest.approx(sigma**2 / alpha, rel=1e-12)


@every_target
@every_scaling
def test_gain_turns_an_error_into_the_error_of_eps(target: LinearTarget, process: Gaussian) -> None:
    """gain · ‖y - ŷ‖² = ‖ε - ε̂‖² with ε̂ = (x_t - α x̂_0) / σ, for any output."""
    x_0, output = data(41), data(41) * 1.7 - 0.2
    corrupted = process.marginal(x_0, TIMES, Noise(range(41)))
    error, gain, _ = target.error(output, corrupted, process)
    alpha, sigma = (scale[:, None] for scale in process.scales(TIMES))
    # Both sides divide by the true amount, so compare where neither loses its digits: ε̂ cancels where σ << α.
    eps_hat = (corrupted.x_t - alpha * target.decode(output, corrupted.x_t, process, TIMES).mean) / sigma
    expected = ((eps_hat - corrupted.noise) ** 2).sum(1)
    gain = torch.as_tensor(gain).expand(41)
    assert torch.allclose(gain * (error**2).sum(1), expected, rtol=1e-6)


@every_scaling
def test_rows_are_their_definitions(process: Gaussian) -> None:
    """The table of papers: x_0; ε; v = α ε - σ x_0; ε - x_0; ∇ log q(x_t | x_0) = -(x_t - α x_0) / σ²."""
    x_0, t = data(41), TIMES
    corrupted = process.marginal(x_0, t, Noise(range(41)))
    eps = corrupted.noise
    alpha, sigma = (scale[:, None] for scale in process.scales(t))
    variance = alpha**2 + sigma**2
    expected = {
        "x0": x_0,
        "eps": eps,
        "v": alpha * eps - sigma * x_0,
        "velocity": eps - x_0,
        "score": -eps / sigma,
        # EDM in units of its own x = x_t / α with noise σ_E = σ / α and sigma_data = 1: F = (x_0 - c_skip x) / c_out.
        "edm": (x_0 - corrupted.x_t / alpha / (1 + (sigma / alpha) ** 2))
        / ((sigma / alpha) / (1 + (sigma / alpha) ** 2).sqrt()),
    }
    assert set(expected) == set(ROWS), "a new row needs its definition here"
    for row, value in expected.items():
        encoded = LinearTarget(row).encode(x_0, eps, process, t)
        # Where σ << α, EDM's own formula subtracts x_0 from nearly itself.
        assert torch.allclose(encoded, value, rtol=1e-6, atol=1e-7), row
    if process.scaling == "vp":
        assert torch.allclose(variance, torch.ones_like(variance))


def test_score_is_the_gradient_of_the_log_kernel() -> None:
    process = Gaussian(LEVELS, "flow")
    alpha, sigma = process.scales(0.4)
    x_0 = data(5)
    x_t = (alpha * x_0 + sigma * data(5).flip(0)).requires_grad_()
    log_kernel = -0.5 * ((x_t - alpha * x_0) ** 2).sum() / sigma**2
    (gradient,) = torch.autograd.grad(log_kernel, x_t)
    encoded = LinearTarget("score").encode(x_0, data(5).flip(0), process, 0.4)
    assert torch.allclose(encoded, gradient, rtol=1e-10)


def test_velocity_is_the_time_derivative_of_the_straight_path() -> None:
    process, x_0, eps = Gaussian(Flow(), "flow"), data(3), data(3).flip(0)

    def path(t: float) -> Tensor:
        alpha, sigma = process.scales(t)
        return alpha * x_0 + sigma * eps

    derivative = (path(0.4 + 1e-6) - path(0.4 - 1e-6)) / 2e-6
    assert torch.allclose(LinearTarget("velocity").encode(x_0, eps, process, 0.4), derivative, atol=1e-8)


def test_edm_is_the_papers_preconditioning() -> None:
    """D = c_skip x + c_out F, c_skip = 1 / (σ² + 1), c_out = σ / √(σ² + 1): table 1 of arXiv 2206.00364, σ_data = 1."""
    process = Gaussian(LEVELS, "ve")
    output, x_t = data(41), data(41) + 2.0
    sigma = torch.exp(-0.5 * process.time_map.log_snr(TIMES))[:, None]
    expected = x_t / (sigma**2 + 1) + sigma / (sigma**2 + 1).sqrt() * output
    assert torch.allclose(LinearTarget("edm").decode(output, x_t, process, TIMES).mean, expected, rtol=1e-10)


def test_edm_is_minus_v_under_vp() -> None:
    process, output, x_t = Gaussian(LEVELS, "vp"), data(41), data(41) + 2.0
    as_v = LinearTarget("v").decode(-output, x_t, process, TIMES).mean
    assert torch.allclose(LinearTarget("edm").decode(output, x_t, process, TIMES).mean, as_v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", ["v", "x0", "velocity", "edm"])
@pytest.mark.parametrize("process", [Gaussian(Flow(), "flow"), Gaussian(Cosine(), "vp")], ids=["flow", "cosine"])
def test_targets_that_fit_decode_from_pure_noise(row: str, process: Gaussian) -> None:
    x_0, eps = data(4), data(4).flip(0)
    target = LinearTarget(row)
    target.check(process)
    for t in (1.0, torch.ones(4, dtype=torch.float64)):
        decoded = target.decode(target.encode(x_0, eps, process, t), eps, process, t)
        assert torch.allclose(decoded.mean, x_0, rtol=1e-12, atol=1e-12)
        assert torch.as_tensor(decoded.tweedie).max() == math.inf


@pytest.mark.parametrize("row", ["eps", "score"])
@pytest.mark.parametrize("time_map", [Flow(), Cosine()], ids=["flow", "cosine"])
@pytest.mark.parametrize("scaling", ["vp", "flow"])
def test_eps_and_score_without_signal_are_refused_at_construction(row: str, time_map: Any, scaling: str) -> None:
    network = UNet(**UNET)
    with pytest.raises(IncompatibleError) as caught:
        NetworkDenoiser(network, Gaussian(time_map, scaling), LinearTarget(row))
    message = str(caught.value)
    assert row in message
    assert type(time_map).__name__ in message
    assert "Truncated" in message
    assert "'v'" in message
    NetworkDenoiser(network, Gaussian(Truncated(time_map, -12.0), scaling), LinearTarget(row))


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="velocity"):
        LinearTarget("epsilon")


# ---- the denoiser around a target ----------------------------------------------------------------------------------


class Perfect(nn.Module):
    """A network that knows ε and x_0: it outputs the target, and remembers what it was shown."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
        self.seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, log_snr: Tensor, cond: Tensor | None) -> Tensor:
        self.seen = x, log_snr
        return self.output


@every_target
@every_scaling
def test_a_network_that_outputs_the_target_has_no_error(target: LinearTarget, process: Gaussian) -> None:
    corrupted = process.marginal(data(41), TIMES, Noise(range(41)))
    network = Perfect(target.encode(corrupted.x_0, corrupted.noise, process, TIMES))
    error = NetworkDenoiser(network, process, target).error(corrupted, None).value
    assert error.abs().max() < 1e-10


@every_scaling
@pytest.mark.parametrize("per_frame", [False, True])
def test_the_network_sees_unit_scale_and_a_clipped_log_snr(process: Gaussian, per_frame: bool) -> None:
    """x_t / √(α² + σ²), the same whatever the scaling; λ clipped to ±20 in float32."""
    wide = Gaussian(LinearLogSnr(60.0, -60.0), process.scaling)
    x_0 = data(4)
    t = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)
    t = t[:, None].expand(4, 3) if per_frame else t
    corrupted: Corrupted = wide.marginal(x_0, t, Noise(range(4)))
    network = Perfect(x_0)
    NetworkDenoiser(network, wide, LinearTarget("x0"))(corrupted.x_t, t)
    assert network.seen is not None
    x, log_snr = network.seen
    vp = Gaussian(LinearLogSnr(60.0, -60.0), "vp").marginal(x_0, t, Noise(range(4))).x_t
    assert torch.allclose(x, vp, rtol=1e-10, atol=1e-10)
    assert log_snr.dtype == torch.float32
    assert torch.allclose(log_snr.double(), (60.0 - 120.0 * t).clamp(-20.0, 20.0), atol=1e-5)


@every_scaling
def test_float_times_show_the_network_the_same_as_tensors(process: Gaussian) -> None:
    network = Perfect(data(4))
    denoiser = NetworkDenoiser(network, process, LinearTarget("v"))
    denoiser(data(4), 0.3)
    assert network.seen is not None
    x, log_snr = network.seen
    denoiser(data(4), torch.full((4,), 0.3, dtype=torch.float64))
    assert torch.allclose(network.seen[0], x, rtol=1e-12)
    assert torch.equal(network.seen[1], log_snr)
    assert log_snr.shape == (4,)
