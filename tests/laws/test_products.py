"""Laws of mixed data: a product is its parts, and what couples them comes out of the denoiser alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.categorical import Absorbing, Logits, TokenPosterior, UniformTokens
from diff_diffusion.core.denoiser import Denoiser, NetworkDenoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.learned_map import Learned
from diff_diffusion.core.likelihood import continuous_bound
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.process import Corrupted
from diff_diffusion.core.product import Joint, Product, ProductPosterior
from diff_diffusion.core.targets import LearnedVariance, LinearTarget
from diff_diffusion.core.time_maps import Flow, LinearLogSnr
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance import ClassifierFree
from diff_diffusion.objectives import Objective
from diff_diffusion.objectives.measures import Nats
from diff_diffusion.objectives.weights import Vlb
from diff_diffusion.registry import build, describe
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.sampler import sample, trajectory
from diff_diffusion.samplers.transforms import Truncate

WIDE = LinearLogSnr(12.0, -12.0)
SHARES, MEANS, VARIANCES = torch.tensor([0.7, 0.3]).double(), torch.tensor([-1.0, 1.5]).double(), [0.09, 0.25]


class Coupled(Denoiser):
    """The exact denoiser of (z, c): c ~ SHARES, z | c ~ N(MEANS[c], VARIANCES[c]): a number that depends on a class."""

    def __init__(self, process: Product) -> None:
        self.process = process

    def draw(self, noise: Noise) -> Tensor:
        c = (noise.fork("class").uniform((len(noise), 1)) > SHARES[0]).long()
        std = torch.tensor(VARIANCES).double().sqrt()
        z = MEANS[c] + std[c] * noise.fork("value").normal((len(noise), 1)).double()
        return torch.cat([z, c.double()], 1)

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> ProductPosterior:
        gaussian, tokens = self.process.parts
        assert isinstance(gaussian, Gaussian)
        assert isinstance(tokens, Absorbing | UniformTokens)
        z, c = self.process.split(x_t)
        times = torch.as_tensor(t, dtype=torch.float64).expand(len(x_t))
        alpha, sigma = (v[:, None] for v in gaussian.scales(times))
        keep, v = tokens.keep(times)[:, None], torch.tensor(VARIANCES).double()
        total = alpha**2 * v + sigma**2
        here = (c == torch.arange(2)).double()
        pi = torch.as_tensor(tokens.forgotten(c), dtype=torch.float64).expand(c.shape)
        logits = SHARES.log() + (keep * here + (1 - keep) * pi).log()
        logits = logits - 0.5 * ((z - alpha * MEANS) ** 2 / total + total.log())
        means = MEANS + alpha * v / total * (z - alpha * MEANS)
        mean = (logits.softmax(1) * means).sum(1, keepdim=True)
        return ProductPosterior((GaussianPosterior(mean, 0.0), TokenPosterior(logits[:, None])))


def product(kind: type[Absorbing] | type[UniformTokens]) -> Product:
    return Product([Gaussian(WIDE), kind(2, WIDE)], [1, 1])


kinds = pytest.mark.parametrize("kind", [Absorbing, UniformTokens])


@kinds
def test_samples_have_the_joint_distribution(kind: type[Absorbing] | type[UniformTokens]) -> None:
    """4,000 samples in 60 stochastic steps: the classes in their shares, and each class's numbers with its moments."""
    denoiser, count = Coupled(product(kind)), 4000
    x = sample(denoiser, Ancestral(1.0), grids.LogSnr(60), (2,), noise=Noise(range(count))).double()
    assert set(x[:, 1].unique().tolist()) == {0.0, 1.0}
    assert (x[:, 1] == 0).double().mean().item() == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / count) + 0.015)
    for c in (0, 1):
        z = x[x[:, 1] == c, 0]
        assert z.mean().item() == pytest.approx(MEANS[c].item(), abs=0.07)
        assert z.var().item() == pytest.approx(VARIANCES[c], rel=0.25)


def test_the_bound_is_the_entropy_of_the_whole() -> None:
    """-E ln p(z, c): the sum of the parts' bounds, with a denoiser that uses each part for the other.

    The number's part is read off at the last level, where the integral ends: its entropy is the closed form's up to
    what the noise of that level hides.
    """
    process = Product([Gaussian(WIDE), UniformTokens(2, WIDE)], [1, 1])
    denoiser, noise = Coupled(process), Noise(range(3000), "bound")
    x_0 = denoiser.draw(noise)
    bound = continuous_bound(denoiser, x_0, noise, num_levels=200, log_snr_max=12.0)
    # The information between the data and their noisy selves at the two ends, which the integral is the difference of.
    entropy_of_class = -(SHARES * SHARES.log()).sum().item()
    gaussian = sum(0.5 * s * math.log(1 + v * math.exp(12.0)) for s, v in zip(SHARES.tolist(), VARIANCES, strict=True))
    # z given c is Gaussian, so I((z, c); noisy) = H(c) + I(z; z_t | c), as the noisy pair tells c all but surely.
    expected = entropy_of_class + gaussian
    assert torch.isfinite(bound.nats).all()
    found = bound.terms.sum(1)
    error = 5 * found.std().item() / 3000**0.5
    assert error < 0.2
    assert found.mean().item() == pytest.approx(expected, abs=error)
    # And with what is left to say, -E ln p: of the class, and of a Gaussian given the class.
    entropy = entropy_of_class + sum(
        0.5 * s * math.log(2 * math.pi * math.e * v) for s, v in zip(SHARES.tolist(), VARIANCES, strict=True)
    )
    error = 5 * bound.nats.std().item() / 3000**0.5
    assert bound.nats.mean().item() == pytest.approx(entropy, abs=error)


