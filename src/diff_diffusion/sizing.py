"""What model suits what data: the description of one, from the data's shape, classes and statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.codec import Codec, place_side
from diff_diffusion.conditions.frozen_text import describe_frozen_text
from diff_diffusion.conditions.text import describe_text
from diff_diffusion.data.columns import DERIVED
from diff_diffusion.errors import ConfigError, IncompatibleError, listed
from diff_diffusion.presets import RECIPES, Recipe, fitting, recipe
from diff_diffusion.registry import build, describe, find, names, takes
from diff_diffusion.tensors import TensorSpec

if TYPE_CHECKING:
    from diff_diffusion.data import ImageDataset

CODEC_BATCH = 1024
CODEC_IMAGES = 1 << 16
DROP_EACH = 0.1
"""The share of samples trained without each one of several conditions."""
CLASSIFIER_DROPOUT = 0.1
GROUP_WIDTH = 16
"""Channels that a U-Net norms together: the least that bfloat16 on a CPU is fast at."""
SHRUNK_NOISE = 0.25
"""How noisy small images are made in training, so that they may be another model's samples."""


def describe_for_data(
    data: ImageDataset,
    preset: str | None = None,
    network: str | None = None,
    conditional: bool = True,
    text_encoder: str | None = None,
    codec: Codec | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The description of the model that `DiffusionModel.for_data` makes, before any weight exists.

    A model that is not conditional learns nothing of the data's columns. Captions are read by an encoder that is
    trained along, or by a frozen one in the folder `text_encoder`. Of a codec with weights, only its description is in
    the model's: whoever builds it gives it the weights. The network is "unet" unless named, and for tokens
    "token_transformer".

    Raises:
        IncompatibleError: a codec of data of another shape; a preset or a network that is not for what it gives.
    """
    if codec is not None and tuple(codec.data.shape) != data.shape:
        raise IncompatibleError(
            f"the codec is for samples {list(codec.data.shape)}; {data.name} has {list(data.shape)}"
        )
    chosen = _recipe(data, preset, codec, **options)
    codec = codec or _codec(data)
    side = max(data.shape[1:])
    conditions = {
        name: _condition(data, name, side, text_encoder, place_side(codec))
        for name, column in (data.columns if conditional else {}).items()
        if column.kind in DERIVED or any(value is not None for value in column.values)
    }
    if text_encoder is not None and not any("length" in part for part in conditions.values()):
        has = listed(data.columns) or "nothing"
        raise ConfigError(f"a text encoder reads captions, and {data.name} has none: what is known is {has}")
    conditioner = {"type": "conditioner/conditions", "parts": conditions} if conditions else None
    if len(conditions) > 1:  # asked for any of them alone, too
        objective = replace(chosen.objective, drops=dict.fromkeys(conditions, DROP_EACH))
        chosen = replace(chosen, objective=objective)
    with torch.device("meta"):
        made = build(conditioner)
    planes = made.planes if made is not None else 0
    described = _network(codec.latent, network, side, chosen.target.outputs, planes)
    described["cond_width"] = made.width if made is not None else 0
    if made is not None and made.token_width and takes(described, "token_width"):
        described["token_width"] = made.token_width
    return {
        "type": "model/diffusion",
        "network": described,
        "codec": describe(codec),
        "recipe": describe(chosen),
        "conditioner": conditioner,
    }


def describe_classifier(
    data: ImageDataset, preset: str | None = None, codec: Codec | None = None, **options: Any
) -> dict[str, Any]:
    """The description of the classifier that `NoisyClassifier.for_data` makes, for the levels of a preset's process.

    Of what a codec with weights gives, which whoever builds it gives it; of pixels when left out.
    """
    label = data.columns.get("label")
    if label is None or label.kind != "class":
        has = f"; it has {listed(data.columns)}" if data.columns else ""
        raise ConfigError(
            f"a classifier needs classes, and {data.name} has none{has}: put each class into a folder of its own, or "
            "name it in a column 'label' of metadata.csv"
        )
    process, codec = _recipe(data, preset, codec, **options).process, codec or _codec(data)
    channels, *places = codec.latent.shape
    size = (latent_unet_size if place_side(codec) > 1 else unet_size)(max(places))
    sizes = {"channels": channels, "num_classes": len(label.names), **size, "dropout": CLASSIFIER_DROPOUT}
    parts = {"label": {"type": "condition/class", "names": list(label.names), "width": 0}}  # told, and not embedded
    return {
        "type": "model/classifier",
        "network": {"type": "classifier/unet_encoder", **sizes},
        "codec": describe(codec),
        "process": describe(process),
        "conditioner": {"type": "conditioner/conditions", "parts": parts},
        "levels": {"type": "levels/uniform"},
    }


def describe_autoencoder(
    data: ImageDataset, bottleneck: str = "kl", factor: int = 4, channels: int | None = None, **reconstruction: Any
) -> dict[str, Any]:
    """The description of the autoencoder that `Autoencoder.for_data` makes.

    Args:
        data: the train split.
        bottleneck: "kl", "vq" or "fsq", or any other registered one.
        factor: how many times smaller every side of a latent is, a power of 2.
        channels: of a latent, 4 when left out; "fsq" has one for each of its levels, and takes none.
        reconstruction: `shape` and `rate`.

    Raises:
        ConfigError: a factor that is no power of 2, or one by which the data's sizes cannot be divided; channels of a
            bottleneck that has its own.
    """
    side = max(data.shape[1:])
    if factor < 1 or factor & (factor - 1) or any(size % factor for size in data.shape[1:]):
        raise ConfigError(
            f"an autoencoder makes sides 1, 2, 4, 8, … times smaller, and {data.name} is "
            f"{data.shape[1]} × {data.shape[2]}: a factor of {factor} does not divide that"
        )
    found = find("bottleneck", bottleneck)
    if channels is not None and not takes(found, "channels"):
        raise ConfigError(
            f"bottleneck {bottleneck!r} has its own number of channels (fsq: one for each of `bottleneck.levels`), not "
            f"{channels}: leave the channels out"
        )
    made = build(found | ({"channels": channels} if channels is not None else {}))
    width = 32 if side <= 64 else 64
    multipliers = [min(2**level, 4) for level in range(factor.bit_length())]
    network = {"channels": data.shape[0], "codes_out": made.codes_out, "codes_in": made.channels}
    return {
        "type": "model/autoencoder",
        "network": {
            "type": "autoencoder/conv",
            **network,
            "width": width,
            "multipliers": multipliers,
            "depth": 1,
            "group_width": GROUP_WIDTH,
        },
        "codec": describe(_codec(data)),
        "bottleneck": describe(made),
        "reconstruction": {"type": "objective/reconstruction", **reconstruction},
    }


def _recipe(data: ImageDataset, preset: str | None, codec: Codec | None = None, **options: Any) -> Recipe:
    """The preset's recipe, which must fit the images, or what a codec gives."""
    latent = codec.latent if codec is not None else TensorSpec(data.shape)
    betas = {"timesteps", "beta_start", "beta_end", "beta_schedule"} & options.keys()
    name = preset or ("ddim" if betas else "masked_tokens" if latent.whole else "rectified_flow")
    fits = fitting(latent)
    if name in RECIPES and name not in fits:
        kind = "tokens" if latent.whole else "images" if codec is None else "numbers"
        raise IncompatibleError(
            f"preset {name!r} is for {'numbers' if latent.whole else 'tokens'}, and "
            f"{f'{data.name} holds' if codec is None else 'the codec gives'} {kind}: for {kind} use one of "
            f"{', '.join(fits)}"
        )
    if latent.whole:
        options = {"vocab": int(latent.high) + 1} | options
    return recipe(name, **options)


def _network(latent: TensorSpec, name: str | None, side: int, outputs: int, planes: int) -> dict[str, Any]:
    """A network for what a codec gives of images whose longer side is `side`, with `planes` more channels beside it."""
    name = name or ("token_transformer" if latent.whole else "unet")
    found = find("network", name)
    if takes(found, "vocab") != latent.whole:
        kinds = ("numbers", "tokens") if latent.whole else ("tokens", "numbers")
        every = names("network", aliases=False)
        fits = [other for other in every if takes(find("network", other), "vocab") == latent.whole]
        raise IncompatibleError(
            f"network {name!r} is for {kinds[0]}, and the codec gives {kinds[1]}: for {kinds[1]} use one of "
            f"{', '.join(fits)}"
        )
    if latent.whole:
        size = token_size(math.prod(latent.shape)) if name == "token_transformer" else {}
        return {**found, "vocab": int(latent.high) + 1, **size}
    # A network whose name says its size, or of which nothing is known here, keeps its own.
    channels, *places = latent.shape
    sizes = LATENT_SIZES if max(places) < side else {"unet": unet_size, "dit": dit_size, "mmdit": mmdit_size}
    size = sizes[name](max(places)) if name in sizes else {}
    described = {**found, "channels": channels + planes, **size}
    if outputs != 1 or planes:
        described["out_channels"] = channels * outputs
    return described


def _codec(data: ImageDataset) -> Affine:
    """The codec that is fitted to the data; of more than CODEC_IMAGES, to as many at even distances."""
    chosen = data.spread(CODEC_IMAGES)
    return Affine.fit(data.batch(chosen[i : i + CODEC_BATCH]) for i in range(0, len(chosen), CODEC_BATCH))


def _condition(
    data: ImageDataset, name: str, side: int, text_encoder: str | None = None, fold: int = 1
) -> dict[str, Any]:
    """The condition that a column of the data is; images stand beside places of `fold` pixels a side."""
    column, width = data.columns[name], 4 * unet_size(side)["width"]
    # Held-out images count for a range, as they must lie in it, and not for a vocabulary.
    known = [value for value in column.values if value is not None]
    if column.kind == "class":
        return {"type": "condition/class", "names": list(column.names), "width": width}
    if column.kind == "number":
        low, high = min(known), max(known)
        return {"type": "condition/number", "low": low, "high": high if high > low else low + 1.0, "width": width}
    if column.kind == "vector":
        numbers = torch.tensor(known, dtype=torch.float64)
        std = numbers.std(0, correction=0)
        std = torch.where(std > 0, std, 1.0)
        return {"type": "condition/vector", "mean": numbers.mean(0).tolist(), "std": std.tolist(), "width": width}
    if column.kind == "text":
        captions = [caption for several in data.known(name) for caption in several]
        return describe_frozen_text(text_encoder, captions, width) if text_encoder else describe_text(captions, width)
    channels = {"grey": 1, "mask": 1, "shrunk": data.shape[0]}.get(column.kind) or column.channels
    noise = SHRUNK_NOISE if column.kind == "shrunk" else 0.0
    kind = f"shrunk:{column.factor}" if column.kind == "shrunk" else column.kind
    shape = [channels, *data.shape[1:]]
    return {"type": "condition/image", "shape": shape, "noise": noise, "kind": kind, "fold": fold}


def unet_size(side: int) -> dict[str, Any]:
    """Width, levels, depth, attention and groups of a U-Net for images whose longer side is `side`."""
    if side <= 16:
        return {"width": 32, "multipliers": [1, 2], "depth": 1, "attention": [2], "group_width": GROUP_WIDTH}
    if side <= 32:
        return {"width": 48, "multipliers": [1, 2, 2], "depth": 2, "attention": [4], "group_width": GROUP_WIDTH}
    if side <= 64:
        return {"width": 64, "multipliers": [1, 2, 3, 4], "depth": 2, "attention": [8], "group_width": GROUP_WIDTH}
    return {"width": 96, "multipliers": [1, 1, 2, 3, 4], "depth": 2, "attention": [16], "group_width": GROUP_WIDTH}


def dit_size(side: int) -> dict[str, Any]:
    """Patch, width, depth and heads of a DiT for images whose longer side is `side`: at most 256 tokens up to 128."""
    if side <= 16:
        return {"patch": 2, "width": 128, "depth": 6, "heads": 4}
    if side <= 32:
        return {"patch": 2, "width": 192, "depth": 8, "heads": 6}
    if side <= 64:
        return {"patch": 4, "width": 256, "depth": 8, "heads": 8}
    return {"patch": 8, "width": 384, "depth": 12, "heads": 6}


def mmdit_size(side: int) -> dict[str, Any]:
    """Patch, width, depth and heads of an MMDiT for images whose longer side is `side`: about a DiT's cost."""
    if side <= 16:
        return {"patch": 2, "width": 128, "depth": 4, "heads": 4}
    if side <= 32:
        return {"patch": 2, "width": 192, "depth": 6, "heads": 6}
    if side <= 64:
        return {"patch": 4, "width": 256, "depth": 6, "heads": 8}
    return {"patch": 8, "width": 384, "depth": 9, "heads": 6}


def latent_unet_size(side: int) -> dict[str, Any]:
    """A U-Net's for latents whose longer side is `side`: each place says more than a pixel, so levels begin wider."""
    if side <= 8:
        size: dict[str, Any] = {"width": 64, "multipliers": [1, 2], "depth": 1, "attention": [2]}
    elif side <= 16:
        size = {"width": 96, "multipliers": [1, 2], "depth": 2, "attention": [2]}
    else:
        size = {"width": 128, "multipliers": [1, 2, 3], "depth": 2, "attention": [4]}
    return size | {"group_width": GROUP_WIDTH}


def latent_dit_size(side: int) -> dict[str, Any]:
    """A DiT's for latents whose longer side is `side`."""
    if side <= 16:
        return {"patch": 1 if side <= 8 else 2, "width": 256, "depth": 8, "heads": 8}
    return {"patch": 2, "width": 384, "depth": 12, "heads": 6}


def token_size(places: int) -> dict[str, Any]:
    """Width, depth and heads of a transformer for samples of that many tokens."""
    if places <= 16:
        return {"width": 128, "depth": 4, "heads": 4}
    if places <= 256:
        return {"width": 256, "depth": 8, "heads": 8}
    return {"width": 384, "depth": 12, "heads": 6}


LATENT_SIZES = {"unet": latent_unet_size, "dit": latent_dit_size, "mmdit": latent_dit_size}
