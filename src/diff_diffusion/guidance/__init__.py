"""Guidance: Denoiser to Denoiser. It moves a posterior; processes, samplers and networks do not know of it."""

from diff_diffusion.guidance.bounds import Clipped, DynamicallyClipped
from diff_diffusion.guidance.evidence import ClassifierGuided
from diff_diffusion.guidance.levels import ClassifierFreePP, Interval
from diff_diffusion.guidance.measurement import DPS, PiGDM
from diff_diffusion.guidance.moves import Project, Rescale
from diff_diffusion.guidance.scale import Autoguided, ClassifierFree

__all__ = [
    "DPS",
    "Autoguided",
    "ClassifierFree",
    "ClassifierFreePP",
    "ClassifierGuided",
    "Clipped",
    "DynamicallyClipped",
    "Interval",
    "PiGDM",
    "Project",
    "Rescale",
]
