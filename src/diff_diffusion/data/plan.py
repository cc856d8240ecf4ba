"""The one shape that every image of a data set gets, and why: asked for, or chosen from what is there."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from diff_diffusion.data.images import Header
from diff_diffusion.errors import ConfigError

LADDER = (8, 16, 24, 32, 48, 64)  # the sides chosen unasked: none larger trains on a plain CPU
MAX_SIDE = 4096
NEARLY_SQUARE = (0.8, 1.25)  # width : height that may lose its edges to a square


@dataclass(frozen=True)
class Plan:
    """The shape (C, H, W) of every item, and the reasons in words."""

    shape: tuple[int, int, int]
    size_why: str
    channels_why: str


def plan(headers: Sequence[Header], size: tuple[int, int] | None, channels: int | None) -> Plan:
    """The shape for images with these `headers` (at least one); `size` (height, width) and `channels` win if given."""
    (height, width), size_why = (size, "as asked for") if size else _size(headers)
    count, channels_why = (channels, "as asked for") if channels else _channels(headers)
    return Plan((count, height, width), size_why, channels_why)


def checked_size(size: object) -> tuple[int, int] | None:
    """What a user gave as `size`, as (height, width); None stays None.

    Raises:
        ConfigError: it is neither a whole number nor a pair of them, or out of range.
    """
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) == 2 and all(type(side) is int and 1 <= side <= MAX_SIDE for side in pair):
        return pair
    raise ConfigError(
        f"size {size!r} cannot be used: give one whole number for a square, or (height, width), each 1 to {MAX_SIDE}"
    )


def checked_channels(channels: object) -> int | None:
    """What a user gave as `channels`.

    Raises:
        ConfigError: it is neither None, 1 nor 3.
    """
    if channels is None or (type(channels) is int and channels in (1, 3)):
        return channels
    raise ConfigError(f"channels {channels!r} cannot be used: 1 makes every image grey, 3 makes it colour")


def _size(headers: Sequence[Header]) -> tuple[tuple[int, int], str]:
    sizes = {(header.height, header.width) for header in headers}
    height, width = next(iter(sizes))
    if len(sizes) == 1 and max(height, width) <= LADDER[-1]:
        return (height, width), "every image has this size"
    aspect = statistics.median(header.width / header.height for header in headers)
    if NEARLY_SQUARE[0] <= aspect <= NEARLY_SQUARE[1]:
        short = statistics.median(min(header.height, header.width) for header in headers)
        side = _rung(short)
        return (side, side), f"the median image is nearly square, its short side {short:g}"
    longer = _rung(statistics.median(max(header.height, header.width) for header in headers))
    shorter = max(8, 8 * round(longer * min(aspect, 1 / aspect) / 8))
    chosen = (shorter, longer) if aspect > 1 else (longer, shorter)
    return chosen, f"the median image is {aspect:.2f} times as wide as high"


def _rung(side: float) -> int:
    return max((rung for rung in LADDER if rung <= side), default=LADDER[0])


def _channels(headers: Sequence[Header]) -> tuple[int, str]:
    colour = sum(not header.grey for header in headers)
    if colour == 0:
        return 1, "every image is grey"
    if colour == len(headers):
        return 3, "every image is colour"
    return 3, f"{colour} of {len(headers)} images {'is' if colour == 1 else 'are'} colour: all become RGB"
