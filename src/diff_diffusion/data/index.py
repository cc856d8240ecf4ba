"""What was found out about every image, so that the second start opens none of them again.

An index is one file in the user's cache folder, written whole or not at all, and ends in a hash of itself. An image is
the one that was looked at if its file's size and both of its times are the same; one that was young then, and could
change again within the same tick of the clock, is looked at again. Where the folder cannot be written nothing is kept,
and nothing is lost but time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL

ENOUGH = 2000
"""Images from which on an index is kept; fewer are read in a second or two."""
MAX_BYTES = 8 << 30
"""Of all indexes together; those that were not read for longest go first."""
YOUNG = 2_000_000_000
"""Nanoseconds: coarser than the clock of any file system in use."""
_FORMAT, _PART, _ALIGNED = 1, 1 << 24, 64
_TYPES = ("|u1", "<i4", "<i8", "<f4")

Arrays = dict[str, np.ndarray]


def home() -> Path:
    """The folder of all indexes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diff-diffusion" / "data"


def stamps(paths: Sequence[str]) -> np.ndarray:
    """Size and times of files, int64 [N, 3]; -1 for one that is gone, or so young that it may change unseen."""
    found = np.full((len(paths), 3), -1, np.int64)
    now = time.time_ns()
    for row, path in enumerate(paths):
        with suppress(OSError):
            status = os.stat(path)
            if max(status.st_mtime_ns, status.st_ctime_ns) < now - YOUNG:
                found[row] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return found


def read(about: Mapping[str, Any]) -> Arrays | None:
    """The arrays kept under a description, mapped from the file; None where there are none, or not as written.

    Args:
        about: JSON data that say what they are of; versions are added.
    """
    path = _path(about)
    try:
        whole = np.memmap(path, np.uint8, mode="c")  # a private copy, as torch wants it, of only what is written to
        head = json.loads(bytes(whole[: 1 << 16]).split(b"\n", 1)[0])
        if head["about"] != json.loads(json.dumps(_full(about))) or _hash(whole[:-32]) != bytes(whole[-32:]):
            return None
        arrays = {}
        for name, (kind, shape, start) in head["arrays"].items():
            if kind not in _TYPES:
                return None
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
            arrays[name] = whole[start : start + size].view(kind).reshape(shape)
        with suppress(OSError):
            os.utime(path)
        return arrays
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write(about: Mapping[str, Any], arrays: Arrays) -> None:
    """Keeps arrays of uint8, int32, int64 or float32 under a description; on a disk that refuses, nothing happens."""
    path = _path(about)
    head: dict[str, Any] = {"about": _full(about), "arrays": {}}
    start = 1 << 16  # behind the head, whatever it says
    for name, array in arrays.items():
        head["arrays"][name] = [array.dtype.str, list(array.shape), start]
        start += -(-array.nbytes // _ALIGNED) * _ALIGNED
    first = (json.dumps(head) + "\n").encode()
    if len(first) > 1 << 16:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                digest = hashlib.blake2b(digest_size=32)

                def put(content: Any) -> None:
                    file.write(content)
                    digest.update(content)

                put(first.ljust(1 << 16, b"\0"))
                for array in arrays.values():
                    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                    for at in range(0, len(flat), _PART):
                        put(flat[at : at + _PART].data)
                    put(bytes(-len(flat) % _ALIGNED))
                file.write(digest.digest())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                os.unlink(temporary)
        _make_room(path)


def _full(about: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": _FORMAT, "pillow": PIL.__version__, **about}  # another version may decode to other pixels


def _path(about: Mapping[str, Any]) -> Path:
    name = json.dumps(_full(about), sort_keys=True)
    return home() / f"{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}.index"


def _hash(content: np.ndarray) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for at in range(0, len(content), _PART):
        digest.update(content[at : at + _PART].data)
    return digest.digest()


def _make_room(newest: Path) -> None:
    """Removes the indexes that were not read for longest, and what a crash left, until the others have room."""
    total = 0
    kept = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in newest.parent.iterdir()), reverse=True)
    for changed, size, path in kept:
        total += size
        left = path.name.startswith(".writing-") and changed < time.time() - 86_400
        if path != newest and (total > MAX_BYTES or left):
            path.unlink(missing_ok=True)
