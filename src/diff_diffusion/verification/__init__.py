"""What is installed, and a model trained with it, measured against closed forms on this machine."""

from diff_diffusion.verification.check import Check, Job
from diff_diffusion.verification.installed import installed
from diff_diffusion.verification.trained import trained

__all__ = ["Check", "Job", "installed", "trained"]
