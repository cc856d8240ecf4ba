"""Guidance: Denoiser to Denoiser. It moves a posterior; processes, samplers and networks do not know of it."""

from diff_diffusion.guidance.bounds import Clipped
from diff_diffusion.guidance.scale import ClassifierFree

__all__ = ["ClassifierFree", "Clipped"]
