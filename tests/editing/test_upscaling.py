"""Enlarging: the small image arrives as in training, in its units and place, and its noise is what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diff_diffusion import DiffusionModel
from diff_diffusion.codecs.affine import Affine
from diff_diffusion.cond import Embedded
from diff_diffusion.conditions.conditions import Conditions
from diff_diffusion.conditions.images import ImageBeside
from diff_diffusion.conditions.labels import ClassLabel
from diff_diffusion.core.targets import LinearTarget
from diff_diffusion.data import ImageDataset
from diff_diffusion.data.columns import shrunk
from diff_diffusion.editing import cascade, upscale
from diff_diffusion.errors import ConfigError
from diff_diffusion.presets import recipe
from diff_diffusion.tensors import enlarged


class Echo(nn.Module):
    """Says that the clean data are the image beside it, and keeps what it saw."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.count = channels
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, log_snr: Tensor, cond: Embedded | None = None) -> Tensor:
        self.seen.append(x[:, self.count :])
        return x[:, self.count : 2 * self.count]


def echo(size: tuple[int, int, int] = (3, 8, 12), noise: float = 0.0, **others: object) -> DiffusionModel:
    """A model that draws what it sees: the codec's units are those of the image beside it, -1 to 1."""
    parts = {"low": ImageBeside(size, noise, "shrunk:2"), **others}
    network = Echo(size[0])
    network.cond_width = max(getattr(part, "width", 0) for part in parts.values())  # type: ignore[assignment]
    codec = Affine(size, (127.5,) * size[0], (127.5,) * size[0])
    how = replace(recipe("rectified_flow"), target=LinearTarget("x0"))
    return DiffusionModel(network, codec, how, Conditions(parts)).eval()  # type: ignore[arg-type]


