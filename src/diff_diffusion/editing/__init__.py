"""Editing: pictures changed, grown or enlarged by a model of pictures like them.

All of it is a start, a grid, an edit after a step, or a denoiser around the model's. Images go in and come out in data
units, as `DiffusionModel.sample` gives them, and may be larger than the model's own: it then looks through windows.
Seeds, conditions, sampler, steps and guidance mean what they mean there.
"""

from diff_diffusion.editing.filling import inpaint, outpaint
from diff_diffusion.editing.flow import interpolate, translate
from diff_diffusion.editing.large import draw_large
from diff_diffusion.editing.strokes import KeepCoarse, strokes
from diff_diffusion.editing.upscaling import cascade, upscale
from diff_diffusion.editing.variations import img2img

__all__ = [
    "KeepCoarse",
    "cascade",
    "draw_large",
    "img2img",
    "inpaint",
    "interpolate",
    "outpaint",
    "strokes",
    "translate",
    "upscale",
]
