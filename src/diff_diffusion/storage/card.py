"""The model card: README.md of a model folder, made from what the model and its facts say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diff_diffusion.registry import build


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return str(value)


def card(name: str, model: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Markdown: what the model is, what it was trained on, how to sample it."""
    recipe = model["recipe"]
    steps = build(recipe["grid"]).num_steps  # which a grid made from a grid does not store
    parts = {
        "network": f"{model['network']['type']}, {facts.get('parameters', 0):,} parameters",
        "process": f"{recipe['process']['time_map']['type']}, scaling {recipe['process']['scaling']}",
        "target": recipe["target"].get("row", recipe["target"]["type"]),
        "sampler": f"{recipe['sampler']['type']} on {recipe['grid']['type']}, {steps} steps",
        "sample shape": " × ".join(map(str, model["codec"]["shape"])),
    }
    if model["conditioner"]:
        parts["classes"] = ", ".join(model["conditioner"]["names"])
    flat = {key.replace("_", " "): value for key, value in facts.items() if not isinstance(value, dict)}
    lines = [
        f"# {name}",
        "",
        "A diffusion model made with diff-diffusion.",
        "",
        "```sh",
        f"diff-diffusion sample {name} -n 16 --out samples",
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
        "Weights: `model.safetensors` holds `ema/…` (what samples are drawn from) and `raw/…`. Their licence is for",
        "whoever trained the model to state; that of the data applies to it.",
        "",
    ]
    return "\n".join(lines)
