"""Laws of token diffusion, against exact joints: marginals, kernels, the bound and every sampler."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import TokenTable
from diff_diffusion.core.categorical import Absorbing, Logits, TokenPosterior, Tokens, UniformTokens
from diff_diffusion.core.denoiser import Denoiser, NetworkDenoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Corrupted
from diff_diffusion.core.targets import LinearTarget
from diff_diffusion.core.time_maps import Flow, LinearLogSnr
from diff_diffusion.errors import ConfigError, DiffusionError, IncompatibleError
from diff_diffusion.guidance import ClassifierFree
from diff_diffusion.objectives import Objective
from diff_diffusion.objectives.levels import Normal, Uniform
from diff_diffusion.objectives.measures import Nats
from diff_diffusion.objectives.weights import Simple, Vlb
from diff_diffusion.registry import build
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.multistep import Multistep
from diff_diffusion.samplers.sampler import Sampler, sample, trajectory
from diff_diffusion.samplers.tokens import Confidence, Remasking, TauLeaping

VOCAB, LENGTH = 3, 3
JOINT = torch.rand((VOCAB,) * LENGTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 4
JOINT = JOINT / JOINT.sum()
PROCESSES = [Absorbing(VOCAB), UniformTokens(VOCAB)]
both = pytest.mark.parametrize("process", PROCESSES, ids=["absorbing", "uniform"])


def shares(x: Tensor, vocab: int = VOCAB) -> Tensor:
    """The histogram of sequences [B, L], [vocab, …]."""
    places = vocab ** torch.arange(x.shape[1] - 1, -1, -1)
    counts = (x * places).sum(1).bincount(minlength=vocab ** x.shape[1])
    return (counts / len(x)).double().reshape((vocab,) * x.shape[1])


def total_variation(p: Tensor, q: Tensor) -> float:
    return 0.5 * (p - q).abs().sum().item()


def noise_floor(p: Tensor, count: int) -> float:
    """About the largest total variation that `count` exact draws of p show: the mean of |p̂ - p|, and 4 deviations."""
    return 0.5 * (2 * p * (1 - p) / (math.pi * count)).sqrt().sum().item() + 4 * 0.5 / count**0.5


def states(process: Tokens) -> int:
    return process.vocab + isinstance(process, Absorbing)


def q(process: Tokens, alpha: float, x_0: int) -> Tensor:
    """q(x_t | x_0) from the definition, [states]."""
    pi = torch.zeros(states(process), dtype=torch.float64)
    if isinstance(process, Absorbing):
        pi[process.mask] = 1.0
    else:
        pi += 1.0 / process.vocab
    kept = torch.nn.functional.one_hot(torch.tensor(x_0), states(process)).double()
    return alpha * kept + (1 - alpha) * pi


# ---- the process ----------------------------------------------------------------------------------------------------

COUNT = 40_000
ERROR = 5 * 0.5 / COUNT**0.5


@both
@pytest.mark.parametrize("t", [0.0, 0.2, 0.6, 1.0])
def test_marginal_keeps_or_forgets(process: Tokens, t: float) -> None:
    x_0 = torch.full((COUNT, 1), 2)
    drawn = process.marginal(x_0, torch.full((COUNT,), t, dtype=torch.float64), Noise(range(COUNT)))
    found = drawn.x_t.flatten().bincount(minlength=states(process)) / COUNT
    assert torch.allclose(found.double(), q(process, process.keep(t), 2), atol=ERROR)
    assert torch.equal(drawn.x_0, x_0)


@both
def test_forward_steps_compose(process: Tokens) -> None:
    """Chapman-Kolmogorov: 0.2 -> 0.5 -> 0.8 has the marginal of 0.8."""
    x = process.marginal(torch.full((COUNT, 1), 1), torch.full((COUNT,), 0.2).double(), Noise(range(COUNT))).x_t
    for step, (s, t) in enumerate(pairwise((0.2, 0.5, 0.8))):
        x = process.renoise(x, s, t, Noise(range(COUNT), "up").at(step))
    found = x.flatten().bincount(minlength=states(process)) / COUNT
    assert torch.allclose(found.double(), q(process, process.keep(0.8), 1), atol=ERROR)


@both
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("x_0", [0, 2])
def test_reverse_with_the_true_x_0_keeps_the_marginal(process: Tokens, eta: float, x_0: int) -> None:
    t, s = 0.7, 0.4
    known = TokenPosterior(torch.nn.functional.one_hot(torch.full((COUNT, 1), x_0), VOCAB).double().log())
    clean = torch.full((COUNT, 1), x_0)
    x_t = process.marginal(clean, torch.full((COUNT,), t).double(), Noise(range(COUNT), "down")).x_t
    x_s = process.reverse(x_t, known, t, s, eta=eta, noise=Noise(range(COUNT)))
    found = x_s.flatten().bincount(minlength=states(process)) / COUNT
    assert torch.allclose(found.double(), q(process, process.keep(s), x_0), atol=ERROR)


@both
@pytest.mark.parametrize("x_t", [0, 1, 2, "π"])
def test_eta_1_is_bayes_rule_on_the_forward_chain(process: Tokens, x_t: int | str) -> None:
    """q(x_s | x_t, x_0) ∝ q(x_t | x_s) q(x_s | x_0), state by state, x_0 = 2."""
    here = states(process) - 1 if x_t == "π" else int(x_t)
    t, s, x_0 = 0.7, 0.4, 2
    if isinstance(process, Absorbing) and here not in (x_0, process.mask):
        return  # cannot be
    alpha_t, alpha_s = process.keep(t), process.keep(s)
    pi = q(process, 0.0, 0)
    step = alpha_t / alpha_s * torch.eye(states(process), dtype=torch.float64) + (1 - alpha_t / alpha_s) * pi
    expected = step[:, here] * q(process, alpha_s, x_0)
    known = TokenPosterior(torch.nn.functional.one_hot(torch.full((COUNT, 1), x_0), VOCAB).double().log())
    x_s = process.reverse(torch.full((COUNT, 1), here), known, t, s, eta=1.0, noise=Noise(range(COUNT)))
    found = (x_s.flatten().bincount(minlength=states(process)) / COUNT).double()
    assert torch.allclose(found, expected / expected.sum(), atol=ERROR)


@both
def test_eta_0_changes_as_few_tokens_as_can_be(process: Tokens) -> None:
    """A token changes with probability 1 - (1 - α_s) / (1 - α_t), and only to x_0."""
    t, s = 0.7, 0.4
    known = TokenPosterior(torch.nn.functional.one_hot(torch.full((COUNT, 1), 1), VOCAB).double().log())
    x_t = torch.full((COUNT, 1), states(process) - 1)
    x_s = process.reverse(x_t, known, t, s, eta=0.0, noise=Noise(range(COUNT)))
    changed = (x_s != x_t).double().mean().item()
    assert changed == pytest.approx(1 - (1 - process.keep(s)) / (1 - process.keep(t)), abs=ERROR)
    assert set(x_s.unique().tolist()) == {1, states(process) - 1}


def test_samples_do_not_depend_on_their_batch() -> None:
    table = TokenTable(PROCESSES[1], JOINT)
    every = sample(table, Ancestral(1.0), grids.Uniform(7), (LENGTH,), noise=Noise(range(30, 50)))
    for i in (0, 7, 19):
        one = sample(table, Ancestral(1.0), grids.Uniform(7), (LENGTH,), noise=Noise([30 + i]))
        assert torch.equal(one[0], every[i])
    assert len({tuple(row.tolist()) for row in every}) > 3


# ---- the exact denoiser ---------------------------------------------------------------------------------------------


@both
def test_the_exact_denoiser_is_the_share_of_the_draws(process: Tokens) -> None:
    """p(x_0 | x_t) of the commonest x_t, by counting 200,000 draws."""
    count, t = 200_000, 0.5
    table = TokenTable(process, JOINT)
    x_0 = table.draw(Noise(range(count), "data"))
    assert total_variation(shares(x_0), JOINT) < noise_floor(JOINT, count)
    x_t = process.marginal(x_0, torch.full((count,), t).double(), Noise(range(count))).x_t
    seen, places, counts = x_t.unique(dim=0, return_inverse=True, return_counts=True)
    top = int(counts.argmax())
    posterior = table(seen[top : top + 1], t).mean[0]
    known = x_0[places == top]
    for position in range(LENGTH):
        found = (known[:, position].bincount(minlength=VOCAB) / len(known)).double()
        assert torch.allclose(posterior[position], found, atol=5 * 0.5 / len(known) ** 0.5)
    density = table.log_density(seen[top : top + 1], t).exp().item()
    assert density == pytest.approx(counts[top].item() / count, abs=5 * 0.5 / count**0.5)


# ---- the bound ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("levels", [Uniform(), Normal(0.0, 3.0)], ids=["uniform", "normal"])
def test_with_an_exact_denoiser_the_bound_is_the_entropy(process: Tokens, levels: Uniform | Normal) -> None:
    """∫ nats dλ over all of λ is -E ln p(x_0): nothing is lost, for masks and for uniform tokens."""
    wide = type(process)(VOCAB, LinearLogSnr(10.0, -10.0))
    table, count = TokenTable(wide, JOINT), 30_000
    noise = Noise(range(count), "train")
    loss = Objective(levels, Vlb(), measure=Nats())(table, table.draw(noise), None, noise)
    entropy = -torch.xlogy(JOINT, JOINT).sum().item() / LENGTH  # the loss is the mean over positions
    error = 5 * loss.per_sample.std().item() / count**0.5
    assert error < 0.08
    assert loss.mean.item() == pytest.approx(entropy, abs=error)


@both
def test_the_bound_is_least_for_the_exact_posterior(process: Tokens) -> None:
    """Half-way to a uniform guess costs more, at every level."""
    table, count = TokenTable(process, JOINT), 20_000

    class Blurred(Denoiser):
        process = table.process

        def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> TokenPosterior:
            blurred = (0.5 * table(x_t, t).mean + 0.5 / VOCAB).log()
            known = isinstance(table.process, Absorbing)
            return TokenPosterior(table.process.settle(blurred, x_t, t) if known else blurred)

    noise = Noise(range(count), "train")
    x_0, objective = table.draw(noise), Objective(weight=Vlb(), measure=Nats())
    for t in (0.2, 0.5, 0.8):
        times = torch.full((count,), t).double()
        exact, blurred = (objective.at(d, x_0, times, None, noise).per_sample for d in (table, Blurred()))
        more = blurred - exact
        assert more.mean() > 5 * more.std() / count**0.5


def test_the_rates_are_the_limit_of_the_reverse_kernel() -> None:
    """Over a short step a token jumps to y with probability rate(y) · Δλ."""
    process, t = UniformTokens(VOCAB), 0.5
    s = process.time_map.time(process.time_map.log_snr(t) + 0.02)
    count = 400_000
    probabilities = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    posterior = TokenPosterior(probabilities.log().expand(count, 1, VOCAB))
    x_t = torch.zeros(count, 1, dtype=torch.int64)
    x_s = process.reverse(x_t, posterior, t, s, eta=1.0, noise=Noise(range(count)))
    found = (x_s.flatten().bincount(minlength=VOCAB) / count).double()
    rates = process.rates(x_t[:1], probabilities.expand(1, 1, VOCAB), t)[0, 0]
    assert rates[0] == 0.0
    expected = rates[1:] * 0.02
    assert ((found[1:] - expected).abs() < 5 * (expected / count).sqrt() + 0.02 * expected).all()


# ---- samplers -------------------------------------------------------------------------------------------------------

SAMPLERS = [
    pytest.param(Absorbing(VOCAB), Ancestral(1.0), id="absorbing-ancestral"),
    pytest.param(Absorbing(VOCAB), Remasking(0.3), id="remasking"),
    pytest.param(UniformTokens(VOCAB), Ancestral(1.0), id="uniform-ancestral"),
    pytest.param(UniformTokens(VOCAB), Ancestral(0.0), id="uniform-eta-0"),
    pytest.param(UniformTokens(VOCAB), TauLeaping(), id="tau-leaping"),
]


class Rows(Denoiser):
    """A table asked for [B, rows, L] at once: a thousand sequences a seed draw their noise a thousand times faster."""

    def __init__(self, table: TokenTable) -> None:
        self.table, self.process = table, table.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> TokenPosterior:
        return TokenPosterior(self.table(x_t.flatten(0, 1), t).logits.unflatten(0, x_t.shape[:2]))


def walk(table: TokenTable, sampler: Sampler, num_steps: int, count: int) -> Tensor:
    rows, grid = count // 20, grids.LogSnr(num_steps, 9.0, -9.0)
    return sample(Rows(table), sampler, grid, (rows, LENGTH), noise=Noise(range(20))).flatten(0, 1)


@pytest.mark.parametrize(("process", "sampler"), SAMPLERS)
def test_samples_have_the_joint_distribution(process: Tokens, sampler: Sampler) -> None:
    """100 steps, 10,000 samples: total variation to the joint as small as exact draws', and 0.015 for the steps."""
    count = 10_000
    x = walk(TokenTable(process, JOINT), sampler, 100, count)
    assert x.dtype == torch.int64
    assert int(x.max()) < VOCAB  # no mask is left
    assert total_variation(shares(x), JOINT) < noise_floor(JOINT, count) + 0.015


