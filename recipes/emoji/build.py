"""A folder of captioned emoji: pictures of a colour font, named in English and Chinese.

    python recipes/emoji/build.py emoji [--size 32] [--font NotoColorEmoji.ttf]
    python recipes/emoji/build.py emoji --arrays FILE.npz

It holds train/ and val/, each with its PNGs and a metadata.jsonl whose lines are
{"file_name": "0001-red-heart.png", "caption": ["red heart", "红心"]}, and a "category" where one is known.

What is held out is recombined: every English word of a caption in val/ occurs in captions of train/, and the caption
itself does not. Which of such captions are held out depends on their text alone, so any machine makes the same split.

Left out: skin tones, flags made of two letters (a country's name recombines with nothing), what the font draws as
several glyphs or not at all, and pictures that equal an earlier one, since no caption could tell them apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from diff_diffusion.errors import DataError, DiffusionError, listed, require
from diff_diffusion.pictures import write_png
from diff_diffusion.storage.folder import write_file

SIZES = (32, 64)
HELD_OUT = 0.09
BITMAP = 109  # the one size of Noto Color Emoji's bitmaps, 136 x 128 pixels each
FONT = "NotoColorEmoji.ttf"
INSTALL = (
    "install it (Debian, Ubuntu: apt install fonts-noto-color-emoji; Fedora: google-noto-color-emoji-fonts; Arch: "
    "noto-fonts-emoji), or point at the file with --font"
)
SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
LETTERS = {chr(code) for code in range(0x1F1E6, 0x1F200)}
FULLY_QUALIFIED = 2  # the emoji package's word for the sequence that keyboards send
FLAG_OF_LETTERS = re.compile(r"flag [a-z]{2}")


@dataclass(frozen=True)
class Emoji:
    """One picture and what it is called.

    Args:
        image: RGB on white.
        captions: the same thing in each language, English first.
        category: "" where none is known.
    """

    image: Image.Image
    captions: tuple[str, ...]
    category: str = ""


# ---- from a font ----------------------------------------------------------------------------------------------------


def find_font() -> Path:
    """The system's Noto Color Emoji, as fontconfig or Pillow finds it.

    Raises:
        DataError: there is none.
    """
    try:
        asked = ["fc-match", "--format=%{family}\n%{file}", "Noto Color Emoji"]
        family, _, file = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.partition("\n")
        # fontconfig answers with its nearest font where it has not the one that was asked for.
        if "Noto Color Emoji" in family:
            return Path(file)
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return Path(str(ImageFont.truetype(FONT, BITMAP).path))
    except OSError:
        raise DataError(f"this machine has no font Noto Color Emoji: {INSTALL}") from None


def from_font(font: Path, size: int) -> list[Emoji]:
    """The emoji that `font` draws, with the names that the `emoji` package has for them.

    Raises:
        DataError: the font cannot be read, or draws no emoji in colour.
        MissingPackageError: there is no package `emoji`.
    """
    names = require("emoji", extra="recipes")
    names.config.load_language("zh")
    try:
        pen = Pen(font)
    except OSError as error:
        raise DataError(f"{font} cannot be used as a font at {BITMAP} pixels ({error}): {INSTALL}") from error
    found = []
    for sequence, about in sorted(names.EMOJI_DATA.items()):
        if about["status"] != FULLY_QUALIFIED or SKIN_TONES & set(sequence) or LETTERS & set(sequence):
            continue
        picture = pen.draw(sequence)
        if picture is not None:
            captions = tuple(_caption(about[language]) for language in ("en", "zh") if language in about)
            found.append(Emoji(picture.resize((size, size), Image.Resampling.LANCZOS), captions))
    if not found:
        raise DataError(f"{font} draws no emoji in colour; a font of colour bitmaps is needed, {FONT}: {INSTALL}")
    if not features.check("raqm"):
        print("this Pillow lays out no sequences (it has no raqm), so emoji of several code points are left out")
    return found


class Pen:
    """Draws single glyphs of one font, in colour."""

    def __init__(self, font: Path) -> None:
        self.font = ImageFont.truetype(str(font), BITMAP)
        self.side = round(self.font.getlength("😀"))

    def draw(self, sequence: str) -> Image.Image | None:
        """The glyph on a white square; None where the font draws several, none, or one without colours of its own."""
        if self.font.getlength(sequence) > 1.2 * self.side:
            return None
        # Ink colours only what has no colours: outlines, and the box that stands for a missing glyph.
        black, red = self._inked(sequence, "black"), self._inked(sequence, "red")
        if black.getbbox() is None or black.tobytes() != red.tobytes():
            return None
        page = Image.new("RGBA", black.size, "white")
        page.alpha_composite(black)
        return page.convert("RGB")

    def _inked(self, sequence: str, ink: str) -> Image.Image:
        left, top, right, bottom = self.font.getbbox(sequence)
        page = Image.new("RGBA", (self.side, self.side), (255, 255, 255, 0))
        corner = ((self.side - right - left) // 2, (self.side - bottom - top) // 2)
        ImageDraw.Draw(page).text(corner, sequence, fill=ink, font=self.font, embedded_color=True)
        return page


def _caption(name: str) -> str:
    """ ":red_heart:" as "red heart"."""
    return " ".join(name.strip(":").replace("_", " ").split())


# ---- from arrays ----------------------------------------------------------------------------------------------------


def from_arrays(file: Path, size: int) -> list[Emoji]:
    """The emoji of an .npz file: x uint8 [N, S, S, 3], and the texts cap (English), zh (Chinese) and cat [N].

    Raises:
        DataError: the file cannot be read, lacks an array, has one of another kind, or pictures smaller than `size`.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{file} cannot be read as .npz arrays: {error}") from error
    missing = [name for name in ("x", "cap", "zh", "cat") if name not in arrays]
    if missing:
        raise DataError(
            f"{file} has no {listed(missing)}; needed are x (pictures), cap and zh (names), cat (categories)"
        )
    x = arrays["x"]
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] != 3:
        raise DataError(f"x in {file} is {x.dtype} {list(x.shape)}; pictures are uint8 [N, S, S, 3]")
    if any(arrays[name].shape != (len(x),) for name in ("cap", "zh", "cat")):
        raise DataError(f"{file} has {len(x)} pictures, and cap, zh and cat must each have one text for each of them")
    if x.shape[1] < size:
        raise DataError(
            f"{file} holds pictures of {x.shape[1]} pixels, which cannot become {size}: say --size {x.shape[1]}"
        )
    found = []
    for pixels, english, chinese, category in zip(x, arrays["cap"], arrays["zh"], arrays["cat"], strict=True):
        if category == "Component" or FLAG_OF_LETTERS.fullmatch(str(english)):
            continue
        picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
        found.append(Emoji(picture, tuple(str(text) for text in (english, chinese) if text), str(category)))
    return found


