"""Conditions: names and numbers, nulls that are learned, several at once; said in many ways, refused in clear ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diff_diffusion.cond import Cond, Embedded
from diff_diffusion.conditions.condition import Condition
from diff_diffusion.conditions.conditions import Conditions
from diff_diffusion.conditions.images import ImageBeside
from diff_diffusion.conditions.labels import ClassLabel
from diff_diffusion.conditions.numbers import Number, Vector
from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise

NAMES = ("chat", "猫", "kočka")
X = torch.zeros(4, 1, 6, 5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def embedded(part: Condition, values: list[Any], x: Tensor = X) -> Embedded:
    keep = torch.tensor([value is not None for value in values])
    return part.embed(part.encode(values), keep, x[: len(values)])


def vector(part: Condition, values: list[Any]) -> Tensor:
    found = embedded(part, values).vector
    assert found is not None
    return found


# ---- each kind -------------------------------------------------------------------------------------------------------


def test_a_class_by_name_and_by_number_is_one_row_of_the_table() -> None:
    label = ClassLabel(NAMES, 4)
    assert torch.equal(vector(label, ["猫", "chat"]), label.table.weight[[1, 0]])
    assert torch.equal(vector(label, [1, np.int64(0)]), label.table.weight[[1, 0]])
    assert torch.equal(vector(label, ["kočka", None]), label.table.weight[[2, 3]])


@pytest.mark.parametrize("label", ["hund", 3, -1, "0", 0.9, 1.0, True, b"chat"])
def test_an_unknown_class_is_refused_with_those_known(label: Any) -> None:
    with pytest.raises(ConfigError, match="this model knows chat, 猫, kočka"):
        ClassLabel(NAMES, 4).encode(["chat", label])


def test_a_name_is_the_same_however_its_marks_are_typed() -> None:
    label = ClassLabel(("cafe\u0301", "thé"), 4)
    assert label.encode(["caf\u00e9", "the\u0301"]).tolist() == [0, 1]


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_bad_class_names_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="different strings"):
        ClassLabel(names, 4)


def test_a_number_depends_on_its_place_in_the_range_alone() -> None:
    here, there = Number(-1.0, 3.0, 6), Number(0.0, 100.0, 6)
    there.load_state_dict(here.state_dict())
    assert torch.allclose(vector(here, [0.0, 3.0]), vector(there, [25.0, 100.0]), atol=1e-5)
    assert not torch.allclose(vector(here, [0.0]), vector(here, [0.1]))


def test_numbers_near_each_other_and_the_two_ends_of_a_range_are_told_apart() -> None:
    """The lowest frequency is half a turn over the range, so that its ends are opposite and not the same."""
    waves: list[Tensor] = []
    number = Number(0.0, 1.0, 4)
    number.mlp.register_forward_pre_hook(lambda _, args: waves.append(args[0]))
    vector(number, [0.0, 1.0, 0.01])
    first = waves[0]
    assert first[0, 0] == 1.0
    assert math.isclose(first[1, 0], -1.0, abs_tol=1e-5)
    assert (first[0] - first[2]).norm() > 0.5


@pytest.mark.parametrize(
    ("value", "said"), [(4.0, "outside of what.*-1 to 3"), (math.nan, "outside"), ("x", "not a number")]
)
def test_a_number_that_was_not_trained_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Number(-1.0, 3.0, 6).encode([0.0, value])


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_a_range_must_be_one(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="finite and not empty"):
        Number(low, high, 4)


def test_a_vector_is_seen_in_standard_units() -> None:
    seen: list[Tensor] = []
    one = Vector([1.0, -2.0], [0.5, 4.0], 3)
    one.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    vector(one, [[1.5, 2.0], (0.0, -2.0), None])
    assert seen[0].tolist() == [[1.0, 1.0], [-2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("value", [[1.0], [1.0, 2.0, 3.0], [1.0, math.nan], 1.0])
def test_a_vector_of_another_length_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="this vector has 2 finite numbers"):
        Vector([1.0, -2.0], [0.5, 4.0], 3).encode([value])


@pytest.mark.parametrize(("mean", "std"), [([], []), ([0.0], [1.0, 1.0]), ([0.0], [0.0]), ([math.nan], [1.0])])
def test_a_vector_without_units_is_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ConfigError, match="vector"):
        Vector(mean, std, 3)


def test_an_image_is_its_planes_and_one_that_says_it_is_there() -> None:
    beside = ImageBeside((2, 6, 5))
    image = torch.arange(60, dtype=torch.uint8).view(2, 6, 5) * 4
    planes = embedded(beside, [image, None]).planes
    assert planes is not None
    assert planes.shape == (2, 3, 6, 5)
    assert torch.allclose(planes[0, :2], image / 127.5 - 1.0)
    assert (planes[0, 2] == 1).all()
    assert (planes[1] == 0).all()


def test_noise_on_an_image_has_its_variance_and_is_told() -> None:
    """√(1 - s²) image + s ε in training; as it was given when asked."""
    conditions = Conditions({"low": ImageBeside((1, 64, 64), noise=0.5)})
    image, x = torch.full((1, 64, 64), 255.0), torch.zeros(2, 1, 64, 64)
    clean = conditions.encode({"low": [image, image]})
    planes = conditions.embed(conditions.noised(clean, Noise([3, 4])), x).planes
    assert planes is not None
    level = planes[:, 2]
    assert (level == level[:, :1, :1]).all()
    s = level[:, 0, 0]
    assert s[0] != s[1]
    assert ((s >= 0) & (s <= 0.5)).all()
    # 4,096 numbers: five standard errors of a mean and of a standard deviation.
    assert ((planes[:, 0].mean((1, 2)) - (1 - s.square()).sqrt()).abs() < 5 * s / 64).all()
    assert ((planes[:, 0].std((1, 2)) / s - 1).abs() < 5 / 90).all()
    # A sample's noise is its own, whatever the batch.
    alone = conditions.noised(conditions.encode({"low": [image]}), Noise([4])).values["low"]
    assert torch.equal(alone, conditions.noised(clean, Noise([3, 4])).values["low"][1:])
    both = Conditions({"low": ImageBeside((1, 64, 64), noise=0.5), "map": ImageBeside((1, 64, 64), noise=0.5)})
    two = both.noised(both.encode({"low": [image], "map": [image]}), Noise([4]))
    assert not torch.equal(two.values["low"], two.values["map"])
    asked = conditions.embed(conditions.encode({"low": [image, (image, 0.25)]}), x).planes
    assert asked is not None
    assert (asked[:, 0] == 1).all()
    assert asked[:, 2, 0, 0].tolist() == [0.0, 0.25]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(3, 6, 5), r"is \[1, 6, 5\], and \[3, 6, 5\] was given"),
        (torch.zeros(6, 5), r"\[6, 5\] was given"),
        ((torch.zeros(1, 6, 5), 0.6), "from 0 to 0.5, not 0.6"),
        (torch.full((1, 6, 5), math.nan), "not finite"),
    ],
    ids=["channels", "flat", "noise", "nan"],
)
def test_another_image_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ImageBeside((1, 6, 5), noise=0.5).encode([value])


def test_a_missing_image_is_as_large_as_those_beside_it() -> None:
    beside = ImageBeside((1, 6, 5))
    planes = embedded(beside, [None, torch.full((1, 8, 9), 255.0)], torch.zeros(2, 1, 8, 9)).planes
    assert planes is not None
    assert (planes[0] == 0).all()
    assert (planes[1] == 1).all()


@pytest.mark.parametrize("shape", [(1, 4), (0, 4, 4), (4096, 65536, 65536)])
def test_a_shape_that_is_no_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="an image condition has a shape"):
        ImageBeside(shape)


def test_an_image_of_another_size_than_x_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is \[6, 5\] where x is \[8, 8\]"):
        embedded(ImageBeside((1, 6, 5)), [torch.zeros(1, 6, 5)], torch.zeros(1, 1, 8, 8))


# ---- nulls -----------------------------------------------------------------------------------------------------------

PARTS = [ClassLabel(NAMES, 4), Number(0.0, 9.0, 4), Vector([0.0, 1.0], [1.0, 2.0], 4)]
VALUES: list[Any] = ["猫", 3.5, [0.5, 0.5]]


@pytest.mark.parametrize(("part", "value"), list(zip(PARTS, VALUES, strict=True)), ids=lambda x: type(x).__name__)
def test_missing_dropped_and_never_said_are_one_null_that_learns(part: Condition, value: Any) -> None:
    conditions = Conditions({"c": part})
    null = conditions.embed(None, X[:1]).vector
    assert null is not None
    cond = conditions.encode({"c": [value, None]})
    both = conditions.embed(cond, X[:2]).vector
    assert both is not None
    assert torch.equal(both[1:], null)
    assert not torch.equal(both[:1], null)
    for dropped in (cond.null(), cond.drop(torch.tensor([True, False])), cond.drop(torch.tensor([True, False]), "c")):
        found = conditions.embed(dropped, X[:2]).vector
        assert found is not None
        assert torch.equal(found, null.expand(2, -1))
    conditions.zero_grad()
    null.sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in conditions.parameters() if p.grad is not None) > 0


# ---- several together ------------------------------------------------------------------------------------------------


def several() -> Conditions:
    label, number = ClassLabel(NAMES, 4), Number(0.0, 9.0, 4)
    return Conditions({"label": label, "äge.": number, "low": ImageBeside((1, 6, 5))})


def test_vectors_are_added_and_planes_joined_in_the_order_of_names() -> None:
    conditions = several()
    both = Conditions({**conditions.parts, "mask": ImageBeside((2, 6, 5))})
    image = torch.full((2, 6, 5), 255.0)
    cond = both.encode({"äge.": [4.0], "label": ["猫"], "mask": [image]})
    found = both.embed(cond, X[:1])
    assert found.vector is not None
    assert found.planes is not None
    alone = vector(both.parts["label"], ["猫"]) + vector(both.parts["äge."], [4.0])
    assert torch.allclose(found.vector, alone)
    assert found.planes[0, :, 0, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert (both.width, both.token_width, both.planes) == (4, 0, 5)


def test_dropping_one_leaves_the_others() -> None:
    conditions = several()
    cond = conditions.encode({"label": ["猫", "猫"], "äge.": [4.0, 4.0]}).drop(torch.tensor([True, False]), "äge.")
    found = conditions.embed(cond, X[:2]).vector
    only = conditions.embed(conditions.encode({"label": ["猫"]}), X[:1]).vector
    assert found is not None
    assert only is not None
    assert torch.allclose(found[:1], only)
    assert not torch.allclose(found[1:], only)


@pytest.mark.parametrize(
    "asked", ["猫", 1, ["猫"] * 3, np.ones(3, int), torch.ones(3).long(), torch.tensor(1), {"label": "猫"}], ids=repr
)
def test_one_condition_is_asked_in_many_ways(asked: Any) -> None:
    conditions = Conditions({"label": ClassLabel(NAMES, 4)})
    named = conditions.named(asked, 3)
    assert conditions.encode(named).values["label"].tolist() == [1, 1, 1]


def test_a_vector_and_an_image_are_one_value_or_a_row_each() -> None:
    conditions = Conditions({"v": Vector([0.0, 1.0], [1.0, 1.0], 4), "low": ImageBeside((1, 6, 5))})
    one = conditions.named({"v": [0.5, 0.5], "low": torch.zeros(1, 6, 5)}, 2)
    assert one["v"] == [[0.5, 0.5]] * 2
    assert len(one["low"]) == 2
    each = conditions.named({"v": torch.tensor([[0.5, 0.5], [1.0, 2.0]]), "low": torch.zeros(2, 1, 6, 5)}, 2)
    cond = conditions.encode(each)
    assert cond.values["v"].tolist() == [[0.5, -0.5], [1.0, 1.0]]
    assert cond.values["low"].shape == (2, 2, 6, 5)
    assert conditions.named({"v": [[0.5, 0.5], None]}, 2)["v"] == [[0.5, 0.5], None]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("猫", "several conditions, label, low, äge.: say which"),
        ({"Label": "猫"}, "knows the conditions label, low, äge., not Label"),
        ({"label": ["猫"]}, "2 samples need one label or 2 of them, not 1"),
    ],
    ids=["which", "unknown", "count"],
)
def test_what_is_asked_wrongly_is_said(asked: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        several().named(asked, 2)


def test_a_bad_value_is_told_with_its_condition() -> None:
    with pytest.raises(ConfigError, match=r"äge\.: 40 is outside"):
        several().encode({"äge.": [40.0]})
    with pytest.raises(ConfigError, match=r"knows the conditions label, low, äge\., not other"):
        several().embed(Cond({"other": torch.zeros(1)}), X[:1])


def test_conditions_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one condition"):
        Conditions({})
    with pytest.raises(ConfigError, match="must have one width"):
        Conditions({"a": ClassLabel(NAMES, 4), "b": Number(0.0, 1.0, 6)})