@pytest.mark.parametrize(("process", "sampler"), SAMPLERS)
def test_more_steps_are_nearer_the_joint(process: Tokens, sampler: Sampler) -> None:
    """In one step positions are drawn apart, which for this joint is far off."""
    table, count = TokenTable(process, JOINT), 5000
    near, far = (total_variation(shares(walk(table, sampler, steps, count)), JOINT) for steps in (32, 1))
    assert far > 0.1
    assert near < 0.4 * far


def test_remasking_without_a_share_is_ancestral_sampling() -> None:
    table = TokenTable(Absorbing(VOCAB), JOINT)
    count = 20_000
    plain, none = (shares(walk(table, sampler, 4, count)) for sampler in (Ancestral(1.0), Remasking(0.0)))
    assert total_variation(plain, none) < 2 * noise_floor(JOINT, count)


def test_remasking_shows_tokens_again() -> None:
    table = TokenTable(Absorbing(VOCAB), JOINT)
    hidden = []
    for sampler in (Ancestral(1.0), Remasking(0.5)):
        x = table.process.prior((500, LENGTH), Noise(range(500)))
        times = grids.LogSnr(40, 6.0, -6.0).times(table.process)
        counts = 0
        for step in trajectory(table, sampler, times, x, noise=Noise(range(500))):
            counts += int(((x != VOCAB) & (step.x == VOCAB)).sum())
            x = step.x
        hidden.append(counts)
    assert hidden[0] == 0
    assert hidden[1] > 500


