"""Laws of objectives: each weight is its paper's, each density what it says, the loss the ELBO's integrand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from law_examples import UNET, parts, scalings
from scipy import stats
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.categorical import UniformTokens
from diff_diffusion.core.denoiser import NetworkDenoiser
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.process import Corrupted, Error
from diff_diffusion.core.targets import LinearTarget
from diff_diffusion.core.time_maps import Flow, LinearBeta, LinearLogSnr
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.networks.unet import UNet
from diff_diffusion.objectives import Objective
from diff_diffusion.objectives.levels import LOG_SNR_MAX, Levels, LossAware, Normal, Uniform
from diff_diffusion.objectives.measures import L1, Huber, Measure, Nats, Squared
from diff_diffusion.objectives.weights import Edm, LearnedUncertainty, MinSnr, Simple, Unit, Vlb, Weight
from diff_diffusion.rng import Noise

LEVELS = torch.linspace(-20.0, 20.0, 81, dtype=torch.float64)


# ---- weights -------------------------------------------------------------------------------------------------------

# Each paper's weight on the squared error of x_0, as a function of the SNR; a new weight needs its row.
ON_X_0: dict[str, Callable[[float], float]] = {
    "simple": lambda snr: snr,  # ‖ε - ε̂‖² = SNR ‖x_0 - x̂_0‖²
    "min_snr": lambda snr: min(snr, 5.0),  # arXiv 2303.09556: min(SNR, γ) for a network that predicts x_0
    "edm": lambda snr: (1 / snr + 1.0) / (1 / snr),  # arXiv 2206.00364: (σ² + σ_d²) / (σ σ_d)², σ_d = 1, σ² = 1/SNR
    "soft_min_snr": lambda snr: 1.0 / (1.0 / snr + 1.0 / 4.0),  # arXiv 2401.11605: 1 / (σ² + 1/γ)
    "p2": lambda snr: snr / (1.0 + snr),  # arXiv 2204.00227: on ‖ε - ε̂‖² 1 / (k + SNR)^γ
    "vlb": lambda snr: 0.5 * snr,  # arXiv 2107.00630: ½ ∫ ‖x_0 - x̂_0‖² dSNR = ½ ∫ SNR ‖x_0 - x̂_0‖² dλ
    "sigmoid": lambda snr: snr / (1.0 + snr),  # arXiv 2303.00848: sigmoid(-λ) on ‖ε - ε̂‖² dλ
}


@pytest.mark.parametrize("weight", parts("weight"))
def test_every_weight_is_its_papers(weight: Weight, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    found = weight.of(LEVELS)
    assert found.dtype == torch.float64
    if weight.own:  # 1 on the target's own error, so it has no row; the next test is its law
        assert torch.equal(found, torch.ones_like(LEVELS))
        return
    expected = [ON_X_0[name](math.exp(level)) / math.exp(level) for level in LEVELS.tolist()]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_weights_of_the_integral_are_those_of_the_bound() -> None:
    assert {p.id for p in parts("weight") if p.values[0].integral} == {"vlb", "sigmoid"}


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_caps_the_weight_on_x_0(gamma: float) -> None:
    on_x_0 = MinSnr(gamma).of(LEVELS) * torch.exp(LEVELS)
    assert torch.allclose(on_x_0, torch.exp(LEVELS).clamp(max=gamma), rtol=1e-12)


@pytest.mark.parametrize("process", scalings(LinearLogSnr(15.0, -15.0)), ids=SCALINGS)
@pytest.mark.parametrize("target", [p for p in parts("target") if isinstance(p.values[0], LinearTarget)])
def test_unit_is_the_targets_own_squared_error(process: Gaussian, target: LinearTarget) -> None:
    """A network that outputs 0 has the target's own mean square as loss."""
    x_0, t = Noise(range(8)).normal((8, 3)).double(), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    denoiser = NetworkDenoiser(Constant(0.0), process, target)
    loss = Objective(weight=Unit()).at(denoiser, x_0, t, None, Noise(range(8), "eps"))
    corrupted = process.marginal(x_0, t, Noise(range(8), "eps"))
    expected = (target.encode(x_0, corrupted.noise, process, t) ** 2).mean(1)
    assert torch.allclose(loss.per_sample, expected, rtol=1e-10)


