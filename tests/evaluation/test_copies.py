"""The search for copies after a training: its verdict on models whose samples are known, its cost, what it leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_audit import smooth
from torch import Tensor

from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import CheckpointError, ConfigError
from diff_diffusion.evaluation.copies import FEWEST, MOST, SHARE, affordable, look_for_copies
from diff_diffusion.models import DiffusionModel
from diff_diffusion.samplers.grid import LogSnr


def dataset(count: int, seed: int) -> ImageDataset:
    """Three of four images are of the first class."""
    labels = (np.arange(count) % 4 == 3).astype(int)
    return ImageDataset.from_arrays(torch.from_numpy(smooth(count, seed)), labels, ("花", "b"))


TRAIN, HELD_OUT = dataset(200, 0), dataset(120, 1)


def pretending(monkeypatch: pytest.MonkeyPatch, draw: Any) -> list[Any]:
    asked: list[Any] = []

    def sample(self: DiffusionModel, num: int, *, cond: Any, **options: Any) -> Tensor:
        asked.append((num, cond, options))
        return torch.as_tensor(draw(num)).float()

    monkeypatch.setattr(DiffusionModel, "sample", sample)
    return asked


def copied(num: int) -> Tensor:
    rng = np.random.default_rng(3)
    rows = rng.integers(0, len(TRAIN), num)
    return TRAIN.batch(rows).double() + torch.from_numpy(rng.normal(0, 3, (num, *TRAIN.shape)))


def test_a_model_that_copies_is_told_and_a_healthy_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretending(monkeypatch, copied)
    found = look_for_copies(tiny.fresh(TRAIN), TRAIN, HELD_OUT, 80)
    assert found.audit.copies
    assert found.audit.share > 0.9
    picture = found.write(tmp_path / "记" / "evaluation")
    told = json.loads((picture.parent / "audit.json").read_text(encoding="utf-8"))
    assert told["verdict"] == found.audit.verdict
    assert told["verdict"].startswith("this model copies its training set: ")
    assert told["model"] == tiny.fresh(TRAIN).fingerprint()
    assert [name.partition("-")[0] for name in told["networks"]] == ["pixels@8x8", "random"]
    with Image.open(picture) as image:
        assert image.size == found.picture.size
    pretending(monkeypatch, lambda num: smooth(num, 7))
    healthy = look_for_copies(tiny.fresh(TRAIN), TRAIN, HELD_OUT, 80)
    assert not healthy.audit.copies
    assert healthy.audit.share < 0.1


def test_a_healthy_model_is_accused_in_less_than_one_case_in_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty models that draw from the distribution of the data itself: two accusations have a chance of 0.6 at 1 in 20,
    and of 0.06 at the 1 in 100 or less that two intervals apart mean."""
    accused = 0
    for seed in range(40):
        pretending(monkeypatch, lambda num, seed=seed: smooth(num, 100 + seed))
        accused += look_for_copies(tiny.fresh(TRAIN), TRAIN, HELD_OUT, FEWEST).audit.copies
    assert accused <= 1


def test_the_closest_pairs_are_shown_over_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of exact copies both rows of the picture are the same."""
    pretending(monkeypatch, lambda num: TRAIN.batch(range(num)))
    found = look_for_copies(tiny.fresh(TRAIN), TRAIN, HELD_OUT, 64)
    assert all(distance == 0.0 and sample == row for sample, row, distance in found.audit.pairs)
    pixels = np.asarray(found.picture)[:, -10 * 68 :]  # without the words at the left
    assert np.array_equal(pixels[4:68], pixels[72:136])
    assert pixels[4:68].std() > 10


def test_samples_are_asked_for_what_training_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretending(monkeypatch, copied)
    others = ImageDataset.from_arrays(HELD_OUT.batch(range(120)), [0] * 120, TRAIN.class_names)
    look_for_copies(tiny.fresh(TRAIN), TRAIN, others, 200, seed=5)
    num, cond, options = asked[0]
    assert (num, options) == (200, {"seed": 5, "steps": 2})
    assert sum(cond["label"]) == 50
    plain = ImageDataset.from_arrays(torch.from_numpy(smooth(30, 0)))
    look_for_copies(tiny.fresh(plain), plain, plain, 64)
    assert asked[1][1] is None


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_search_takes_no_more_than_its_share_of_the_trainings_work(sampler: str, guidance: float) -> None:
    """Evaluations of the network, counted, beside three for every image that was trained on."""
    from diff_diffusion.models.diffusion import sampler_named

    model = tiny.fresh(TRAIN)
    model.recipe = replace(model.recipe, sampler=sampler_named(sampler), grid=LogSnr(4), guidance=guidance)
    seen = 30_000
    num = affordable(model, seen)
    assert FEWEST <= num <= MOST
    asked: list[int] = []
    model.network.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    look_for_copies(model, TRAIN, HELD_OUT, num)
    assert 0 < sum(asked) <= SHARE * 3 * seen


def test_how_many_samples_a_run_affords() -> None:
    model = tiny.fresh(TRAIN)
    model.recipe = replace(model.recipe, grid=LogSnr(32))
    assert affordable(model, 100_000) == 0.05 * 3 * 100_000 // 64 == 234
    assert affordable(model, 10**7) == 256
    assert affordable(model, 27_307) == 64
    assert affordable(model, 27_300) == 0  # 63 would be too few
    model.recipe = replace(model.recipe, guidance=2.0)
    assert affordable(model, 100_000) == 117
    model.recipe = replace(model.recipe, grid=LogSnr(1000))  # at most 50 steps are taken
    assert affordable(model, 100_000) == 75


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.fresh(TRAIN)
    model.train()
    before, noise = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    facts = dict(model.facts)
    look_for_copies(model, TRAIN, HELD_OUT, 64)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), noise)
    assert model.facts == facts
    assert model.training


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not 0 of them"):
        look_for_copies(tiny.fresh(TRAIN), TRAIN, HELD_OUT, 0)
    pretending(monkeypatch, copied)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError):
        look_for_copies(tiny.fresh(TRAIN), TRAIN, HELD_OUT, 64).write(tmp_path / "file")
