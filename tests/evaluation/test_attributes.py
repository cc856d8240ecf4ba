"""Fairness by column: every value's share, agreement and quality are those of brute force and of models that are unfair
on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diff_diffusion.data import Column, ImageDataset
from diff_diffusion.evaluation.attributes import attribute_values, attributes, numbered, train_judges
from diff_diffusion.evaluation.beside import ClassRow, Seen, class_rows
from diff_diffusion.evaluation.features import Classifier
from diff_diffusion.evaluation.score import interval

LIGHT, DARK = "亮", "暗<b>"
NAMES = (DARK, LIGHT)


def painted(light: np.ndarray, upright: np.ndarray, seed: int) -> Tensor:
    """Stripes of random phase, upright or flat, on a light or a dark ground."""
    rng, turn = np.random.default_rng(seed), np.arange(8) / 4 * 2 * np.pi
    waves = 35 * np.sin(turn + rng.uniform(0, 2 * np.pi, (len(light), 1)))
    pixels = np.where(upright[:, None, None] > 0, waves[:, None, :], waves[:, :, None]) + rng.normal(
        0, 5, (len(light), 8, 8)
    )
    return torch.from_numpy(
        np.clip(np.rint(np.where(light, 180, 75)[:, None, None] + pixels), 0, 255).astype(np.uint8)
    )[:, None]


def dataset(count: int, seed: int, missing: int = 0, bright: float = 0.5) -> ImageDataset:
    """`bright` of them light, half of them upright; of the first `missing` the ground is not known."""
    light, upright = (np.arange(count) % 10 < 10 * bright).astype(int), np.arange(count) // 10 % 2
    ground = [None if i < missing else int(value) for i, value in enumerate(light)]
    columns: dict[str, Any] = {
        "地": Column("class", ground, NAMES),
        "upright": Column("number", [float(value) for value in upright]),
        "phase": Column("number", [float(i) for i in range(count)]),
        "same": Column("class", [0] * count, ("一",)),
        "caption": Column("text", [("一句话",)] * count),
    }
    order = np.random.default_rng(seed).permutation(count)
    columns = {name: Column(c.kind, [c.values[i] for i in order], c.names) for name, c in columns.items()}
    return ImageDataset.from_arrays(painted(light, upright, seed)[torch.from_numpy(order)], columns=columns)


TRAIN, HELD_OUT = dataset(600, 0, missing=60), dataset(200, 1, missing=20)


@pytest.fixture(scope="module")
def judges() -> dict[str, Classifier]:
    return train_judges(TRAIN, HELD_OUT, steps=120)


def fares(judges: dict[str, Classifier], samples: Tensor, asked: Any) -> dict[str, dict[str, ClassRow]]:
    found = attributes(samples.split(64), len(samples), asked, TRAIN, HELD_OUT, range(600), judges)
    return {each.name: {row.name: row for row in each.rows} for each in found}


def test_attributes_are_classes_and_numbers_of_few_values() -> None:
    assert attribute_values(TRAIN) == {"地": (0, 1), "upright": (0.0, 1.0)}
    labelled = ImageDataset.from_arrays(torch.zeros(4, 8, 8, dtype=torch.uint8), [0, 1, 0, 1])
    assert attribute_values(labelled) == {}  # its label has a table of its own
    assert train_judges(labelled, labelled) == {}
    assert attributes([], 0, None, labelled, labelled, [0]) == ()


def test_values_that_are_missing_or_new_are_none_of_the_known() -> None:
    assert numbered([1.0, None, 2.5, 0.0], (0.0, 1.0)).tolist() == [1, -1, -1, 0]


def test_one_body_learns_every_column(judges: dict[str, Classifier]) -> None:
    assert list(judges) == ["地", "upright"]
    ground, upright = judges.values()
    assert ground.body is upright.body
    assert ground.name == upright.name
    assert (ground.class_names, upright.class_names) == (NAMES, ("0", "1"))
    assert min(ground.test_accuracy, upright.test_accuracy) > 0.97


def test_judges_are_the_same_every_time_and_touch_no_global_noise() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_judges(TRAIN, HELD_OUT, steps=3)["地"].name
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert train_judges(TRAIN, HELD_OUT, steps=3)["地"].name == first
    assert train_judges(TRAIN, HELD_OUT, steps=3, seed=1)["地"].name != first


def test_missing_values_teach_nothing_and_are_not_counted(judges: dict[str, Classifier]) -> None:
    """Held out are 200, 20 of them of unknown ground; and a column that nobody knows leaves the others as they are."""
    rows = fares(judges, HELD_OUT.batch(range(200)), None)
    assert [row.real_n for row in rows["地"].values()] == [90, 90]
    assert [row.real_n for row in rows["upright"].values()] == [100, 100]
    unknown = dataset(600, 0, missing=600)
    found = train_judges(unknown, unknown, steps=120)
    assert found["upright"].test_accuracy > 0.97
    assert found["地"].test_accuracy == 0.0


def test_a_fair_model_stands_beside_the_data(judges: dict[str, Classifier]) -> None:
    fresh = dataset(300, 2)
    rows = fares(judges, fresh.batch(range(300)), {name: fresh.values(name) for name in ("地", "upright")})
    for row in (row for table in rows.values() for row in table.values()):
        assert not row.behind
        assert not row.worse
        assert row.n == 150
        assert row.agreement is not None
        assert row.agreement[0] > 0.97
        assert row.precision is not None
        assert row.real_precision is not None
        assert row.precision[0] == pytest.approx(row.real_precision[0], abs=0.1)


def test_a_value_that_is_drawn_too_rarely_is_told(judges: dict[str, Classifier]) -> None:
    """Nine of ten light, where half of the data are; stripes are as they should be."""
    rows = fares(judges, dataset(300, 2, bright=0.9).batch(range(300)), None)
    dark, light = (rows["地"][name] for name in NAMES)
    assert dark.behind
    assert not light.behind
    assert dark.share == (pytest.approx(0.1, abs=0.02), interval(round(300 * dark.share[0]), 300))
    assert dark.real_share[0] == pytest.approx(0.5, abs=0.02)
    assert (dark.agreement, dark.n) == (None, round(300 * dark.share[0]))
    assert not any(row.behind for row in rows["upright"].values())


def test_a_value_that_is_not_drawn_as_asked_is_told(judges: dict[str, Classifier]) -> None:
    """Every third dark one comes light, and as many light ones dark, so that the shares say nothing."""
    light = np.arange(300) % 2
    drawn = light ^ (np.arange(300) % 6 < 2)
    asked = {"地": light.tolist()}
    rows = fares(judges, painted(drawn, np.arange(300) // 2 % 2, 2), asked)
    for row in rows["地"].values():
        assert row.agreement is not None
        assert row.agreement[0] == pytest.approx(2 / 3, abs=0.03)
        assert row.behind
        assert row.share[0] == pytest.approx(0.5, abs=0.03)
        assert row.precision is not None
        assert row.precision[0] < 0.7  # a light one looks like no dark one
        assert row.worse
    assert all(row.agreement is None for row in rows["upright"].values())  # nobody asked


def test_a_value_that_is_drawn_badly_is_told_of_the_right_one(judges: dict[str, Classifier]) -> None:
    light, rng = np.arange(300) % 2, np.random.default_rng(0)
    drawn = painted(light, np.arange(300) // 2 % 2, 2).double()
    noise = torch.from_numpy(rng.normal(0, 40, drawn.shape)) * torch.from_numpy(1 - light)[:, None, None, None]
    rows = fares(judges, (drawn + noise).round().clamp(0, 255).to(torch.uint8), {"地": light.tolist()})["地"]
    assert rows[DARK].worse
    assert not rows[LIGHT].worse
    assert rows[DARK].precision is not None
    assert rows[LIGHT].precision is not None
    assert rows[DARK].precision[0] < rows[LIGHT].precision[0] - 0.2


def test_what_is_asked_begins_again_at_its_end(judges: dict[str, Classifier]) -> None:
    light = np.arange(90) % 3 == 0
    rows = fares(judges, painted(light, np.zeros(90), 2), {"地": [1, 0, 0]})["地"]
    assert (rows[LIGHT].n, rows[DARK].n) == (30, 60)
    assert rows[LIGHT].agreement is not None
    assert rows[LIGHT].agreement[0] > 0.9


def test_the_table_of_classes_is_that_of_brute_force() -> None:
    """Features on a line. Class 0 is trained on at 0 … 24, class 1 at 100 … 109, too few to say how they look."""
    line = lambda *at: torch.tensor(at, dtype=torch.float64)[:, None]  # noqa: E731
    training = Seen(line(*range(25), *range(100, 110)), torch.zeros(35).long(), torch.tensor([0] * 25 + [1] * 10))
    held_out = Seen(line(3.5, 12.0, 60.0, 105.0, 106.0), torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1]))
    # The third neighbour of a point within is 2 away, that of an end 3: 26.9 is in the ball of 24, 27.1 in none.
    at, labels = line(26.9, 27.1, 101.0, 5.0, 104.0, 105.0, 7.0), torch.tensor([0, 0, 0, 1, 1, 1, 0])
    samples = Seen(at, labels, torch.tensor([0, 0, 0, 0, 1, 1, -1]))
    first, second = class_rows(("零", "一"), samples, held_out, training)
    assert (first.n, first.real_n, second.n, second.real_n) == (4, 3, 2, 2)
    assert first.share == (4 / 7, interval(4, 7))
    assert first.real_share == (2 / 5, interval(2, 5))
    assert first.agreement == (3 / 4, interval(3, 4))
    assert first.judge == (2 / 3, interval(2, 3))
    assert first.precision == (2 / 4, interval(2, 4))
    assert first.real_precision == (pytest.approx(2 / 3), pytest.approx(interval(2, 3)))
    assert (second.precision, second.real_precision) == (None, None)
    assert second.agreement == (1.0, interval(2, 2))
    nothing = class_rows(("零", "一"), Seen(at, labels, None), held_out, training)[0]
    assert (nothing.n, nothing.agreement) == (4, None)
    assert nothing.precision == (2 / 4, interval(2, 4))  # 26.9, 27.1, 101 and 7 look like it
    assert {"behind", "worse"} <= set(first.to_json())
