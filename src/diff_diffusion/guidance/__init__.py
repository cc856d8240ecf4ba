"""Guidance: Denoiser to Denoiser. It moves a posterior; processes, samplers and networks do not know of it."""

from diff_diffusion.guidance.between import Between
from diff_diffusion.guidance.bounds import Clipped, DynamicallyClipped
from diff_diffusion.guidance.evidence import ClassifierGuided
from diff_diffusion.guidance.levels import ClassifierFreePP, Interval
from diff_diffusion.guidance.measurement import DPS, PiGDM
from diff_diffusion.guidance.moves import Project, Rescale
from diff_diffusion.guidance.scale import Autoguided, ClassifierFree
from diff_diffusion.guidance.windows import Windowed

__all__ = [  # noqa: RUF022  (an acronym has its place in the alphabet)
    "Autoguided",
    "Between",
    "ClassifierFree",
    "ClassifierFreePP",
    "ClassifierGuided",
    "Clipped",
    "DPS",
    "DynamicallyClipped",
    "Interval",
    "PiGDM",
    "Project",
    "Rescale",
    "Windowed",
]
