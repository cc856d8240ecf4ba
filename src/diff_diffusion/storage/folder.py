"""Folders of files that are whole or not there: atomic writes, hashes, safetensors and JSON only.

A folder is written under a temporary name beside its own, every file and the folder synced, and then renamed. Its
manifest, config.json, is written last and carries the sha256 of every other file, because safetensors alone does not
notice a flipped bit. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from diff_diffusion.errors import CheckpointError, listed

FORMAT = 1
MANIFEST = "config.json"
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
_TEMPORARY = ".writing-"


def to_json(data: Any) -> bytes:
    """Readable UTF-8 JSON, with names in any script kept as they are."""
    return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def to_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as one safetensors file, in the order of their names."""
    return safetensors.torch.save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder to sync it
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes) -> None:
    """`content` at `path`, whole or not at all, on disk when this returns."""
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_folder(folder: Path, files: Mapping[str, bytes], config: Mapping[str, Any]) -> None:
    """A new folder of `files` with its manifest, whole or not at all, replacing one of the same name.

    Raises:
        CheckpointError: the disk refused; what was there before is intact.
    """
    temporary = folder.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:8]}-{folder.name}")
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            write_file(temporary / name, content)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        write_file(temporary / MANIFEST, to_json({"format": FORMAT, **config, "sha256": hashes}))
        replaced = folder.with_name(f".replaced-{uuid.uuid4().hex[:8]}-{folder.name}")
        if folder.exists():  # a folder cannot be renamed over another; a crash between the two leaves the old one aside
            os.replace(folder, replaced)
        os.replace(temporary, folder)
        _sync_folder(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(
            f"could not write {folder}: {error.strerror or error}; nothing there was changed"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Removes what an interrupted write left in `folder`."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def publish(source: Path, folder: Path) -> None:
    """The files of a finished folder also under `folder`, one by one, the manifest last; hard links where they can be.

    A crash half-way leaves hashes that do not match, which readers see and fall back from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted((file.name for file in source.iterdir()), key=lambda name: name == MANIFEST):
        temporary = folder / f"{_TEMPORARY}{uuid.uuid4().hex[:8]}-{name}"
        try:
            os.link(source / name, temporary)
        except OSError:
            shutil.copyfile(source / name, temporary)
        os.replace(temporary, folder / name)
    _sync_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """config.json of a folder, its format checked; the files' hashes are checked as each is read.

    Raises:
        CheckpointError: no folder, no manifest, a damaged one, a newer format; a pickle, with what to do about it.
    """
    if folder.is_file() or folder.suffix in PICKLES:
        raise CheckpointError(_not_a_folder(folder))
    path = folder / MANIFEST
    if not path.is_file():
        inside = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
        what = f"it holds {listed(inside)}" if inside else "it is empty" if folder.is_dir() else "it does not exist"
        raise CheckpointError(f"{folder} is not a model folder: no {MANIFEST} in it ({what})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, hashes = manifest["format"], manifest["sha256"]
        if not isinstance(hashes, dict) or not all(isinstance(v, str) for v in hashes.values()):
            raise TypeError("sha256 is no table of hashes")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found!r}; this version reads format {FORMAT}")
    return dict(manifest)


def _not_a_folder(path: Path) -> str:
    if path.suffix in PICKLES:
        return (
            f"{path} is a pickle, which can run code when it is opened, so it is never opened here. A model is a folder. "
            'In a process you trust, convert the weights: python -c "import torch; from safetensors.torch import '
            f"save_file; save_file(torch.load('{path.name}', weights_only=True), 'weights.safetensors')\""
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
    try:
        return json.loads(read_file(folder, name, manifest))
    except ValueError as error:
        raise CheckpointError(f"{folder / name} is not JSON: {error}") from error


def read_safetensors(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """One file of tensors, checked as `read_file` does."""
    content = read_file(folder, name, manifest)
    try:
        return dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / name} is not a safetensors file: {error}") from error
