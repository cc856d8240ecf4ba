"""The peers as they are, importable on a machine without torchvision, which does not import beside a CPU-only torch.

denoising-diffusion-pytorch needs torchvision only to read image files and to write grids, and pytorch_fid only for a
metric that is not used here; stand-ins let it be imported. What is measured, its network, diffusion and trainer's step,
is its own code untouched.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def denoising_diffusion_pytorch() -> Any:
    """The package."""
    for name in ("torchvision", "pytorch_fid"):
        try:
            __import__(name)
        except (ImportError, RuntimeError):
            for part in [key for key in sys.modules if key.split(".")[0] == name]:
                del sys.modules[part]
            _stand_in(name)
    import denoising_diffusion_pytorch as package

    return package


def _stand_in(name: str) -> None:
    parts = {
        "torchvision": {"transforms": {}, "utils": {}},
        "pytorch_fid": {"fid_score": {"calculate_frechet_distance": None}, "inception": {"InceptionV3": None}},
    }[name]
    whole = sys.modules[name] = ModuleType(name)
    for part, names in parts.items():
        module = ModuleType(f"{name}.{part}")
        for key, value in names.items():
            setattr(module, key, value)
        setattr(whole, part, module)
        sys.modules[f"{name}.{part}"] = module