def test_its_loss_is_the_mean_of_the_parts() -> None:
    process = product(UniformTokens)
    denoiser, noise = Coupled(process), Noise(range(500), "train")
    x_0 = denoiser.draw(noise)
    t = torch.full((500,), 0.4).double()
    whole = Objective(weight=Vlb(), measure=Nats()).at(denoiser, x_0, t, None, noise)
    corrupted = process.marginal(x_0, t, noise)
    posterior = denoiser(corrupted.x_t, t)
    z, c = process.split(corrupted.x_t)
    gaussian, tokens = process.parts
    assert isinstance(gaussian, Gaussian)
    assert isinstance(tokens, UniformTokens)
    alpha, sigma = gaussian.scales(0.4)
    eps = (z - alpha * posterior.parts[0].mean) / sigma
    numbers = 0.5 * (eps - (z - alpha * x_0[:, :1]) / sigma) ** 2
    answer = posterior.parts[1]
    assert isinstance(answer, TokenPosterior)
    nats = tokens.bound(Corrupted(c, x_0[:, 1:].long(), c, t), answer)
    expected = 24.0 * torch.cat([numbers, nats], 1).mean(1)  # uniform levels on a range of 24
    assert torch.allclose(whole.per_sample, expected, rtol=1e-6)


def test_a_network_with_an_output_for_each_part() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(2, 3)

        def forward(self, x: Tensor, log_snr: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
            out = self.body(x)
            return out[:, :1], out[:, None, 1:]

    process = product(Absorbing)
    denoiser = NetworkDenoiser(Network(), process, Joint([LinearTarget("v"), Logits()]))
    noise = Noise(range(16), "train")
    x_0 = Coupled(process).draw(noise).float()
    loss = Objective(weight=Vlb(), measure=Nats())(denoiser, x_0, None, noise)
    loss.mean.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())
    x = sample(denoiser, Ancestral(1.0), grids.LogSnr(5), (2,), noise=Noise(range(3)))
    assert x.shape == (3, 2)
    again = sample(denoiser, Ancestral(1.0), grids.LogSnr(5), (2,), noise=Noise([1]))
    assert torch.allclose(again[0], x[1], atol=1e-6)


def test_guidance_and_jumps_work_part_by_part() -> None:
    process = product(UniformTokens)
    denoiser, noise = Coupled(process), Noise(range(8))
    cond = Cond({"component": torch.zeros(8, dtype=torch.int64)})
    x_t = process.prior((8, 2), noise).double()
    free, guided = denoiser(x_t, 0.9), ClassifierFree(denoiser, 2.0)(x_t, 0.9, cond)
    assert isinstance(guided, ProductPosterior)
    assert torch.allclose(guided.mean, free.mean)  # the two are the same model here
    steps = list(trajectory(denoiser, Ancestral(1.0), [1.0, 0.5, 0.7, 0.3, 0.0], x_t, noise=noise))
    assert torch.isfinite(steps[-1].x).all()
    assert steps[1].x_0 is None
    tilted = free.tilt([torch.ones(8, 1).double(), torch.zeros(8, 1, 2).double()])
    assert torch.equal(tilted.parts[1].mean, free.parts[1].mean)


def test_part_of_the_way_down_is_a_grid_for_it_too() -> None:
    process = product(UniformTokens)
    times = Truncate(0.5, grids.LogSnr(6)).times(process)
    assert (times[0], times[-1], len(times)) == (0.5, 0.0, 7)


def test_what_the_prior_does_not_know_is_the_sum_of_the_parts() -> None:
    clock = LinearLogSnr(6.0, -2.0)
    parts = [Gaussian(clock), UniformTokens(2, clock)]
    gap = Product(parts, [1, 1]).prior_gap(torch.tensor([[0.7, 1.0]]).double(), 1.0)
    own = parts[0].prior_gap(torch.tensor([[0.7]]).double(), 1.0), parts[1].prior_gap(torch.tensor([[1]]), 1.0)
    assert gap.item() == pytest.approx((own[0] + own[1]).item(), rel=1e-12)


def test_it_is_described_and_built_again() -> None:
    process = product(Absorbing)
    assert build(describe(process)) == process
    target = Joint([LinearTarget("v"), Logits()])
    assert build(describe(target)) == target


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="as many sizes"):
        Product([Gaussian(WIDE)], [1, 2])
    with pytest.raises(IncompatibleError, match="share one time map"):
        Product([Gaussian(WIDE), UniformTokens(2, Flow())], [1, 1])
    with pytest.raises(IncompatibleError, match="no learned time map"):
        Product([Gaussian(learned := Learned()), UniformTokens(2, learned)], [1, 1])
    with pytest.raises(IncompatibleError, match="LearnedVariance cannot be a part"):
        Joint([LearnedVariance(), Logits()]).check(product(Absorbing))
    with pytest.raises(IncompatibleError, match="product of 2"):
        Joint([LinearTarget("v"), Logits()]).check(Gaussian(WIDE))
    with pytest.raises(IncompatibleError, match="needs a Gaussian"):
        next(trajectory(Coupled(product(Absorbing)), Multistep(), [1.0, 0.0], torch.zeros(1, 2), noise=Noise([0])))
