"""Text as numbers: byte-level byte-pair encoding, so that every string of every script has an encoding."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from diff_diffusion.errors import ConfigError, require
from diff_diffusion.registry import register

PAD, END = 0, 1
SPECIAL = 2
BASE = SPECIAL + 256
"""Numbers of the vocabulary that are there before any merge: padding, the end of a text, and each byte."""

MAX_MERGES, MAX_MERGE = 100_000, 512
MAX_WORDS = 100_000

# A word is a run of letters, digits or other signs with the space before it, as in GPT-2; in scripts without spaces it
# is one character, so that 红 is the same in 红色 and 口红. Marks go with what they mark. Words end at 32 characters,
# so that the time to merge one is bounded and that of a text linear.
_WORD = re.compile(r" ?l[lm]{0,31}|cm{0,31}| ?d{1,3}m{0,29}| ?o[om]{0,31}|[ m]{1,32}")

# From here on, scripts are written without spaces between words (but for Hangul, whose characters are syllables).
_NO_SPACES = "\u2e80"

# Every byte as a character that can be seen, itself where it can, so that merges are readable and hold no space.
_SEEN = [chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174 else chr(0x100 + b) for b in range(256)]
_BYTE = {char: byte for byte, char in enumerate(_SEEN)}


@register("tokenizer/byte_pairs")
@dataclass(frozen=True)
class BytePairs:
    """Byte-level byte-pair encoding: a text's UTF-8 bytes, word by word, with the earliest merge that fits made first.

    Text is normalised to NFC; `decode(encode(text))` is exactly that. Numbers are 0 for padding, 1 for the end of a
    text, 2 + b for byte b, then one for each piece that merges make.

    Args:
        merges: pairs of pieces as "left right", in order; bytes are written as in `_SEEN`.

    Raises:
        ConfigError: merges that are too many, no strings, said twice, or of pieces that are not made before them.

    Source: arXiv 1508.07909.
    """

    merges: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.merges, str) or len(self.merges) > MAX_MERGES:
            raise ConfigError(f"merges must be a list of at most {MAX_MERGES:,} strings, not {len(self.merges):,}")
        object.__setattr__(self, "merges", tuple(self.merges))
        _ = self._table  # made now, so that bad merges are refused now

    @classmethod
    def fit(cls, texts: Iterable[str], size: int = 2048) -> BytePairs:
        """The tokenizer of at most `size` numbers whose merges, each the most frequent at its time, suit `texts`.

        Each text counts once, and their order does not matter. A piece must be seen twice.

        Raises:
            ConfigError: a size below 258 or above 100,258, or something that is no text.
            MissingPackageError: the package `tokenizers` is not installed; what is made needs it no more.
        """
        if not BASE <= size <= BASE + MAX_MERGES:
            raise ConfigError(f"a vocabulary has {BASE} to {BASE + MAX_MERGES:,} numbers, not {size:,}")
        library = require("tokenizers", extra="text")
        model = library.Tokenizer(library.models.BPE())
        # Split here, by `_words`, and only counted there: what is trained on is what `encode` sees.
        model.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size - SPECIAL, min_frequency=2, initial_alphabet=_SEEN, show_progress=False
        )
        distinct = sorted({checked_text(text) for text in texts})
        model.train_from_iterator((" ".join(map(_seen, _words(text))) for text in distinct), trainer)
        return cls([" ".join(pair) for pair in json.loads(model.to_str())["model"]["merges"]])

    @cached_property
    def _table(self) -> tuple[list[bytes], dict[tuple[int, int], tuple[int, int]]]:
        """The piece of each number from 2, and of each pair of numbers that merges, its rank and what it becomes."""
        numbers = {char: SPECIAL + byte for byte, char in enumerate(_SEEN)}
        ranks: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, merge in enumerate(self.merges):
            if not isinstance(merge, str) or len(merge) > MAX_MERGE:
                raise ConfigError(f"merge {rank} must be a string of at most {MAX_MERGE} characters, not {merge!r:.80}")
            left, _, right = merge.partition(" ")
            if left not in numbers or right not in numbers:
                raise ConfigError(
                    f"merge {rank} is {merge!r:.80}: it must be two pieces with a space between them, each a byte or "
                    "made by a merge before it"
                )
            pair = numbers[left], numbers[right]
            if pair in ranks:
                raise ConfigError(f"merge {rank}, {merge!r:.80}, is merge {ranks[pair][0]} again")
            # Two pairs may make one piece, as "a bc" and "ab c" do.
            ranks[pair] = rank, numbers.setdefault(left + right, SPECIAL + len(numbers))
        return [bytes(_BYTE[char] for char in piece) for piece in numbers], ranks

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return SPECIAL + len(self._table[0])

    @cached_property
    def _known(self) -> dict[str, list[int]]:
        """Words met before: texts are mostly made of few."""
        return {}

    def encode(self, text: str) -> list[int]:
        """The numbers of a text, without padding and end.

        Raises:
            ConfigError: something that is no text.
        """
        return [number for word in _words(checked_text(text)) for number in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word in self._known:
            return self._known[word]
        ranks = self._table[1]
        numbers = [SPECIAL + byte for byte in word.encode()]
        # One merge at a time: the leftmost of the lowest rank. It may make a pair of a lower rank still.
        while fitting := [(*ranks[pair], i) for i, pair in enumerate(pairwise(numbers)) if pair in ranks]:
            _, made, i = min(fitting)
            numbers[i : i + 2] = [made]
        if len(self._known) < MAX_WORDS:
            self._known[word] = numbers
        return numbers

    def decode(self, numbers: Iterable[int]) -> str:
        """The text that was encoded, without padding and end; a character that was cut in two becomes �."""
        pieces = b"".join(self._table[0][number - SPECIAL] for number in numbers if number >= SPECIAL)
        return pieces.decode(errors="replace").removeprefix(" ")


def checked_text(text: Any) -> str:
    """The NFC form of a text.

    Raises:
        ConfigError: no string, or one with half a surrogate pair, which stands for no character.
    """
    if not isinstance(text, str):
        raise ConfigError(f"a text is a string, not {text!r:.80}")
    lone = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
    if lone is not None:
        raise ConfigError(
            f"{text!r:.80} holds {lone!r}, half a surrogate pair, so it was decoded wrongly: read it as UTF-8 or UTF-16"
        )
    return unicodedata.normalize("NFC", text)


def _words(text: str) -> list[str]:
    """The words of a text: as many as `_WORD` finds in its characters' kinds. They join to the text with a space before
    it where that makes its first word what it would be in the middle, or where there was one."""
    if text and (text[0] == " " or _kind(text[0]) in "ld"):
        text = " " + text
    return [text[found.start() : found.end()] for found in _WORD.finditer("".join(map(_kind, text)))]


def _kind(char: str) -> str:
    category = unicodedata.category(char)
    if char == " " or category == "Cf":
        return " " if char == " " else "m"
    if category[0] == "L" and char >= _NO_SPACES:
        return "c"
    return {"L": "l", "M": "m", "N": "d"}.get(category[0], "o")


def _seen(word: str) -> str:
    return "".join(_SEEN[byte] for byte in word.encode())
