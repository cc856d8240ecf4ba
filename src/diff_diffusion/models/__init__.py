"""Models: networks with their meaning and their facts, trained, saved and loaded as one."""

from diff_diffusion.models.autoencoder import Autoencoder
from diff_diffusion.models.classifier import NoisyClassifier
from diff_diffusion.models.diffusion import DiffusionModel, grid_named, sampler_named
from diff_diffusion.models.guiding import Guidance
from diff_diffusion.models.model import Model

__all__ = ["Autoencoder", "DiffusionModel", "Guidance", "Model", "NoisyClassifier", "grid_named", "sampler_named"]
