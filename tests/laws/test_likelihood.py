"""Laws of likelihood: on exact denoisers every bound and the ODE meet the closed form."""

from __future__ import annotations

import math

import pytest
import torch
from law_examples import UNET, scalings
from scipy import stats
from torch import Tensor

from diff_diffusion.core.analytic import GaussianMixture, TokenTable
from diff_diffusion.core.categorical import Absorbing, Tokens, UniformTokens
from diff_diffusion.core.denoiser import NetworkDenoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.likelihood import Bins, continuous_bound, log_likelihood, variational_bound
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.process import Corrupted
from diff_diffusion.core.targets import LearnedVariance, LinearTarget
from diff_diffusion.core.time_maps import Flow, LinearLogSnr, Logistic, TabulatedBetas, Truncated
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.networks.unet import UNet
from diff_diffusion.objectives import Objective
from diff_diffusion.objectives.weights import Simple
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.sampler import sample

WIDE = LinearLogSnr(14.0, -14.0)
every_scaling = pytest.mark.parametrize("process", scalings(WIDE), ids=SCALINGS)
MEANS = [[-0.6, 0.2], [0.9, -0.3]]  # of mean 0, as codecs make data
COVARIANCES = torch.tensor([[[0.2, 0.05], [0.05, 0.1]], [[0.1, -0.03], [-0.03, 0.3]]], dtype=torch.float64)


def mixture(process: Gaussian) -> GaussianMixture:
    return GaussianMixture(process, MEANS, COVARIANCES, [0.6, 0.4])


def exact_nats(process: Gaussian, x_0: Tensor) -> Tensor:
    """-ln p(x_0) of the data themselves: the mixture's density without noise."""
    clean = GaussianMixture(Gaussian(LinearLogSnr(60.0, -10.0)), MEANS, COVARIANCES, [0.6, 0.4])
    return -clean.log_density(x_0, 0.0)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), 5 * values.std().item() / len(values) ** 0.5


# ---- bounds ----------------------------------------------------------------------------------------------------------


@every_scaling
def test_the_continuous_bound_is_the_entropy(process: Gaussian) -> None:
    """2,000 draws of the data: the mean bound less the mean of -ln p is 0 within 5 standard errors."""
    exact, noise = mixture(process), Noise(range(2000), "bound")
    x_0 = exact.draw(noise)
    bound = continuous_bound(exact, x_0, noise, num_levels=320)
    gap, error = mean_and_error(bound.nats - exact_nats(process, x_0))
    assert error < 0.2
    assert gap == pytest.approx(0.0, abs=error)


@pytest.mark.parametrize("steps", [5, 40])
def test_every_term_of_the_discrete_bound_is_its_expectation(steps: int) -> None:
    """Data N(0, v): the term from t to s is ½ (SNR_s - SNR_t) v / (1 + v SNR_t), each within 5 standard errors of 4,000
    draws. With more steps they fall to the continuous bound, ½ ln of a ratio."""
    process, v = Gaussian(LinearLogSnr(6.0, -8.0)), 0.4
    exact, noise = GaussianMixture(process, [[0.0]], [v]), Noise(range(4000), "bound")
    times = grids.LogSnr(steps, 6.0, -8.0).times(process)
    bound = variational_bound(exact, exact.draw(noise), times, noise)
    snr = torch.exp(torch.tensor([process.time_map.log_snr(t) for t in times[:-1]], dtype=torch.float64))
    expected = 0.5 * snr.diff() * v / (1.0 + v * snr[:-1])
    assert bound.terms.shape == (4000, steps - 1)
    assert torch.allclose(bound.log_snr.exp(), snr[:-1])
    assert ((bound.terms.mean(0) - expected).abs() <= 5 * bound.terms.std(0) / 4000**0.5).all()
    limit = 0.5 * math.log((1 + v * snr[-1].item()) / (1 + v * snr[0].item()))
    assert 0.0 < expected.sum().item() - limit < {5: 6.0, 40: 0.2}[steps] * limit
    assert torch.allclose(bound.nats, bound.prior + bound.terms.sum(1) + bound.reconstruction)


