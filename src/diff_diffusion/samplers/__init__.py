"""Samplers walk a time grid asking a denoiser. `trajectory` is the walk; grids and samplers register themselves."""

from diff_diffusion.samplers.sampler import Sampler, Step, sample, trajectory

__all__ = ["Sampler", "Step", "sample", "trajectory"]
