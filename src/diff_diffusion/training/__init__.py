"""Training that cannot be lost: `train` is a generator of step records over a run folder."""

from diff_diffusion.training.journal import Record
from diff_diffusion.training.loop import train
from diff_diffusion.training.settings import TrainSettings

__all__ = ["Record", "TrainSettings", "train"]