def test_the_discrete_bound_bounds_the_entropy() -> None:
    process = Gaussian(WIDE)
    exact, noise = mixture(process), Noise(range(1500), "bound")
    x_0 = exact.draw(noise)
    gaps = []
    for steps in (4, 16, 400):
        times = grids.LogSnr(steps + 1, 14.0, -14.0).times(process)
        gaps.append(mean_and_error(variational_bound(exact, x_0, times, noise).nats - exact_nats(process, x_0)))
    assert gaps[0][0] > gaps[1][0] > gaps[2][0]
    assert gaps[1][0] > gaps[1][1]
    # At high SNR a step loses h²/4 a number, h = 28 / 400 its length in λ; half the levels are there.
    assert gaps[2][1] < 0.2
    assert gaps[2][0] == pytest.approx(2 * 200 * 0.07**2 / 4, abs=gaps[2][1] + 0.05)


@pytest.mark.parametrize("t", [0.9, 0.4])
def test_a_term_is_the_divergence_of_two_gaussians(t: float) -> None:
    """½ (SNR_s - SNR_t) ‖x_0 - x̂_0‖² against the closed form of q and p, read off the reverse kernel, as in DDPM."""
    process, s = Gaussian(LinearLogSnr(6.0, -6.0), "flow"), t - 0.15
    noise = Noise([0])
    probe = noise.normal((1, 1)).item()

    def kernel(x_0: float, share: float | None = None) -> tuple[float, float]:
        """Mean and std of the step from x_t = 0.3 to s."""
        answer = GaussianPosterior(
            torch.tensor([[x_0]]).double(), 0.0, None if share is None else torch.tensor([[share]]).double()
        )
        x_t = torch.tensor([[0.3]]).double()
        whole = process.reverse(x_t, answer, t, s, eta=1.0, noise=noise).item()
        plain = process.reverse(x_t, answer, t, s, eta=1.0, noise=Zero()).item()  # type: ignore[arg-type]
        return plain, (whole - plain) / probe

    for share in (None, 0.0, 0.35, 1.0):
        (true_mean, true_std), (said_mean, said_std) = kernel(0.7), kernel(-0.2, share)
        expected = (
            math.log(said_std / true_std) + (true_std**2 + (true_mean - said_mean) ** 2) / (2 * said_std**2) - 0.5
        )
        share_of = None if share is None else torch.tensor([[share]]).double()
        answer = GaussianPosterior(torch.tensor([[-0.2]]).double(), 0.0, share_of)
        found = process.divergence(torch.tensor([[0.7]]).double(), answer, t, s).item()
        assert found == pytest.approx(expected, rel=1e-9)
        times = (torch.tensor([t]).double(), torch.tensor([s]).double())
        assert process.divergence(torch.tensor([[0.7]]).double(), answer, *times).item() == pytest.approx(found)


class Zero:
    def normal(self, shape: object, like: Tensor) -> Tensor:
        return torch.zeros_like(like)


def test_the_chains_terms_are_ddpms() -> None:
    """On DDPM's own chain: KL = β_t² / (2 σ_t² a_t (1 - ā_t)) ‖ε - ε̂‖², σ_t² = β̃_t, equation 12 of arXiv 2006.11239."""
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    process = Gaussian(TabulatedBetas(betas))
    kept = torch.cumprod(1 - torch.tensor(betas).double(), 0)
    for i in (10, 400, 998):
        beta, before, now = betas[i], kept[i - 1].item(), kept[i].item()
        posterior_variance = beta * (1 - before) / (1 - now)
        weight = beta**2 / (2 * posterior_variance * (1 - beta) * (1 - now))
        eps_error = 0.37
        x_0_error = math.sqrt((1 - now) / now) * eps_error
        answer = GaussianPosterior(torch.tensor([[x_0_error]]).double(), 0.0)
        found = process.divergence(torch.zeros(1, 1).double(), answer, (i + 1) / 1000, i / 1000).item()
        assert found == pytest.approx(weight * eps_error**2, rel=1e-6)


