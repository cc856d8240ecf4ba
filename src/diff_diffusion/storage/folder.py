"""Folders of files that are whole or not there: atomic writes, hashes, safetensors and JSON only.

A folder is written under a temporary name beside its own, every file and the folder synced, and then renamed. Its
manifest, config.json, is written last and carries the sha256 of every file and of itself, because safetensors does not
notice a flipped bit, and JSON with a flipped digit is still JSON. Nothing here unpickles.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from diff_diffusion.errors import CheckpointError, ConfigError, listed

FORMAT = 1
MANIFEST = "config.json"
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
DTYPES = {
    **{torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32"},
    **{torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16"},
    **{torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"},
}
"""What safetensors calls them, in the order in which it writes them."""
Pieces = list[bytes | memoryview]
"""A file's bytes one after another, so that tensors are written from where they are and copied nowhere."""
Content = bytes | Pieces
LARGE = 1 << 20
"""Bytes from which a tensor is a piece of its own: a piece is a turn of the threads that write and hash."""
WRITING, REPLACED = "writing", "replaced"
"""What an interrupted write leaves behind: a new file or folder, unfinished, and the old one that it was to replace."""


def to_json(data: Any) -> bytes:
    """Readable UTF-8 JSON, with names in any script kept as they are.

    Raises:
        ConfigError: something in it is no JSON: an object, a number that is not finite.
    """
    try:
        return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"this cannot be stored as JSON: {error}") from error


def to_safetensors(tensors: Mapping[str, Tensor]) -> Pieces:
    """Tensors as one safetensors file, byte for byte what the library would write.

    Large tensors that are contiguous and on the CPU are not copied, so the pieces are to be written before they change.
    The library's own `save` copies all of them twice, and takes longer than the disk.
    """
    order, header, end = list(DTYPES), dict[str, Any](), 0
    pieces: Pieces = []
    for name in sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name)):
        tensor = tensors[name].detach().cpu().contiguous()
        pieces.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    said = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    said += b" " * (-len(said) % 8)  # so that every tensor starts where its type may
    few: Pieces = [len(said).to_bytes(8, "little") + said]
    for large, group in groupby(pieces, lambda piece: len(piece) >= LARGE):
        near = list(group)
        few += near if large else [b"".join(near)]
    return few


def size_of(content: Content) -> int:
    """Bytes of a file."""
    return sum(map(len, _pieces(content)))


def _pieces(content: Content) -> Pieces:
    return [content] if isinstance(content, bytes) else content


