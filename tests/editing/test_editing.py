"""Editing: what is known is kept exactly, what is drawn fits it, and the flow goes both ways."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diff_diffusion import DiffusionModel
from diff_diffusion.cond import Cond
from diff_diffusion.core.analytic import GaussianMixture, TokenTable
from diff_diffusion.core.categorical import Absorbing
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.data import ImageDataset
from diff_diffusion.editing import img2img, inpaint, interpolate, translate
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance import Between
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import grid as grids
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.edits import Keep, time_travel
from diff_diffusion.samplers.inversion import invert, regenerate
from diff_diffusion.samplers.sampler import Sampler, trajectory
from diff_diffusion.samplers.tokens import Remasking

PROCESS = Gaussian(LinearLogSnr(10.0, -10.0))
MEAN = torch.tensor([[0.3, -0.2]]).double()
COVARIANCE = torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]).double()

# ---- what is known --------------------------------------------------------------------------------------------------


def filled(sampler: Sampler, times: list[float], count: int = 3000, known: float = 1.5) -> Tensor:
    """Draws of the second number of a correlated Gaussian whose first is known."""
    exact = GaussianMixture(PROCESS, MEAN, COVARIANCE)
    keep = Keep(torch.tensor([[known, math.nan]]).double().expand(count, 2), torch.tensor([True, False]))
    noise = Noise(range(count))
    x = PROCESS.prior((count, 2), noise.at(0)).double()
    for step in trajectory(exact, sampler, times, x, noise=noise, edits=(keep,)):
        x = step.x
    assert (x[:, 0] == known).all()
    return x[:, 1]


def test_going_back_brings_the_filled_part_to_its_conditional() -> None:
    """Given 1.5, the other is N(-0.2 + 0.8 · 1.2, 1 - 0.64). Replacement alone falls short; time travel comes near."""
    mean, variance = -0.2 + 0.8 * (1.5 - 0.3), 0.36
    times = grids.LogSnr(40, 8.0, -8.0).times(PROCESS)
    alone, again = filled(Ancestral(1.0), times), filled(Ancestral(1.0), time_travel(times, 4, 8), 1500)
    assert abs(alone.mean().item() - mean) > 0.3
    assert again.mean().item() == pytest.approx(mean, abs=0.12)
    assert again.var().item() == pytest.approx(variance, abs=0.08)


def test_tokens_are_filled_in_too() -> None:
    """Two tokens that are always equal: one is known, and the other agrees nine times in ten, where chance is five."""
    table = TokenTable(Absorbing(2), torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    keep = Keep(torch.tensor([[1, 0]]).expand(200, 2), torch.tensor([True, False]))
    noise = Noise(range(200))
    x = table.process.prior((200, 2), noise)
    times = time_travel(grids.LogSnr(30, 8.0, -8.0).times(table.process), 3, 3)
    for step in trajectory(table, Remasking(0.3), times, x, noise=noise, edits=(keep,)):
        x = step.x
    assert (x[:, 0] == 1).all()
    assert (x[:, 1] == 1).double().mean() > 0.8


def test_an_edit_sees_every_step_and_its_own_noise() -> None:
    seen: list[tuple[float, float]] = []

    class Watch(Keep):
        def __call__(self, x_s, s, process, noise):  # type: ignore[no-untyped-def]
            seen.append((s, noise.normal((1, 1)).item()))
            return x_s

    exact = GaussianMixture(PROCESS, MEAN, COVARIANCE)
    watch, times = Watch(torch.zeros(1, 2), torch.zeros(2)), [1.0, 0.6, 0.8, 0.3, 0.0]
    plain = list(trajectory(exact, Ancestral(1.0), times, MEAN, noise=Noise([4])))
    watched = list(trajectory(exact, Ancestral(1.0), times, MEAN, noise=Noise([4]), edits=(watch, watch)))
    assert torch.equal(plain[-1].x, watched[-1].x)
    assert [s for s, _ in seen[::2]] == times[1:]
    assert len({value for _, value in seen}) == 8  # two edits, four steps


def test_time_travel_walks_each_part_its_times() -> None:
    times = grids.Uniform(10).times(PROCESS)
    assert time_travel(times, 3, 1) == times
    walk = time_travel(times, 4, 3)
    downs = sum(t > s for t, s in pairwise(walk))
    assert downs == 4 * 3 + 4 * 3 + 2  # the last two steps, to the data, once
    assert walk[-1] == 0.0
    for length, repeats in ((0, 1), (1, 0)):
        with pytest.raises(ConfigError, match="at least 1"):
            time_travel(times, length, repeats)


# ---- the flow both ways ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["vp", "ve", "flow", "sub_vp"])
def test_up_and_down_is_the_identity_to_second_order(scaling: str) -> None:
    exact = GaussianMixture(Gaussian(LinearLogSnr(10.0, -10.0), scaling), [[-1.0], [1.2]], [0.2, 0.1], [0.4, 0.6])
    x_0 = torch.linspace(-1.8, 1.8, 9, dtype=torch.float64)[:, None]
    errors = [(regenerate(exact, invert(exact, x_0, n), n) - x_0).abs().max().item() for n in (32, 64, 128)]
    assert errors[2] < 3e-3
    assert math.log2(errors[1] / errors[2]) > 1.5


def test_noise_of_data_is_standard_normal() -> None:
    exact = GaussianMixture(PROCESS, [[-1.0], [1.2]], [0.2, 0.1], [0.4, 0.6])
    noise = invert(exact, exact.draw(Noise(range(4000))), 48)
    assert noise.mean().item() == pytest.approx(0.0, abs=5 / 4000**0.5)
    assert noise.var().item() == pytest.approx(1.0, abs=5 * (2 / 4000) ** 0.5)


def test_another_condition_on_the_way_down_keeps_the_quantile() -> None:
    """From N(-1, 0.2) to N(1.2, 0.05) the flow is the one rising map between them: x to 1.2 + ½ (x + 1)."""
    exact = GaussianMixture(PROCESS, [[-1.0], [1.2]], [0.2, 0.05])
    x_0 = torch.linspace(-1.7, -0.3, 5, dtype=torch.float64)[:, None]
    as_first, as_second = (Cond({"component": torch.full((5,), k)}) for k in (0, 1))
    found = regenerate(exact, invert(exact, x_0, 96, as_first), 96, as_second)
    assert torch.allclose(found, 1.2 + 0.5 * (x_0 + 1.0), atol=5e-3)


def test_a_flow_needs_a_gaussian_process() -> None:
    table = TokenTable(Absorbing(2), torch.ones(2, 2))
    with pytest.raises(IncompatibleError, match="Gaussian"):
        invert(table, torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="at least 1"):
        invert(GaussianMixture(PROCESS, MEAN, COVARIANCE), MEAN, 0)


# ---- models ---------------------------------------------------------------------------------------------------------


def test_inpainting_keeps_what_is_known_to_the_last_bit(model: DiffusionModel, data: ImageDataset) -> None:
    images, mask = data.batch(range(3)), torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    for one in (mask, mask.expand(3, 8, 8), mask.expand(3, 1, 8, 8)):
        result = inpaint(model, images, one, cond=["猫"] * 3, steps=4, repeats=2, length=2)
        assert torch.equal(result[..., :4], images[..., :4].float())
        assert not torch.equal(result[..., 4:], images[..., 4:].float())
    other = images.clone()
    other[..., 4:] = 255 - other[..., 4:]
    assert torch.equal(result, inpaint(model, other, mask, cond=["猫"] * 3, steps=4, repeats=2, length=2))
    with pytest.raises(ConfigError, match=r"not \[1, 1, 5, 5\]"):
        inpaint(model, images, torch.ones(5, 5))


def test_little_strength_changes_little_and_all_of_it_forgets(model: DiffusionModel, data: ImageDataset) -> None:
    images = data.batch(range(2))
    little, all_of_it = (img2img(model, images, strength=s, steps=6, seed=5) for s in (0.02, 1.0))
    assert (little - images).abs().mean() < 6.0
    assert torch.equal(all_of_it, img2img(model, 255 - images, strength=1.0, steps=6, seed=5))
    for strength in (0.0, 1e-5, 1.1):
        with pytest.raises(ConfigError, match="strength"):
            img2img(model, images, strength=strength)


def test_an_image_is_the_same_in_any_batch(model: DiffusionModel, data: ImageDataset) -> None:
    images = data.batch(range(3))
    both = img2img(model, images, steps=4, seed=7, sampler="ddpm")
    alone = img2img(model, images[1:2], steps=4, seed=8, sampler="ddpm")
    assert (both[1] - alone[0]).abs().max() <= 1.0


def test_translating_to_what_it_is_changes_nothing(model: DiffusionModel, data: ImageDataset) -> None:
    images = data.batch(range(2))
    same = translate(model, images, cond=["dog"] * 2, from_cond=["dog"] * 2, steps=48)
    assert (same - images).abs().max() < 2.0


def test_a_flow_is_not_clipped(model: DiffusionModel, data: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is clipped on the way down was not on the way up."""
    asked, plan = [], model.plan
    monkeypatch.setattr(model, "plan", lambda **options: asked.append(options["clip"]) or plan(**options))
    translate(model, data.batch([0]), cond=["dog"], steps=2)
    interpolate(model, 1, 2, 2, steps=2)
    assert asked == [False, False]


