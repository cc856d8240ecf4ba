"""Laws of recipes: each builds, is described, comes back, and samples an exact mixture with its own defaults."""

from __future__ import annotations

import json
import math

import pytest
import torch

from diff_diffusion.core.analytic import GaussianMixture, TokenTable
from diff_diffusion.core.denoiser import NetworkDenoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.errors import ConfigError
from diff_diffusion.objectives.levels import Normal
from diff_diffusion.presets import RECIPES, Recipe, recipe
from diff_diffusion.registry import build, describe
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import sample
from diff_diffusion.samplers.sampler import check_fits, check_times

every_recipe = pytest.mark.parametrize("name", RECIPES)
of_numbers = pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("_tokens")])
of_tokens = pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_tokens")])


@every_recipe
def test_a_recipe_round_trips(name: str) -> None:
    whole = recipe(name)
    assert isinstance(whole, Recipe)
    assert describe(build(json.loads(json.dumps(describe(whole))))) == describe(whole)


@every_recipe
def test_the_parts_of_a_recipe_fit(name: str) -> None:
    whole = recipe(name)
    check_fits(whole.sampler, whole.process)
    check_times(whole.grid.times(whole.process))
    NetworkDenoiser(torch.nn.Identity(), whole.process, whole.target)


@of_numbers
def test_a_recipe_samples_an_exact_mixture(name: str) -> None:
    """64 samples of two narrow modes: all within 6 deviations of one, both found."""
    fewer = {"timesteps": 100} if name in ("ddpm", "iddpm") else {}
    fewer |= {"num_inference_steps": 200} if name.endswith("_sde") else {}
    whole = recipe(name, **fewer)
    assert isinstance(whole.process, Gaussian)
    mixture = GaussianMixture(whole.process, [[-1.0], [1.0]], [0.01, 0.01])
    x = sample(mixture, whole.sampler, whole.grid, (1,), noise=Noise(range(64))).double()
    assert ((x.abs() - 1.0).abs() < 0.6).all()
    assert 10 < (x > 0).sum() < 54


@of_numbers
def test_a_recipes_loss_is_finite_at_both_ends(name: str) -> None:
    whole = recipe(name)
    assert isinstance(whole.process, Gaussian)
    mixture = GaussianMixture(whole.process, [[-1.0], [1.0]], [0.01, 0.01])
    noise = Noise(range(256), "train")
    loss = whole.objective(mixture, mixture.draw(noise), None, noise)
    assert torch.isfinite(loss.per_sample).all()


@of_tokens
def test_a_recipe_of_tokens_samples_an_exact_joint_and_loses_its_entropy(name: str) -> None:
    """Two words of two letters, never mixed: few samples mix them, and the bound is ln 2 / 2 for a letter."""
    whole = recipe(name, vocab=2)
    table = TokenTable(whole.process, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # type: ignore[arg-type]
    x = sample(table, whole.sampler, whole.grid, (2,), noise=Noise(range(400)))
    assert (x[:, 0] == x[:, 1]).double().mean() > 0.95
    assert 150 < (x[:, 0] == 0).sum() < 250
    noise = Noise(range(20_000), "train")
    loss = whole.objective(table, table.draw(noise), None, noise)
    error = 5 * loss.per_sample.std().item() / 20_000**0.5
    assert error < 0.06
    assert loss.mean.item() == pytest.approx(0.5 * math.log(2.0), abs=error)


def test_edm_is_the_papers_setting() -> None:
    """Table 1 of arXiv 2206.00364: σ from 80 to 0.002, 18 steps in 35 evaluations, ln σ ~ N(-1.2, 1.2²)."""
    whole = recipe("edm")
    assert isinstance(whole.process, Gaussian)
    assert whole.process.scales(1.0)[1] == pytest.approx(80.0, rel=1e-3)
    assert whole.process.scales(0.0)[1] == pytest.approx(0.002, rel=1e-3)
    assert len(whole.grid.times(whole.process)) == 19
    assert isinstance(whole.objective.levels, Normal)
    assert (whole.objective.levels.mean, whole.objective.levels.std) == (-2 * -1.2, 2 * 1.2)


def test_ddpm_is_the_papers_chain() -> None:
    whole = recipe("ddpm")
    product = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(1000))
    assert isinstance(whole.process, Gaussian)
    assert whole.process.scales(1.0)[0] ** 2 == pytest.approx(product, rel=1e-9)
    assert len(whole.grid.times(whole.process)) == 1001


def test_iddpm_ends_where_its_cap_on_beta_puts_it() -> None:
    """ᾱ_1000 = ᾱ_999 (1 - 0.999) of the discrete cosine chain has λ = -19.8."""
    angle = 0.5 * math.pi / 1.008
    last = (math.cos(1.007 * angle) / math.cos(0.008 * angle)) ** 2 * 0.001
    whole = recipe("iddpm")
    assert isinstance(whole.process, Gaussian)
    assert whole.process.time_map.log_snr(1.0) == pytest.approx(math.log(last / (1 - last)), abs=0.2)


def test_score_sdes_are_the_papers_processes() -> None:
    """arXiv 2011.13456: β from 0.1 to 20; σ from 0.01 to 50; sub-VP's variance is the square of VP's."""
    vp, ve, sub_vp = (recipe(name).process for name in ("vp_sde", "ve_sde", "sub_vp_sde"))
    assert isinstance(vp, Gaussian)
    assert isinstance(ve, Gaussian)
    assert isinstance(sub_vp, Gaussian)
    for t in (0.001, 0.3, 1.0):
        log_alpha = -0.25 * t * t * (20.0 - 0.1) - 0.5 * t * 0.1
        assert vp.scales(t) == pytest.approx((math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))), rel=1e-9)
        assert sub_vp.scales(t) == pytest.approx((math.exp(log_alpha), -math.expm1(2 * log_alpha)), rel=1e-9)
        assert ve.scales(t) == pytest.approx((1.0, 0.01 * 5000.0**t), rel=1e-9)


def test_zero_snr_begins_in_pure_noise_and_keeps_the_first_step() -> None:
    whole, before = recipe("zero_snr"), recipe("ddpm")
    assert isinstance(whole.process, Gaussian)
    assert isinstance(before.process, Gaussian)
    assert whole.process.scales(1.0) == (0.0, 1.0)
    assert whole.process.scales(0.001) == pytest.approx(before.process.scales(0.001), rel=1e-12)
    times = whole.grid.times(whole.process)
    assert (times[0], len(times)) == (1.0, 51)


def test_options_reach_the_parts() -> None:
    whole = recipe("ddim", timesteps=500, beta_end=0.03, num_inference_steps=7)
    assert whole.process == build(
        {"type": "process/gaussian", "time_map": {"type": "time_map/linear_beta", "timesteps": 500, "beta_end": 0.03}}
    )
    assert len(whole.grid.times(whole.process)) == 8


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("edn", {}, "edm"),
        ("edm", {"timesteps": 10}, "takes no timesteps"),
        ("ddim", {"beta_schedule": "cosin"}, "'linear' or 'cosine'"),
        ("ddim", {"beta_schedule": "cosine", "beta_end": 0.1}, "no beta_end"),
        ("ve_sde", {"sigma_min": 2.0, "sigma_max": 1.0}, "not 2.0 and 1.0"),
    ],
)
def test_what_a_recipe_does_not_take_is_refused(name: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe(name, **options)
