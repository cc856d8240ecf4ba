"""Agreement with captions: its arithmetic by brute force, its judge on captions that it never saw, and models that draw
what they like."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from torch import Tensor

from diff_diffusion.cli import evaluate as command
from diff_diffusion.data import Column, ImageDataset
from diff_diffusion.errors import CheckpointError, ConfigError, DataError
from diff_diffusion.evaluation.captions import caption_agreement, caption_column, first_of_few, ranks
from diff_diffusion.evaluation.dual import Dual, augmented, dual_of, grams, load_dual, save_dual, train_dual
from diff_diffusion.evaluation.evaluate import evaluate
from diff_diffusion.evaluation.report import report
from diff_diffusion.evaluation.score import interval
from diff_diffusion.models import DiffusionModel
from diff_diffusion.sizing import describe_for_data

COLOURS = {"红": (220, 40, 40), "绿": (40, 180, 60), "蓝": (40, 60, 220), "黄": (220, 200, 40)}
SIDES = {"左": (slice(None), slice(0, 4)), "右": (slice(None), slice(4, 8)), "上": (slice(0, 4), slice(None))}
SIZES = ("淡", "浓")
EVERY = [f"{size}{colour}在{side}" for size in SIZES for colour in COLOURS for side in SIDES]


def picture(caption: str, rng: np.random.Generator) -> np.ndarray:
    size, colour, _, side = caption
    image = np.full((8, 8, 3), 250.0)
    rows, columns = SIDES[side]
    image[rows, columns] = np.asarray(COLOURS[colour]) * (1.0 if size == "浓" else 0.5) + (0 if size == "浓" else 120)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def pictures(captions: list[str], seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([picture(caption, rng) for caption in captions])).permute(0, 3, 1, 2)


def dataset(count: int, seed: int) -> ImageDataset:
    """Pictures of 24 captions, each said in one way or two; the last one has none."""
    said = [EVERY[i % len(EVERY)] for i in range(count)]
    texts: list[Any] = [(text,) if i % 3 else (text, f"{text}的画") for i, text in enumerate(said)]
    texts[-1] = None
    return ImageDataset.from_arrays(pictures(said, seed), columns={"说明": Column("text", texts)})


TRAIN = dataset(241, 0)


@pytest.fixture(scope="module")
def dual() -> Dual:
    """Five times over all that have a caption, 24 at a time."""
    said = [str(texts[0]) for texts in TRAIN.values("说明")[:240]]
    return train_dual(lambda rows: TRAIN.batch(rows.numpy()), [said], 3, epochs=5, batch_size=24)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_ranks_count_ties_and_what_is_no_number_against_the_picture() -> None:
    alike = torch.tensor([[0.9, 0.1, 0.2], [0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [math.nan, 0.1, 0.2]])
    assert ranks(alike, [0, 1, 0, 0]).tolist() == [1, 3, 2, 3]


def test_first_of_few_is_the_mean_over_every_draw() -> None:
    """19 others are drawn from 21: each of the 210 draws, counted; among all it is the share of ranks of 1."""
    at = torch.tensor([1, 3, 5, 6])
    right = [np.mean([all(other >= rank for other in draw) for draw in combinations(range(1, 22), 19)]) for rank in at]
    assert first_of_few(at, 22, 20) == pytest.approx(np.mean(right), abs=1e-12)
    assert first_of_few(at, 22, 22) == 0.25
    assert first_of_few(torch.arange(1, 41), 40, 20) == pytest.approx(1 / 20)  # chance


class Spoken:
    """A judge that reads the caption's number off the first pixel."""

    name = "spoken-0"

    def images(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(pixels[:, 0, 0, 0].long(), 50).double()

    def texts(self, texts: Any) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor([int(text) for text in texts]), 50).double()