def test_an_interpolation_ends_at_its_ends(model: DiffusionModel) -> None:
    way = interpolate(model, 3, 4, 5, cond="猫", steps=12)
    back = interpolate(model, 4, 3, 5, cond=["猫"] * 5, steps=12)
    assert (way - back.flip(0)).abs().max() < 0.1
    steps = (way[1:] - way[:-1]).abs().flatten(1).mean(1)
    assert steps.max() < 2.0 * steps.min()
    with pytest.raises(ConfigError, match="two ends"):
        interpolate(model, 1, 2, 1)
    with pytest.raises(ConfigError, match="7 to itself nothing changes"):
        interpolate(model, 7, 7, 3, cond="猫")


def test_from_one_class_to_another(model: DiffusionModel) -> None:
    """The ends are the classes' own, the way between is even, and one seed twice changes nothing but the class."""
    way = interpolate(model, 3, 3, 3, cond="猫", to_cond="dog", steps=8)
    ends = [interpolate(model, 3, 4, 2, cond=name, steps=8)[0] for name in ("猫", "dog")]
    assert (way[0] - ends[0]).abs().max() < 0.05
    assert (way[-1] - ends[1]).abs().max() < 0.05
    with pytest.raises(ConfigError, match="cond must say what the first one is"):
        interpolate(model, 3, 4, 3, to_cond="dog")


def test_between_two_gaussians_lies_the_gaussian_between_them() -> None:
    """N(-1, 0.3) and N(1.2, 0.3): a quarter of the way it is N(-0.45, 0.3), at every noise level."""
    exact = GaussianMixture(PROCESS, [[-1.0], [1.2]], [0.3, 0.3])
    first, last = (Cond({"component": torch.full((5,), k)}) for k in (0, 1))
    shares, x = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double(), torch.linspace(-2, 2, 5).double()[:, None]
    for t in (0.3, 0.8, torch.full((5,), 0.6, dtype=torch.float64)):
        mean = Between(exact, last, shares)(x, t, first).mean
        for i, share in enumerate(shares.tolist()):
            between = GaussianMixture(PROCESS, [[-1.0 + 2.2 * share]], [0.3])
            assert torch.allclose(mean[i], between(x, t).mean[i], rtol=0, atol=1e-12)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="from 0 to 1"):
            Between(exact, last, torch.tensor([wrong]))
    with pytest.raises(ConfigError, match="not nothing and component"):
        Between(exact, last, shares)(x, 0.5)