def test_edms_weight_is_unit_on_its_own_target() -> None:
    """λ(σ) = 1 / c_out²: EDM trains F with weight 1, which is the same as its weight on x_0."""
    process = Gaussian(LinearLogSnr(12.0, -8.0), "ve")
    x_0, t = Noise(range(8)).normal((8, 3)).double(), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    denoiser = NetworkDenoiser(Constant(0.7), process, LinearTarget("edm"))
    one, other = (Objective(weight=w).at(denoiser, x_0, t, None, Noise(range(8))) for w in (Unit(), Edm()))
    assert torch.allclose(one.per_sample, other.per_sample, rtol=1e-10)


@pytest.mark.parametrize("weight", [p for p in parts("weight") if not p.values[0].own])
@pytest.mark.parametrize("measure", [p for p in parts("measure") if p.id != "nats"])
def test_a_weight_means_the_same_for_every_target(weight: Weight, measure: Measure) -> None:
    """The same x̂_0 costs the same, whatever the network calls it and however errors are measured."""
    process = Gaussian(LinearLogSnr(10.0, -10.0), "flow")
    x_0, t = Noise(range(8)).normal((8, 3)).double(), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    corrupted = process.marginal(x_0, t, Noise(range(8), "eps"))
    guess = x_0 * 0.8 + 0.1
    alpha, sigma = (scale[:, None] for scale in process.scales(t))
    guessed_eps = (corrupted.x_t - alpha * guess) / sigma
    costs = []
    for row in ("x0", "eps", "v", "velocity", "score", "edm"):
        target = LinearTarget(row)
        denoiser = NetworkDenoiser(Constant(target.encode(guess, guessed_eps, process, t)), process, target)
        objective = Objective(weight=weight, measure=measure)
        costs.append(objective.at(denoiser, x_0, t, None, Noise(range(8), "eps")).per_sample)
    expected = weight.of(process.time_map.log_snr(t)) * COST[measure](guessed_eps - corrupted.noise).mean(1)
    if weight.integral:  # uniform levels on a map linear in λ
        expected = expected * 20.0
    for cost in costs:
        assert torch.allclose(cost, expected, rtol=1e-8)


COST: dict[Measure, Callable[[Tensor], Tensor]] = {
    Squared(): lambda e: e**2,
    L1(): lambda e: e.abs(),
    Huber(): lambda e: 2.0 * torch.nn.functional.huber_loss(e, torch.zeros_like(e), reduction="none", delta=1.0),
    Huber(0.3): lambda e: 2.0 * torch.nn.functional.huber_loss(e, torch.zeros_like(e), reduction="none", delta=0.3),
}


class Constant(torch.nn.Module):
    """A network that outputs the same whatever it sees."""

    def __init__(self, output: float | Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, log_snr: Tensor, cond: Tensor | None) -> Tensor:
        return torch.zeros_like(x) + self.output


# ---- levels --------------------------------------------------------------------------------------------------------

every_levels = pytest.mark.parametrize("levels", parts("levels"))


@every_levels
@pytest.mark.parametrize("process", [Gaussian(LinearBeta()), Gaussian(Flow(), "flow")], ids=["linear_beta", "flow"])
@given(u=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=20))
def test_quantiles_rise_and_stay_where_there_is_noise(levels: Levels, process: Gaussian, u: list[float]) -> None:
    t = levels.draw(torch.tensor(sorted(u), dtype=torch.float64), process)
    assert t.dtype == torch.float64
    assert (t.diff() >= 0).all()
    assert (t <= 1.0).all()
    assert (process.time_map.log_snr(t) <= LOG_SNR_MAX + 1e-6).all()


U = Noise(range(5000), "levels").uniform((5000,))  # plain draws, not stratified


