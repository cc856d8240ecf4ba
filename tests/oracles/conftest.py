"""The outside oracles: other libraries' samplers, where they are installed (`make test` installs them)."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode puts no test folder on the path


@pytest.fixture(scope="session")
def k_diffusion() -> ModuleType:
    """k-diffusion's sampling module, without the rest of the package: that imports torchvision and training tools."""
    spec = find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("k-diffusion is not installed: `make test` installs it, or pip install --no-deps k-diffusion")
    for needed in ("torchsde", "torchdiffeq"):
        pytest.importorskip(needed, reason=f"k-diffusion's samplers import {needed}")
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    # The one function that the samplers take from there.
    utils.append_dims = lambda x, ndim: x.reshape(*x.shape, *[1] * (ndim - x.ndim))  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "k_diffusion", package)
        patch.setitem(sys.modules, "k_diffusion.utils", utils)
        module = import_module("k_diffusion.sampling")
        patch.delitem(sys.modules, "k_diffusion.sampling")  # nobody else finds half a package
    return module
