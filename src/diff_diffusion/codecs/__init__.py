"""Codecs: from data units to what diffusion works on, and back. Denoisers, samplers and guidance never know of them.

`affine` is for data that are worked on as they are; `autoencoded` for latents of an autoencoder, of which `bottleneck`
and `vector_quantised` say what they are; `tokens` for the numbers of its codes, where these are finitely many.
"""

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.codecs.codec import Codec
from diff_diffusion.codecs.tokens import Tokenised

__all__ = ["Affine", "Autoencoded", "Codec", "Tokenised"]
