"""The configuration of a run as plain data: defaults from the data set, then a YAML file, then --set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from diff_diffusion.errors import ConfigError, listed

SECTIONS = ("data", "model", "train")
# `network.width` means `model.network.width`.
SHORT = {
    name: f"model.{name}" for name in ("network", "codec", "recipe", "conditioner", "bottleneck", "reconstruction")
} | {name: f"model.recipe.{name}" for name in ("process", "target", "objective", "sampler", "grid", "guidance")}


def parse_size(size: str | None) -> int | tuple[int, int] | None:
    """ "64" or "48x64" (height x width).

    Raises:
        ConfigError: neither.
    """
    if size is None:
        return None
    parts = str(size).lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"size {size!r} is neither one number, such as 64, nor height x width, such as 48x64")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def read_changes(config: Path | None, sets: Sequence[str], sections: Sequence[str] = SECTIONS) -> dict[str, Any]:
    """What a YAML file says in its `sections`, and --set options, as one nested mapping under data, model and train.

    Raises:
        ConfigError: a file that is no YAML mapping, a --set without "=", or an unknown section.
    """
    changes: dict[str, Any] = {}
    if config is not None:
        try:
            loaded = yaml.safe_load(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--config {config} cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"--config {config} is not YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"{config} must hold a mapping with {listed(SECTIONS)}, not {type(loaded).__name__}")
        changes = {name: part for name, part in loaded.items() if name in sections or name not in SECTIONS}
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set takes PATH=VALUE, such as train.lr=0.001, not {text!r}")
        head, _, rest = path.partition(".")
        keys = (SHORT.get(head, head) + ("." + rest if rest else "")).split(".")
        here = changes
        for key in keys[:-1]:
            if isinstance(here.get(key), str):  # a part that an earlier --set or the file names
                here[key] = {"type": here[key]}
            here = here.setdefault(key, {})
            if not isinstance(here, dict):
                raise ConfigError(f"--set {path}: {key} is already set to {here!r}")
        last, given = keys[-1], yaml.safe_load(value)
        settings = here.get(last)
        if isinstance(given, str) and isinstance(settings, dict) and "type" not in settings:
            given = {"type": given, **settings}  # its settings came first
        here[last] = given
    unknown = [key for key in changes if key not in SECTIONS]
    if unknown:
        raise ConfigError(
            f"unknown section {listed(unknown)}: a configuration has {listed(SECTIONS)}; short: {listed(SHORT)}"
        )
    return changes


def merged(base: Any, changes: Any, path: str = "") -> Any:
    """`base` with `changes` on top. A part can be replaced by name ("heun") or by another type; the name it has
    already leaves it as it is.

    Raises:
        ConfigError: a key of plain settings that is not there.
    """
    if isinstance(base, Mapping) and "type" in base:
        changes = {"type": changes} if isinstance(changes, str) else changes
        if isinstance(changes, Mapping) and "/" not in str(changes.get("type", "/")):
            changes = {**changes, "type": f"{base['type'].split('/')[0]}/{changes['type']}"}
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    if "type" in base:
        if changes.get("type", base["type"]) != base["type"]:
            return dict(changes)
    else:
        unknown = [key for key in changes if key not in base]
        if unknown and base:  # what is empty may hold any names: how often each condition is dropped
            raise ConfigError(f"unknown setting {path + listed(unknown)}: there are {listed(base, 40)}")
    return {**base, **{key: merged(base.get(key), value, f"{path}{key}.") for key, value in changes.items()}}


def network_named(changes: Mapping[str, Any]) -> str | None:
    """The network that changes name, for a default of its size from the data; None when they name none."""
    model = changes.get("model")
    network = model.get("network") if isinstance(model, Mapping) else None
    name = network.get("type") if isinstance(network, Mapping) else network
    return str(name).removeprefix("network/") if name else None


def to_yaml(config: Mapping[str, Any]) -> str:
    """Readable YAML that `--config` takes."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
