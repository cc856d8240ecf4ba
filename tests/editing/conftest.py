"""A small data set and an untrained model of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diff_diffusion import DiffusionModel
from diff_diffusion.data import ImageDataset

sys.path[:0] = [str(Path(__file__).parent)]


@pytest.fixture(scope="session")
def data() -> ImageDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), np.uint8)
    return ImageDataset.from_arrays(torch.from_numpy(pixels), np.arange(12) % 2, ["猫", "dog"])


@pytest.fixture(scope="session")
def model(data: ImageDataset) -> DiffusionModel:
    return DiffusionModel.for_data(data)