# ---- the split, and the folder ---------------------------------------------------------------------------------------


def words(caption: str) -> set[str]:
    """The words of an English caption, in lower case."""
    return set(re.findall(r"[\w'’]+", caption.lower()))


def distinct(found: Iterable[Emoji]) -> list[Emoji]:
    """The emoji whose pictures and captions nothing before them has."""
    seen: set[Any] = set()
    kept = []
    for emoji in found:
        marks = {emoji.image.tobytes(), *emoji.captions}
        if not marks & seen:
            kept.append(emoji)
            seen |= marks
    return kept


def held_out(captions: Sequence[str], share: float = HELD_OUT) -> set[int]:
    """Which of distinct English captions to hold out: at most `share` of all, in the order of their hashes.

    Each has two words or more, all of which occur in captions that are kept.
    """
    kept = Counter(word for caption in captions for word in words(caption))
    chosen: set[int] = set()
    for index in sorted(range(len(captions)), key=lambda index: hashlib.sha256(captions[index].encode()).digest()):
        own = words(captions[index])
        if len(chosen) < int(share * len(captions)) and len(own) > 1 and all(kept[word] > 1 for word in own):
            chosen.add(index)
            kept.subtract(own)
    return chosen


def write(folder: Path, found: Sequence[Emoji]) -> tuple[int, int]:
    """The folder, and how many are in train/ and in val/.

    Raises:
        DataError: `folder` has something in it already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty: name another folder, or delete it first")
    out = held_out([emoji.captions[0] for emoji in found])
    for split, members in (("train", sorted(set(range(len(found))) - out)), ("val", sorted(out))):
        lines = []
        (folder / split).mkdir(parents=True)
        for index in members:
            emoji = found[index]
            name = f"{index:04d}-{_slug(emoji.captions[0])}.png"
            write_png(folder / split / name, emoji.image)
            row: dict[str, Any] = {"file_name": name, "caption": list(emoji.captions)}
            lines.append(row | ({"category": emoji.category} if emoji.category else {}))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_file(folder / split / "metadata.jsonl", text.encode())
    return len(found) - len(out), len(out)


def _slug(caption: str) -> str:
    """ASCII letters and digits that any file system takes, for a person to find the file by."""
    plain = unicodedata.normalize("NFKD", caption).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:40] or "emoji"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--size", type=int, choices=SIZES, default=SIZES[0], help="pixels a side (default: 32)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--font", type=Path, help="a colour font (default: the system's Noto Color Emoji)")
    source.add_argument("--arrays", type=Path, help="an .npz file with x, cap, zh and cat, instead of a font")
    asked = parser.parse_args(arguments)
    try:
        if asked.arrays:
            found = from_arrays(asked.arrays, asked.size)
        else:
            found = from_font(asked.font or find_font(), asked.size)
        kept = distinct(found)
        train, val = write(asked.out, kept)
    except DiffusionError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{asked.out}: {train} emoji in train/ and {val} in val/, {asked.size} x {asked.size} pixels")
    if len(kept) < len(found):
        print(f"{len(found) - len(kept)} were left out because an earlier one has the same picture or caption")


if __name__ == "__main__":
    main()
