"""A caption, read by an encoder that learns along with the model."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diff_diffusion.cond import Embedded
from diff_diffusion.conditions.condition import Condition, chosen
from diff_diffusion.conditions.tokenizer import BASE, END, PAD, BytePairs, checked_text
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register

MAX_LENGTH = 256
MAX_VOCAB, BYTES_PER_MERGE = 4096, 16
READ = 100_000
"""The most captions that a description is made from."""

# By the most different captions: width, depth and heads of an encoder that they can teach.
_ENCODERS = [(3000, (128, 2, 2)), (50_000, (192, 3, 3)), (math.inf, (256, 4, 4))]


class Encoder(Protocol):
    """What reads tokens: ids int64 [B, L] and mask bool [B, L] to [B, L, width]."""

    vocab: int
    width: int
    length: int

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor: ...


class Words(Condition):
    """A text as the tokens that networks attend to, and as one vector: a linear map of their mean.

    Where a sample keeps no text, a learned token stands alone, with a learned vector. The empty text is a text.

    Args:
        length: the most tokens of a text; what is longer is cut, and a warning says so once.
        token_width: of a token.
        width: of the vector.
    """

    def __init__(self, length: int, token_width: int, width: int) -> None:
        super().__init__()
        sizes = (("length", length, 4096), ("token_width", token_width, 65536), ("width", width, 65536))
        for name, value, most in sizes:
            if not 1 <= value <= most:
                raise ConfigError(f"a text's {name} must be from 1 to {most:,}, not {value}")
        self.length, self.token_width, self.width = length, token_width, width
        self.pool = nn.Linear(token_width, width)
        self.null_token = nn.Parameter(torch.zeros(token_width))
        self.null = nn.Parameter(torch.zeros(width))
        self._told = False

    @abstractmethod
    def read(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded values [B, ...] as tokens [B, length, token_width] and their mask bool [B, length]."""

    def embed(self, values: Tensor | None, keep: Tensor, x_t: Tensor) -> Embedded:
        if values is None:
            tokens = self.null_token.expand(len(x_t), 1, -1)
            return Embedded(self.null.expand(len(x_t), -1), tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))
        tokens, mask = self.read(values)
        heard = mask[..., None].to(tokens)
        mean = (tokens * heard).sum(dim=1) / heard.sum(dim=1)
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return Embedded(
            chosen(keep, self.pool(mean), self.null),
            chosen(keep, tokens, first[:, None] * self.null_token),
            chosen(keep, mask, first),
        )

    def tell_cut(self, text: str, count: int) -> None:
        """Warns, once, of a text of `count` tokens where that is too many."""
        if count > self.length and not self._told:
            self._told = True
            warnings.warn(
                f"this model reads {self.length} tokens of a text: the last {count - self.length} of the {count} of "
                f"{text!r:.60} are cut, and those of other long texts, without a word",
                stacklevel=2,
            )

    def summary(self) -> str:
        return f"a text of up to {self.length} tokens, in any language that it was trained on"


@register("condition/text")
class Text(Words):
    """A caption, read by an encoder of its own.

    Training reads a caption at each step, so that the encoder learns; a sampler reads it once.

    Args:
        tokenizer: text to numbers.
        encoder: numbers to tokens.
        width: of the vector.

    Raises:
        ConfigError: an encoder with another vocabulary than the tokenizer's; at `encode`, something that is no text.
    """

    def __init__(self, tokenizer: BytePairs, encoder: Encoder, width: int) -> None:
        super().__init__(encoder.length, encoder.width, width)
        if encoder.vocab != tokenizer.size:
            raise ConfigError(
                f"the encoder has a vocabulary of {encoder.vocab} and the tokenizer one of {tokenizer.size}: "
                "they must be equal"
            )
        self.tokenizer = tokenizer
        self.encoder = encoder

    def encode(self, values: Sequence[Any]) -> Tensor:
        """Texts to int64 [B, length]."""
        return torch.tensor([self._numbers(value) for value in values], dtype=torch.int64).view(-1, self.length)

    def once(self, values: Tensor) -> Tensor:
        """Read: float [B, length, token_width + 1], the mask last."""
        tokens, mask = self.read(values)
        return torch.cat([tokens, mask[..., None].to(tokens)], dim=-1)

    def _numbers(self, value: Any) -> list[int]:
        # A text that is not there reads like an empty one: a row without any token would have no mean.
        text = "" if value is None else value
        numbers = self.tokenizer.encode(text)
        self.tell_cut(text, len(numbers) + 1)
        numbers = [*numbers[: self.length - 1], END]
        return numbers + [PAD] * (self.length - len(numbers))

    def read(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if values.is_floating_point():
            return values[..., :-1].to(self.null.dtype), values[..., -1] > 0.5
        mask = values != PAD
        return self.encoder(values, mask), mask


def describe_text(captions: Iterable[str | None], width: int) -> dict[str, Any]:
    """The description of a `Text` whose vocabulary, length and size suit the captions of a data set.

    A merge for every 16 bytes of different captions, up to a vocabulary of 4,096; a length that holds 99.9 % of them,
    up to 256; an encoder of two to four blocks.

    Args:
        captions: of all samples, None where one has none.
        width: of the vector that networks are modulated by.

    Raises:
        ConfigError: not one caption.
    """
    distinct = different(captions)
    size = BASE + sum(len(text.encode()) for text in distinct) // BYTES_PER_MERGE
    tokenizer = BytePairs.fit(distinct, min(MAX_VOCAB, size))
    encoder_width, depth, heads = next(sizes for most, sizes in _ENCODERS if len(distinct) <= most)
    return {
        "type": "condition/text",
        "tokenizer": {"type": "tokenizer/byte_pairs", "merges": list(tokenizer.merges)},
        "encoder": {
            "type": "encoder/text",
            "vocab": tokenizer.size,
            "width": encoder_width,
            "depth": depth,
            "heads": heads,
            "length": length_for(len(tokenizer.encode(text)) + 1 for text in distinct),
        },
        "width": width,
    }


def different(captions: Iterable[str | None]) -> list[str]:
    """The different captions there are, in order; of more than 100,000, as many spread evenly.

    Raises:
        ConfigError: not one.
    """
    distinct = sorted({checked_text(text) for text in captions if text is not None})
    if not distinct:
        raise ConfigError("no sample has a caption, so there is nothing to learn to read")
    return distinct[:: math.ceil(len(distinct) / READ)]


def length_for(counts: Iterable[int], most: int = MAX_LENGTH) -> int:
    """The smallest multiple of 8 that holds 99.9 % of texts with so many tokens, and no more than `most`."""
    ordered = sorted(counts)
    needed = ordered[math.ceil(0.999 * len(ordered)) - 1]
    return min(most, max(8, math.ceil(needed / 8) * 8))
