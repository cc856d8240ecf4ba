"""Errors: one root, a builtin each, and messages that name the fix."""

from __future__ import annotations

import pytest

from diff_diffusion import errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.IncompatibleError, TypeError),
        (errors.DataError, ValueError),
        (errors.CheckpointError, ValueError),
        (errors.TrainingError, RuntimeError),
        (errors.MissingPackageError, ImportError),
    ],
)
def test_every_error_is_ours_and_a_builtin(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, errors.DiffusionError)
    assert issubclass(error, builtin)


def test_a_missing_package_names_the_command() -> None:
    with pytest.raises(errors.MissingPackageError, match=r"'no_such_package'.*pip install 'diff-diffusion\[audio\]'"):
        errors.require("no_such_package.inner", extra="audio")
    assert errors.require("math", extra="audio").pi > 3


def test_long_lists_are_cut() -> None:
    assert errors.listed("abc") == "a, b, c"
    assert errors.listed(range(5), limit=2) == "0, 1, … (5 in all)"
