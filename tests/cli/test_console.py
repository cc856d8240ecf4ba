"""What a count says while it runs."""

from __future__ import annotations

import pytest

from diff_diffusion.cli import console


@pytest.mark.parametrize("start", [0, 500])
def test_a_count_says_how_long_it_will_take(
    start: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the pieces of this run alone: those of an interrupted one were there at once."""
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    show = console.count_progress("sampling")
    show(start, 1000)
    for done in range(start + 10, 1001, 10):
        clock[0] += 2.0
        show(done, 1000)
    told = capsys.readouterr().err.splitlines()
    first = start + 10
    left = console.duration((1000 - first) / 5)
    assert told[0] == f"sampling: {first} of 1,000, {left} left"
    assert len(told) == (1000 - start) / 50


def test_a_quick_count_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show = console.count_progress("reading")
    show(1, 2)
    show(2, 2)
    assert capsys.readouterr().err == ""
