"""The shape that is chosen unasked, and what may be asked for."""

from __future__ import annotations

import pytest

from diff_diffusion.data.images import Header
from diff_diffusion.data.plan import checked_channels, checked_size, plan
from diff_diffusion.errors import ConfigError


def shape(*sizes: tuple[int, int], grey: bool = False) -> tuple[int, int, int]:
    return plan([Header(height, width, "", grey) for height, width in sizes], None, None).shape


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (64, 64), (37, 60)])
def test_a_small_size_that_all_share_is_kept(size: tuple[int, int]) -> None:
    assert shape(size, size) == (3, *size)


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([(65, 65)], (64, 64)),
        ([(500, 500), (480, 510)], (64, 64)),
        ([(40, 40), (50, 50), (400, 400)], (48, 48)),
        ([(30, 30), (33, 31)], (24, 24)),
        ([(32, 40), (40, 32)], (32, 32)),
        ([(5, 5), (6, 6)], (8, 8)),
        ([(100, 125)], (64, 64)),
        ([(100, 126)], (48, 64)),
        ([(200, 300)], (40, 64)),
        ([(300, 200)], (64, 40)),
        ([(50, 100), (60, 100)], (32, 64)),
        ([(10, 1000)], (8, 64)),
        ([(20, 30), (21, 30)], (16, 24)),
    ],
)
def test_else_the_median_decides(sizes: list[tuple[int, int]], chosen: tuple[int, int]) -> None:
    assert shape(*sizes)[1:] == chosen


def test_channels() -> None:
    grey, colour = Header(8, 8, "L", True), Header(8, 8, "RGB", False)
    assert plan([grey] * 3, None, None).shape[0] == 1
    assert plan([colour] * 3, None, None).shape[0] == 3
    mixed = plan([grey] * 38 + [colour] * 2, None, None)
    assert mixed.shape[0] == 3
    assert mixed.channels_why == "2 of 40 images are colour: all become RGB"
    assert plan([colour], None, 1).shape[0] == 1
    assert plan([grey], None, 3).shape[0] == 3


def test_what_is_asked_for_wins() -> None:
    assert plan([Header(28, 28, "L", True)], (16, 24), None).shape == (1, 16, 24)
    assert checked_size(32) == (32, 32)
    assert checked_size([16, 24]) == (16, 24)
    assert checked_size(None) is None


@pytest.mark.parametrize("size", [0, -8, 32.0, "32", True, (32,), (32, 0), (8, 8, 8), (8.0, 8), 5000, {}])
def test_a_bad_size_is_an_error_that_shows_it(size: object) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_size(size)
    assert repr(size) in str(caught.value)
    assert "(height, width)" in str(caught.value)


@pytest.mark.parametrize("channels", [0, 2, 4, "3", True, 3.0])
def test_bad_channels_are_an_error(channels: object) -> None:
    with pytest.raises(ConfigError, match="channels"):
        checked_channels(channels)