class Independent(Denoiser):
    """Every position has its own distribution [L, vocab], whatever is known of the others."""

    def __init__(self, process: Absorbing, shares: Tensor) -> None:
        self.process, self.shares = process, shares

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> TokenPosterior:
        return TokenPosterior(self.process.settle(self.shares.log().expand(len(x_t), -1, -1), x_t, t))


def test_confidence_unmasks_the_surest_first_and_as_many_as_the_process() -> None:
    """Ten positions, each surer than the next: at temperature 0 they are shown in that order."""
    process = Absorbing(2)
    doubt = 1e-9 * torch.arange(1, 11, dtype=torch.float64)
    denoiser = Independent(process, torch.stack([1 - doubt, doubt], 1))
    x = process.prior((50, 10), Noise(range(50)))
    for step in trajectory(denoiser, Confidence(0.0), grids.Uniform(6).times(process), x, noise=Noise(range(50))):
        alpha = process.keep(step.s) if step.s else 1.0
        shown = 10 - round((1 - alpha) * 10)
        assert (step.x[:, :shown] == 0).all()
        assert (step.x[:, shown:] == process.mask).all()


def test_confidence_favours_the_sure() -> None:
    """Unsure draws are hidden and drawn again, so likely tokens are too common: more so with no temperature."""
    process, count = Absorbing(2), 4000
    denoiser = Independent(process, torch.tensor([[0.7, 0.3]] * 10).double())
    common = []
    for temperature in (0.0, 100.0):
        x = sample(denoiser, Confidence(temperature), grids.Uniform(6), (10,), noise=Noise(range(count)))
        assert int(x.max()) == 1
        common.append((x == 0).double().mean().item())
    assert common[0] > 0.75
    assert common[1] == pytest.approx(0.7, abs=5 * 0.5 / (10 * count) ** 0.5)


