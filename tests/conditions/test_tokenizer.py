"""Byte pairs: every text comes back, merges are those of the library that finds them, and a stored list cannot hurt."""

from __future__ import annotations

import random
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_diffusion.conditions import tokenizer
from diff_diffusion.conditions.tokenizer import BASE, BytePairs
from diff_diffusion.errors import ConfigError, MissingPackageError
from diff_diffusion.registry import build, describe

ENGLISH = [
    f"{colour} {animal} {place}"
    for colour in ("a red", "a blue", "the green")
    for animal in ("cat", "dog", "whale")
    for place in ("on a mat", "under the sea", "")
]
CHINESE = [f"{c}的{animal}，在{p}" for c in ("红色", "蓝色") for animal in "猫狗" for p in ("海里", "山上")]
CAPTIONS = ENGLISH + CHINESE
FITTED = BytePairs.fit(CAPTIONS, 400)

ODD = [
    "",
    " ",
    "  two  spaces ",
    "\n\t\0\x1b",
    "猫 and 狗",
    "👩‍👩‍👧 1️⃣ 🇨🇳 👍🏽",
    "नमस्ते สวัสดี مرحبا 안녕",
    "e\u0301 is é",
    "\u0301",
    "x" * 1000,
    "的" * 1000,
    "�",
    "\U0010ffff",
    "①½Ⅷ 3.14",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from([*"aé猫🐱 ,1\n\u0301\u200d", "the", "cat", "红色"]), max_size=30
).map("".join)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back(text: str) -> None:
    numbers = FITTED.encode(text)
    assert FITTED.decode(numbers) == unicodedata.normalize("NFC", text)
    assert all(2 <= number < FITTED.size for number in numbers)


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_come_back(text: str) -> None:
    for one in (FITTED, BytePairs([])):
        assert one.decode([0, *one.encode(text), 1, 0]) == unicodedata.normalize("NFC", text)


def test_a_text_has_one_encoding_however_it_is_typed() -> None:
    assert FITTED.encode("caf\u00e9") == FITTED.encode("cafe\u0301")


def test_without_merges_numbers_are_bytes() -> None:
    assert BytePairs([]).encode("猫") == [2 + byte for byte in "猫".encode()]
    assert BytePairs([]).size == BASE == 258


def test_merges_are_made_in_their_order() -> None:
    """By hand: c a → 258, a t → 259, 258 t → 260."""
    assert BytePairs(["c a", "a t", "ca t"]).encode("(cat") == [2 + ord("("), 260]
    assert BytePairs(["a t", "c a", "ca t"]).encode("(cat") == [2 + ord("("), 2 + ord("c"), 258]


def test_a_word_is_the_same_at_the_start_and_inside() -> None:
    assert FITTED.encode("cat") == FITTED.encode("a cat")[-len(FITTED.encode("cat")) :]
    red, dog = FITTED.encode("红"), FITTED.encode("狗")
    assert FITTED.encode("红狗在红色的海里") == [*red, *dog, *FITTED.encode("在"), *red, *FITTED.encode("色的海里")]
    assert FITTED.encode("狗, 红") == [*dog, *FITTED.encode(","), 2 + ord(" "), *red]


@pytest.mark.parametrize(("text", "words"), [
    ("a red cat", [" a", " red", " cat"]),
    ("红色的猫", [*"红色的猫"]),
    ("猫 is a cat", ["猫", " is", " a", " cat"]),
    ("2024年", [" 202", "4", "年"]),
    ("👍🏽👍", ["👍🏽👍"]),
    ("नमस्ते", [" नमस्ते"]),
    (" a", ["  ", "a"]),
    ("x" * 70, [" " + "x" * 32, "x" * 32, "x" * 6]),
])  # fmt: skip
def test_words(text: str, words: list[str]) -> None:
    assert tokenizer._words(text) == words


def test_frequent_words_become_one_number() -> None:
    assert len(FITTED.encode("cat")) == 1
    assert len(FITTED.encode("红色")) == 2
    assert FITTED.size <= 400


def test_fitting_does_not_depend_on_order_or_repetition() -> None:
    shuffled = [*CAPTIONS, *CAPTIONS[:7]]
    random.Random(0).shuffle(shuffled)
    assert BytePairs.fit(shuffled, 400) == FITTED
    assert BytePairs.fit(iter(CAPTIONS), 300).merges == FITTED.merges[: 300 - BASE]


