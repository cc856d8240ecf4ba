"""Models whose weights are not the zeros that training starts from: places see one another, and classes differ."""

from __future__ import annotations

import torch

from diff_diffusion import DiffusionModel


def stirred(model: DiffusionModel) -> DiffusionModel:
    """The model with every weight moved by N(0, 0.05²), in evaluation mode."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.denoiser.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=draw)
    return model.eval()
