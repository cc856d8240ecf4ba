"""What a person sees while something long runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from diff_diffusion.training.journal import Record

PLAIN_EVERY = 10.0
"""Seconds between plain lines, where there is no terminal to redraw."""


def duration(seconds: float | None) -> str:
    """75 as "1:15", 3700 as "1:01:40"."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def count_progress(what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that keeps the user posted on a count; silent when it is over quickly."""
    state = {"next": time.monotonic() + 1.0}
    begun: list[tuple[float, int]] = []  # when the first piece was done, since an interrupted count may go on

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        if not begun:
            begun.append((now, done))
        live = sys.stderr.isatty()
        if now >= state["next"] or (done == total and live and state.get("shown")):
            state["next"] = now + (0.2 if live else PLAIN_EVERY)
            state["shown"] = 1.0
            ending = "\n" if done == total or not live else ""
            started, first = begun[0]
            left = (now - started) / (done - first) * (total - done) if first < done < total else None
            told = f"{what}: {done:,} of {total:,}" + (f", {duration(left)} left" if left is not None else "")
            # On a live line blanks cover what a longer text left.
            print(f"{chr(13)}{told:<60}" if live else told, end=ending, file=sys.stderr, flush=True)

    return show


class TrainingLine:
    """Shows records as they come: one live line with bar, loss, images/s and ETA, or a plain line now and then."""

    def __init__(self, total_steps: int | None, minutes: float | None) -> None:
        self.total_steps, self.minutes = total_steps, minutes
        self.console = Console()
        self.live = self.console.is_terminal
        self.loss: float | None = None
        self.last_plain = 0.0
        self.progress = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]}  ETA {task.fields[eta]}"),
            console=self.console,
            transient=True,
        )
        self.task = self.progress.add_task("", total=1.0, step=0, loss="-", rate="-", eta="-")

    def __enter__(self) -> TrainingLine:
        if self.live:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.progress.stop()

    def _share(self, record: Record, seconds: float) -> float:
        if self.total_steps:
            return record.step / self.total_steps
        left = record.eta_seconds or 0.0
        return 1.0 - left / (60 * self.minutes) if self.minutes else 0.0

    def show(self, record: Record) -> None:
        # Single steps are noisy; people read a trend.
        self.loss = record.loss if self.loss is None else 0.95 * self.loss + 0.05 * record.loss
        for note in record.notes:
            self.say(note)
        if record.skipped:
            self.say(f"step {record.step}: loss or gradient was not finite; the step was skipped")
        eta, rate = duration(record.eta_seconds), f"{record.images_per_second:,.0f} images/s"
        if record.data_wait > 0.2:
            rate += f" ({record.data_wait:.0%} waiting for data)"
        if self.live:
            self.progress.update(
                self.task,
                completed=self._share(record, 0.0),
                step=record.step,
                loss=f"{self.loss:.4f}",
                rate=rate,
                eta=eta,
            )
        now = time.monotonic()
        if record.held_out is not None:
            self.say(
                f"step {record.step}: loss {self.loss:.4f}, held-out {record.held_out['mean']:.4f}, {rate}, ETA {eta}"
            )
            self.last_plain = now
        elif not self.live and now - self.last_plain >= PLAIN_EVERY:
            self.say(f"step {record.step}: loss {self.loss:.4f}, {rate}, ETA {eta}")
            self.last_plain = now

    def say(self, text: str) -> None:
        if self.live:
            self.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[Iterable[object]], None]]:
    """Inside, call with each finished piece to advance a count shown as `count_progress` does."""
    show, done = count_progress(what), 0

    def advance(piece: Iterable[object]) -> None:
        nonlocal done
        done += len(list(piece))
        show(done, total)

    yield advance
