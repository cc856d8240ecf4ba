"""Training on conditions of all kinds: cut or stopped it is the same, and what does not fit is said at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from diff_diffusion.cond import Cond
from diff_diffusion.conditions.text import describe_text
from diff_diffusion.core.denoiser import NetworkDenoiser
from diff_diffusion.core.process import Corrupted, Error
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.evaluation.likelihood import bits_per_dim
from diff_diffusion.models import DiffusionModel, NoisyClassifier
from diff_diffusion.rng import Noise
from diff_diffusion.sizing import describe_for_data
from diff_diffusion.training import train


def known(count: int = 20, ages: float = 1.0, seed: int = 0) -> ImageDataset:
    """Noise with captions in two languages, gaps, a number, a class and the image itself, smaller."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8)
    captions: list[Any] = [("红色", "red"), "一只猫", None, ("a blue dog", "蓝狗", "dog")]
    columns = {
        "caption": [captions[i % 4] for i in range(count)],
        "age": [ages * (i % 7) if i % 5 else None for i in range(count)],
        "colour": [("红", "蓝")[i % 2] for i in range(count)],
        "low": pixels,
    }
    return ImageDataset.from_arrays(pixels, columns=columns)


def model_of(data: ImageDataset, **described: Any) -> DiffusionModel:
    description = describe_for_data(data)
    description["network"] |= {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": [2], "head_width": 8}
    description["conditioner"]["parts"]["low"]["noise"] = 0.5  # one more plane, that says how noisy
    description["network"]["channels"] += 1
    description["recipe"]["grid"]["num_steps"] = 2
    return DiffusionModel.from_description(description | described)


def test_a_batch_cut_into_pieces_is_the_same_step() -> None:
    """Captions read, images noised and conditions dropped are those of the sample, not of the piece it came in."""
    losses = []
    for micro in (8, 4, 1):
        records = list(train(model_of(known()), known(), None, tiny.settings(steps=2, micro_batch=micro)))
        losses.append([record.loss for record in records])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_the_loss_of_one_noise_is_one_number() -> None:
    data, model, noise = known(), model_of(known()).train(), Noise(range(8), "train")
    first, again = (model.loss(data.batch(range(8)), data.cond(range(8)), noise).mean.item() for _ in range(2))
    assert first == again


def test_a_run_with_conditions_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(train(model_of(known()), known(), whole, tiny.settings(steps=6)))
    list(train(model_of(known()), known(), cut, tiny.settings(steps=3)))
    list(train(model_of(known()), known(), cut, tiny.settings(steps=6)))
    assert tiny.ends(whole) == tiny.ends(cut)


def test_held_out_numbers_beyond_the_range_are_said_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"age: .* is outside of what this model was trained on, 0 to 6"):
        next(iter(train(model_of(known()), known(), None, tiny.settings(steps=2), held_out=known(ages=5.0))))


def test_other_conditions_or_classes_are_refused_wherever_labels_are_read() -> None:
    data = tiny.images()
    model = tiny.fresh(data).eval()
    pixels = data.batch(range(20))
    renamed = ImageDataset.from_arrays(pixels, data.labels, ["x", "y", "class 0"])
    for other, said in (
        (renamed, "the model is for the classes class 0, class 1, class 2; arrays has x, y, class 0"),
        (ImageDataset.from_arrays(pixels), "the model is for the conditions label; arrays has none"),
        (tiny.images(side=10), r"the model is for samples \[1, 8, 8\]; arrays has \[1, 10, 10\]"),
    ):
        with pytest.raises(IncompatibleError, match=said):
            next(iter(train(model, other, None, tiny.settings(steps=1))))
        with pytest.raises(IncompatibleError, match=said):
            bits_per_dim(model, other, num=4)


def test_a_classifier_whose_held_out_images_have_no_label_is_saved(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = ImageDataset.from_arrays(pixels, columns={"label": ["猫", "dog"] * 6})
    unlabelled = ImageDataset.from_arrays(pixels[:3], columns={"label": ["猫", "dog", "dog"]})
    unlabelled.columns["label"] = type(unlabelled.columns["label"])("class", (None,) * 3, ("dog", "猫"))
    records = list(
        train(NoisyClassifier.for_data(data), data, tmp_path / "run", tiny.settings(steps=2), held_out=unlabelled)
    )
    assert records[-1].saved is not None
    assert "held-out accuracy" not in NoisyClassifier.load(tmp_path / "run").facts


def test_training_sees_noised_images_and_nothing_of_missing_ones() -> None:
    data, model, seen = known(), model_of(known()).train(), list[torch.Tensor]()
    model.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    cond = data.cond(range(8))
    cond["low"] = [None, *cond["low"][1:]]
    objective = dataclasses.replace(model.recipe.objective, cond_drop=0.0, drops={})
    latents, noise = model.codec.encode(data.batch(range(8))), Noise(range(8), "train")
    asked = model.encode(cond, 8)
    assert asked is not None
    assert model.conditioner is not None
    model.objective(latents, asked, noise)
    level = seen[0][:, 3, 0, 0]  # after the image, its smaller self and that it is there
    assert len(level.unique()) > 4
    objective(model.denoiser, latents, model.conditioner.noised(asked, noise), noise)
    assert (seen[1][0, 1:] == 0).all()
    assert (seen[1][1:, 3] > 0).all()


def test_each_condition_is_dropped_by_itself_besides_all_together() -> None:
    """Shares of 4,000 samples, within five standard errors; one's draws say nothing of another's."""
    count, kept = 4000, list[Cond]()

    class Watching(NetworkDenoiser):
        def error(self, corrupted: Corrupted, cond: Cond | None) -> Error:
            assert cond is not None
            kept.append(cond)
            return super().error(corrupted, cond)

    data = known()
    model = model_of(data)
    watching = Watching(model.network, model.recipe.process, model.recipe.target, model.conditioner)
    objective = dataclasses.replace(model.recipe.objective, cond_drop=0.3, drops={"age": 0.5, "colour": 0.5})
    assert model.conditioner is not None
    asked = model.conditioner.encode({"age": [1.0] * count, "colour": [0] * count})
    with torch.no_grad():
        objective(watching, torch.zeros(count, 1, 8, 8), asked, Noise(range(count)))
    age, colour = (kept[0].keep[name].double() for name in ("age", "colour"))
    for share, expected in ((age, 0.35), (colour, 0.35), (age * colour, 0.175)):
        assert abs(float(share.mean()) - expected) < 5 * (expected * (1 - expected) / count) ** 0.5


def test_a_vocabulary_is_of_the_images_trained_on() -> None:
    columns = {"caption": [f"第{i}张 number {i}" for i in range(40)]}
    data, held_out = ImageDataset.from_arrays(np.zeros((40, 8, 8), np.uint8), columns=columns).split(0.25)
    told, kept = ({caption for captions in part.known("caption") for caption in captions} for part in (data, held_out))
    assert (len(told), len(kept)) == (30, 10)
    assert told | kept == set(columns["caption"])
    described = describe_for_data(data)["conditioner"]["parts"]["caption"]
    width = described["width"]
    assert described == describe_text(sorted(told), width) != describe_text(sorted(told | kept), width)