def test_encoding_is_the_librarys() -> None:
    """The same vocabulary and merges in `tokenizers`, on words of letters that merge in many ways."""
    library = pytest.importorskip("tokenizers")
    draw = random.Random(1)
    words = ["".join(draw.choices("abcé", k=draw.randint(1, 20))) for _ in range(1000)]
    mine = BytePairs.fit([" ".join(words)], 500)
    assert mine.size == 500
    assert agrees(library, mine, [*words, *CAPTIONS, *ODD])


def test_encoding_is_the_librarys_where_two_pairs_make_one_piece() -> None:
    """A piece made again by a later pair merges on with the rank that it had from the first."""
    library = pytest.importorskip("tokenizers")
    mine = BytePairs(["a b", "b c", "ab c", "abc a", "a bc", "abca b"])
    assert mine.size == BASE + 5
    assert mine._table[1][2 + ord("a"), BASE + 1] == (4, BASE + 2)
    draw = random.Random(2)
    assert agrees(library, mine, ["".join(draw.choices("abc", k=draw.randint(1, 24))) for _ in range(500)])


def agrees(library: object, mine: BytePairs, texts: list[str]) -> bool:
    seen = tokenizer._SEEN
    vocab = {seen[byte]: 2 + byte for byte in range(256)}
    pairs = [tuple(merge.split(" ")) for merge in mine.merges]
    for left, right in pairs:
        vocab.setdefault(left + right, 2 + len(vocab))
    theirs = library.Tokenizer(library.models.BPE(vocab, pairs))  # type: ignore[attr-defined]
    theirs.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()  # type: ignore[attr-defined]
    for text in texts:
        words = tokenizer._words(unicodedata.normalize("NFC", text))
        assert mine.encode(text) == theirs.encode(" ".join(map(tokenizer._seen, words))).ids, text
    return True


def test_only_fitting_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    stored = describe(FITTED)
    assert build(stored).encode("红色的猫 cat") == FITTED.encode("红色的猫 cat")
    with pytest.raises(MissingPackageError, match=r"diff-diffusion\[text\]"):
        BytePairs.fit(CAPTIONS)


@pytest.mark.parametrize(("text", "seen"), [
    ("a \ud83d", "half a surrogate pair"), ("\udc00", "half a surrogate pair"), (5, "not 5"), (b"x", "not b'x'")
])  # fmt: skip
def test_what_is_no_text_is_refused(text: str, seen: str) -> None:
    for refuses in (FITTED.encode, lambda text: BytePairs.fit([text])):
        with pytest.raises(ConfigError, match=seen):
            refuses(text)


class Endless(list[str]):
    """A list that claims ten million merges, and must not be read."""

    def __len__(self) -> int:
        return 10_000_000

    def __iter__(self) -> None:  # type: ignore[override]
        raise AssertionError("read")


@pytest.mark.parametrize(("merges", "seen"), [
    (Endless(), "at most 100,000 strings, not 10,000,000"),
    ("a b", "a list of at most"),
    (["a b", "ab x", "aby c"], "merge 2 is 'aby c'"),
    (["ab c", "a b"], "merge 0 is 'ab c'"),
    (["ab"], "two pieces with a space"),
    (["a b c"], "two pieces with a space"),
    (["猫 a"], "merge 0 is '猫 a'"),
    (["a b", "c d", "a b"], "merge 2, 'a b', is merge 0 again"),
    ([["a", "b"]], r"merge 0 must be a string"),
    ([None], "merge 0 must be a string"),
    (["a" * 1000 + " b"], "at most 512 characters"),
])  # fmt: skip
def test_bad_merges_are_refused(merges: list[str], seen: str) -> None:
    with pytest.raises(ConfigError, match=seen):
        BytePairs(merges)


@pytest.mark.parametrize("merges", [5, None, {"a": "b"}])
def test_merges_of_another_kind_cannot_be_built(merges: object) -> None:
    with pytest.raises(ConfigError):
        build({"type": "tokenizer/byte_pairs", "merges": merges})


@pytest.mark.parametrize("size", [0, 257, 10**9])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="258 to 100,258"):
        BytePairs.fit(["cat"], size)
