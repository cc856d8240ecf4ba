"""Codecs: from data units to what diffusion works on, and back. Denoisers, samplers and guidance never know of them."""

from diff_diffusion.codecs.affine import Affine

__all__ = ["Affine"]
