"""`load_model` and `sample` under the path from which the articles import them."""

from __future__ import annotations

from typing import Any

import torch

from diff_diffusion.models import DiffusionModel
from diff_diffusion.pictures import to_picture

__all__ = ["load_model", "sample"]

load_model = DiffusionModel.load


def sample(model: DiffusionModel, device: torch.device | str = "cpu", **options: Any) -> torch.Tensor:
    """One sample as plt.imshow takes it: uint8, [H, W] when grey, else [H, W, 3]. `options` as in `model.sample`."""
    return to_picture(model.to(device).sample(1, **options)[0])
