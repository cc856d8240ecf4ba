"""Pictures: tensors in data units as image files that carry their recipe, and sheets of them with labels."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from diff_diffusion.errors import DataError, DiffusionError
from diff_diffusion.storage.folder import write_file

RECIPE_KEY = "diff-diffusion"
INK, PAPER = (30, 30, 30), (255, 255, 255)
# Fonts with Chinese, Japanese and Korean glyphs, as Linux, macOS and Windows name them. Pillow's own font has none.
WIDE_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSerifCJK-Regular.ttc", "wqy-zenhei.ttc"),
    *("wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "PingFang.ttc", "msyh.ttc", "simhei.ttf"),
)


def to_picture(sample: Tensor) -> Tensor:
    """One sample [C, H, W] in data units 0..255 as uint8 [H, W] (grey) or [H, W, C], as viewers expect.

    Raises:
        DiffusionError: values that are not finite; they are never cast to black.
        DataError: not 1, 3 or 4 channels.
    """
    if sample.ndim != 3 or sample.shape[0] not in (1, 3, 4):
        raise DataError(f"a picture is [1, H, W], [3, H, W] or [4, H, W], not {list(sample.shape)}")
    if sample.is_floating_point():
        if not bool(torch.isfinite(sample).all()):
            raise DiffusionError("the sample holds values that are not finite, so no picture is written")
        sample = sample.round().clamp(0, 255).to(torch.uint8)
    picture = sample.cpu().permute(1, 2, 0)
    return picture[..., 0] if picture.shape[-1] == 1 else picture


def to_image(sample: Tensor) -> Image.Image:
    """One sample [C, H, W] in data units as a Pillow image."""
    return Image.fromarray(to_picture(sample).numpy())


def write_png(path: Path, image: Image.Image, recipe: Mapping[str, Any] | None = None) -> None:
    """The image as a PNG, whole or not at all, with `recipe` inside as JSON."""
    info = PngImagePlugin.PngInfo()
    if recipe is not None:
        info.add_itxt(RECIPE_KEY, json.dumps(recipe, ensure_ascii=False))
    content = io.BytesIO()
    image.save(content, "PNG", pnginfo=info)
    write_file(path, content.getvalue())


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe inside a PNG that this package wrote.

    Raises:
        DataError: no such file, no image, or no recipe in it.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(RECIPE_KEY)
        recipe = json.loads(text) if isinstance(text, str) else None
    except (OSError, ValueError, RecursionError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture with a recipe: {error}") from error
    if not isinstance(recipe, dict):
        raise DataError(
            f"{path} carries no recipe: it was not made by `diff-diffusion sample`, or an editor left the recipe out"
        )
    return recipe


def _font(texts: Sequence[str], size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    """A font that shows the texts; None when the machine has none that does."""
    if all(ord(letter) < 0x250 for text in texts for letter in text):
        return ImageFont.load_default(size)
    for name in WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


def sheet(
    samples: Tensor,
    columns: int,
    labels: Sequence[str] = (),
    heads: Sequence[str] = (),
    *,
    cell: int = 64,
    gap: int = 4,
) -> Image.Image:
    """Samples [n, C, H, W] in data units on one sheet, row by row, each scaled up by a whole factor to about `cell`.

    Args:
        labels: one per row, written at its left. Where the machine has no font for them, rows are numbered.
        heads: one per column, written above it; numbered likewise.
    """
    factor = max(1, round(cell / max(samples.shape[-2:])))
    height, width = samples.shape[-2] * factor, samples.shape[-1] * factor
    rows = -(-len(samples) // columns)
    size = max(11, min(16, height // 4))
    font = _font([*labels, *heads], size)
    if font is None:
        font = ImageFont.load_default(size)
        labels, heads = ([f"#{i}" for i, _ in enumerate(texts)] for texts in (labels, heads))
    margin = int(max((font.getbbox(label)[2] for label in labels), default=0)) + (2 * gap if labels else 0)
    top = size + 2 * gap if heads else 0
    page = Image.new("RGB", (margin + columns * (width + gap) + gap, top + rows * (height + gap) + gap), PAPER)
    draw = ImageDraw.Draw(page)
    for index, sample in enumerate(samples):
        row, column = divmod(index, columns)
        tile = to_image(sample).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        page.paste(tile, (margin + gap + column * (width + gap), top + gap + row * (height + gap)))
    for column, head in enumerate(heads):
        x = margin + gap + column * (width + gap) + width // 2
        shown = head
        while len(shown) > 1 and font.getbbox(shown)[2] > width:  # cut to its column
            shown = shown[:-1]
        draw.text((x, gap), shown, fill=INK, font=font, anchor="ma")
    for row, label in enumerate(labels):
        draw.text((gap, top + gap + row * (height + gap) + height // 2), label, fill=INK, font=font, anchor="lm")
    return page


def to_array(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A Pillow image's pixels."""
    return np.asarray(image)
