"""Every error this package raises on purpose, and the one door to optional packages.

A message says what was seen, what is allowed, and what to do. All of them derive from `DiffusionError`, so that a
program (the command line, a server) can turn any of them into one line; each also derives from the builtin a Python
user would expect to catch.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class DiffusionError(Exception):
    """The root: anything here is the user's to mend, and its message says how."""


class ConfigError(DiffusionError, ValueError):
    """An argument, setting or stored description is unknown, out of range or of the wrong kind."""


class IncompatibleError(DiffusionError, TypeError):
    """Two parts that are each fine cannot work together; the message names partners that fit."""


class DataError(DiffusionError, ValueError):
    """The data set cannot be used as it is."""


class CheckpointError(DiffusionError, ValueError):
    """A model folder or checkpoint is damaged, foreign, or of a format this version does not read."""


class TrainingError(DiffusionError, RuntimeError):
    """Training cannot go on; the last good state is on disk."""


class MissingPackageError(DiffusionError, ImportError):
    """An optional package is not installed."""


def require(package: str, extra: str) -> ModuleType:
    """The optional `package`, imported now; or an error that names the pip command which brings it.

    Raises:
        MissingPackageError: `package` is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"this needs the package {package.split('.')[0]!r}, which is not installed: "
            f"pip install 'diff-diffusion[{extra}]'"
        ) from error


def listed(names: object, limit: int = 12) -> str:
    """Names as one readable line, for error messages."""
    items = [str(name) for name in names]  # type: ignore[attr-defined]
    more = f", … ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