def test_confidence_is_less_noisy_towards_the_end() -> None:
    """Gumbel noise of strength 1 - α: of 10,000 positions, one of 10 or of 9 tokens alike, ten stay hidden at
    α = 0.999; all are of those with 10."""
    process, noise = Absorbing(10), Noise([5])
    shares = torch.full((10_000, 10), 0.1, dtype=torch.float64)
    shares[::2] = torch.tensor([1.0] * 9 + [0.0]).double() / 9
    x_s, _ = Confidence(1.0).step(
        Independent(process, shares), process.prior((1, 10_000), noise), 0.5, 0.001, None, None, noise
    )
    hidden = (x_s[0] == process.mask).nonzero()[:, 0]
    assert len(hidden) == 10
    assert (hidden % 2 == 1).all()


def test_confidence_with_a_high_temperature_is_any_order() -> None:
    """Noise drowns confidence, so order is by chance and one token at a time is the exact joint."""
    table, count = TokenTable(Absorbing(VOCAB), JOINT), 20_000
    one_at_a_time = [1.0, *(table.process.time_map.time(math.log(k / (3 - k))) for k in (1, 2)), 0.0]
    x = table.process.prior((count, LENGTH), Noise(range(count)))
    for step in trajectory(table, Confidence(1e6), one_at_a_time, x, noise=Noise(range(count))):
        x = step.x  # ranked within a sequence, so a sequence is a sample here
    assert total_variation(shares(x), JOINT) < noise_floor(JOINT, count) + 0.005