@pytest.fixture
def small() -> Tensor:
    return torch.randint(0, 256, (3, 3, 4, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


# ---- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_it_is_enlarged_as_in_training(factor: int) -> None:
    """What a column of kind shrunk shows in training is what the shrunk picture becomes when it is enlarged."""
    pixels = torch.randint(0, 256, (5, 3, 12, 24), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    little = torch.nn.functional.avg_pool2d(pixels.float(), factor)
    assert torch.equal(enlarged(little, factor), shrunk(pixels, factor).float())
    assert torch.equal(enlarged(little.round().to(torch.uint8), factor), enlarged(little, factor))


def test_enlarging_is_bilinear_between_the_centres_of_pixels() -> None:
    row = enlarged(torch.tensor([[[[0.0, 100.0]]]]), 4)[0, 0, 0]
    assert row.tolist() == [0, 0, 12, 38, 62, 88, 100, 100]  # 12.5, 37.5, … to even
    assert enlarged(torch.full((1, 1, 2, 2), 7.4), 3).unique().item() == 7


def test_the_small_image_arrives_in_its_units_and_place(small: Tensor) -> None:
    model = echo()
    large = upscale(model, small, 2, steps=3)
    assert (large - enlarged(small, 2)).abs().max() < 1e-3
    assert torch.equal(model.network.seen[-1][:, 3], torch.ones(3, 8, 12))  # it is there


def test_beyond_the_models_size_each_window_sees_its_own_part(small: Tensor) -> None:
    wide = torch.cat([small, small.flip(-1)], -1)
    assert (upscale(echo(), wide, 2, steps=3) - enlarged(wide, 2)).abs().max() < 1e-3


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_noise_on_it_is_what_it_says(small: Tensor, noise: float) -> None:
    """√(1 - s²) image + s ε in units of -1 to 1, ε standard normal; the network is told s; the same for a seed."""
    grey = torch.full((64, 3, 4, 6), 192, dtype=torch.uint8)
    model = echo(noise=1.0)
    upscale(model, grey, 2, noise=noise, seed=9, steps=2)
    image, there, level = model.network.seen[-1].split([3, 1, 1], 1)
    assert there.unique().item() == 1.0
    assert torch.allclose(level, torch.full_like(level, noise))
    epsilon = (image - (1 - noise**2) ** 0.5 * (192 / 127.5 - 1)) / noise
    error = epsilon.numel() ** -0.5
    assert abs(epsilon.mean().item()) < 5 * error
    assert abs(epsilon.var().item() - 1) < 5 * 2**0.5 * error
    upscale(model, grey[:1], 2, noise=noise, seed=10, steps=2)
    assert torch.equal(model.network.seen[-1][0, :3], image[1])
    upscale(model, grey[:1], 2, steps=2)
    assert model.network.seen[-1][:, 4].abs().max() == 0.0


def test_its_numbers_are_not_those_of_the_sample_that_it_may_be(small: Tensor) -> None:
    """A cascade draws twice with one seed: the second's noise begins with other numbers than the first's."""
    model = echo()
    shown: list[Tensor] = []
    forward = model.network.forward
    model.network.forward = lambda x, *rest: shown.append(x[:, :3]) or forward(x, *rest)  # type: ignore[func-returns-value,method-assign]
    upscale(model, small[:1], 2, seed=4, steps=2)
    model.sample(1, cond=[enlarged(small, 2)[0]], seed=4, steps=2)
    assert (shown[0] - shown[2]).abs().mean() > 0.5


def test_other_conditions_go_along(small: Tensor) -> None:
    model = echo(label=ClassLabel(["猫", "dog"], 4))
    asked, embed = [], model.conditioner.parts["label"].embed  # type: ignore[union-attr]
    model.conditioner.parts["label"].embed = lambda values, keep, x: asked.append(values) or embed(values, keep, x)  # type: ignore[func-returns-value,method-assign,union-attr]
    upscale(model, small, 2, cond={"label": ["猫", "dog", "猫"]}, guidance=1.0, steps=2)
    assert asked[0].tolist() == [0, 1, 0]


# ---- a cascade ------------------------------------------------------------------------------------------------------


def test_a_cascade_enlarges_what_the_first_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (4, 3, 4, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    first = DiffusionModel.for_data(ImageDataset.from_arrays(pixels, [0, 1, 0, 1], ["猫", "dog"]))
    second = echo()
    drawn = cascade(first, second, 3, cond={"label": "猫"}, seed=5, steps=3)
    assert drawn.shape == (3, 3, 8, 12)
    assert (drawn - enlarged(first.sample(3, cond={"label": "猫"}, seed=5, steps=3), 2)).abs().max() < 1e-3
    second, asked = echo(label=ClassLabel(["dog", "猫"], 4)), []
    embed = second.conditioner.parts["label"].embed  # type: ignore[union-attr]
    second.conditioner.parts["label"].embed = lambda values, keep, x: asked.append(values) or embed(values, keep, x)  # type: ignore[func-returns-value,method-assign,union-attr]
    draw = first.sample
    monkeypatch.setattr(first, "sample", lambda num, **how: asked.append(how["cond"]) or draw(num, **how))
    cascade(first, second, 2, cond={"label": ["猫", "dog"]}, guidance=1.0, steps=2)
    assert asked[0] == {"label": ["猫", "dog"]}
    assert asked[1].tolist() == [1, 0]
    with pytest.raises(ConfigError, match="neither model knows the condition colour"):
        cascade(first, second, 1, cond={"colour": "red"})
    with pytest.raises(ConfigError, match="by the same whole factor"):
        cascade(first, echo((3, 8, 18)), 1)


# ---- refused --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_enlarged_is_refused(small: Tensor, model: DiffusionModel) -> None:
    for refused, says in [
        (lambda: upscale(model, small, 2), "conditions label: train one with a column of kind shrunk"),
        (lambda: upscale(echo(), small, 1), "trained to enlarge 2 times, and not 1"),
        (lambda: upscale(echo(), small, 4, overlap=1.0), "trained to enlarge 2 times, and not 4"),
        (lambda: upscale(echo(), small.repeat(1, 1, 2, 2), 2, overlap=1.0), "overlap"),
        (lambda: upscale(echo(), small[0], 2), r"\[B, C, h, w\]"),
        (lambda: upscale(echo(), small[:, :1], 2), r"\[3, 8, 12\], and \[1, 8, 12\]"),
        (lambda: upscale(echo(), small[..., :3], 2), "8 × 6 was asked for"),
        (lambda: upscale(echo(noise=0.2), small, 2, noise=0.3), "from 0 to 0.2"),
        (lambda: upscale(echo(), small, 2, cond={"low": small[0]}), "given twice"),
        (lambda: upscale(echo(), small, 2, beside="high"), "no image condition 'high'"),
        (lambda: upscale(echo(map=ImageBeside((3, 8, 12), 0.0, "shrunk:2")), small, 2), "several image conditions"),
    ]:
        with pytest.raises(ConfigError, match=says):
            refused()
