"""Which files of a folder are images, which of them are held out, and what their folders say of classes.

Three layouts, each at any depth and in any letter case:

- a folder of images;
- class folders, `root/cat/*.png` and `root/dog/*.png`: two or more sub folders hold images and none lie beside them.
  Below a class folder nothing more is read into the layout: `root/cat/2024/x.png` is a cat;
- `train/` and `val/`, either of them holding one of the above. `test/` is left alone.

A sub folder that is alone says nothing: `root/images/cat/…` is read as `root/cat/…`. Where images lie beside sub
folders, all of them are used and none has a class.
"""

from __future__ import annotations

import difflib
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diff_diffusion.data.images import EXTENSIONS
from diff_diffusion.errors import DataError, listed

# What a split folder may be called, the proper name first. Several data sets are published under the others.
TRAIN = ("train", "training")
VAL = ("val", "validation", "valid")
TEST = ("test", "testing")

LAYOUTS = "a folder of images; class folders (cat/*.png, dog/*.png); or train/ and val/ with either inside"
_LITTER = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}
_HINTS = {
    **dict.fromkeys((".7z", ".gz", ".rar", ".tar", ".tgz", ".zip"), "unpack the archive first"),
    ".npy": "give the .npy file itself",
    ".npz": "arrays of pixels go through ImageDataset.from_arrays, or into a .npy file of their own",
    **dict.fromkeys((".avif", ".heic", ".heif", ".svg"), "convert the pictures to PNG or JPEG first"),
}

Walked = tuple[list[str], Counter[str], list[str]]


