"""What is said on a command line becomes what a model is asked for, in the kind of each condition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from diff_diffusion import DiffusionModel
from diff_diffusion.cli.asked import asked
from diff_diffusion.data import Column, ImageDataset
from diff_diffusion.errors import ConfigError, DataError

PIXELS = torch.randint(0, 256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def known(**columns: Column) -> DiffusionModel:
    return DiffusionModel.for_data(ImageDataset.from_arrays(PIXELS, columns=columns))


CLASSES = Column("class", [i % 2 for i in range(12)], ("dog", "猫"))


@pytest.fixture(scope="module")
def many() -> DiffusionModel:
    return known(
        label=CLASSES,
        material=Column("class", [i % 2 for i in range(12)], ("木", "石")),
        age=Column("number", [float(i) for i in range(12)]),
        place=Column("vector", [(float(i), -float(i)) for i in range(12)]),
        caption=Column("text", [("a cat = 一只猫",)] * 12),
        low=Column("shrunk", factor=2),
    )


def test_each_is_read_in_its_kind(many: DiffusionModel, tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0, 0].numpy()).save(tmp_path / "图=1.png")
    said = ["age=3.5", "place=1,-2.5", f"low={tmp_path / '图=1.png'}", "material=石"]
    found = asked(many, "猫", "a cat = 一只猫", said)
    assert found is not None
    assert torch.equal(found.pop("low"), PIXELS[0])
    assert found == {"label": "猫", "caption": "a cat = 一只猫", "age": 3.5, "place": [1.0, -2.5], "material": "石"}
    assert many.encode({**found, "low": [PIXELS[0]]}, 1) is not None
    larger = asked(many, None, None, [said[2]], (16, 24))
    assert larger is not None
    assert larger["low"].shape == (1, 16, 24)


def test_nothing_said_is_nothing_asked(many: DiffusionModel) -> None:
    assert asked(many, None, None, []) is None
    assert asked(many, "none", None, []) == {"label": None}
    plain = DiffusionModel.for_data(ImageDataset.from_arrays(PIXELS))
    assert asked(plain, None, None, []) is None
    assert asked(plain, "none", None, []) is None
    called = known(label=Column("class", [i % 2 for i in range(12)], ("none", "some")))
    assert asked(called, "none", None, []) == {"label": "none"}


def test_a_label_is_the_only_class_whatever_its_name() -> None:
    model = known(材料=Column("class", [i % 2 for i in range(12)], ("木", "石")))
    assert asked(model, "木", None, []) == {"材料": "木"}
    two = known(a=CLASSES, b=CLASSES)
    with pytest.raises(ConfigError, match="several such conditions, a, b"):
        asked(two, "猫", None, [])
    assert asked(two, None, None, ["b=猫"]) == {"b": "猫"}


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ((None, None, ["wings=2"]), "this model knows age, caption, label, low, material, place"),
        ((None, None, ["age"]), "NAME=VALUE"),
        ((None, None, ["age=old"]), "age is a number, and 'old' is not"),
        ((None, None, ["place=1;2"]), "numbers with commas between"),
        ((None, None, ["age=1", "age=2"]), "age is said twice"),
        (("猫", None, ["label=dog"]), "label is said twice"),
        ((None, "a cat", ["caption=a dog"]), "caption is said twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    many: DiffusionModel, said: tuple[str | None, str | None, list[str]], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        asked(many, *said)


def test_what_a_model_does_not_take_is_told_with_what_it_takes(tmp_path: Path, many: DiffusionModel) -> None:
    aged = known(age=Column("number", [float(i) for i in range(12)]))
    for label, prompt in (("猫", None), (None, "a cat")):
        with pytest.raises(ConfigError, match="asked for age: a number from 0 to 11"):
            asked(aged, label, prompt, [])
    with pytest.raises(ConfigError, match="asked for nothing"):
        asked(DiffusionModel.for_data(ImageDataset.from_arrays(PIXELS)), "猫", None, [])
    with pytest.raises((ConfigError, DataError), match="missing"):
        asked(many, None, None, [f"low={tmp_path / '没有.png'}"])
