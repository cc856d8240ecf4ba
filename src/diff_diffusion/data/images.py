"""One image file to upright, opaque, 8-bit pixels of one shape; or a reason in a few words.

What decoders get wrong is put right here: 16-bit grey is scaled (Pillow clips it to white), EXIF rotation is applied,
transparency is laid on white, a decompression bomb is refused from its header, and a truncated file is an error
rather than half a picture.
"""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

from diff_diffusion.errors import DataError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Only these decoders ever run: what is inside the file decides, not its name, and a ".png" that holds PostScript
# would otherwise start Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_PIXELS = 178_956_970  # where Pillow itself refuses; about 13,400 × 13,400
LARGE = 16_000_000  # pixels above which images are decoded one at a time, since each takes 4 bytes a pixel or more
# Above LARGE, more pixels to a byte than this are a bomb or a damaged header: deflate, the densest of the common
# codes, reaches 8,000 on a blank picture of 1 bit a pixel.
MAX_PIXELS_PER_BYTE = 10_000

ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")

_large = threading.Lock()


def _fresh_lock() -> None:
    global _large
    _large = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A worker forked while another thread decodes would inherit a lock that nobody ever opens.
    os.register_at_fork(after_in_child=_fresh_lock)


class ImageFileError(DataError):
    """One image file cannot be used.

    Attributes:
        reason: a short category to count by: "missing file", "empty file", "not an image", "truncated", "too large",
            "unreadable", "unsupported pixel format", "non-finite values", "float values outside 0 to 1".
    """

    def __init__(self, reason: str, path: str, detail: str = "") -> None:
        super().__init__(reason, path, detail)
        self.reason = reason

    def __str__(self) -> str:
        reason, path, detail = self.args
        return f"{path}: {reason}" + (f" ({detail})" if detail else "")


class Header(NamedTuple):
    """What a file says of itself before its pixels are decoded; height and width as seen upright."""

    height: int
    width: int
    mode: str
    grey: bool


def peek(path: Path) -> Header:
    """The header of the image at `path`.

    Raises:
        ImageFileError: it is no image, or one that is refused from its header.
    """
    try:
        with _open(path) as image:
            width, height = image.size
            # Pillow turns TIFF by itself, sizes included. PNG may keep its EXIF after the pixels, and asking for it
            # would decode them all: there, only what stands in front counts.
            known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            if known and _orientation(image) >= 5:
                height, width = width, height
            return Header(height, width, image.mode, _is_grey(image))
    except Exception as error:
        raise _reasoned(error, path) from error


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The image at `path`, uint8 of `shape` (C, H, W) with C 1 or 3.

    Raises:
        ImageFileError: with its reason.
    """
    return pixels(open_image(path, shape[1:]), shape)


def pixels(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """An 8-bit grey or RGB image as a uint8 array of `shape` (C, H, W), fitted; see `fit`."""
    channels, height, width = shape
    fitted = fit(image, height, width).convert("L" if channels == 1 else "RGB")
    values = np.array(fitted).reshape(height, width, channels)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def read_mask(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The mask at `path`, uint8 of `shape` (1, H, W): 0 or 255, the nearest pixel's, above or below the middle.

    A mask of only 0 and 1, as programs write it, means 0 and 255.

    Raises:
        ImageFileError: with its reason.
    """
    _, height, width = shape
    values = np.array(fit(open_image(path), height, width, Resampling.NEAREST).convert("L"))
    middle = 127 if values.max() > 1 else 0
    return np.where(values > middle, 255, 0).astype(np.uint8)[None]


def open_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """The image at `path`, upright and opaque, in mode L or RGB; of an animation, the first frame.

    Args:
        size: (height, width) to fit it to, see `fit`; its own when left out. A much larger JPEG is then decoded at a
            half, a quarter or an eighth, never below three times the size: a fraction of the time and memory.

    Raises:
        ImageFileError: with its reason.
    """
    try:
        with _open(path) as image:
            if size is not None:
                image.draft(None, (3 * max(size), 3 * max(size)))  # JPEG only; nothing happens to other formats
            with _large if image.width * image.height > LARGE else nullcontext():
                image.load()
                upright = _UPRIGHT.get(_orientation(image))
                plain = _eight_bit(image)
                turned = plain if upright is None else plain.transpose(upright)
                return turned if size is None else fit(turned, *size)
    except Exception as error:
        raise _reasoned(error, path) from error


