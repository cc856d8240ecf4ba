"""Conditions: one way to say "unconditional", and a batch of them cuts and joins like tensors."""

from __future__ import annotations

import torch

from diff_diffusion.cond import Cond

LABEL, TEXT = torch.tensor([4, 5, 6]), torch.arange(6.0).reshape(3, 2)


def test_a_name_left_out_of_keep_is_kept_by_all() -> None:
    cond = Cond({"label": LABEL, "text": TEXT}, {"text": torch.tensor([True, False, True])})
    assert cond.keep["label"].tolist() == [True, True, True]
    assert cond.keep["text"].tolist() == [True, False, True]


def test_drop_drops_every_condition_and_never_brings_one_back() -> None:
    cond = Cond({"label": LABEL, "text": TEXT}, {"text": torch.tensor([True, False, True])})
    dropped = cond.drop(torch.tensor([True, False, False]))
    assert dropped.keep["label"].tolist() == [False, True, True]
    assert dropped.keep["text"].tolist() == [False, False, True]
    assert cond.keep["label"].all()


def test_null_keeps_nothing_and_still_says_what_it_was_asked() -> None:
    null = Cond({"label": LABEL}).null()
    assert not null.keep["label"].any()
    assert torch.equal(null.values["label"], LABEL)
    assert bool(null)


def test_slices_and_cat_invert_each_other() -> None:
    cond = Cond({"label": LABEL, "text": TEXT}, {"label": torch.tensor([True, False, True])})
    joined = cond[:1].cat(cond[1:])
    for name in ("label", "text"):
        assert torch.equal(joined.values[name], cond.values[name])
        assert torch.equal(joined.keep[name], cond.keep[name])


def test_an_empty_condition_is_false() -> None:
    assert not Cond()
    assert Cond({"label": LABEL})


def test_to_moves_values_and_masks() -> None:
    moved = Cond({"label": LABEL}).to("meta")
    assert moved.values["label"].device.type == moved.keep["label"].device.type == "meta"