@every_scaling
def test_the_prior_gap_is_the_divergence_from_the_prior(process: Gaussian) -> None:
    """KL(N(α x_0, σ²) ‖ N(0, α² + σ²)), number by number."""
    x_0, t = torch.tensor([[0.4, -1.3]]).double(), 0.8
    alpha, sigma = process.scales(t)
    std = math.sqrt(alpha**2 + sigma**2)
    expected = sum(math.log(std / sigma) + (sigma**2 + (alpha * x) ** 2) / (2 * std**2) - 0.5 for x in x_0[0].tolist())
    assert process.prior_gap(x_0, t).item() == pytest.approx(expected, rel=1e-9)


# ---- discrete data ---------------------------------------------------------------------------------------------------


def test_a_bins_mass_is_the_normals_and_all_bins_are_one() -> None:
    width, low, high = (torch.tensor(v).double() for v in (0.5, -1.0, 1.5))
    bins, values = Bins(width, low, high), torch.arange(-1.0, 1.6, 0.5).double()
    for mean, std in [(0.1, 0.3), (5.0, 0.2), (-40.0, 1.0), (0.25, 1e-3)]:
        found = bins.log_probability(values, torch.full((6,), mean, dtype=torch.float64), std)
        assert found.exp().sum().item() == pytest.approx(1.0, rel=1e-12)
        assert torch.isfinite(found).all()
    inner = bins.log_probability(values, torch.full((6,), 0.1, dtype=torch.float64), 0.3)[1:-1].exp()
    expected = stats.norm.cdf(values[1:-1] + 0.25, 0.1, 0.3) - stats.norm.cdf(values[1:-1] - 0.25, 0.1, 0.3)
    assert inner.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_the_bound_of_discrete_data_is_above_their_entropy_and_near_it() -> None:
    """Four values with known probabilities: a mixture of points is its exact denoiser."""
    process = Gaussian(LinearLogSnr(12.0, -10.0))
    shares, values = [0.4, 0.3, 0.2, 0.1], [-1.5, -0.5, 0.5, 1.5]
    exact = GaussianMixture(process, [[v] for v in values], [0.0] * 4, shares)
    noise = Noise(range(4000), "bound")
    x_0 = exact.draw(noise)
    bins = Bins(torch.tensor(1.0), torch.tensor(-1.5), torch.tensor(1.5))
    bound = continuous_bound(exact, x_0, noise, num_levels=48, bins=bins)
    entropy = -sum(p * math.log(p) for p in shares)
    mean, error = mean_and_error(bound.nats)
    assert error < 0.15
    assert mean == pytest.approx(entropy, abs=error)
    assert bound.bits_per_dim.mean().item() == pytest.approx(mean / math.log(2))


EARLY = [UniformTokens(3, LinearLogSnr(3.0, -14.0)), Absorbing(3, Truncated(Logistic(), -30.0))]


