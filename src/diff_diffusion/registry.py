"""Parts by name: JSON to objects and back, through an allow-list.

A part registers itself as "kind/name" ("sampler/heun"). Its constructor's arguments are its configuration, kept as
attributes under their own names, so `describe` needs nothing from the part and `build` is its exact inverse. Only
registered names can be built: a file never names something to import.

    >>> from diff_diffusion.registry import build, describe
    >>> cosine = build({"type": "time_map/cosine", "offset": 0.008})
    >>> describe(cosine)
    {'type': 'time_map/cosine', 'offset': 0.008}
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from diff_diffusion.errors import ConfigError, DiffusionError, listed

# The packages whose modules register the built-in parts. A module dropped into one of them is found by being there.
BUILTIN_PACKAGES = ("core", "conditions", "networks", "codecs", "samplers", "guidance", "objectives")
MAX_DEPTH = 16

T = TypeVar("T")
_parts: dict[str, tuple[type, dict[str, Any]]] = {}
_names: dict[type, str] = {}


def register(name: str, **aliases: Mapping[str, Any]) -> Callable[[type[T]], type[T]]:
    """A class decorator: the class can be described and built as `name`, "kind/name".

    Args:
        name: "kind/name", lower case, unique for ever (files store it).
        aliases: other names of the same kind for the same class with some arguments fixed, such as the names papers
            use: `register("sampler/ancestral", ddim={"eta": 0.0})`.

    Raises:
        ConfigError: the name is taken.
    """
    kind = name.split("/")[0]

    def add(cls: type[T]) -> type[T]:
        for full, fixed in [(name, {}), *((f"{kind}/{alias}", dict(fixed)) for alias, fixed in aliases.items())]:
            if full in _parts and _parts[full][0] is not cls:
                raise ConfigError(f"the registry name {full!r} is taken by {_parts[full][0].__name__}")
            _parts[full] = (cls, fixed)
        _names[cls] = name
        return cls

    return add


@cache
def _load_builtin() -> None:
    for package in BUILTIN_PACKAGES:
        home = importlib.import_module(f"diff_diffusion.{package}")
        for module in pkgutil.iter_modules(home.__path__):
            importlib.import_module(f"{home.__name__}.{module.name}")


def names(kind: str, *, aliases: bool = True) -> list[str]:
    """The registered names of one kind, sorted, without the "kind/" prefix."""
    _load_builtin()
    prefix = kind + "/"
    own = set(_names.values())
    return sorted(name[len(prefix) :] for name in _parts if name.startswith(prefix) and (aliases or name in own))


def find(kind: str, name: str) -> dict[str, Any]:
    """The description of the part that a user calls `name`, ready for `build`.

    Raises:
        ConfigError: no such part; the message lists those there are.
    """
    known = names(kind)
    if name not in known:
        hint = _hint(name, known)
        raise ConfigError(f"unknown {kind.replace('_', ' ')} {name!r}: {hint}available: {listed(known, 40)}")
    return {"type": f"{kind}/{name}"}


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's arguments by name: a part's whole configuration."""
    return {
        name: parameter
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }


def takes(description: Mapping[str, Any], argument: str) -> bool:
    """Whether the part that `find` found has an argument of that name."""
    return argument in arguments(_parts[description["type"]][0])


def describe(part: Any) -> Any:
    """`part` as JSON data: {"type": name, argument: value, …}, nested.

    Raises:
        ConfigError: something in it is neither registered nor plain data.
    """
    if part is None or isinstance(part, str | int | float | bool):
        return part
    if isinstance(part, list | tuple):
        return [describe(item) for item in part]
    if isinstance(part, Mapping):
        return {str(key): describe(value) for key, value in part.items()}
    if type(part) in _names:
        return {
            "type": _names[type(part)],
            **{name: describe(getattr(part, name)) for name in arguments(type(part))},
        }
    raise ConfigError(f"{type(part).__name__} is not a registered part, so it cannot be stored: register it first")


def build(description: Any, _path: str = "", _depth: int = 0) -> Any:
    """The object that `describe` described. Lists come back as tuples; plain data as it is.

    Raises:
        ConfigError: an unknown type or argument, a missing one, a value of the wrong kind, or nesting deeper than 16.
        DiffusionError: whatever a part's constructor refuses.
    """
    if _depth > MAX_DEPTH:
        raise ConfigError(f"the description is nested deeper than {MAX_DEPTH} levels at {_path or 'its root'}")
    if isinstance(description, list | tuple):
        return tuple(build(item, f"{_path}[{i}]", _depth + 1) for i, item in enumerate(description))
    if not isinstance(description, Mapping):
        return description
    values = {
        key: build(value, f"{_path}.{key}".lstrip("."), _depth + 1)
        for key, value in description.items()
        if key != "type"
    }
    if "type" not in description:
        return values
    name = description["type"]
    _load_builtin()
    if not isinstance(name, str) or name not in _parts:
        where = f" at {_path}" if _path else ""
        kind, _, short = str(name).partition("/")
        known = names(kind) or sorted({full.split("/")[0] for full in _parts})
        raise ConfigError(f"unknown part {name!r}{where}: {_hint(short, known)}known here: {listed(known, 40)}")
    cls, fixed = _parts[name]
    allowed = arguments(cls)
    unknown = [key for key in values if key not in allowed]
    if unknown:
        hint = _hint(unknown[0], allowed)
        raise ConfigError(
            f"{name} takes no {listed(map(repr, unknown))}: {hint}it takes {listed(allowed, 40) or 'nothing'}"
        )
    merged = fixed | values
    missing = [key for key, p in allowed.items() if p.default is inspect.Parameter.empty and key not in merged]
    if missing:
        raise ConfigError(f"{name} needs {listed(missing)}, which the description lacks")
    try:
        return cls(**merged)
    except DiffusionError:  # the part's own words; an IncompatibleError is a TypeError too
        raise
    except (TypeError, ValueError, AttributeError) as error:  # of the wrong kind; parts check ranges, not types
        raise ConfigError(f"{name} cannot be built from {merged}: {error}") from error
