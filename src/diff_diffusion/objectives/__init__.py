"""Objectives: a density of training levels times a weight, for every family and every paper's loss."""

from diff_diffusion.objectives.denoising import Loss, Objective

__all__ = ["Loss", "Objective"]
