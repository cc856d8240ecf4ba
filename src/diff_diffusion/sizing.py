"""What model suits what data: the description of one, from the data's shape, classes and statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.errors import IncompatibleError
from diff_diffusion.presets import RECIPES, recipe
from diff_diffusion.registry import describe, find

if TYPE_CHECKING:
    from diff_diffusion.data import ImageDataset

CODEC_BATCH = 1024


def describe_for_data(
    data: ImageDataset, preset: str | None = None, network: str = "unet", **options: Any
) -> dict[str, Any]:
    """The description of the model that `DiffusionModel.for_data` makes, before any weight exists."""
    betas = {"timesteps", "beta_start", "beta_end", "beta_schedule"} & options.keys()
    chosen = recipe(preset or ("ddim" if betas else "rectified_flow"), **options)
    if not isinstance(chosen.process, Gaussian):
        raise IncompatibleError(
            f"preset {preset!r} is for tokens, and {data.name} holds images: for images use one of "
            f"{', '.join(name for name in RECIPES if isinstance(recipe(name).process, Gaussian))}"
        )
    channels, height, width = data.shape
    side = max(height, width)
    cond_width = 4 * unet_size(side)["width"] if data.class_names else 0
    codec = Affine.fit(
        [data.batch(range(i, min(i + CODEC_BATCH, len(data)))) for i in range(0, len(data), CODEC_BATCH)]
    )
    conditioner = {"type": "conditioner/classes", "names": list(data.class_names), "width": cond_width}
    # A network whose name says its size, or of which nothing is known here, keeps its own.
    sizes = {"unet": unet_size, "dit": dit_size}
    size = sizes[network](side) if network in sizes else {}
    described = {**find("network", network), "channels": channels, **size, "cond_width": cond_width}
    if chosen.target.outputs != 1:
        described["out_channels"] = channels * chosen.target.outputs
    return {
        "type": "model/diffusion",
        "network": described,
        "codec": describe(codec),
        "recipe": describe(chosen),
        "conditioner": conditioner if data.class_names else None,
    }


def unet_size(side: int) -> dict[str, Any]:
    """Width, levels, depth and attention of a U-Net for images whose longer side is `side`."""
    if side <= 16:
        return {"width": 32, "multipliers": [1, 2], "depth": 1, "attention": [2]}
    if side <= 32:
        return {"width": 48, "multipliers": [1, 2, 2], "depth": 2, "attention": [4]}
    if side <= 64:
        return {"width": 64, "multipliers": [1, 2, 3, 4], "depth": 2, "attention": [8]}
    return {"width": 96, "multipliers": [1, 1, 2, 3, 4], "depth": 2, "attention": [16]}


def dit_size(side: int) -> dict[str, Any]:
    """Patch, width, depth and heads of a DiT for images whose longer side is `side`: at most 256 tokens up to 128."""
    if side <= 16:
        return {"patch": 2, "width": 128, "depth": 6, "heads": 4}
    if side <= 32:
        return {"patch": 2, "width": 192, "depth": 8, "heads": 6}
    if side <= 64:
        return {"patch": 4, "width": 256, "depth": 8, "heads": 8}
    return {"patch": 8, "width": 384, "depth": 12, "heads": 6}