def test_agreement_is_of_those_that_have_captions_and_of_each_its_own() -> None:
    """40 captions of 80 images, one image without: of the samples a quarter shows the next caption instead."""
    captions: list[str | None] = [str(i // 2) for i in range(80)]
    captions[7] = None
    at = torch.arange(80) // 2
    real = at[:, None, None, None].expand(-1, 1, 2, 2)
    samples = torch.where(torch.arange(80) % 4 == 0, (at + 1) % 40, at)[:, None, None, None].expand(-1, 1, 2, 2)
    more = torch.cat([samples, torch.zeros(30, 1, 2, 2, dtype=torch.int64)])  # asked for training captions
    found = caption_agreement(Spoken(), "说明", captions, more.split(64), real.split(7))
    assert (found.n, found.captions, found.few, found.judge) == (79, 40, 20, "spoken-0")
    # A wrong one ties with all but one of the others at 0, so that it comes last but for that.
    assert found.real == (1.0, interval(40, 40))
    assert found.share[0] == pytest.approx(59 / 79)
    assert found.share[1] == pytest.approx(interval(40 * 59 / 79, 40))
    assert found.behind
    assert not found.weak
    swapped = caption_agreement(Spoken(), "说明", captions, real.split(64), samples.split(64))
    assert not swapped.behind


def test_one_caption_tells_nothing() -> None:
    with pytest.raises(DataError, match="1 captions of held-out images differ"):
        caption_agreement(Spoken(), "说明", ["1", "1"], [], [])


# ---- the judge -------------------------------------------------------------------------------------------------------


def test_words_and_parts_of_words_are_shared() -> None:
    share = lambda a, b: len(set(grams(a)) & set(grams(b)))  # noqa: E731
    assert share("red heart", "blue heart") > 5
    assert share("红心", "蓝心") == 1
    assert share("红色圆", "红色方块") == 3, "红, 色 and 红色"
    assert share("circle", "circles") > 3
    assert not share("red", "蓝")
    assert grams("Red") == grams("red")
    assert len(grams("?!")) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_shifts_keep_left_left_and_colours_their_own(channels: int) -> None:
    torch.manual_seed(0)
    pixels = torch.full((64, channels, 32, 32), 255, dtype=torch.uint8)
    pixels[:, channels // 2 :, :, :8] = 0  # red or black on the left
    seen = augmented(pixels)
    assert seen.shape == pixels.shape
    left = seen[:, -1] < 128
    widths = left.sum(2).float().mean(1)
    assert not left[:, :, 16:].any()
    assert left[:, :, :4].float().mean() > 0.99
    assert {round(width.item()) for width in widths} == {6, 7, 8, 9, 10}
    if channels == 3:
        assert (seen[:, 0] > 128).float().mean() > 0.99


def test_the_judge_understands_captions_that_it_learned(dual: Dual) -> None:
    fresh = pictures(EVERY, 5)
    found = caption_agreement(dual, "说明", EVERY, [fresh], [fresh])
    assert found.real[0] > 0.9
    assert not found.weak
    mixed = caption_agreement(dual, "说明", EVERY, [fresh.roll(1, 0)], [fresh])
    assert mixed.behind
    assert mixed.share[0] < 0.2
    blind = caption_agreement(dual, "说明", EVERY, [fresh], [torch.full_like(fresh, 128)])
    assert blind.weak


def test_it_is_the_same_every_time_and_touches_no_global_noise(dual: Dual) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = dual_of(TRAIN, "说明", steps=1).name
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert dual_of(TRAIN, "说明", steps=1).name == first
    assert first != dual.name
    assert dual_of(TRAIN, "说明", steps=1, seed=1).name != first


def test_it_is_kept_as_a_file_and_known_again(dual: Dual, tmp_path: Path) -> None:
    path = tmp_path / "判.safetensors"
    save_dual(dual, TRAIN, path)
    again = load_dual(path, TRAIN)
    assert again.name == dual.name
    with torch.no_grad():
        assert torch.equal(again.texts(EVERY), dual.texts(EVERY))
    with pytest.raises(DataError, match="trained on other images"):
        load_dual(path, dataset(241, 1))
    for content in (b"", safetensors.torch.save({}, {"about": json.dumps({"kind": "x", "channels": 3, "data": ""})})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="no dual encoder"):
            load_dual(path, TRAIN)


def test_captions_are_needed_to_learn() -> None:
    none = ImageDataset.from_arrays(pictures(EVERY[:3], 0), columns={"说明": Column("text", [("一",), None, None])})
    with pytest.raises(DataError, match="1 captions in 说明"):
        dual_of(none, "说明")
    assert caption_column(none, {"说明": []}) == "说明"
    assert caption_column(none, {}) is None
    assert caption_column(none, None) is None


# ---- in an evaluation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaf", [False, True])
def test_a_model_that_draws_something_else_is_told(dual: Dual, deaf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(481, 0)
    train, held_out = data.split()
    small = describe_for_data(train)
    small["network"] |= {"width": 8, "multipliers": [1, 2], "depth": 1}
    model = DiffusionModel.from_description(small)
    monkeypatch.setattr("diff_diffusion.evaluation.evaluate.bits_per_dim", lambda *_, **__: None)

    def sample(self: DiffusionModel, num: int, *, cond: Any, seed: int, **options: Any) -> Tensor:
        said = [(caption or EVERY[0])[:4] for caption in cond["说明"]]
        if deaf:
            said = [EVERY[(seed + 5 * i) % 24] for i in range(num)]
        return pictures(said, 1000 + seed).float()

    monkeypatch.setattr(DiffusionModel, "sample", sample)
    found = evaluate(model, data, 70, captions_judge=dual)
    assert found.captions is not None
    assert found.captions.judge == dual.name
    assert found.captions.n == len(held_out) - sum(value is None for value in held_out.values("说明"))
    assert found.captions.behind == deaf
    assert any("captions are not drawn as real images show them" in warning for warning in found.warnings) == deaf
    assert json.loads(json.dumps(found.to_json()))["captions"]["behind"] == deaf
    page = report(found)
    assert "<h2>Captions</h2>" in page
    assert dual.name in page


def test_without_captions_nothing_is_judged_and_a_judge_is_refused(dual: Dual) -> None:
    plain = ImageDataset.from_arrays(pictures(EVERY * 2, 0))
    with pytest.raises(ConfigError, match="asked for none"):
        evaluate(tiny.fresh(plain), plain, 4, captions_judge=dual)


def test_the_command_keeps_its_judge_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def learned(train: ImageDataset, column: str) -> Dual:
        made.append(column)
        return dual_of(train, column, steps=1)

    monkeypatch.setattr(command, "dual_of", learned)
    data, home = dataset(49, 0), tmp_path / "评估"
    small = describe_for_data(data.split()[0])
    small["network"] |= {"width": 8, "multipliers": [1, 2], "depth": 1}
    model = DiffusionModel.from_description(small)
    first = command._captions_judge(model, data, None, home)
    again = command._captions_judge(model, data, None, home)
    assert first is not None
    assert again is not None
    assert (again.name, made) == (first.name, ["说明"])
    [file] = home.iterdir()
    given = command._captions_judge(model, data, file, tmp_path / "other")
    assert given is not None
    assert given.name == first.name
    assert not (tmp_path / "other").exists()
    plain = ImageDataset.from_arrays(pictures(EVERY, 0))
    assert command._captions_judge(tiny.fresh(plain), plain, None, home) is None
