"""The model card: README.md of a model folder, made from what the model and its facts say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diff_diffusion.registry import build

KINDS = {
    "model/autoencoder": ("An autoencoder", "info {name}"),
    "model/classifier": (
        "A classifier that knows noise",
        "sample MODEL --classifier {name} --label LABEL --guidance 3",
    ),
    "model/diffusion": ("A diffusion model", "sample {name} -n 16 --out samples"),
}
"""What a model of each type is, and the command to begin with."""


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return str(value)


def card(name: str, model: Mapping[str, Any], facts: Mapping[str, Any], asked: Sequence[str] = ()) -> str:
    """Markdown: what the model is, what it was trained on, what it is asked for, how to sample it or by it."""
    recipe = model.get("recipe")
    process = recipe["process"] if recipe else model.get("process")
    codec = model["codec"]
    parts = {"network": f"{model['network']['type']}, {facts.get('parameters', 0):,} parameters"}
    if process:
        how = (
            f"scaling {process['scaling']}" if "scaling" in process else process["type"]
        )  # a process of tokens has none
        parts["process"] = f"{process['time_map']['type']}, {how}"
    parts["sample shape"] = " × ".join(map(str, codec.get("pixels", codec)["shape"]))
    what, command = KINDS.get(model["type"], KINDS["model/diffusion"])
    if recipe:
        steps = build(recipe["grid"]).num_steps  # which a grid made from a grid does not store
        parts["target"] = recipe["target"].get("row", recipe["target"]["type"])
        parts["sampler"] = f"{recipe['sampler']['type']} on {recipe['grid']['type']}, {steps} steps"
    if "bottleneck" in model:
        parts["bottleneck"] = model["bottleneck"]["type"]
    if asked:
        parts["asked for" if recipe else "tells"] = "; ".join(asked)
    flat = {key.replace("_", " "): value for key, value in facts.items() if not isinstance(value, dict)}
    lines = [
        f"# {name}",
        "",
        f"{what}, made with diff-diffusion.",
        "",
        "```sh",
        f"diff-diffusion {command.format(name=name)}",
        "```",
        "",
        "| part | value |",
        "|---|---|",
        *(f"| {key} | {_value(value)} |" for key, value in parts.items()),
        "",
        "## Facts",
        "",
        "| fact | value |",
        "|---|---|",
        *(f"| {key} | {_value(value)} |" for key, value in flat.items()),
        "",
        "Weights: `model.safetensors` holds `ema/…` (the average, which is used) and `raw/…`. Their licence is for",
        "whoever trained the model to state; that of the data applies to it.",
        "",
    ]
    return "\n".join(lines)
