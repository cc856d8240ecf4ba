"""The device, the precision and the stop signal of a run."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import torch

WORTH_IT = 1.5
"""bf16 is chosen when a step is at least this much faster: below it, a measurement could fall either way next time."""


def choose_device() -> torch.device:
    """The accelerator there is, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")  # type: ignore[attr-defined,unused-ignore]


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions, so that they could be faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))
    return False


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """bfloat16 for the operations where it is safe, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def choose_precision(device: torch.device, step: Callable[[str], object]) -> tuple[str, float]:
    """ "bf16" if the machine has it and `step` measures faster with it, else "fp32"; and the measured ratio.

    Runs `step` up to ten times in each precision, in turn, within about three seconds, and compares the best of each:
    the best is what the machine can do, whatever else it is doing.
    """
    if not has_bf16(device):
        return "fp32", 1.0
    best = {"fp32": float("inf"), "bf16": float("inf")}
    began = time.perf_counter()
    for turn in range(11):
        for precision in best:
            start = time.perf_counter()
            step(precision)
            if device.type != "cpu":
                torch.accelerator.synchronize()
            if turn > 0:  # the first of each pays for set-up
                best[precision] = min(best[precision], time.perf_counter() - start)
        if turn >= 2 and time.perf_counter() - began > 3.0:
            break
    ratio = best["fp32"] / best["bf16"]
    return ("bf16" if ratio >= WORTH_IT else "fp32"), ratio


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, torch's global random numbers, which dropout draws from, start at `seed`; after, they are untouched."""
    with torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 20 times as long
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        yield


@contextlib.contextmanager
def stop_signals(heard: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM ask to stop after the step in progress; a second one interrupts at once.

    Yields whether a stop was asked for; `heard` is called when it is.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        heard()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
