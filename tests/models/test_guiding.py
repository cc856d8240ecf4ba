"""Guidance as it is asked for: every way is the denoiser that its own tests prove, and nothing is ignored."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch

from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.guidance import Autoguided, ClassifierFree, ClassifierFreePP, DynamicallyClipped, Interval
from diff_diffusion.guidance.moves import Project, Rescale
from diff_diffusion.models import DiffusionModel, Guidance, NoisyClassifier
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.grid import LogSnr
from diff_diffusion.samplers.sampler import trajectory
from diff_diffusion.sizing import describe_for_data
from diff_diffusion.training import train

DDIM, GRID, SEEDS = Ancestral(eta=0.0), LogSnr(6), range(3, 6)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return tiny.images()


def taught(data: ImageDataset, lr: float = 0.02) -> DiffusionModel:
    model = tiny.fresh(data)
    list(train(model, data, None, tiny.settings(steps=25, lr=lr, ema_decay=0.0)))
    return model.cpu()


@pytest.fixture(scope="module")
def model(data: ImageDataset) -> DiffusionModel:
    return taught(data)


@pytest.fixture(scope="module")
def worse(data: ImageDataset) -> DiffusionModel:
    return taught(data, lr=0.005)


def walked(model: DiffusionModel, denoiser: Any, label: str = "class 1") -> torch.Tensor:
    noise = Noise(SEEDS)
    times = GRID.times(model.recipe.process)
    x = model.recipe.process.prior((3, 1, 8, 8), noise.at(0), times[0])
    with model.evaluating():
        for step in trajectory(denoiser, DDIM, times, x, cond=model.encode(label, 3), noise=noise):
            x = step.x
    return model.decode(x)


def drawn(model: DiffusionModel, guidance: float | Guidance | None, label: str = "class 1") -> torch.Tensor:
    return model.sample(3, cond=label, seed=SEEDS.start, sampler=DDIM, grid=GRID, guidance=guidance)


def test_every_way_is_the_denoiser_of_its_name(model: DiffusionModel, worse: DiffusionModel) -> None:
    own, process = model.denoiser, model.recipe.process
    times = GRID.times(process)
    negative = model.encode("class 2", 1)
    free = ClassifierFree(own, 3.0)
    low, high = process.time_map.log_snr(0.8), process.time_map.log_snr(0.3)
    ways: list[tuple[Guidance, Any]] = [
        (Guidance(3.0), free),
        (Guidance(3.0, negative="class 2"), ClassifierFree(own, 3.0, negative)),
        (Guidance(3.0, negative={"label": "class 2"}, how="apg"), ClassifierFree(own, 3.0, negative, Project(eta=0.0))),
        (Guidance(3.0, how="rescale"), ClassifierFree(own, 3.0, move=Rescale())),
        (Guidance(0.6, how="cfgpp"), ClassifierFreePP(own, 0.6, times)),
        (Guidance(3.0, interval=(0.3, 0.8)), Interval(free, own, low, high)),
        (Guidance(3.0, interval=(0.0, 0.8)), Interval(free, own, low, math.inf)),
        (Guidance(2.0, reference=worse), Autoguided(own, worse.denoiser, 2.0)),
        (Guidance(3.0, dynamic=0.9), DynamicallyClipped(free, *model.codec.bounds, 0.9)),
    ]
    found = [drawn(model, guidance) for guidance, _ in ways]
    for (guidance, denoiser), samples in zip(ways, found, strict=True):
        assert torch.equal(samples, walked(model, denoiser)), guidance
    plain = drawn(model, 1.0)
    # Each does something, and something of its own.
    for i, samples in enumerate(found):
        assert not torch.equal(samples, plain), ways[i][0]
        assert not any(torch.equal(samples, other) for other in found[:i]), ways[i][0]


def test_a_number_is_guidance_of_that_scale_and_one_is_none(model: DiffusionModel) -> None:
    assert torch.equal(drawn(model, 2.0), drawn(model, Guidance(2.0)))
    assert torch.equal(drawn(model, Guidance()), drawn(model, None))
    assert torch.equal(
        drawn(model, Guidance(dynamic=1.0)), walked(model, DynamicallyClipped(model.denoiser, *model.codec.bounds, 1.0))
    )


def test_outside_of_its_interval_samples_follow_the_plain_model(model: DiffusionModel) -> None:
    assert torch.equal(drawn(model, Guidance(3.0, interval=(0.0, 1e-9))), drawn(model, 1.0))
    assert torch.equal(drawn(model, Guidance(3.0, interval=(0.0, 1.0))), drawn(model, 3.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"how": "harder"}, "guidance is plain, rescale, apg, cfgpp, not 'harder'"),
        ({"scale": math.nan}, "finite number, not nan"),
        ({"scale": 2.0, "interval": (0.8, 0.2)}, r"low < high between 0 .* not \(0.8, 0.2\)"),
        ({"scale": 2.0, "interval": (-0.1, 0.2)}, "low < high between 0"),
        ({"negative": "class 1"}, "a negative has no effect at guidance 1"),
        ({"interval": (0.1, 0.2), "how": "apg"}, "an interval, apg has no effect at guidance 1"),
        ({"scale": 0.0, "how": "apg"}, "'apg' holds back what a scale above 1 spoils, and 0 is below"),
    ],
    ids=str,
)
def test_guidance_that_cannot_take_effect_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Guidance(**options)


def test_sources_of_guidance_exclude_each_other(model: DiffusionModel, worse: DiffusionModel) -> None:
    with pytest.raises(ConfigError, match="a negative and a reference are different things"):
        Guidance(2.0, negative="class 1", reference=worse)
    with pytest.raises(ConfigError, match="'cfgpp' does not go with a reference"):
        Guidance(2.0, how="cfgpp", reference=worse)
    with pytest.raises(ConfigError, match="DDIM's steps: use the sampler ddim"):
        model.sample(2, cond=0, guidance=Guidance(0.5, how="cfgpp"), sampler="heun")


def test_a_negative_that_covers_all_needs_no_null(data: ImageDataset) -> None:
    described = tiny.description(data)
    described["recipe"]["objective"]["cond_drop"] = 0.0
    model = DiffusionModel.from_description(described)
    with pytest.raises(ConfigError, match="cond_drop = 0"):
        drawn(model, 2.0)
    assert drawn(model, Guidance(2.0, negative="class 2")).shape == (3, 1, 8, 8)
    described["recipe"]["objective"]["drops"] = {"label": 0.2}
    assert drawn(DiffusionModel.from_description(described), 2.0).shape == (3, 1, 8, 8)


def test_a_classifier_says_what_a_condition_means_to_a_model_that_knows_none(data: ImageDataset) -> None:
    described = describe_for_data(data, conditional=False)
    described["network"] |= {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": []}
    plain = DiffusionModel.from_description(described).eval()
    classifier = NoisyClassifier.for_data(data)  # fresh, it tells nothing apart
    list(train(classifier, data, None, tiny.settings(steps=5, lr=0.02, ema_decay=0.0)))
    for guidance in (Guidance(2.0, classifier=classifier), Guidance(2.0, interval=(0.2, 0.9), classifier=classifier)):
        there, other = (drawn(plain, guidance, label) for label in ("class 1", "class 2"))
        assert not torch.equal(there, other)
    with pytest.raises(ConfigError, match="unconditional"):
        drawn(plain, None)
    with pytest.raises(ConfigError, match="unknown label"):
        drawn(plain, guidance, "class 9")
    far = NoisyClassifier.for_data(tiny.images(side=10))
    with pytest.raises(IncompatibleError):
        drawn(plain, Guidance(2.0, classifier=far))


def test_a_reference_takes_conditions_as_the_model_does(data: ImageDataset, model: DiffusionModel) -> None:
    """Rows of another vocabulary would be other classes, and units of other data other pictures."""
    renamed = ImageDataset.from_arrays(data.batch(range(len(data))), data.labels, ["x", "class 1", "class 2"])
    with pytest.raises(IncompatibleError, match="the reference does not take conditions as the model does"):
        drawn(model, Guidance(2.0, reference=tiny.fresh(renamed)))
    brighter = ImageDataset.from_arrays(data.batch(range(len(data))) // 2, data.labels, data.class_names)
    with pytest.raises(IncompatibleError, match="the reference is for data of mean"):
        drawn(model, Guidance(2.0, reference=tiny.fresh(brighter)))


def test_a_reference_reads_texts_in_its_own_way() -> None:
    """Its own encoder, and not the model's: guided with scale 0 a sample is the reference's own."""
    pixels = torch.randint(0, 256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    captions = ["a red cat", "一只蓝色的狗"] * 4
    captioned = ImageDataset.from_arrays(pixels, columns={"caption": captions})
    one, other = (shaken(DiffusionModel.for_data(captioned, seed=seed)) for seed in (0, 1))
    asked = {"cond": captions[:2], "sampler": DDIM, "grid": GRID}
    guided = one.sample(2, **asked, guidance=Guidance(0.0, reference=other))
    assert torch.allclose(guided, other.sample(2, **asked), atol=1e-2)
    assert not torch.allclose(guided, one.sample(2, **asked), atol=1.0)


def shaken(model: DiffusionModel) -> DiffusionModel:
    """With no weight at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
