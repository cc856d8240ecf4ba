"""Maps that are measured or learned: exact inverses, gradients that go nowhere else, and the variance they save."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.learned_map import Learned
from diff_diffusion.core.tabulated_map import Tabulated, adapted
from diff_diffusion.core.time_maps import LinearLogSnr, Shifted, TabulatedBetas, TimeMap, zero_terminal_snr
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import build, describe

HIGH, LOW = 9.0, -11.0


def perturbed(seed: int, scale: float = 1.5) -> Learned:
    """A map after some training: every parameter moved by a normal number."""
    made, generator = Learned(HIGH, LOW, 12), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


MAPS = [pytest.param(Learned(HIGH, LOW, 12), id="fresh")]
MAPS += [pytest.param(perturbed(seed), id=f"moved-{seed}") for seed in range(4)]
MAPS += [pytest.param(perturbed(5, 3.0), id="moved-far")]
every_map = pytest.mark.parametrize("learned", MAPS)
TIMES = torch.tensor([i / 500 for i in range(501)] + [1e-9, 1e-4, 1 - 1e-4, 1 - 1e-9], dtype=torch.float64)


# ---- the laws of time maps, for maps whose parameters are not their description ------------------------------------


@every_map
def test_a_learned_map_falls_from_end_to_end(learned: Learned) -> None:
    log_snr = learned.log_snr(TIMES.sort().values)
    assert (log_snr.diff() < 0).all()
    assert (learned.log_snr(0.0), learned.log_snr(1.0)) == (HIGH, LOW)
    assert (log_snr[0].item(), log_snr[-1].item()) == (HIGH, LOW)
    for beyond in (1.0, 700.0, math.inf):
        assert (learned.time(HIGH + beyond), learned.time(LOW - beyond)) == (0.0, 1.0)


@every_map
def test_a_learned_map_and_its_inverse_are_exact(learned: Learned) -> None:
    """t → λ → t to 1e-12; λ → t → λ to 1e-12 and what the rounding of t moves λ where the density is thin."""
    assert (learned.time(learned.log_snr(TIMES)) - TIMES).abs().max() < 1e-12
    levels = torch.linspace(LOW, HIGH, 401, dtype=torch.float64)
    t = learned.time(levels)
    allowed = 1e-12 + 8e-16 / learned.density(levels).detach()
    assert ((learned.log_snr(t) - levels).abs() <= allowed).all()


@every_map
def test_a_learned_map_answers_floats_and_tensors_alike(learned: Learned) -> None:
    levels = torch.linspace(LOW - 1, HIGH + 1, 23, dtype=torch.float64)
    assert learned.log_snr(TIMES[::23]).tolist() == pytest.approx(
        list(map(learned.log_snr, TIMES[::23].tolist())), rel=1e-12
    )
    assert learned.time(levels).tolist() == pytest.approx(
        list(map(learned.time, levels.tolist())), rel=1e-12, abs=1e-15
    )
    grid = TIMES[:6].reshape(2, 3)
    assert learned.log_snr(grid).shape == grid.shape
    assert learned.log_snr(grid[0, 0]).shape == ()


@every_map
def test_the_density_of_a_learned_map_is_that_of_uniform_times(learned: Learned) -> None:
    """p = -dt/dλ = -1 / slope, of mass 1; and the slope of a map around it is its own."""
    t = torch.tensor([0.03, 0.31, 0.5, 0.77, 0.98], dtype=torch.float64)
    expected = -1.0 / learned.density(learned.log_snr(t)).detach()
    assert torch.allclose(learned.slope(t), expected, rtol=1e-9)
    assert torch.allclose(Shifted(learned, 3.0).slope(t), expected, rtol=1e-9)
    step = 1e-7
    quotient = (learned.log_snr(t + step) - learned.log_snr(t - step)) / (2 * step)
    assert torch.allclose(expected, quotient, rtol=1e-3)
    levels = torch.linspace(LOW, HIGH, 200_001, dtype=torch.float64)
    assert torch.trapezoid(learned.density(levels), levels).item() == pytest.approx(1.0, abs=1e-6)


# ---- its parameters --------------------------------------------------------------------------------------------------


def test_a_learned_map_stays_in_float64_on_the_cpu() -> None:
    model = torch.nn.ModuleDict({"map": perturbed(1), "other": torch.nn.Linear(2, 2)})
    before = copy.deepcopy(model["map"].state_dict())
    model.half().to("meta")
    assert model["other"].weight.dtype == torch.float16
    assert model["other"].weight.device.type == "meta"
    for name, value in model["map"].state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, before[name])
    with torch.device("meta"):
        assert {parameter.device.type for parameter in Learned().parameters()} == {"cpu"}


def test_a_learned_map_is_described_by_its_config_and_stored_by_its_state() -> None:
    learned = perturbed(2)
    description = describe(learned)
    assert description == {"type": "time_map/learned", "log_snr_max": HIGH, "log_snr_min": LOW, "num_units": 12}
    again = build(description)
    assert again.log_snr(0.3) != learned.log_snr(0.3)
    again.load_state_dict(learned.state_dict())
    assert again.log_snr(0.3) == learned.log_snr(0.3)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_no_gradient_of_a_denoisers_loss_reaches_the_map(scaling: str) -> None:
    process = Gaussian(Learned(4.0, -4.0, 3), scaling)
    t = torch.tensor([0.2, 0.6], dtype=torch.float64)
    assert not any(scale.requires_grad for scale in process.scales(t))
    assert not process.time_map.time(torch.tensor([0.3], dtype=torch.float64)).requires_grad


def test_the_variance_loss_is_an_estimate_of_the_second_moment_and_its_gradient_the_maps_alone() -> None:
    """For ℓ known: E over uniform t of ℓ²/(p_old p) is ∫ ℓ²/p dλ, and its gradient that integral's, by quadrature."""
    learned = perturbed(3, 0.7)
    levels = torch.linspace(LOW, HIGH, 100_001, dtype=torch.float64)

    def integrand(level: Tensor) -> Tensor:
        return torch.exp(-0.1 * (level - 1.0) ** 2) + 0.05

    exact = torch.trapezoid(integrand(levels) ** 2 / learned.density(levels), levels)
    expected = torch.autograd.grad(exact, list(learned.parameters()))
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = learned.log_snr(t)
    ell = integrand(drawn).requires_grad_()
    loss = learned.variance_loss(drawn, ell)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)
    found = torch.autograd.grad(loss, [*learned.parameters(), ell], allow_unused=True)
    assert found[-1] is None
    for ours, theirs in zip(found, expected, strict=False):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("arguments", "says"), [((1.0, 2.0), "below"), ((math.inf, 0.0), "finite"), ((1.0, 0.0, 0), "4096 units, not 0")]
)
def test_a_learned_maps_bad_arguments_are_refused(arguments: tuple[float, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Learned(*arguments)


# ---- what they save --------------------------------------------------------------------------------------------------

EDGES = np.linspace(HIGH, LOW, 41)


def losses(time_map: TimeMap, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Levels from uniform t, and the bound's integrand ½ ‖ε - ε̂‖² of an exact mixture of two narrow modes there."""
    process, generator = Gaussian(time_map), torch.Generator().manual_seed(seed)
    exact = GaussianMixture(process, [[-1.0, 0.3], [0.9, -0.4]], [0.003, 0.02], [0.5, 0.5])
    which = torch.randint(2, (count,), generator=generator)
    data, noise = torch.randn(2, count, 2, generator=generator, dtype=torch.float64)
    x_0 = exact.means[which] + torch.tensor([0.003, 0.02], dtype=torch.float64).sqrt()[which, None] * data
    t = (torch.arange(count, dtype=torch.float64) + torch.rand(count, generator=generator)) / count
    t = t.clamp(1e-12, 1 - 1e-12)
    alpha, sigma = (scale[:, None] for scale in process.scales(t))
    x_t = alpha * x_0 + sigma * noise
    eps = (x_t - alpha * exact(x_t, t).mean) / sigma
    return time_map.log_snr(t), 0.5 * ((noise - eps) ** 2).sum(1)


@pytest.fixture(scope="module")
def moments() -> tuple[np.ndarray, np.ndarray]:
    """E[ℓ] and E[ℓ²] on each interval, from 40,000 draws at levels even in λ."""
    log_snr, ell = (values.numpy() for values in losses(LinearLogSnr(HIGH, LOW), 40_000, 1))
    bins = np.digitize(-log_snr, -EDGES[1:-1])
    count = np.bincount(bins)
    return np.bincount(bins, ell) / count, np.bincount(bins, ell**2) / count


def variance(time_map: TimeMap, moments: tuple[np.ndarray, np.ndarray]) -> float:
    """Var of the bound's estimator ℓ/p with λ from the map: ∫ E[ℓ²]/p dλ - (∫ E[ℓ] dλ)², on the measured intervals."""
    share = np.diff([time_map.time(edge) for edge in EDGES.tolist()])
    width = -np.diff(EDGES)
    return float((moments[1] * width**2 / share).sum() - (moments[0] * width).sum() ** 2)


def train(learned: Learned, steps: int = 250) -> None:
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.1)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        log_snr, ell = losses(learned, 512, 100 + step)
        optimizer.zero_grad()
        learned.variance_loss(log_snr, ell).log().backward()
        optimizer.step()
        slower.step()


def test_the_adapted_map_has_the_least_variance(moments: tuple[np.ndarray, np.ndarray]) -> None:
    """Its density is ∝ √E[ℓ²] on each interval, and any other density on the same intervals has more variance."""
    best = adapted(EDGES.tolist(), moments[1].tolist())
    share = np.diff([best.time(edge) for edge in EDGES.tolist()])
    assert share / share.sum() == pytest.approx(np.sqrt(moments[1]) / np.sqrt(moments[1]).sum(), rel=1e-9)
    least = variance(best, moments)
    assert least < 0.5 * variance(LinearLogSnr(HIGH, LOW), moments)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = share * np.exp(0.1 * rng.standard_normal(len(share)))
        times = np.concatenate([[0.0], other.cumsum() / other.sum()])
        times[-1] = 1.0
        assert variance(Tabulated(EDGES.tolist(), times.tolist()), moments) > least


def test_training_a_learned_map_lowers_the_variance_of_the_bound(moments: tuple[np.ndarray, np.ndarray]) -> None:
    """From the fresh map's variance to within 10% of the least, on fresh draws too; and the bound's value is kept."""
    learned = Learned(HIGH, LOW, 16)
    fresh, least = variance(learned, moments), variance(adapted(EDGES.tolist(), moments[1].tolist()), moments)
    train(learned)
    trained = variance(learned, moments)
    assert fresh > 2.0 * least
    assert trained < 1.1 * least
    spread = []
    for time_map in (Learned(HIGH, LOW, 16), learned):
        log_snr, ell = losses(time_map, 20_000, 7)
        estimates = ell / time_map.density(log_snr).detach()
        assert estimates.mean().item() == pytest.approx(float(moments[0].sum() * 0.5), rel=0.03)
        spread.append(estimates.var().item())
    assert spread[1] < 0.6 * spread[0]


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Tabulated([1.0], [0.0]), "not 1 and 1"),
        (lambda: Tabulated([1.0, 0.0], [0.0, 0.5, 1.0]), "not 2 and 3"),
        (lambda: Tabulated([1.0, 0.0], [0.0, 0.9]), "exactly 1"),
        (lambda: Tabulated([2.0, 1.0, 0.0], [0.0, 0.0, 1.0]), "increase"),
        (lambda: Tabulated([1.0, 1.0], [0.0, 1.0]), "decrease"),
        (lambda: Tabulated([math.inf, 1.0], [0.0, 1.0]), "finite"),
        (lambda: adapted([1.0, 0.0], [1.0, 1.0]), "not 2 and 2"),
        (lambda: adapted([2.0, 1.0, 0.0], [1.0, 0.0]), "never seen"),
        (lambda: adapted([2.0, 1.0, 0.0], [1.0, math.nan]), "positive"),
        (lambda: zero_terminal_snr([0.5]), "several"),
        (lambda: zero_terminal_snr([0.5, 1.0]), "not 1.0"),
    ],
)
def test_bad_tables_are_refused(make: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("betas", [np.linspace(1e-4, 0.02, 1000), np.array([0.3, 0.2]), np.linspace(0.01, 0.5, 7)])
def test_zero_terminal_snr_is_the_papers_algorithm(betas: np.ndarray) -> None:
    """√ᾱ - √ᾱ_T, times √ᾱ_1 / (√ᾱ_1 - √ᾱ_T): arXiv 2305.08891, algorithm 1."""
    root = np.sqrt(np.cumprod(1 - betas))
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    rescaled = zero_terminal_snr(betas.tolist())
    assert np.sqrt(np.cumprod(1 - np.array(rescaled))) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert rescaled[0] == betas[0]
    assert rescaled[-1] == 1.0
    time_map, count = TabulatedBetas(rescaled), len(betas)
    assert time_map.log_snr(1.0) == -math.inf
    process = Gaussian(time_map)
    assert process.scales(1.0) == (0.0, 1.0)
    for i in range(1, count):
        assert process.scales(i / count)[0] == pytest.approx(expected[i - 1], rel=1e-9)
    # In the last interval σ/α grows as 1/(1 - t): continuous with the table, and α falls to 0 as a line does.
    quarter = time_map.log_snr(1.0 - 0.25 / count)
    assert quarter == pytest.approx(time_map.log_snr(1.0 - 1.0 / count) - 2.0 * math.log(4.0), rel=1e-9)
