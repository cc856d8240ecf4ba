"""diff-diffusion: train and sample diffusion models on your own data.

A process destroys data; its only dial is the log-SNR. A denoiser answers one question at any level: the posterior of
the clean data given the noisy data. A sampler walks a time grid asking it. Everything else is a view of these.

Public names are imported when first used, so that `import diff_diffusion` costs nothing.
"""

from __future__ import annotations

import gc
import importlib
from typing import TYPE_CHECKING, Any

from diff_diffusion._version import __version__

if TYPE_CHECKING:
    from diff_diffusion.data import ImageDataset, load_image_dataset
    from diff_diffusion.models import DiffusionModel
    from diff_diffusion.rng import Noise
    from diff_diffusion.training import TrainSettings, train

_HOMES = {
    "DiffusionModel": "models",
    "ImageDataset": "data",
    "Noise": "rng",
    "TrainSettings": "training",
    "load_image_dataset": "data",
    "train": "training",
}

__all__ = [
    "DiffusionModel",
    "ImageDataset",
    "Noise",
    "TrainSettings",
    "__version__",
    "load_image_dataset",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"diff_diffusion has no {name!r}; it has {', '.join(__all__)}")
    collecting = gc.isenabled()
    gc.disable()  # what is imported stays: to look through it for garbage, again and again, is a tenth of the time
    try:
        return getattr(importlib.import_module(f"diff_diffusion.{_HOMES[name]}"), name)
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    return __all__
