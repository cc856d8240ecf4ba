"""The device, the precision, the stop signal and the processes of a run. Only this file knows torch.distributed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from diff_diffusion.errors import ConfigError, TrainingError

WORTH_IT = 1.2
"""bf16 is chosen when a step is at least this much faster: below it, a measurement could fall either way next time."""

PATIENCE = timedelta(days=1)
"""How long processes wait for each other. One that dies is noticed at once; one that reads 10⁶ images is not dead."""

Told = TypeVar("Told")
_joinings = itertools.count()


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

    Runs `step` up to ten times in each precision, in turn, within about three seconds (once, when a step is slow), and
    compares the best of each: the best is what the machine can do, whatever else it is doing.
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
        if turn >= 1 and time.perf_counter() - began > 3.0:
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


# ---- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model, each doing its rows of every batch; one alone unless `joined` says otherwise.

    Every method but `share` is called by all of them, at the same place of the same step.

    Attributes:
        rank: which of them this is; 0 writes and speaks.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1
    _store: Any = None  # what all of them can reach, as long as torchrun lives

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, whole: int) -> slice:
        """This process's rows of a batch.

        Raises:
            ConfigError: there are fewer rows than processes.
        """
        if whole < self.count:
            raise ConfigError(
                f"a batch of {whole} cannot be shared by {self.count} processes: a batch_size of {self.count} or more, "
                "or fewer processes"
            )
        return slice(self.rank * whole // self.count, (self.rank + 1) * whole // self.count)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the processes, with the same bits in all of them."""
        if self.count == 1:
            return
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        for group in kinds.values():
            flat = torch.cat([tensor.flatten() for tensor in group])
            with _company():
                dist.all_reduce(flat)
            sums = flat.split([tensor.numel() for tensor in group])
            torch._foreach_copy_(group, [total.view_as(tensor) for total, tensor in zip(sums, group, strict=True)])

    def sums(self, *values: float) -> list[float]:
        """Numbers added over the processes."""
        total = torch.tensor(values, dtype=torch.float64)
        self.add([total])
        return [float(value) for value in total]

    def told(self, value: Told) -> Told:
        """What the first process says, JSON data; what others give is passed over."""
        if self.count == 1:
            return value
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(content)])
        with _company():
            dist.broadcast(length, 0)
            heard = content if self.first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(heard, 0)
        said: Told = json.loads(heard.numpy().tobytes())
        return said

    def differing(self, contents: Mapping[str, bytes]) -> list[str]:
        """The names of contents that are not the same bytes in every process."""
        if self.count == 1:
            return []
        digests = b"".join(hashlib.blake2b(content, digest_size=16).digest() for content in contents.values())
        low = torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, 16)
        high = low.clone()
        with _company():
            dist.all_reduce(low, dist.ReduceOp.MIN)
            dist.all_reduce(high, dist.ReduceOp.MAX)
        return [name for name, differs in zip(contents, (low != high).any(1).tolist(), strict=True) if differs]

    @contextlib.contextmanager
    def first_then_others(self) -> Iterator[None]:
        """The first process does what is inside before the others begin it: what it wrote they find."""
        if not self.first:
            self.told(None)
        yield
        if self.first:
            self.told(None)

    def speaks(self) -> bool:
        """Whether this is the first process to ask, so that what ends all of them is said once."""
        try:
            return self._store is None or self._store.add("said", 1) == 1
        except RuntimeError:  # the process that kept the store is gone
            return True


@contextlib.contextmanager
def _company() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            "another process of this run has ended, and none can go on alone. The same command resumes from the last "
            "checkpoint"
        ) from error


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, joined inside; this one alone where it was started alone.

    Process r of a machine takes its accelerator r. Processes that the caller joined already stay as they are.

    Raises:
        ConfigError: more processes than accelerators, or processes that were not told how to find each other.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    device = choose_device()
    backend = "gloo"
    if device.type != "cpu":
        mine, there = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
        if mine >= there:
            raise ConfigError(
                f"process {mine} of this machine has no {device.type} device of its own: there are {there}, so "
                f"--nproc-per-node is {there} at most"
            )
        torch.accelerator.set_device_index(mine)
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    try:
        place, rank, count = next(rendezvous("env://", timeout=PATIENCE))
    except ValueError as error:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and this process was not told how to find the others: start "
            f"them with torchrun ({error})"
        ) from error
    store = PrefixStore(f"diff-diffusion/{next(_joinings)}", place)  # what was said in an earlier run is not heard
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        yield Ranks(rank, count, store)
    finally:
        dist.destroy_process_group()
