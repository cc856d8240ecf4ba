"""What a sample should be, from the words of a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diff_diffusion.conditions.images import ImageBeside
from diff_diffusion.conditions.labels import ClassLabel
from diff_diffusion.conditions.numbers import Number, Vector
from diff_diffusion.data.images import read_image
from diff_diffusion.errors import ConfigError, listed
from diff_diffusion.models import Model
from diff_diffusion.models.model import LABEL

NONE = "none"


def asked(
    model: Model, label: str | None, prompt: str | None, cond: Sequence[str], size: tuple[int, int] | None = None
) -> dict[str, Any] | None:
    """One sample's conditions by name; None where nothing is asked.

    Args:
        label: a class; "none", where no class is called that, for no label.
        prompt: a caption, for the one condition that reads text.
        cond: NAME=VALUE for any others: a number, numbers with commas between, an image's path, a class, a caption.
        size: (height, width) that images are brought to, the sample's; the model's own where None.

    Raises:
        ConfigError: the model takes no such thing, or two of the three say the same.
    """
    parts = model.conditioner.parts if model.conditioner is not None else {}
    said: list[tuple[str, str]] = []
    if label is not None and not (label == NONE and not parts):
        classes = [name for name, part in parts.items() if isinstance(part, ClassLabel)]
        said.append((_only(model, "--label", label, classes), label))
    if prompt is not None:
        reads = [name for name, part in parts.items() if part.token_width]
        said.append((_only(model, "--prompt", prompt, reads), prompt))
    said += [name_and_value(parts, pair) for pair in cond]
    names = [name for name, _ in said]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{listed(twice)} is said twice")
    return {name: _read(name, parts[name], value, size) for name, value in said} or None


def name_and_value(parts: Mapping[str, Any], pair: str) -> tuple[str, str]:
    """NAME=VALUE in two, of the conditions that there are; a name may hold "=" itself."""
    name = max((name for name in parts if pair.startswith(f"{name}=")), key=len, default=None)
    if name is None:
        knows = listed(parts) or "no condition"
        raise ConfigError(f"--cond {pair}: it is NAME=VALUE, and this model knows {knows}")
    return name, pair[len(name) + 1 :]


def _only(model: Model, option: str, value: str, names: list[str]) -> str:
    """The condition that an option means: the one called "label", or the only one there is of its kind."""
    if LABEL in names:
        return LABEL
    if len(names) == 1:
        return names[0]
    takes = model.conditioner.summary() if model.conditioner is not None else []
    if names:
        raise ConfigError(
            f"{option} {value}: this model has several such conditions, {listed(names)}: use --cond NAME=…"
        )
    raise ConfigError(f"{option} {value}: this model takes none; it is asked for {listed(takes) or 'nothing'}")


def _read(name: str, part: Any, value: str, size: tuple[int, int] | None) -> Any:
    if value == NONE and not part.token_width and not (isinstance(part, ClassLabel) and NONE in part.names):
        return None
    try:
        if isinstance(part, Number):
            return float(value)
        if isinstance(part, Vector):
            return [float(number) for number in value.split(",")]
    except ValueError:
        wanted = "a number" if isinstance(part, Number) else "numbers with commas between"
        raise ConfigError(f"{name} is {wanted}, and {value!r} is not") from None
    if isinstance(part, ImageBeside):
        height, width = size or part.shape[1:]
        return torch.from_numpy(read_image(Path(value), (part.shape[0], height, width)))
    return value
