"""Class labels: by name or number, with a stored null that is a row like any other."""

from __future__ import annotations

import pytest
import torch

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.conditioning import ClassLabels

NAMES = ("chat", "猫", "kočka")


@pytest.fixture
def labels() -> ClassLabels:
    torch.manual_seed(0)
    return ClassLabels(NAMES, 4)


def test_names_and_numbers_are_the_same_label(labels: ClassLabels) -> None:
    by_name, by_number = labels.encode(["猫", "chat"]), labels.encode([1, 0])
    assert torch.equal(by_name.values["label"], by_number.values["label"])
    assert torch.equal(labels.embed(by_name, 2), labels.table.weight[[1, 0]])


def test_none_and_dropped_labels_are_the_null(labels: ClassLabels) -> None:
    null = labels.table.weight[3]
    cond = labels.encode(["kočka", None])
    assert cond.keep["label"].tolist() == [True, False]
    assert torch.equal(labels.embed(cond, 2), torch.stack([labels.table.weight[2], null]))
    assert torch.equal(labels.embed(cond.null(), 2), null.expand(2, -1))
    assert torch.equal(labels.embed(None, 2), null.expand(2, -1))
    assert torch.equal(labels.embed(cond.drop(torch.tensor([True, False])), 2), null.expand(2, -1))


def test_every_row_learns(labels: ClassLabels) -> None:
    labels.embed(labels.encode(["chat", "猫", "kočka", None]), 4).sum().backward()
    assert labels.table.weight.grad is not None
    assert (labels.table.weight.grad == 1).all()


def test_the_null_learns_without_any_condition(labels: ClassLabels) -> None:
    labels.embed(None, 5).sum().backward()
    assert labels.table.weight.grad is not None
    assert (labels.table.weight.grad[3] == 5).all()
    assert (labels.table.weight.grad[:3] == 0).all()


@pytest.mark.parametrize("label", ["hund", 3, -1, "0"])
def test_an_unknown_label_is_refused_with_those_known(labels: ClassLabels, label: str | int) -> None:
    with pytest.raises(ConfigError, match=r"this model knows chat, 猫, kočka"):
        labels.encode(["chat", label])


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_bad_names_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="different strings"):
        ClassLabels(names, 4)