def _sha256(content: Content) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(content):
        digest.update(piece)
    return digest.hexdigest()


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Inside, what the disk refuses (full, broken, read-only) becomes a CheckpointError that names `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"could not write {path}: {error.strerror or error}") from error


def _beside(path: Path, what: str) -> Path:
    """A name of its own in the folder of `path`, hidden, that says what it is and whose."""
    return path.with_name(f".{what}-{uuid.uuid4().hex[:8]}-{path.name}")


def leftovers(folder: Path, what: str, name: str | None = None) -> list[Path]:
    """What interrupted writes left in `folder`: those of the file or folder `name`, or all."""
    return sorted(folder.glob(f".{what}-{'?' * 8}-{'*' if name is None else glob.escape(name)}"))


def clear_unfinished(folder: Path, name: str | None = None) -> None:
    """Removes what interrupted writes left in `folder`, of the file or folder `name`, or all."""
    for left in [*leftovers(folder, WRITING, name), *leftovers(folder, REPLACED, name)]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):
                left.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder to sync it
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put(path: Path, content: Content) -> None:
    with open(path, "wb") as file:
        file.writelines(_pieces(content))
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, content: Content) -> None:
    """`content` at `path`, whole or not at all, on disk when this returns.

    Raises:
        CheckpointError: the disk refused; what was there before is intact.
    """
    temporary = _beside(path, WRITING)
    with refusals(path):
        try:
            _put(temporary, content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def write_folder(folder: Path, files: Mapping[str, Content], config: Mapping[str, Any]) -> None:
    """A new folder of `files` with its manifest, whole or not at all, replacing one of the same name and kind.

    Raises:
        CheckpointError: the disk refused, or the folder holds files that this would delete; nothing was changed.
    """
    temporary, replaced = _beside(folder, WRITING), _beside(folder, REPLACED)
    with refusals(folder):
        others = (
            sorted(item.name for item in folder.iterdir() if item.name not in {*files, MANIFEST})
            if folder.exists()
            else []
        )
        if others:
            raise CheckpointError(f"{folder} holds {listed(others)}, which would be lost: name a new or a model folder")
        try:
            temporary.mkdir(parents=True)
            with ThreadPoolExecutor(1) as beside:  # hashing takes as long as writing, and both let others run
                hashes = beside.map(_sha256, files.values())
                for name in files:
                    _put(temporary / name, files[name])
                _put(temporary / MANIFEST, _manifest(dict(zip(files, hashes, strict=True)), config))
            _sync_folder(temporary)
            if (
                folder.exists()
            ):  # a folder cannot be renamed over another: a crash from here on leaves the old one aside
                os.replace(folder, replaced)
            os.replace(temporary, folder)
        finally:
            if replaced.exists() and not folder.exists():
                os.replace(replaced, folder)
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_folder(folder.parent)
        clear_unfinished(folder.parent, folder.name)


def publish(source: Path, folder: Path) -> None:
    """The files of a finished folder also under `folder`, one by one, the manifest last; hard links where they can be.

    A crash half-way leaves hashes that do not match, which readers see and fall back from.

    Raises:
        CheckpointError: the disk refused.
    """
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted((file.name for file in source.iterdir()), key=lambda name: name == MANIFEST):
            temporary = _beside(folder / name, WRITING)
            try:
                try:
                    os.link(source / name, temporary)
                except OSError:
                    shutil.copyfile(source / name, temporary)
                os.replace(temporary, folder / name)
            finally:
                temporary.unlink(missing_ok=True)
        _sync_folder(folder)


def _manifest(hashes: dict[str, str], config: Mapping[str, Any]) -> bytes:
    manifest = {"format": FORMAT, **config, "sha256": hashes}
    hashes[MANIFEST] = _hash(manifest)
    return to_json(manifest)


def _hash(manifest: Mapping[str, Any]) -> str:
    """Of a manifest before it states its own."""
    return hashlib.sha256(to_json(manifest)).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """config.json of a folder, its format checked; the files' hashes are checked as each is read.

    Raises:
        CheckpointError: no folder, no manifest, a damaged one, a newer format; a pickle, with what to do about it.
    """
    if folder.is_file() or (folder.suffix in PICKLES and not folder.is_dir()):
        raise CheckpointError(_not_a_folder(folder))
    path = folder / MANIFEST
    if not path.is_file():
        inside = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
        what = f"it holds {listed(inside)}" if inside else "it is empty" if folder.is_dir() else "it does not exist"
        raise CheckpointError(f"{folder} is not a model folder: no {MANIFEST} in it ({what})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        changed = found == FORMAT and manifest["sha256"].pop(MANIFEST) != _hash(manifest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found!r}; this version reads format {FORMAT}")
    if changed:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one that it states. Use another checkpoint")
    return dict(manifest)


def _not_a_folder(path: Path) -> str:
    if path.suffix in PICKLES:
        return (
            f"{path} is a pickle, which can run code when it is opened, so it is never opened here. A model is a "
            'folder. In a process you trust, convert the weights: python -c "import torch; '
            "from safetensors.torch import save_file; "
            f"save_file(torch.load('{path.name}', weights_only=True), 'weights.safetensors')\""
        )
    return f"{path} is a file; a model is a folder with a {MANIFEST} in it"


def read_file(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """One file's bytes, their hash checked against the manifest.

    Raises:
        CheckpointError: missing or changed.
    """
    expected = manifest["sha256"].get(name)
    if expected is None:
        raise CheckpointError(f"{folder / MANIFEST} does not list {name}")
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise CheckpointError(
            f"{folder / name} is damaged: its sha256 is not the one that {MANIFEST} states. Use another checkpoint"
        )
    return content


def read_json(folder: Path, name: str, manifest: Mapping[str, Any]) -> Any:
    """One JSON file, checked as `read_file` does."""
    content = read_file(folder, name, manifest)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / name} is not JSON: {error}") from error


def read_safetensors(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """One file of tensors, checked as `read_file` does."""
    content = read_file(folder, name, manifest)
    try:
        return dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / name} is not a safetensors file: {error}") from error
