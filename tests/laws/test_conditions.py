"""Laws of conditions: one null, no sample sees another, all of it learns, two values are two, stored it is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from law_examples import descriptions
from torch import Tensor
from torch.nn import functional

from diff_diffusion.cond import Embedded
from diff_diffusion.conditions.condition import Condition
from diff_diffusion.conditions.conditions import Conditions
from diff_diffusion.registry import build, describe, names

X = torch.zeros(4, 1, 4, 5)
LENGTH = 16
FROZEN = "frozen_text"  # it needs a folder with an encoder: tests/conditions/test_frozen_text.py makes one
# Two values of each kind, for the descriptions in `EXAMPLES`. A new kind fails here until it has a row.
VALUES: dict[str, Any] = {
    "class": lambda part: ("chat", "猫"),
    "image": lambda part: (torch.zeros(part.shape), torch.full(part.shape, 255.0)),
    "number": lambda part: (-1.0, 2.25),
    "text": lambda part: ("a cat", "一只猫"),
    "vector": lambda part: ([0.5, -1.0, 3.0], [1.5, 0.0, 2.0]),
}
DESCRIBED = [d for d in descriptions("condition") if d["type"] != f"condition/{FROZEN}"]


def test_every_kind_is_here() -> None:
    assert sorted([*VALUES, FROZEN]) == names("condition")


@pytest.fixture(params=DESCRIBED, ids=lambda d: f"{str(d['type'])[10:]}-{DESCRIBED.index(d)}")
def condition(request: pytest.FixtureRequest) -> tuple[Conditions, Any, Any]:
    """Every registered kind, with no weight at zero, and two values of it."""
    torch.manual_seed(0)
    part = build(request.param)
    assert isinstance(part, Condition)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return Conditions({"c": part}).eval(), *VALUES[str(request.param["type"])[10:]](part)


def tensors(embedded: Embedded) -> list[Tensor]:
    """All that a network reads; tokens where there are any, with as many behind the mask in every batch."""
    found = [embedded.vector, embedded.planes]
    if embedded.tokens is not None:
        assert embedded.mask is not None
        longer = LENGTH - embedded.mask.shape[1]
        tokens = embedded.tokens * embedded.mask[..., None]
        found += [functional.pad(tokens, (0, 0, 0, longer)), functional.pad(embedded.mask.float(), (0, longer))]
    return [tensor for tensor in found if tensor is not None]


def read(conditions: Conditions, values: list[Any]) -> list[Tensor]:
    cond = conditions.encode(conditions.named({"c": values}, len(values)))
    return tensors(conditions.embed(cond, X[: len(values)]))


def test_no_sample_sees_another(condition: tuple[Conditions, Any, Any]) -> None:
    conditions, one, other = condition
    together = read(conditions, [one, None, other, one])
    for i, value in enumerate([one, None, other, one]):
        for whole, alone in zip(together, read(conditions, [value]), strict=True):
            assert torch.allclose(whole[i : i + 1], alone, atol=1e-6)


def test_two_values_and_none_are_three_things(condition: tuple[Conditions, Any, Any]) -> None:
    conditions, one, other = condition
    rows = [torch.cat([part.flatten(1) for part in read(conditions, [value])], 1) for value in (one, other, None)]
    for i, row in enumerate(rows):
        assert not any(torch.allclose(row, later, atol=1e-3) for later in rows[i + 1 :])


def test_dropped_missing_and_never_asked_are_one(condition: tuple[Conditions, Any, Any]) -> None:
    conditions, one, other = condition
    nothing = tensors(conditions.embed(None, X))
    cond = conditions.encode(conditions.named({"c": [one, other, None, one]}, 4))
    some = torch.tensor([True, True, False, True])
    for dropped in (cond.null(), cond.drop(some), cond.drop(some, "c")):
        for found, null in zip(tensors(conditions.embed(dropped, X)), nothing, strict=True):
            assert torch.allclose(found, null, atol=1e-6)


def test_all_of_it_learns_in_training(condition: tuple[Conditions, Any, Any]) -> None:
    conditions, one, other = condition
    conditions.train()
    if not list(conditions.parameters()):
        return  # an image has nothing to learn
    for values in ([one, other, one, None], [None] * 4):
        found = tensors(conditions.embed(conditions.encode(conditions.named({"c": values}, 4)), X))
        torch.stack([(part * torch.randn_like(part)).sum() for part in found]).sum().backward()
    for name, parameter in conditions.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_widths_are_as_declared(condition: tuple[Conditions, Any, Any]) -> None:
    conditions, one, other = condition
    embedded = conditions.embed(conditions.encode(conditions.named({"c": [one, other]}, 2)), X[:2])
    widths = [conditions.width, conditions.token_width, conditions.planes]
    for width, tensor, axis in zip(widths, (embedded.vector, embedded.tokens, embedded.planes), (1, 2, 1), strict=True):
        assert (tensor is None) if width == 0 else (tensor is not None and tensor.shape[axis] == width)


def test_done_once_or_at_each_step_it_is_read_the_same(condition: tuple[Conditions, Any, Any]) -> None:
    conditions, one, other = condition
    cond = conditions.encode(conditions.named({"c": [one, None, other]}, 3))
    again = conditions.train().encode(conditions.named({"c": [one, None, other]}, 3))
    assert torch.equal(cond.values["c"], again.values["c"])  # whatever the mode
    conditions.eval()
    each, once = (tensors(conditions.embed(c, X[:3])) for c in (cond, conditions.once(cond)))
    for a, b in zip(each, once, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_it_is_the_same_when_stored(condition: tuple[Conditions, Any, Any]) -> None:
    conditions, one, other = condition
    again = build(describe(conditions)).eval()
    again.load_state_dict(conditions.state_dict())
    for a, b in zip(read(conditions, [one, None, other]), read(again, [one, None, other]), strict=True):
        assert torch.equal(a, b)
