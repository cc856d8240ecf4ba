"""Laws of networks: any size in and out, no sample sees another, every weight learns, level and condition matter."""

from __future__ import annotations

import pytest
import torch
from law_examples import descriptions
from torch import Tensor, nn

from diff_diffusion.registry import build
from diff_diffusion.rng import Noise

DESCRIBED = descriptions("network")
SIZES = [(8, 8), (7, 5), (33, 20), (1, 1), (2, 64)]


@pytest.fixture(params=DESCRIBED, ids=[f"{d['type'][8:]}-{i}" for i, d in enumerate(DESCRIBED)])
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Every registered network, freshly made."""
    torch.manual_seed(0)
    made = build(request.param)
    assert isinstance(made, nn.Module)
    return made


def perturbed(network: nn.Module) -> nn.Module:
    """The network with every weight moved, so that nothing is zero any more; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return network.eval()


def inputs(network: nn.Module, count: int = 3, size: tuple[int, int] = (6, 8)) -> tuple[Tensor, Tensor, Tensor | None]:
    noise = Noise(range(count))
    cond = noise.fork("cond").normal((count, network.cond_width)) if network.cond_width else None
    return noise.normal((count, network.channels, *size)), torch.linspace(-20.0, 20.0, count), cond


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_output_has_the_inputs_shape_and_dtype(network: nn.Module, size: tuple[int, int]) -> None:
    x, log_snr, cond = inputs(network, 2, size)
    out = perturbed(network)(x, log_snr, cond)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.isfinite(out).all()


def test_double_precision_stays_double(network: nn.Module) -> None:
    x, log_snr, cond = inputs(network)
    network = perturbed(network)
    single = network(x, log_snr, cond)
    double = network.double()(x.double(), log_snr.double(), None if cond is None else cond.double())
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, rtol=1e-3, atol=1e-3)


def test_no_sample_sees_another(network: nn.Module) -> None:
    """Everything about sample 1 changes; samples 0 and 2 stay the same, bit by bit."""
    network = perturbed(network)
    x, log_snr, cond = inputs(network)
    before = network(x, log_snr, cond)
    x[1], log_snr[1] = x[1] * 3.0 - 1.0, 7.0
    if cond is not None:
        cond[1] = -cond[1]
    after = network(x, log_snr, cond)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.allclose(after[1], before[1])


def test_every_place_reaches_every_place_it_should(network: nn.Module) -> None:
    """The gradient of the whole output reaches every input number, also at a size that needs padding."""
    network = perturbed(network)
    x, log_snr, cond = inputs(network, 1, (7, 5))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((network(x, log_snr, cond) ** 2).sum(), x)
    assert (gradient != 0).all()


def test_a_fresh_network_outputs_zero(network: nn.Module) -> None:
    """So that training starts from the target's mean and not from noise."""
    x, log_snr, cond = inputs(network)
    assert torch.equal(network(x, log_snr, cond), torch.zeros_like(x))


def test_every_parameter_learns(network: nn.Module) -> None:
    network = perturbed(network)
    x, log_snr, cond = inputs(network)
    (network(x, log_snr, cond) ** 2).sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert not still
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_the_level_changes_the_output(network: nn.Module) -> None:
    """Each λ of ±20 is told from its neighbours, each sample by its own."""
    network = perturbed(network)
    x, _, cond = inputs(network, 1)
    outs = [network(x, torch.tensor([level]), cond) for level in (-20.0, -19.5, 0.0, 0.5, 19.5, 20.0)]
    for i, one in enumerate(outs):
        assert all((one - other).abs().max() > 1e-3 for other in outs[i + 1 :])


def test_the_condition_changes_the_output(network: nn.Module) -> None:
    if not network.cond_width:
        pytest.skip("an unconditional network")
    network = perturbed(network)
    x, log_snr, cond = inputs(network)
    out = network(x, log_snr, cond)
    assert cond is not None
    assert (network(x, log_snr, cond.roll(1, 0)) - out).abs().max() > 1e-3
    assert (network(x, log_snr, None) - out).abs().max() > 1e-3
