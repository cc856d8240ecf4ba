"""How much memory is free, and how much a piece of work took at its peak."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


def can_measure(device: torch.device) -> bool:
    """Whether this module can tell: on CUDA, and on the CPU where Linux accounts for a process."""
    return device.type == "cuda" or (device.type == "cpu" and Path("/proc/self/status").exists())


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that this process can still take: on the CPU the least of what the machine, its cgroups and its own limits
    (`ulimit -v`, `ulimit -d`) leave.

    Args:
        device: one that `can_measure` knows.
        root: where /proc and /sys are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    machine = _table(root / "proc/meminfo")["MemAvailable"] * 1024
    return max(0, min([machine, *_left_by_cgroups(root), *_left_by_limits(root)]))


class Meter:
    """Reads how many bytes work takes on a device, beyond what was taken when the meter was made.

    On the CPU these are resident pages: what tensors ask for is only two thirds of them, the rest being the allocator's
    and the kernels' own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        _give_back(device)
        self.base = torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident("VmRSS")
        self.peak = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, work happens; after, `peak` is the most it had taken."""
        _give_back(self.device)  # or pages kept from the work before would count as this one's
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # where it is not allowed, the peak is of all the time before too: never too small
                Path("/proc/self/clear_refs").write_text("5")
        yield
        top = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmHWM")
        self.peak = max(0, top - self.base)


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        with suppress(OSError, AttributeError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> int:
    return _table(Path("/proc/self/status"))[field] * 1024


def _table(path: Path) -> dict[str, int]:
    """Lines such as "VmRSS:  1234 kB" or "inactive_file 1234"; nothing of a file that is not there."""
    with suppress(OSError):
        words = [line.replace(":", " ").split() for line in path.read_text(errors="replace").splitlines()]
        return {row[0]: int(row[1]) for row in words if len(row) > 1 and row[1].isdecimal()}
    return {}


def _left_by_cgroups(root: Path) -> Iterator[int]:
    """What each limited group that this process is in has left, in version 2 and 1; cached files can be dropped."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(errors="replace").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            home = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            limit_name, usage_name, cached = names[bool(controllers)]
            place = home / group.lstrip("/")
            # Seen from inside a container the group may be named as it is outside; its top is there all the same.
            for folder in (place, *place.parents):
                limit, usage = _number(folder / limit_name), _number(folder / usage_name)
                if limit is not None and usage is not None:
                    yield limit - usage + _table(folder / "memory.stat").get(cached, 0)
                if folder == home:
                    break


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):  # "max" is no limit
        return int(path.read_text())
    return None


def _left_by_limits(root: Path) -> Iterator[int]:
    resource = importlib.import_module("resource")  # Windows has none
    taken = _table(root / "proc/self/status")
    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            yield soft - taken[field] * 1024