# ---- guidance, targets, refusals ------------------------------------------------------------------------------------


def test_guidance_extrapolates_the_logits() -> None:
    """p ∝ p_cond^w p_free^(1-w); 1 is the conditional one, 0 the reference, and what is impossible stays so."""
    here = TokenPosterior(torch.tensor([[[0.7, 0.3, 0.0]]]).double().log())
    there = TokenPosterior(torch.tensor([[[0.4, 0.5, 0.1]]]).double().log())
    assert torch.allclose(here.extrapolate(there, 1.0).mean, here.mean)
    possible = torch.tensor([0.4, 0.5]).double() / 0.9
    assert torch.allclose(here.extrapolate(there, 0.0).mean[0, 0, :2], possible)
    expected = torch.tensor([0.7, 0.3]).double() ** 3 * torch.tensor([0.4, 0.5]).double() ** -2
    found = here.extrapolate(there, 3.0).mean[0, 0]
    assert torch.allclose(found[:2], expected / expected.sum())
    assert found[2] == 0.0


def test_tilt_is_bayes_rule() -> None:
    prior = torch.tensor([[[0.2, 0.5, 0.3]]]).double()
    likelihood = torch.tensor([[[0.9, 0.1, 0.4]]]).double()
    found = TokenPosterior(prior.log()).tilt(likelihood.log()).mean
    assert torch.allclose(found, prior * likelihood / (prior * likelihood).sum())


class Network(torch.nn.Module):
    """Logits from a table of what it sees: the token, whatever else."""

    def __init__(self, process: Tokens) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(states(process), process.vocab)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor, log_snr: Tensor, cond: Tensor | None) -> Tensor:
        self.seen = x
        out: Tensor = self.table(x)
        return out


@both
def test_a_network_of_logits_trains(process: Tokens) -> None:
    """Independent tokens: gradient descent on the bound finds their shares."""
    torch.manual_seed(0)
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    near_noise = type(process)(VOCAB, LinearLogSnr(6.0, -12.0))
    network = Network(near_noise)
    denoiser = NetworkDenoiser(network, near_noise, Logits())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    objective = Objective(Normal(-5.0, 1.0), Simple(), measure=Nats())
    joint = TokenTable(near_noise, p[:, None] * p[None, :])
    for step in range(300):
        noise = Noise(range(256), "train").at(step)
        loss = objective(denoiser, joint.draw(noise), None, noise)
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    start = near_noise.prior((64, 5), Noise(range(64)))
    said = denoiser(start, 1.0).mean.mean((0, 1)).detach()
    assert torch.allclose(said.double(), p, atol=0.06)
    assert network.seen is not None
    assert torch.equal(network.seen, start)


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_a_flat_network_of_uniform_tokens_knows_what_x_t_says(t: float) -> None:
    """Logits that say nothing give the exact posterior of data where every token is as likely, by Bayes' rule."""
    process = UniformTokens(VOCAB)
    x_t = torch.tensor([[0, 2, 1]])
    flat = Logits().decode(torch.zeros(1, 3, VOCAB).double(), x_t, process, t)
    exact = TokenTable(process, torch.ones(VOCAB, VOCAB, VOCAB))(x_t, t)
    assert torch.allclose(flat.mean, exact.mean, atol=1e-12)
    by_tensor = Logits().decode(torch.zeros(1, 3, VOCAB).double(), x_t, process, torch.tensor([t]).double())
    assert torch.allclose(by_tensor.mean, flat.mean, atol=1e-12)
    assert torch.isfinite(Logits().decode(torch.zeros(1, 3, VOCAB), x_t, process, 0.0).mean).all()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.5), (0.7, 0.4), (0.85, 0.15), (0.3, 0.25)])
