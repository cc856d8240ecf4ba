"""Tiles: what is too large to decode at once, decoded in parts that overlap, and blended."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

AT_ONCE = 1 << 14
"""Places that are decoded together: 128 × 128 of them are a picture of 1024 × 1024 at factor 8."""
OVERLAP = 0.25


def decoded(decode: Callable[[Tensor], Tensor], codes: Tensor, factor: int, at_once: int = AT_ONCE) -> Tensor:
    """decode(codes), [B, C, *(sizes · factor)], of no more than `at_once` places at a time.

    Samples are decoded some at a time, which changes nothing. A sample that is larger by itself is decoded in tiles of
    equal sides, each of which covers a quarter of the next one at least: Σ_k w_k decode(codes_k) / Σ_k w_k, w_k a
    raised cosine over the tile, so that there is no seam. A decoder that norms by all of its places says then something
    else, since each tile has its own statistics: tests/codecs/test_tiles.py measures how much.

    Args:
        decode: codes [B, channels, *sizes] to data [B, C, *(sizes · factor)].
        codes: [B, channels, *sizes].
        factor: how many times longer every axis becomes.
        at_once: places.
    """
    sizes = codes.shape[2:]
    places = math.prod(sizes)
    if places <= at_once:
        return torch.cat([decode(part) for part in codes.split(at_once // places)])
    side = max(1, math.floor(at_once ** (1 / len(sizes)) + 1e-9))
    result = weights = None
    for tile in product(*(_spans(size, side) for size in sizes)):
        spans: tuple[slice, ...] = tile
        part = torch.cat([decode(one) for one in codes[(slice(None), slice(None), *spans)].split(1)])
        weight = _bump(part)
        if result is None or weights is None:
            result = part.new_zeros(*part.shape[:2], *(size * factor for size in sizes))
            weights = part.new_zeros(result.shape[2:])
        here = tuple(slice(span.start * factor, span.stop * factor) for span in spans)
        result[(slice(None), slice(None), *here)] += weight * part
        weights[here] += weight
    assert result is not None
    assert weights is not None
    return result / weights


def _spans(size: int, side: int) -> list[slice]:
    """Where tiles lie along an axis, evenly."""
    side = min(side, size)
    count = 1 + math.ceil((size - side) / max(1, math.floor(side * (1 - OVERLAP))))
    starts = [round(k * (size - side) / max(1, count - 1)) for k in range(count)]
    return [slice(start, start + side) for start in starts]


def _bump(part: Tensor) -> Tensor:
    """A raised cosine along every axis of a tile, [*sizes]."""
    weight = part.new_ones(())
    for size in part.shape[2:]:
        place = torch.arange(size, dtype=part.dtype, device=part.device)
        weight = weight[..., None] * torch.sin(torch.pi * (place + 0.5) / size) ** 2
    return weight
