"""Captions: each read by itself, in training and sampling alike; the null is learned; word order is understood."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diff_diffusion.conditions.conditions import Conditions
from diff_diffusion.conditions.text import Text, describe_text, length_for
from diff_diffusion.conditions.tokenizer import END, PAD, BytePairs
from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.text_encoder import TextEncoder
from diff_diffusion.registry import build, describe

CAPTIONS = ["a red cat", "猫", "", "一只红色的猫 🐈", "cat red a"]
WIDTH, TOKEN_WIDTH, LENGTH = 6, 8, 32


def made(length: int = LENGTH, depth: int = 2) -> Text:
    """A text condition with every weight moved, so that nothing is zero or one any more."""
    torch.manual_seed(0)
    tokenizer = BytePairs(["e d", "Ġ r", "Ġr ed", "c a", "Ġ ca", "Ġca t", "ç ƌ", "çƌ «"])
    text = Text(tokenizer, TextEncoder(tokenizer.size, TOKEN_WIDTH, depth, 2, length), WIDTH)
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return text


@pytest.fixture
def text() -> Text:
    return made()


def kept(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def x(count: int) -> Tensor:
    return torch.zeros(count, 1, 4, 4)


def test_captions_are_encoded_as_numbers(text: Text) -> None:
    encoded = text.encode(["a red cat", "猫", "", None])
    assert encoded.shape == (4, LENGTH)
    assert encoded.dtype == torch.int64
    numbers = text.tokenizer.encode("a red cat")
    assert encoded[0].tolist() == [*numbers, END, *[PAD] * (LENGTH - len(numbers) - 1)]
    assert encoded[1].tolist()[:3] == [text.tokenizer.size - 1, END, PAD]
    assert encoded[2].tolist()[:2] == [END, PAD]


def test_a_sampler_reads_captions_once(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = text.once(text.encode(CAPTIONS))
    assert encoded.shape == (len(CAPTIONS), LENGTH, TOKEN_WIDTH + 1)
    assert encoded.is_floating_point()
    counts = [len(text.tokenizer.encode(caption)) + 1 for caption in CAPTIONS]
    assert encoded[..., -1].sum(dim=1).tolist() == counts

    def never(*_: Any) -> Tensor:
        raise AssertionError("read again")

    monkeypatch.setattr(text.encoder, "forward", never)
    for _ in range(3):
        text.embed(encoded, kept(len(CAPTIONS)), x(len(CAPTIONS)))


def test_both_ways_are_the_same(text: Text) -> None:
    keep = torch.tensor([True, True, True, True, False])
    trained = text.embed(text.encode(CAPTIONS), keep, x(5))
    sampled = text.embed(text.once(text.encode(CAPTIONS)), keep, x(5))
    assert torch.equal(trained.mask, sampled.mask)
    assert torch.equal(trained.tokens, sampled.tokens)
    assert torch.equal(trained.vector, sampled.vector)


def test_the_vector_is_a_linear_map_of_the_mean_token(text: Text) -> None:
    embedded = text.embed(text.encode(CAPTIONS), kept(5), x(5))
    for row, mask, vector in zip(embedded.tokens, embedded.mask, embedded.vector, strict=True):
        assert torch.allclose(vector, text.pool(row[mask].mean(dim=0)), atol=1e-6)
        assert (row[~mask] == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_caption_does_not_depend_on_its_batch_or_on_padding(training: bool) -> None:
    """Alone, among others, and with three times the padding."""
    short, long = made().train(training), made(96).train(training)
    together = short.embed(short.encode(CAPTIONS), kept(5), x(5))
    for i, caption in enumerate(CAPTIONS):
        alone = short.embed(short.encode([caption]), kept(1), x(1))
        assert torch.allclose(alone.tokens[0], together.tokens[i], atol=1e-5)
        assert torch.allclose(alone.vector[0], together.vector[i], atol=1e-5)
        padded = long.embed(long.encode([caption]), kept(1), x(1))
        assert padded.tokens.shape == (1, 96, TOKEN_WIDTH)
        assert torch.allclose(padded.tokens[0, :LENGTH], together.tokens[i], atol=1e-5)
        assert torch.allclose(padded.vector[0], together.vector[i], atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_null_is_one_learned_token_and_one_learned_vector(text: Text, training: bool) -> None:
    text.train(training)
    first = torch.zeros(LENGTH, TOKEN_WIDTH)
    first[0] = text.null_token
    for encoded, keep in [
        (text.encode(["a red cat", "猫"]), torch.tensor([True, False])),
        (text.encode(["a red cat", None]), torch.tensor([True, False])),
    ]:
        embedded = text.embed(encoded, keep, x(2))
        assert torch.equal(embedded.tokens[1], first)
        assert embedded.mask[1].tolist() == [True] + [False] * (LENGTH - 1)
        assert torch.equal(embedded.vector[1], text.null)
        assert embedded.mask[0].sum() > 1
    nothing = text.embed(None, torch.zeros(3, dtype=torch.bool), x(3))
    assert nothing.mask.all()
    assert torch.equal(nothing.tokens, text.null_token.expand(3, 1, -1))
    assert torch.equal(nothing.vector, text.null.expand(3, -1))


def test_the_empty_caption_is_not_the_null(text: Text) -> None:
    embedded = text.embed(text.encode([""]), kept(1), x(1))
    null = text.embed(None, ~kept(1), x(1))
    assert embedded.mask.sum() == 1
    assert (embedded.tokens[:, 0] - null.tokens[:, 0]).abs().max() > 0.1
    assert (embedded.vector - null.vector).abs().max() > 0.1


def test_every_weight_learns_and_nothing_is_not_a_number(text: Text) -> None:
    keep = torch.tensor([True, True, False, False])
    embedded = text.embed(text.encode(["a red cat", "", "猫", None]), keep, x(4))
    (embedded.vector.square().sum() + embedded.tokens.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in text.parameters())
    still = [name for name, p in text.named_parameters() if not bool((p.grad != 0).any())]
    assert not still
    assert all(torch.isfinite(p.grad).all() for p in text.parameters())
    rows = text.encoder.table.weight.grad.abs().sum(dim=1) != 0
    assert set(rows.nonzero().flatten().tolist()) == {END, *text.tokenizer.encode("a red cat")}


def test_the_null_learns_without_any_caption(text: Text) -> None:
    embedded = text.embed(None, ~kept(2), x(2))
    (embedded.vector.sum() + embedded.tokens.sum()).backward()
    assert (text.null.grad == 2).all()
    assert (text.null_token.grad == 2).all()


def test_what_is_too_long_is_cut_and_said_once(text: Text) -> None:
    caption = "猫" * 40  # 40 tokens and the end
    with pytest.warns(UserWarning, match=r"reads 32 tokens of a text: the last 9 of the 41 of '猫猫") as told:
        encoded = text.encode(["猫", caption])
    assert len(told) == 1
    assert encoded[1].tolist() == [text.tokenizer.size - 1] * 31 + [END]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.encode([caption])
        made().encode(["猫" * 31])


def test_half_precision_reads_too(text: Text) -> None:
    double = copy.deepcopy(text).double()
    single, exact = (t.embed(t.once(t.encode(CAPTIONS)), kept(5), x(5)) for t in (text, double))
    assert exact.tokens.dtype == exact.vector.dtype == torch.float64
    assert torch.allclose(single.tokens.double(), exact.tokens, atol=1e-4)
    half = text.to(torch.bfloat16)
    embedded = half.embed(half.encode(CAPTIONS), kept(5), x(5))
    assert embedded.vector.dtype == torch.bfloat16
    assert torch.isfinite(embedded.vector).all()


@pytest.mark.parametrize(("value", "seen"), [(7, "a string, not 7"), ("\ud800", "surrogate"), (["a"], "not")])
def test_what_is_no_text_is_refused_by_name(text: Text, value: Any, seen: str) -> None:
    with pytest.raises(ConfigError, match=rf"描述: .*{seen}"):
        Conditions({"描述": text}).encode({"描述": ["ok", value]})


def test_one_caption_is_for_all_samples(text: Text) -> None:
    conditions = Conditions({"caption": text})
    cond = conditions.encode(conditions.named("一只猫", 3))
    assert (cond.values["caption"] == cond.values["caption"][0]).all()
    mixed = conditions.encode(conditions.named(["猫", None, ""], 3))
    assert mixed.keep["caption"].tolist() == [True, False, True]
    embedded = conditions.embed(mixed, x(3))
    assert torch.equal(embedded.vector[1], text.null)
    assert embedded.mask[:, 0].all()


def test_a_description_is_the_condition(text: Text) -> None:
    again = build(describe(text))
    again.load_state_dict(text.state_dict())
    assert describe(again) == describe(text)
    assert torch.equal(again.once(again.encode(CAPTIONS)), text.once(text.encode(CAPTIONS)))


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="a vocabulary of 300 and the tokenizer one of 258"):
        Text(BytePairs([]), TextEncoder(300, 8, 1, 1, 8), 4)


@pytest.mark.parametrize(("sizes", "seen"), [
    ({"vocab": 1}, "vocab must be from 2"), ({"width": 0}, "width must be"), ({"depth": 10**6}, "depth must be"),
    ({"heads": 3}, "a multiple of 2 × heads = 6, not 8"), ({"length": 0}, "length must be"),
])  # fmt: skip
def test_bad_sizes_of_an_encoder_are_refused(sizes: dict[str, int], seen: str) -> None:
    with pytest.raises(ConfigError, match=seen):
        TextEncoder(**({"vocab": 300, "width": 8, "depth": 1, "heads": 2, "length": 8} | sizes))


def test_an_encoder_sees_how_far_tokens_are_apart_and_not_where_they_are() -> None:
    """The same tokens two places later, behind what nobody attends to, mean the same; in another order, they do not."""
    encoder = made().encoder
    ids = torch.tensor([[5, 6, 7, 0, 0], [0, 0, 5, 6, 7], [7, 6, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    here, later, turned = encoder(ids, mask)
    assert torch.allclose(here[:3], later[2:], atol=1e-5)
    assert (here[[2, 1, 0]] - turned[:3]).abs().max() > 0.01


def test_it_learns_which_of_two_is_on_which() -> None:
    """Sentences of the same words in two orders, English and Chinese: bags of words cannot tell them apart."""
    pairs = ["a cat on a dog", "a dog on a cat", "猫在狗上", "狗在猫上"]
    torch.manual_seed(0)
    text = build(describe_text(pairs, 16))
    encoder = TextEncoder(text.tokenizer.size, 32, 2, 2, 24)
    text, head = Text(text.tokenizer, encoder, 16), nn.Linear(16, 2)
    wanted = torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.Adam([*text.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(text.embed(text.encode(pairs), kept(4), x(4)).vector), wanted)
        loss.backward()
        optimizer.step()
    text.eval()
    told = head(text.embed(text.encode(pairs), kept(4), x(4)).vector).softmax(dim=1)
    assert (told[torch.arange(4), wanted] > 0.9).all()


# ---- described for data --------------------------------------------------------------------------------------------


def test_a_description_suits_the_captions() -> None:
    captions: list[str | None] = [
        f"{colour}{thing} 的 {number} cats" for colour in "红蓝绿" for thing in "猫狗鱼" for number in range(30)
    ]
    described = describe_text([*captions, None], 48)
    text = build(described)
    assert isinstance(text, Text)
    assert describe(text) == described
    assert (text.width, text.token_width, text.encoder.depth) == (48, 128, 2)
    longest = max(len(text.tokenizer.encode(str(caption))) + 1 for caption in captions)
    assert text.length % 8 == 0
    assert text.length - 8 < longest <= text.length
    assert len(text.tokenizer.encode("红猫")) == 2
    assert describe_text([None, *reversed(captions), *captions], 48) == described


def test_more_captions_have_a_larger_encoder() -> None:
    described = describe_text((f"{i} 只 cats" for i in range(4000)), 48)
    assert (described["encoder"]["width"], described["encoder"]["depth"]) == (192, 3)
    assert described["encoder"]["vocab"] <= 4096


@pytest.mark.parametrize(("counts", "length"), [
    ([1], 8), ([8], 8), ([9], 16), ([5] * 999 + [200], 8), ([5] * 998 + [200] * 2, 200), ([10_000], 256),
])  # fmt: skip
def test_a_length_holds_999_of_1000(counts: list[int], length: int) -> None:
    assert length_for(counts) == length


@pytest.mark.parametrize("captions", [[], [None, None]])
def test_no_captions_are_refused(captions: list[None]) -> None:
    with pytest.raises(ConfigError, match="no sample has a caption"):
        describe_text(captions, 8)