def test_one_step_of_remasking_keeps_the_share_shown(share: float, t: float, s: float) -> None:
    """Exactly α_s of the tokens are shown after a step from α_t, whatever share is hidden again."""
    process, count = Absorbing(VOCAB), 20_000
    known = TokenPosterior(torch.nn.functional.one_hot(torch.ones(count, 1, dtype=torch.int64), VOCAB).double().log())

    class Known(Denoiser):
        def __init__(self) -> None:
            self.process = process

        def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> TokenPosterior:
            return known

    clean = torch.ones(count, 1, dtype=torch.int64)
    x_t = process.marginal(clean, torch.full((count,), t).double(), Noise(range(count), "down")).x_t
    x_s, _ = Remasking(share).step(Known(), x_t, t, s, None, None, Noise(range(count)))
    assert (x_s == process.mask).double().mean().item() == pytest.approx(1 - process.keep(s), abs=5 * 0.5 / count**0.5)


def test_an_unmasked_token_is_what_it_is() -> None:
    process = Absorbing(VOCAB)
    denoiser = NetworkDenoiser(Network(process), process, Logits())
    posterior = denoiser(torch.tensor([[0, 2, VOCAB]]), 0.5)
    assert posterior.mean[0, 0].tolist() == [1.0, 0.0, 0.0]
    assert posterior.mean[0, 1].tolist() == [0.0, 0.0, 1.0]
    assert (posterior.mean[0, 2] > 0).all()


def test_guided_networks_of_tokens_ask_once_for_both() -> None:
    table = TokenTable(Absorbing(VOCAB), JOINT)
    cond = Cond({"component": torch.zeros(2, dtype=torch.int64)})
    guided = ClassifierFree(table, 2.0)(table.process.prior((2, LENGTH), Noise([1, 2])), 0.9, cond)
    assert torch.allclose(guided.mean, table(table.process.prior((2, LENGTH), Noise([1, 2])), 0.9).mean)


def test_pairs_that_cannot_work_are_refused() -> None:
    process = Absorbing(4)
    with pytest.raises(IncompatibleError, match="logits"):
        Logits().check(Gaussian(Flow(), "flow"))
    with pytest.raises(IncompatibleError, match="needs a Gaussian process"):
        LinearTarget("v").check(process)
    table = TokenTable(Absorbing(VOCAB), JOINT)
    x = table.process.prior((1, LENGTH), Noise([0]))
    with pytest.raises(IncompatibleError, match=r"fit: .*ancestral.*confidence.*remasking"):
        next(trajectory(table, Multistep(), [1.0, 0.0], x, noise=Noise([0])))
    with pytest.raises(IncompatibleError, match="UniformTokens process"):
        next(trajectory(table, TauLeaping(), [1.0, 0.0], x, noise=Noise([0])))
    with pytest.raises(IncompatibleError, match=r"logits \[2, 3, 4\], not \[2, 3, 5\]"):
        Logits().decode(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64), process, 0.5)
    with pytest.raises(ConfigError, match="noise=Noise"):
        process.reverse(torch.zeros(1, 2, dtype=torch.int64), TokenPosterior(torch.zeros(1, 2, 4)), 0.9, 0.5)
    with pytest.raises(ConfigError, match="axis of 4"):
        TokenTable(process, JOINT)
    noise, half = Noise([0]), torch.tensor([0.5]).double()
    for wrong in (torch.zeros(1, 2), torch.tensor([[0, 4]]), torch.tensor([[-1, 0]])):
        with pytest.raises(ConfigError, match="int64 from 0 to 3"):
            process.marginal(wrong, half, noise)
    with pytest.raises(DiffusionError, match="not finite"):
        TokenPosterior(torch.full((1, 2, 4), math.nan)).sample(noise)
    for bad in (
        {"type": "process/absorbing", "vocab": 1},
        {"type": "sampler/remasking", "share": 1.5},
        {"type": "sampler/confidence", "temperature": -1.0},
    ):
        with pytest.raises(ConfigError, match=r"from|at least"):
            build(bad)


def test_corrupted_tokens_cost_nothing_where_they_are_known() -> None:
    process = Absorbing(VOCAB)
    x_0 = torch.tensor([[0, 1, 2]])
    x_t = torch.tensor([[0, VOCAB, 2]])
    posterior = TokenPosterior(process.settle(torch.zeros(1, 3, VOCAB).double(), x_t, 0.4))
    t = torch.tensor([0.4], dtype=torch.float64)
    nats = process.bound(Corrupted(x_t, x_0, x_t, t), posterior)
    assert nats[0, 0] == nats[0, 2] == 0.0
    assert nats[0, 1].item() == pytest.approx(process.keep(0.4) * math.log(3))