@dataclass(frozen=True)
class Found:
    """One image file.

    Args:
        name: its POSIX path below the root.
        label: the name of its class, "" where there are none.
        held_out: whether it lies in the split that is kept from training.
    """

    name: str
    label: str = ""
    held_out: bool = False


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Args:
        root: the folder.
        files: its images in the order of their names, those held out last.
        others: how many files of other types there are, by extension.
        notes: what was understood or left alone, in words.
    """

    root: Path
    files: tuple[Found, ...]
    others: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def scan(root: Path, walked: Walked | None = None, left_out: Collection[str] = ()) -> Folder:
    """The images of `root`, sorted by name: the same order on every machine.

    Args:
        walked: what `walk` found there, if it is known already.
        left_out: names of images that are something else.

    Raises:
        DataError: there are none, or they are laid out in no way that can be read; the message lists what was found.
    """
    found, others, notes = walked or walk(root)
    if not found:
        raise DataError(_nothing(root, others))
    names = [name for name in found if name not in left_out]
    if not names:
        raise DataError(f"every image in {root} is a condition of another: those to train on need a row of their own")
    files, more = arrange(names)
    return Folder(root, files, dict(others.most_common()), (*notes, *more))


def walk(root: Path) -> Walked:
    """The names of all image files below `root`, sorted; the other files by extension; folders that could not be read.

    Hidden files and the litter of operating systems are passed over. Links are followed, and every folder is entered
    once, so that a link back to a parent ends.
    """
    names: list[str] = []
    others: Counter[str] = Counter()
    notes: list[str] = []
    entered: set[tuple[int, int]] = set()
    waiting = [(root, "")]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: _order(entry.name))
        except OSError as error:
            notes.append(f"the folder {prefix or '.'} cannot be read: {error.strerror}")
            continue
        below = []
        for entry in entries:
            name = prefix + entry.name
            extension = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                continue
            kind = _kind(entry)
            if kind == "folder":
                below.append((Path(entry.path), name + "/"))
            elif kind == "neither":
                others["not a plain file"] += 1  # opening a pipe would wait for ever
            elif extension in EXTENSIONS:
                names.append(name)
            else:
                others[extension or "no extension"] += 1
        waiting.extend(reversed(below))
    return sorted(names, key=_order), others, notes


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        # A link to nothing counts as the file that it should be, and is reported as missing.
        return "file" if entry.is_file() or entry.is_symlink() else "neither"
    except OSError:  # a link to itself
        return "neither"


def arrange(names: Sequence[str]) -> tuple[tuple[Found, ...], list[str]]:
    """The layout that `names`, POSIX paths of images, speak of (see the module's first lines), and what to say of it.

    Raises:
        DataError: there are held-out images but none to train on.
    """
    depth = _choice(names, 0)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_part(name, depth), []).append(name)
    train, val, test = (
        sorted((top for top in groups if top.lower() in kind), key=lambda top: kind.index(top.lower()))
        for kind in (TRAIN, VAL, TEST)
    )
    only_splits = len(groups) == len(train) + len(val) + len(test)
    if only_splits and not train:
        raise DataError(f"there is {listed(top + '/' for top in groups)} but no train/. What can be read: {LAYOUTS}")
    # A folder "train" beside "bus" and "tram" holds pictures of trains.
    if not train or not (val or only_splits):
        files, notes = _classes(names, depth)
        return tuple(files), notes

    used = train[:1] + val[:1]
    # The classes of held-out images lie as deep as those of the training images, however few of them there are.
    depth_of_classes = _choice(groups[used[0]], depth + 1)
    files, notes = _classes(groups[used[0]], depth_of_classes)
    labelled = bool(files[0].label)
    for name in groups[val[0]] if val else ():
        files.append(Found(name, _label(name, depth_of_classes) if labelled else "", held_out=True))
    for top, proper in zip(used, (TRAIN[0], VAL[0]), strict=False):
        if top.lower() != proper:
            notes.append(f"{top}/ is read as {proper}/")
    for top, members in groups.items():
        if top not in used:
            notes.append(f"{len(members)} images {f'in {top}/' if top else 'beside the split folders'} are left alone")
    return tuple(files), notes


def existing(path: Path, builtin: Sequence[str]) -> Path:
    """`path` where it is a folder.

    Raises:
        DataError: it is not; the message names what is near, and the `builtin` data sets.
    """
    if path.is_dir():
        return path
    instead = f"Built-in data sets: {listed(builtin)}"
    if path.exists():
        hint = _HINTS.get(path.suffix.lower(), "give the folder that the images are in")
        raise DataError(f"{path} is a file, not a folder: {hint}. {instead}")
    parent = path.absolute().parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    near = {folder.name.lower(): folder.name for folder in _sub_folders(parent)}
    near |= {name.lower(): name for name in builtin}
    close = difflib.get_close_matches(path.name.lower(), near, n=3)
    meant = f"did you mean {' or '.join(repr(near[name]) for name in close)}? " if close else ""
    raise DataError(f"there is no {path.name!r} in {parent}; {meant}{instead[0].lower()}{instead[1:]}")


def _nothing(root: Path, others: Counter[str]) -> DataError:
    total = sum(others.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
    hints = dict.fromkeys(_HINTS[kind] for kind in others if kind in _HINTS)
    near = [folder for folder in _sub_folders(root.absolute().parent) if _shows_images(folder)]
    return DataError(
        f"there is no image in {root}: it holds {f'{total} other files ({kinds})' if total else 'no file at all'}. "
        + "".join(f"{hint[0].upper()}{hint[1:]}. " for hint in hints)
        + (f"There are images in {listed(near, 3)}: point at that. " if near else "")
        + f"Images end in {' '.join(EXTENSIONS)}; what can be read is {LAYOUTS}"
    )


def _shows_images(folder: Path) -> bool:
    """Whether images lie in `folder` or one level below: a glance for a hint, not a search."""
    return any(
        entry.suffix.lower() in EXTENSIONS
        for place in (folder, *_sub_folders(folder))
        for entry in itertools.islice(place.iterdir(), 100)
    )


def _sub_folders(folder: Path) -> list[Path]:
    try:
        entries = sorted(itertools.islice(folder.iterdir(), 1000))
        return [
            entry
            for entry in entries
            if entry.is_dir() and os.access(entry, os.R_OK | os.X_OK) and entry.name[0] != "."
        ]
    except OSError:
        return []


def _classes(names: Sequence[str], depth: int) -> tuple[list[Found], list[str]]:
    """The images, each with its folder `depth` levels down as its class, where such folders are classes."""
    labels = [_label(name, depth) for name in names]
    notes = []
    if not all(labels) and any(labels):
        notes.append(f"sub folders are not classes, because {labels.count('')} images lie beside them")
    if not all(labels):
        labels = [""] * len(names)
    return [Found(name, label) for name, label in zip(names, labels, strict=True)], notes


def _label(name: str, depth: int) -> str:
    """Normalised, since one name typed on a Mac and on Linux would otherwise be two classes."""
    return unicodedata.normalize("NFC", _part(name, depth))


def _choice(names: Sequence[str], depth: int) -> int:
    """The level, from `depth` down, of the first choice between folders, or of the images where there is none."""
    while _part(names[0], depth) and len({_part(name, depth) for name in names}) == 1:
        depth += 1
    return depth


def _part(name: str, depth: int) -> str:
    """The folder of `name` at `depth`, "" for an image that lies higher."""
    folders = name.split("/")[:-1]
    return folders[depth] if depth < len(folders) else ""


def _order(name: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", name), name