@pytest.mark.parametrize("process", EARLY, ids=["uniform", "absorbing"])
def test_the_bound_of_tokens_read_off_early_is_still_a_bound(process: Tokens) -> None:
    """At λ = 3 one token in twenty is in doubt: what is left to say is counted, so it is still the entropy or more."""
    joint = torch.rand((3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    table, noise = TokenTable(process, joint), Noise(range(6000), "bound")
    bound = continuous_bound(table, table.draw(noise), noise, num_levels=60, log_snr_max=3.0)
    entropy = -torch.xlogy(table.probabilities, table.probabilities).sum().item()
    mean, error = mean_and_error(bound.terms.sum(1) + bound.reconstruction)
    assert bound.reconstruction.mean() > 0.02
    # Positions are read off apart, which can only cost.
    assert mean > entropy - error
    assert mean < entropy + error + 0.1


@pytest.mark.parametrize("kind", [Absorbing, UniformTokens])
def test_the_bound_of_tokens_is_their_entropy(kind: type[Absorbing] | type[UniformTokens]) -> None:
    joint = torch.rand((3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    table, noise = TokenTable(kind(3), joint), Noise(range(3000), "bound")
    x_0 = table.draw(noise)
    bound = continuous_bound(table, x_0, noise, num_levels=60, log_snr_max=14.0)
    entropy = -torch.xlogy(table.probabilities, table.probabilities).sum().item()
    mean, error = mean_and_error(bound.nats)
    assert error < 0.15
    assert mean == pytest.approx(entropy, abs=error)
    assert bound.reconstruction.mean() < 1e-3
    assert (bound.prior == 0).all()


def process_keep_squared(log_snr: float) -> float:
    return (1 / (1 + math.exp(-log_snr))) ** 2


def test_a_prior_of_masks_knows_no_token_that_is_left() -> None:
    x_0 = torch.zeros(2, 3, dtype=torch.int64)
    assert torch.equal(Absorbing(4).prior_gap(x_0, 1.0), torch.zeros(2).double())
    assert torch.isinf(Absorbing(4, LinearLogSnr()).prior_gap(x_0, 1.0)).all()
    process = UniformTokens(4, LinearLogSnr(6.0, -2.0))
    kept = process.keep(1.0) + (1 - process.keep(1.0)) / 4
    rest = (1 - kept) / 3
    expected = 3 * (kept * math.log(4 * kept) + 3 * rest * math.log(4 * rest))
    assert process.prior_gap(x_0, 1.0).tolist() == pytest.approx([expected] * 2)
    gap = UniformTokens(2, LinearLogSnr(6.0, -14.0)).prior_gap(torch.zeros(1, 1000, dtype=torch.int64), 1.0)
    assert gap.item() == pytest.approx(0.5 * 1000 * process_keep_squared(-14.0), rel=1e-3)


# ---- the ODE ---------------------------------------------------------------------------------------------------------


@every_scaling
def test_the_odes_likelihood_is_the_density(process: Gaussian) -> None:
    """Of data with the last level's noise, to 2e-5 nats at 128 steps, point by point."""
    exact = mixture(process)
    x_0 = exact.draw(Noise(range(12), "ode"))
    found = log_likelihood(exact, x_0, num_steps=128)
    alpha = process.scales(0.0)[0]
    expected = exact.log_density(alpha * x_0, 0.0) + x_0.shape[1] * math.log(alpha)
    assert torch.allclose(found, expected, atol=2e-5)
    assert torch.allclose(found, -exact_nats(process, x_0), atol=3e-3)  # and so nearly of the data themselves


def test_twice_the_steps_are_nearer_with_order_4() -> None:
    process = Gaussian(LinearLogSnr(8.0, -8.0))
    exact = mixture(process)
    x_0 = exact.draw(Noise(range(6), "ode"))
    best = log_likelihood(exact, x_0, num_steps=512)
    errors = [(log_likelihood(exact, x_0, num_steps=n) - best).abs().max().item() for n in (16, 32, 64)]
    assert math.log2(errors[1] / errors[2]) > 3.3


def test_hutchinsons_estimate_is_unbiased() -> None:
    process = Gaussian(LinearLogSnr(8.0, -8.0))
    exact = mixture(process)
    x_0 = exact.draw(Noise([3], "ode")).expand(400, 2).clone()
    found = log_likelihood(exact, x_0, num_steps=24, probes=Noise(range(400)))
    expected = log_likelihood(exact, x_0[:1], num_steps=24).item()
    mean, error = mean_and_error(found)
    assert 0.0 < error < 0.1
    assert mean == pytest.approx(expected, abs=error)
    more = log_likelihood(exact, x_0[:100], num_steps=24, probes=Noise(range(100)), num_probes=4)
    assert more.std() < 0.75 * found.std()


def test_the_bound_is_above_the_odes_nats_and_meets_them_on_an_exact_denoiser() -> None:
    process = Gaussian(WIDE)
    exact, noise = mixture(process), Noise(range(1000), "bound")
    x_0 = exact.draw(noise)
    gap, error = mean_and_error(continuous_bound(exact, x_0, noise, num_levels=320).nats + log_likelihood(exact, x_0))
    assert gap == pytest.approx(0.0, abs=error)


# ---- learned variance ------------------------------------------------------------------------------------------------


def test_a_learned_variance_finds_the_best_one() -> None:
    """Data N(0, v) and the true mean: of all variances, the bound is least for that of p(x_s | x_t), which the step
    then has: v = 1 asks for β, v = 0 for β̃."""
    process, t, s = Gaussian(LinearLogSnr(8.0, -8.0)), 0.55, 0.45
    for variance in (0.0, 0.3, 1.0):
        exact = GaussianMixture(process, [[0.0]], [variance])
        noise = Noise(range(4000), "learn")
        x_0 = exact.draw(noise)
        x_t = process.marginal(x_0, torch.full((4000,), t).double(), noise).x_t
        shares = torch.linspace(0.0, 1.0, 101).double()
        mean = exact(x_t, t).mean
        costs = [
            process.divergence(x_0, GaussianPosterior(mean, 0.0, torch.full_like(mean, v)), t, s).mean() for v in shares
        ]
        best = shares[int(torch.stack(costs).argmin())].item()
        alpha_s, sigma_s = process.scales(s)
        alpha_t, sigma_t = process.scales(t)
        of_s, of_t = alpha_s**2 * variance + sigma_s**2, alpha_t**2 * variance + sigma_t**2
        # x_t = k x_s + noise of variance a: Var(x_s | x_t) = of_s a / of_t.
        added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        true, least = of_s * added / of_t, sigma_s**2 * added / sigma_t**2
        expected = math.log(true / least) / float(process.log_ratio(t, s))
        assert best == pytest.approx(expected, abs=0.06)


def test_sampling_uses_the_learned_variance() -> None:
    """Data N(0, 1) in 6 steps: with β every step's variance is exact, with β̃ samples are too narrow."""
    process = Gaussian(LinearLogSnr(9.0, -9.0))
    exact = GaussianMixture(process, [[0.0]], [1.0])

    class Sure(GaussianMixture):
        def __call__(self, x_t, t, cond=None):  # type: ignore[no-untyped-def]
            answer = super().__call__(x_t, t, cond)
            return GaussianPosterior(answer.mean, answer.tweedie, torch.ones_like(answer.mean))

    grid, noise = grids.LogSnr(7, 9.0, -9.0), Noise(range(4000))
    plain, learned = (
        sample(d, Ancestral(1.0), grid, (1,), noise=noise).var().item() for d in (exact, Sure(process, [[0.0]], [1.0]))
    )
    assert learned == pytest.approx(1.0, abs=5 * (2 / 4000) ** 0.5)
    assert plain < 0.8


def test_a_multistep_sampler_keeps_the_learned_variance_after_its_first_step() -> None:
    """The noise of a later step is β's where the network says so, β̃'s where it says nothing."""
    process, t, s = Gaussian(LinearLogSnr(8.0, -8.0)), 0.6, 0.5
    x_t, noise, past = torch.zeros(1, 1).double(), Noise([3]), ((-2.0, torch.zeros(1, 1).double()),)
    sizes = []
    for share in (None, torch.ones(1, 1).double()):

        class Sure(GaussianMixture):
            def __call__(self, x_t, t, cond=None, share=share):  # type: ignore[no-untyped-def]
                return GaussianPosterior(torch.zeros_like(x_t), 0.0, share)

        exact = Sure(process, [[0.0]], [1.0])
        x_s, _ = Multistep(2, 1.0).step(exact, x_t, t, s, past, None, noise)
        sizes.append(abs(x_s.item()))
    assert sizes[1] / sizes[0] == pytest.approx(math.exp(0.5 * float(process.log_ratio(t, s))), rel=1e-6)


def test_a_network_with_a_learned_variance() -> None:
    """Twice the channels; the mean's loss as without; the bound's gradient reaches the second half alone."""
    process, target = Gaussian(LinearLogSnr(8.0, -8.0)), LearnedVariance(LinearTarget("eps"), 100)
    torch.manual_seed(0)
    network = UNet(**(UNET | {"attention": ()}), out_channels=4)
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    denoiser = NetworkDenoiser(network, process, target)
    noise = Noise(range(8), "train")
    x_0, t = noise.fork("data").normal((8, 2, 4, 4)), torch.linspace(0.05, 0.95, 8, dtype=torch.float64)
    corrupted = process.marginal(x_0, t, noise)
    error = denoiser.error(corrupted, None)
    assert error.value.shape == x_0.shape
    assert error.bound is not None
    assert error.bound.shape == (8,)
    (grad,) = torch.autograd.grad(error.bound.sum(), network.leave.weight, retain_graph=True)
    assert (grad[:2] == 0).all()
    assert (grad[2:] != 0).any()
    loss = Objective(weight=Simple()).at(denoiser, x_0, t, None, noise)
    assert torch.allclose(loss.per_sample, error.value.square().flatten(1).mean(1) + error.bound)
    posterior = denoiser(corrupted.x_t, t)
    assert isinstance(posterior, GaussianPosterior)
    assert posterior.share is not None
    said = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3)
    ends = target.decode(torch.cat([torch.zeros_like(said), said], 1), torch.zeros_like(said), process, 0.5).share
    assert ends is not None
    assert ends.flatten().tolist() == [0.0, 0.5, 1.0]  # β̃, half-way, β
    assert posterior[2:4].share is not None
    assert torch.equal(posterior[2:4].share, posterior.share[2:4])  # type: ignore[arg-type]
    with pytest.raises(IncompatibleError, match="out_channels=4"):
        NetworkDenoiser(UNet(**UNET), process, target)(corrupted.x_t, t)


def test_the_first_step_of_a_chain_has_no_variance_to_learn() -> None:
    process, target = Gaussian(LinearLogSnr(8.0, -8.0)), LearnedVariance(LinearTarget("eps"), 10)
    output, x_0 = torch.zeros(2, 2, 3), torch.ones(2, 1, 3)
    t = torch.tensor([0.05, 0.5], dtype=torch.float64)
    corrupted: Corrupted = process.marginal(x_0, t, Noise([1, 2]))
    bound = target.error(output, corrupted, process).bound
    assert bound is not None
    assert bound[0] == 0
    assert bound[1] > 0


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_refused_with_what_can() -> None:
    table = TokenTable(Absorbing(2), torch.ones(2, 2))
    tokens, noise = torch.zeros(1, 2, dtype=torch.int64), Noise([0])
    with pytest.raises(IncompatibleError, match="continuous_bound takes any"):
        variational_bound(table, tokens, [1.0, 0.0], noise)
    with pytest.raises(IncompatibleError, match="continuous_bound takes any"):
        log_likelihood(table, tokens)
    exact = mixture(Gaussian(Flow(), "flow"))
    x_0 = exact.draw(noise)
    with pytest.raises(ConfigError, match="exactly 0"):
        variational_bound(exact, x_0, [1.0, 0.5], noise)
    with pytest.raises(ConfigError, match="at least 1"):
        continuous_bound(exact, x_0, noise, num_levels=0)
    with pytest.raises(ConfigError, match="must be above"):
        continuous_bound(exact, x_0, noise, log_snr_max=-30.0)
    with pytest.raises(ConfigError, match=r"65 backward passes.*probes="):
        log_likelihood(exact, torch.zeros(1, 65))
    with pytest.raises(ConfigError, match="timesteps"):
        LearnedVariance(timesteps=0)
    none = torch.zeros(0, 2).double()
    for ask in (
        lambda: variational_bound(exact, none, [1.0, 0.5, 0.0], Noise([])),
        lambda: continuous_bound(exact, none, Noise([])),
        lambda: log_likelihood(exact, none),
    ):
        with pytest.raises(ConfigError, match="at least one sample"):
            ask()
    with pytest.raises(ConfigError, match="no signal is left"):
        variational_bound(exact, x_0, [1.0, 0.0], noise)
