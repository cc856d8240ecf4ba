"""Optimizer steps of a run, done on a model of its own: how much memory they take, and how long."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diff_diffusion.codecs.codec import Codec
from diff_diffusion.data import ImageDataset
from diff_diffusion.data.loader import Batch, Batches
from diff_diffusion.errors import ConfigError
from diff_diffusion.models import Model
from diff_diffusion.registry import build
from diff_diffusion.storage import folder as storage
from diff_diffusion.training import checkpoint, loop
from diff_diffusion.training.memory import Meter, can_measure, free_memory
from diff_diffusion.training.runtime import choose_device
from diff_diffusion.training.settings import TrainSettings

SHARE = 0.8
"""Of the free memory, what a run may take; other programs, and peaks that are not always the same, have the rest."""
SECONDS = 3.0
"""How long steps are repeated for, once there are three of each."""
SLOW = 1.0
"""Steps longer than this are measured on fewer images, and their time is where a line through two numbers leads."""


class Line(NamedTuple):
    """Peaks by size of the micro-batch: `taken` bytes at `size`, and `slope` more for each sample more."""

    size: int
    taken: int
    slope: int

    def at(self, size: int) -> int:
        return self.taken + (size - self.size) * self.slope


def largest_that_fits(
    peak: Callable[[int], int], whole: int, limit: int, rest: int = 0, slow: Callable[[], bool] = lambda: False
) -> tuple[int, Line]:
    """The largest micro-batch up to `whole` whose peak is at most `limit` (1 if none is), and the line that says so.

    A size is tried only when what is known says that it fits: at first as if all beyond `rest` grew with the
    micro-batch, then along a line through the last two. From 2 on the line is trusted fourfold; or all the way, where
    trying is slow and half the limit is not reached.

    Args:
        peak: bytes that a micro-batch of this size takes at its peak; it rises along a line.
        whole: the batch.
        limit: bytes.
        rest: bytes that are taken whatever the size.
        slow: whether trying has become slow, so that far from the limit the line will do.
    """
    taken = peak(1)
    line = Line(1, taken, max(1, taken - rest))
    while True:
        at = line.size
        fits = max(1, min(whole, at + (limit - line.taken) // line.slope))
        if fits <= at or (at >= 2 and (fits <= 4 * at or (slow() and line.at(fits) <= limit // 2))):
            return fits, line
        size = min(fits, at * (2 if at == 1 else 4))
        taken = peak(size)
        slope = -((line.taken - taken) // (size - at))  # rounded up
        line = Line(size, taken, max(1, slope))


@dataclass(frozen=True)
class Times:
    """Seconds of whole steps, made with so many images each; and images a second by number of threads."""

    steps: list[float]
    images: int
    by_threads: dict[int, float]


class Trial:
    """Steps of the run that `train` would make of the same arguments, of any number of images."""

    def __init__(
        self,
        description: Mapping[str, Any],
        data: ImageDataset,
        settings: TrainSettings,
        codec: Codec | None = None,
    ) -> None:
        settings = settings.sized(data.shape)
        self.device, self.data, self.settings = choose_device(), data, settings
        self.precision: str = settings.precision if settings.precision != "auto" else "fp32"
        self.meter = Meter(self.device) if can_measure(self.device) else None
        self.free = free_memory(self.device) if self.meter is not None else None
        self.limit = int(SHARE * self.free) if self.free is not None else 0
        self._refuse_what_cannot_fit(description)
        self.batches: dict[int, Generator[Batch, None, None]] = {}
        model = Model.from_description(description, settings.seed)
        model.take_weights(codec)
        fixed = settings.model_copy(update={"precision": self.precision})
        self.run = loop._Run(model, data, None, fixed, None, keep_latents=False)
        model.train()
        self.step(1, 1)  # the optimizer's moments are made by the first
        self.last = self.seconds_per_image = 0.0

    def close(self) -> None:
        for batches in self.batches.values():
            batches.close()

    def _refuse_what_cannot_fit(self, description: Mapping[str, Any]) -> None:
        if self.free is None:
            return
        with torch.device("meta"):  # costs nothing
            model = build(description)
        needed = 5 * sum(parameter.nbytes for parameter in model.parameters())
        if needed > self.free:
            raise ConfigError(
                f"weights, gradient, two moments and average of {model.num_parameters / 1e6:,.0f} M parameters need "
                f"{gib(needed)}, and {gib(self.free)} are free: give a smaller network, or free memory"
            )

    def step(self, images: int, micro: int) -> float:
        """Seconds of one optimizer step."""
        start = time.perf_counter()
        if images not in self.batches:
            self.batches[images] = iter(Batches(self.data, images, self.settings.seed))
        batch = next(self.batches[images])
        changes = {"micro_batch": micro, "batch_size": images, "precision": self.precision}
        self.run.settings = self.settings.model_copy(update=changes)
        self.run._step(batch)
        self.run.step += 1
        return time.perf_counter() - start

    def peak(self, micro: int, images: int) -> int:
        """Bytes that a step of `images` takes beyond what was taken before there was a model."""
        assert self.meter is not None
        with self.meter.watching():
            self.last = self.step(images, micro)
        self.seconds_per_image = self.last / images
        return self.meter.peak

    # ---- choosing -------------------------------------------------------------------------------------------------

    def choose(self) -> tuple[int, list[str]]:
        """The micro-batch, and a line on it and on the precision, which is set from here on."""
        settings = self.settings
        asked = min(settings.micro_batch or settings.batch_size, settings.batch_size)
        fits = self._fit(asked)
        said = f"precision {self.precision}, as set"
        if settings.precision == "auto":
            few = max(1, min(fits, int(0.3 / self.seconds_per_image)))
            self.run.settings = settings.model_copy(update={"micro_batch": few})
            self.run.notes.clear()
            self.precision = self.run._measured_precision()
            said = self.run.notes.pop()
            if self.precision != "fp32":
                fits = self._fit(asked)
        self.fits = fits
        if settings.micro_batch is not None:
            tight = "" if fits == asked else f": more than the {fits} that fit into {self._room()}"
            return settings.micro_batch, [f"micro-batch {settings.micro_batch}, as set{tight}", said]
        passes = math.ceil(settings.batch_size / fits)
        micro = math.ceil(settings.batch_size / passes)  # as many passes, all of one size
        if self.meter is None:
            return micro, [f"micro-batch {micro}, the whole batch: memory cannot be measured here", said]
        why = "the whole batch" if passes == 1 else f"{passes} to a step"
        return micro, [f"micro-batch {micro}, {why}: {gib(self.line.at(micro))} at the peak, of {self._room()}", said]

    def _room(self) -> str:
        return f"{gib(self.limit)}, {SHARE:.0%} of what is free"

    def _fit(self, whole: int) -> int:
        """The largest micro-batch up to `whole` that memory has room for."""
        if self.meter is None:
            self.seconds_per_image = self.step(1, 1)
            return whole
        # Of two micro-batches, because the second finds the gradient of the first.
        peak = lambda micro: self.peak(micro, min(2 * micro, self.settings.batch_size))  # noqa: E731
        fits, self.line = largest_that_fits(peak, whole, self.limit, self._kept(), lambda: self.last > SLOW / 2)
        return fits

    def _kept(self) -> int:
        """Bytes that the device holds between steps: weights, average and moments."""
        run = self.run
        held = [*run.model.state_dict().values(), *run.ema.values.values(), *run._moments().values()]
        return sum(tensor.nbytes for tensor in held)

    # ---- measuring ------------------------------------------------------------------------------------------------

    def times(self, micro: int) -> tuple[Times, int | None]:
        """Steps of the run, timed with its own number of threads and with fewer; and bytes at their peak."""
        whole = self.settings.batch_size
        fits = min(micro, self.fits)
        peak = None
        for _ in range(2):  # the second knows how long many images take, which is less than a few take each
            images = min(whole, max(2, int(SLOW / self.seconds_per_image)))
            if self.meter is None:
                self.seconds_per_image = self.step(images, fits) / images
            else:
                peak = self.peak(fits, images)
        if peak is not None and (images < whole or fits < micro):
            peak = max(peak, self.line.at(min(micro, whole)))
        few = max(1, images // 2) if images < whole else images
        own = torch.get_num_threads()
        try:
            spent, spent_on_few = self._spent(own, images, few, fits)
        finally:
            torch.set_num_threads(own)
        rates = {count: images / statistics.median(spent[count]) for count in spent if len(spent) > 1}
        # A step has a part that does not grow with its images, so that in proportion it would come out too long.
        middle, less = statistics.median(spent[own]), statistics.median(spent_on_few)
        slope = (middle - less) / (images - few) if few < images else middle / images
        scale = 1.0 + (whole - images) * max(0.0, slope) / middle if images < whole else 1.0
        return Times([seconds * scale for seconds in spent[own]], images, rates), peak

    def _spent(self, own: int, images: int, few: int, micro: int) -> tuple[dict[int, list[float]], list[float]]:
        """Seconds of steps, in turn: for each number of threads that is worth it, and for a step of `few` images."""
        counts = [own, *(_fewer_threads(own) if self.device.type == "cpu" else [])]
        first: dict[int, float] = {}
        for count in counts:  # the first of each pays for set-up
            torch.set_num_threads(count)
            seconds = self.step(images, micro)
            if seconds > 2.0 * min(first.values(), default=math.inf):
                break  # with fewer still it would take longer still
            first[count] = seconds
        spent: dict[int, list[float]] = {count: [] for count in first}
        spent_on_few: list[float] = []
        began = time.perf_counter()
        for turn in range(20):
            for count in spent:
                torch.set_num_threads(count)
                spent[count].append(self.step(images, micro))
            torch.set_num_threads(own)
            spent_on_few.append(self.step(few, micro) if few < images else spent[own][-1])
            if turn >= 2 and time.perf_counter() - began > SECONDS:
                break
        return spent, spent_on_few

    def checkpoint(self) -> tuple[int, int]:
        """Bytes of a checkpoint's files, and those taken while they are written: 0 where that cannot be told."""
        run = self.run
        tensors = [*run.model.state_dict().values()] * 2 + [*run._moments().values()]
        size = sum(tensor.nbytes for tensor in tensors)
        if self.meter is None or self.device.type != "cpu" or self._kept() + 3 * size > self.limit:
            return size, 0
        run.model.ema = run.ema.values
        with self.meter.watching():
            files, _ = run.model.files()
            files |= {checkpoint.STATE_TENSORS: storage.to_safetensors(run._moments())}
        return sum(map(storage.size_of, files.values())), self.meter.peak


def _fewer_threads(own: int) -> list[int]:
    """Numbers of threads worth trying beside `own`: of all cores, half of them and so on to 1."""
    cores = _physical_cores()
    counts = [cores >> halvings for halvings in range(cores.bit_length())]
    return [count for count in counts if count != own]


def _physical_cores() -> int:
    """Of those this process may run on; two threads of one core are one."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed, siblings = os.sched_getaffinity(0), set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text() if path.exists() else str(cpu))
    return len(siblings)


def gib(count: int) -> str:
    """Bytes in words: "1.5 GiB", "20 MiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