def fit(image: Image.Image, height: int, width: int, how: Resampling | None = None) -> Image.Image:
    """The largest centred part of `image` with the aspect of height × width, resized to it: cropped, never squashed.

    Reduced with Lanczos (after an exact box average when the reduction is large), enlarged bicubically, so that pixel
    art keeps its edges without ringing, unless `how` says otherwise. An image of that size already comes back as it is.
    """
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    crop_w, crop_h = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - crop_w) / 2, (image.height - crop_h) / 2
    # Cropping to a box of fractions of a pixel while resizing keeps the aspect exact, where resizing first rounds it.
    box = (left, top, min(left + crop_w, image.width), min(top + crop_h, image.height))
    if how is None:
        how = Resampling.BICUBIC if scale > 1 else Resampling.LANCZOS
    # Pillow's nearest takes no fractions of averages: reduced first, a thin line would be gone.
    return image.resize((width, height), how, box=box, reducing_gap=None if how == Resampling.NEAREST else 3.0)


def _open(path: Path) -> Image.Image:
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise ImageFileError("empty file", str(path))
    image = Image.open(path, formats=FORMATS)
    width, height = image.size
    if 1 <= width * height <= min(MAX_PIXELS, max(LARGE, num_bytes * MAX_PIXELS_PER_BYTE)):
        return image
    image.close()
    reason = "too large" if width * height else "unreadable"
    raise ImageFileError(reason, str(path), f"{width}×{height} pixels in {num_bytes} bytes; at most {MAX_PIXELS:,}")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF of any kind: the picture itself is fine, and is taken as it lies
        return 1


def _is_grey(image: Image.Image) -> bool:
    if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
        return True
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    # Pillow opens 16-bit grey with alpha as RGBA; only the raw mode of its decoder still says what it was.
    return any("LA" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _eight_bit(image: Image.Image) -> Image.Image:
    """`image`, loaded, in mode L or RGB, transparency laid on white."""
    mode = image.mode
    # Versions of Pillow differ: some open 16-bit PNG in mode I, which otherwise means 32 bits.
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        return _from_16_bit(image)
    if mode == "F":
        return _from_float(image)
    if mode == "I":
        raise ImageFileError("unsupported pixel format", "", "32-bit whole numbers have no agreed white: save 16 bits")
    if image.has_transparency_data:
        if mode != "RGBA":
            image = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image)
        image = flat
    target = "L" if mode in _GREY_MODES else "RGB"
    return image if image.mode == target else image.convert(target)  # convert would copy all the same


def _from_16_bit(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(258, (16,))  # a TIFF may say 12
    table = np.rint(np.arange(1 << 16) * (255 / ((1 << bits) - 1))).clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:  # 0 is white in this file, and Pillow heeds that in 8 bits only
        table = 255 - table
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        table[transparent] = 255
    return Image.fromarray(table[np.asarray(image)])


def _from_float(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ImageFileError("non-finite values", "")
    low, high = float(values.min()), float(values.max())
    if low < -1 / 510 or high > 1 + 1 / 510:  # half a grey level is rounding; more is another scale
        raise ImageFileError("float values outside 0 to 1", "", f"from {low:g} to {high:g}")
    return Image.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8))


def _reasoned(error: Exception, path: Path) -> ImageFileError:
    """Whatever Pillow raised, as one reason. It raises nearly anything: SyntaxError, struct.error, IndexError, …"""
    name = str(path)
    if isinstance(error, ImageFileError):
        _, _, detail = error.args
        return ImageFileError(error.reason, name, detail)
    if isinstance(error, FileNotFoundError):
        return ImageFileError("missing file", name)
    if isinstance(error, MemoryError | Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageFileError("too large", name, str(error))
    if isinstance(error, UnidentifiedImageError):
        return ImageFileError("not an image", name)
    if isinstance(error, OSError) and error.errno is not None:
        return ImageFileError("unreadable", name, error.strerror or "")
    if "truncated" in str(error).lower() or _is_cut_webp(path):
        return ImageFileError("truncated", name)
    return ImageFileError("unreadable", name, str(error))


def _is_cut_webp(path: Path) -> bool:
    """Its decoder says only that it failed, but the container states its own length."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
        return head[:4] == b"RIFF" and int.from_bytes(head[4:], "little") + 8 > path.stat().st_size
    except OSError:
        return False