def test_uniform_levels_are_uniform_in_time() -> None:
    t = Uniform().draw(U, Gaussian(LinearBeta()))
    assert stats.kstest(t.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("levels", [Normal(), Normal(1.5, 0.7), Normal(2.4, 2.4)])
def test_normal_levels_are_normal_in_log_snr(levels: Normal) -> None:
    process = Gaussian(LinearLogSnr(20.0, -20.0))
    log_snr = process.time_map.log_snr(levels.draw(U, process))
    assert stats.kstest(log_snr.numpy(), "norm", (levels.mean, levels.std)).pvalue > 0.01


def test_log_normal_levels_are_edms() -> None:
    """ln σ ~ N(-1.2, 1.2²): arXiv 2206.00364."""
    (levels,) = [p.values[0] for p in parts("levels") if p.id == "log_normal"]
    process = Gaussian(LinearLogSnr(20.0, -20.0), "ve")
    sigma = process.scales(levels.draw(U, process))[1]
    assert stats.kstest(sigma.log().numpy(), "norm", (-1.2, 1.2)).pvalue > 0.01


def test_logit_normal_levels_are_stable_diffusion_3s() -> None:
    """logit t ~ N(0, 1) on the straight path: arXiv 2403.03206."""
    (levels,) = [p.values[0] for p in parts("levels") if p.id == "logit_normal"]
    t = levels.draw(U, Gaussian(Flow(), "flow"))
    assert stats.kstest(torch.logit(t).numpy(), "norm").pvalue > 0.01


@every_levels
@pytest.mark.parametrize("process", [Gaussian(LinearBeta()), Gaussian(Flow(), "flow")], ids=["linear_beta", "flow"])
def test_share_inverts_quantile(levels: Levels, process: Gaussian) -> None:
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    assert torch.allclose(levels.share(levels.quantile(u, process), process), u, atol=1e-9)


@every_levels
@pytest.mark.parametrize("process", [Gaussian(LinearBeta()), Gaussian(Flow(), "flow")], ids=["linear_beta", "flow"])
def test_density_is_the_slope_of_the_share(levels: Levels, process: Gaussian) -> None:
    """p(λ) = -d share / dλ, by central differences."""
    t = torch.linspace(0.0501, 0.9503, 40, dtype=torch.float64)
    step = 1e-6
    share = levels.place(t + step, process) - levels.place(t - step, process)
    log_snr = process.time_map.log_snr(t + step) - process.time_map.log_snr(t - step)
    assert torch.allclose(levels.density(t, process), -share / log_snr, rtol=1e-5)


# ---- levels that adapt ----------------------------------------------------------------------------------------------


def taught(levels: LossAware, process: Gaussian, loss: Callable[[Tensor], Tensor], batches: int = 60) -> LossAware:
    """`levels` after seeing batches of 256 losses, a function of t."""
    for batch in range(batches):
        levels.begin()
        u = (torch.arange(256) + Noise(range(256)).at(batch).uniform((256,))) / 256
        t = levels.draw(u, process)
        levels.record(t, loss(t) * levels.correction(t, process), process)
    levels.begin()
    return levels


@pytest.mark.parametrize("base", [Uniform(), Normal(0.0, 2.0)], ids=["uniform", "normal"])
def test_loss_aware_levels_are_drawn_in_proportion_to_the_loss(base: Levels) -> None:
    """p ∝ base · √E[loss²], so that the corrected loss is the same everywhere: no variance is left between levels."""
    process = Gaussian(LinearLogSnr(12.0, -12.0))

    def loss(t: Tensor) -> Tensor:
        return torch.exp(-30.0 * (t - 0.4) ** 2) + 0.1

    levels = taught(LossAware(base, num_bins=64), process, loss)
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    t = levels.quantile(u, process)
    corrected = loss(t) * levels.correction(t, process)
    plain = loss(base.quantile(u, process))
    assert corrected.std() / corrected.mean() < 0.2 * plain.std() / plain.mean()
    assert plain.std() / plain.mean() > 0.2
    assert corrected.mean().item() == pytest.approx(plain.mean().item(), rel=0.02)  # the same expectation
    assert torch.allclose(levels.share(t, process), u, atol=1e-9)


def test_loss_aware_levels_are_plain_until_they_know_every_bin() -> None:
    process, u = Gaussian(Flow(), "flow"), torch.linspace(0.01, 0.99, 30, dtype=torch.float64)
    levels = LossAware(num_bins=8)
    assert torch.allclose(levels.draw(u, process), Uniform().draw(u, process))
    levels.record(torch.full((500,), 0.05, dtype=torch.float64), torch.full((500,), 9.0), process)
    levels.begin()
    assert torch.allclose(levels.draw(u, process), Uniform().draw(u, process))


def test_what_a_batch_records_is_used_from_the_next_batch_on() -> None:
    """However a batch is cut into micro-batches, its levels are those of the whole; nan losses teach nothing."""
    process = Gaussian(LinearLogSnr(8.0, -8.0))
    levels = taught(LossAware(num_bins=8), process, lambda t: t + 0.1)
    before = levels.rates().clone()
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    levels.record(t, torch.full((64,), 50.0), process)
    levels.record(t, torch.full((64,), math.nan), process)
    assert torch.equal(levels.rates(), before)
    levels.begin()
    assert not torch.equal(levels.rates(), before)
    taught_once = levels.moments.clone()
    assert torch.isfinite(taught_once).all()
    levels.begin()  # nothing was recorded since
    assert torch.equal(levels.moments, taught_once)


def test_what_was_learned_about_losses_is_saved_and_stays_in_float64() -> None:
    process = Gaussian(LinearLogSnr(8.0, -8.0))
    levels = taught(LossAware(num_bins=8), process, lambda t: t + 0.1).half()
    again = LossAware(num_bins=8)
    again.load_state_dict(levels.state_dict())
    assert torch.equal(again.rates(), levels.rates())
    assert levels.rates().dtype == torch.float64
    assert levels.rates()[-1] > 2 * levels.rates()[0]


def test_learned_uncertainty_learns_the_logarithm_of_the_loss() -> None:
    """The minimum of E[L e^-u + u] over u is u = ln E[L], level by level."""
    weight = LearnedUncertainty(Simple(), num_frequencies=16)
    log_snr = torch.linspace(-10.0, 10.0, 200, dtype=torch.float64)
    loss = torch.exp(torch.sin(0.3 * log_snr) + 0.1 * log_snr)
    assert torch.equal(weight.of(log_snr), torch.ones_like(log_snr))
    optimizer = torch.optim.LBFGS(weight.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = (weight.of(log_snr) * loss + weight.penalty(log_snr)).mean()
        total.backward()
        return total

    optimizer.step(closure)
    assert torch.allclose(weight.uncertainty(log_snr).detach().double(), loss.log(), atol=0.02)
    assert torch.allclose((weight.of(log_snr) * loss).detach(), torch.ones_like(loss), atol=0.03)


BOUNDS = [(Uniform(), 6.0), (Uniform(), 25.0), (Normal(0.5, 4.0), 6.0), (Normal(-1.0, 3.0), 6.0)]


@pytest.mark.parametrize(("levels", "end"), BOUNDS, ids=["uniform", "uniform-to-25", "normal", "normal-off-centre"])
def test_the_bound_is_the_same_whatever_levels_are_drawn(levels: Levels, end: float) -> None:
    """vlb is ½ ∫ E‖ε - ε̂‖² dλ over the process's range up to λ = 20, where levels are cut: for N(0, v) a logarithm."""
    process, variance = Gaussian(LinearLogSnr(end, -6.0)), 0.25
    gaussian = GaussianMixture(process, [[0.0]], [variance])
    noise = Noise(range(20_000), "train")
    loss = Objective(levels, Vlb())(gaussian, gaussian.draw(noise), None, noise)
    top = math.exp(min(end, LOG_SNR_MAX))
    expected = 0.5 * math.log((1 + variance * top) / (1 + variance * math.exp(-6.0)))
    error = 5 * loss.per_sample.std().item() / 20_000**0.5
    assert error < 0.6
    assert loss.mean.item() == pytest.approx(expected, abs=error)


def test_levels_that_adapt_change_no_expectation_of_what_is_added() -> None:
    """A learned uncertainty's penalty and a learned variance's bound, with plain and with taught levels, on the same
    data: the same mean within 5 standard errors, where without correction they are far off."""
    process = Gaussian(LinearLogSnr(8.0, -8.0))
    gaussian, noise = GaussianMixture(process, [[0.0]], [0.25]), Noise(range(20_000), "train")
    taught_levels = taught(LossAware(num_bins=16), process, lambda t: 0.2 + 4.0 * t**3)
    weight = LearnedUncertainty(Simple(), 4)
    torch.nn.init.constant_(weight.coefficients, 0.7)

    class Costly(GaussianMixture):
        def error(self, corrupted: Corrupted, cond: Cond | None) -> Error:
            return super().error(corrupted, cond)._replace(bound=3.0 * corrupted.t**2)

    for denoiser, weigh in ((gaussian, weight), (Costly(process, [[0.0]], [0.25]), Simple())):
        losses = [
            Objective(levels, weigh)(denoiser, gaussian.draw(noise), None, noise).per_sample.detach()
            for levels in (Uniform(), taught_levels, Normal(0.0, 6.0))
        ]
        errors = [5 * loss.std().item() / 20_000**0.5 for loss in losses]
        assert losses[1].mean().item() == pytest.approx(losses[0].mean().item(), abs=errors[0] + errors[1])
    # A chain's bound is over uniform times, whatever levels are drawn.
    bound = [
        Objective(levels, weigh)(Costly(process, [[0.0]], [0.25]), gaussian.draw(noise), None, noise).mean.item()
        - Objective(levels, weigh)(gaussian, gaussian.draw(noise), None, noise).mean.item()
        for levels in (Uniform(), Normal(0.0, 6.0))
    ]
    assert bound == pytest.approx([1.0, 1.0], abs=0.05)


def test_levels_outside_the_process_and_frames_are_refused() -> None:
    process = Gaussian(LinearLogSnr(12.0, -12.0))
    with pytest.raises(ConfigError, match=r"outside this process.*12 to -12"):
        Normal(60.0, 1.0).draw(U[:4], process)
    x_0 = torch.zeros(2, 2, 3)
    with pytest.raises(ConfigError, match=r"t must be \[B\], not \[2, 2\]"):
        Objective().at(MIXTURE, x_0, torch.full((2, 2), 0.5).double(), None, Noise([0, 1]))
    with pytest.raises(IncompatibleError, match="Nats measures errors of a Tokens or Product"):
        Objective(measure=Nats()).at(MIXTURE, x_0, torch.full((2,), 0.5).double(), None, Noise([0, 1]))
    with pytest.raises(ConfigError, match="floating-point"):
        process.marginal(torch.ones(2, 2, dtype=torch.int64), torch.full((2,), 0.5).double(), Noise([0, 1]))


def test_a_measure_that_does_not_fit_the_process_is_refused_with_those_that_do() -> None:
    with pytest.raises(IncompatibleError, match=r"Squared measures errors of a Gaussian process.*fit: nats"):
        Objective().check(UniformTokens(4))


def test_a_std_that_is_not_above_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Normal(std=0.0)


# ---- the loss ------------------------------------------------------------------------------------------------------

PROCESS = Gaussian(LinearLogSnr(8.0, -8.0))
MIXTURE = GaussianMixture(PROCESS, [[-0.6, 0.2], [0.9, -0.4]], [0.09, 0.25], [0.6, 0.4])


@pytest.mark.parametrize("cuts", [[0, 12], [0, 5, 12], [0, 1, 2, 11, 12]])
def test_a_micro_batch_is_exactly_its_part_of_the_whole(cuts: list[int]) -> None:
    """Levels are stratified over the whole batch, so gradient accumulation changes nothing, bit by bit."""
    noise = Noise(range(100, 112), "train")
    x_0 = MIXTURE.draw(noise)
    cond = Cond({"component": torch.arange(12) % 2})
    objective = Objective(cond_drop=0.5, weight=Simple())
    whole = objective(MIXTURE, x_0, cond, noise)
    for first, last in pairwise(cuts):
        part = objective(MIXTURE, x_0[first:last], cond[first:last], noise[first:last], first, 12)
        assert torch.equal(part.log_snr, whole.log_snr[first:last])
        assert torch.allclose(part.per_sample, whole.per_sample[first:last], rtol=1e-13)
        assert torch.equal(part.mean, part.per_sample.mean())


def test_levels_are_stratified_over_the_batch() -> None:
    """Sample i of n has its level in the i-th n-th of the density."""
    noise = Noise(range(50), "train")
    loss = Objective(Uniform())(MIXTURE, MIXTURE.draw(noise), None, noise)
    t = PROCESS.time_map.time(loss.log_snr)
    assert torch.equal((t * 50).floor(), torch.arange(50, dtype=torch.float64))
    assert (t * 50 - torch.arange(50)).std() > 0.2  # and is random within it


class Recorder(GaussianMixture):
    """The mixture, keeping what it was asked with."""

    cond: Cond | None = None
    x_t: Tensor | None = None

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None):  # type: ignore[no-untyped-def]
        self.cond, self.x_t = cond, x_t
        return super().__call__(x_t, t, cond)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_conditions_are_dropped_in_their_share(share: float) -> None:
    """4,000 samples, 5 standard errors; the same samples on every call, and none at evaluation."""
    recorder = Recorder(PROCESS, [[-0.6], [0.9]], [0.09, 0.25])
    noise = Noise(range(4000), "train")
    cond = Cond({"component": torch.zeros(4000, dtype=torch.int64)})
    objective = Objective(cond_drop=share)
    objective(recorder, recorder.draw(noise), cond, noise)
    assert recorder.cond is not None
    kept = recorder.cond.keep["component"]
    assert kept.double().mean().item() == pytest.approx(1 - share, abs=5 * math.sqrt(share * (1 - share) / 4000) + 1e-9)
    objective(recorder, recorder.draw(noise), cond, noise)
    assert torch.equal(recorder.cond.keep["component"], kept)
    objective.at(recorder, recorder.draw(noise), torch.full((4000,), 0.5, dtype=torch.float64), cond, noise)
    assert recorder.cond.keep["component"].all()


def test_a_condition_already_dropped_stays_dropped() -> None:
    recorder = Recorder(PROCESS, [[-0.6], [0.9]], [0.09, 0.25])
    noise = Noise(range(6), "train")
    keep = torch.tensor([True, False, True, False, True, False])
    cond = Cond({"component": torch.zeros(6, dtype=torch.int64)}, {"component": keep})
    Objective(cond_drop=0.0)(recorder, recorder.draw(noise), cond, noise)
    assert recorder.cond is not None
    assert torch.equal(recorder.cond.keep["component"], keep)


def test_levels_dropout_and_eps_are_independent() -> None:
    """Three uses of one key: of 4,000 samples' level (within its stratum), mask and first number of ε, no two
    correlate above 5 / √n, and dropped samples have the same levels as kept ones."""
    count = 4000
    recorder = Recorder(PROCESS, [[-0.6], [0.9]], [0.09, 0.25])
    noise = Noise(range(count), "train")
    cond = Cond({"component": torch.zeros(count, dtype=torch.int64)})
    x_0 = torch.zeros(count, 1, dtype=torch.float64)
    loss = Objective(Uniform(), cond_drop=0.5)(recorder, x_0, cond, noise)
    assert recorder.cond is not None
    assert recorder.x_t is not None
    t = PROCESS.time_map.time(loss.log_snr)
    eps = recorder.x_t[:, 0] / PROCESS.scales(t)[1]
    kept = recorder.cond.keep["component"]
    draws = torch.stack([t * count - torch.arange(count), eps, kept.double()])
    assert (draws.corrcoef() - torch.eye(3)).abs().max() < 5 / count**0.5
    assert stats.kstest(eps.numpy(), "norm").pvalue > 0.01
    assert stats.ks_2samp(draws[0][kept].numpy(), draws[0][~kept].numpy()).pvalue > 0.01


@pytest.mark.parametrize("variance", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("process", scalings(LinearLogSnr(10.0, -10.0)), ids=SCALINGS)
def test_half_the_integral_of_the_eps_error_is_the_information(process: Gaussian, variance: float) -> None:
    """I-MMSE, the ELBO as weight 1 in λ: ½ ∫ E‖ε - ε̂‖² dλ = ½ ln((1 + v SNR_max) / (1 + v SNR_min)) for data N(0, v).

    4,000 stratified levels; 5 standard errors of an unstratified mean.
    """
    gaussian = GaussianMixture(process, [[0.0]], [variance])
    noise = Noise(range(4000), "train")
    loss = Objective(Uniform(), Simple())(gaussian, gaussian.draw(noise), None, noise)
    expected = 0.5 * math.log((1 + variance * math.exp(10.0)) / (1 + variance * math.exp(-10.0)))
    found = 0.5 * 20.0 * loss.per_sample
    assert found.mean().item() == pytest.approx(expected, abs=5 * found.std().item() / 4000**0.5)


def test_the_elbo_bounds_the_entropy_of_a_mixture() -> None:
    """At high SNR, I(x_0; x_t) = h(x_t) - h(x_t | x_0): half the integral equals the difference of exact densities."""
    mixture = GaussianMixture(PROCESS, [[-1.0], [1.2]], [0.05, 0.1], [0.3, 0.7])
    noise = Noise(range(6000), "train")
    x_0 = mixture.draw(noise)
    loss = Objective(Uniform(), Simple())(mixture, x_0, None, noise)
    half = 0.5 * 16.0 * loss.per_sample

    def information(t: float) -> Tensor:
        """ln q(x_t | x_0) - ln p_t(x_t), sample by sample."""
        _, sigma = PROCESS.scales(t)
        corrupted = PROCESS.marginal(x_0, torch.full((6000,), t, dtype=torch.float64), noise.fork("density"))
        kernel = -0.5 * corrupted.noise[:, 0] ** 2 - 0.5 * math.log(2 * math.pi * sigma**2)
        return kernel - mixture.log_density(corrupted.x_t, t)

    gained = information(0.0) - information(1.0)
    error = 5 * math.sqrt((half.var() + gained.var()).item() / 6000)
    assert half.mean().item() == pytest.approx(gained.mean().item(), abs=error)


def test_the_gradient_lowers_the_loss() -> None:
    """Plain gradient descent on one batch; a finite difference along the gradient agrees with it."""
    torch.manual_seed(0)
    network = UNet(**(UNET | {"attention": ()}))
    denoiser = NetworkDenoiser(network, Gaussian(Flow(), "flow"), LinearTarget("velocity"))
    noise = Noise(range(16), "train")
    x_0 = noise.fork("data").normal((16, 2, 4, 4))
    losses = []
    for _ in range(12):
        loss = Objective()(denoiser, x_0, None, noise).mean
        grads = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        losses.append(loss.item())
        square = sum(float((grad**2).sum()) for grad in grads if grad is not None)
        move(network, grads, 1e-2 / square)
        with torch.no_grad():
            after = Objective()(denoiser, x_0, None, noise).mean.item()
        assert after - losses[-1] == pytest.approx(-1e-2, rel=0.3)
        move(network, grads, 0.2)
    # At the start the output is 0 and the velocity's mean square is 2 for data of variance 1.
    assert losses[0] == pytest.approx(2.0, rel=0.1)
    assert losses[-1] < 0.8 * losses[0]


def move(network: UNet, grads: tuple[Tensor | None, ...], rate: float) -> None:
    with torch.no_grad():
        for parameter, grad in zip(network.parameters(), grads, strict=True):
            if grad is not None:
                parameter.sub_(rate * grad)


def test_cond_drop_out_of_range_is_refused() -> None:
    for share in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="below 1"):
            Objective(cond_drop=share)
