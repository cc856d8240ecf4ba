"""The codec of token diffusion on images: an autoencoder that has learned, and the numbers of its codes."""

from __future__ import annotations

from torch import Tensor, nn

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.bottleneck import Tokens
from diff_diffusion.codecs.encoded import Encoded
from diff_diffusion.errors import IncompatibleError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import TensorSpec


@register("codec/tokens")
class Tokenised(Encoded):
    """Data to the number of the code at each place of a latent, int64 from 0 to vocab - 1, and back.

    Args:
        network: with `encode`, `decode` and `factor`, such as `ConvAutoencoder`; it does not learn any more.
        bottleneck: the codes: `VectorQuantised` or `FiniteScalar`.
        pixels: the codec that the autoencoder was trained on.

    Raises:
        IncompatibleError: a bottleneck without codes, or samples that the network cannot make smaller.

    Source: van den Oord et al., arXiv 1711.00937; Chang et al., "MaskGIT", arXiv 2202.04200.
    """

    bottleneck: Tokens
    mean, std = (), ()  # numbers of codes have neither

    def __init__(self, network: nn.Module, bottleneck: Tokens, pixels: Affine) -> None:
        if not isinstance(bottleneck, Tokens):
            raise IncompatibleError(
                f"tokens are the numbers of a finite number of codes, and a {type(bottleneck).__name__} bottleneck has "
                "none: train the autoencoder with 'vq' or 'fsq'"
            )
        super().__init__(network, bottleneck, pixels)

    @property
    def vocab(self) -> int:
        """How many tokens there are."""
        return self.bottleneck.size

    @property
    def latent(self) -> TensorSpec:
        return TensorSpec(self.places, 0, self.vocab - 1, whole=True)

    def latents(self, moments: Tensor, noise: Noise | None = None) -> Tensor:
        """The tokens that moments say, int64 [B, ...]: there is nothing to draw."""
        return self.bottleneck.tokens(moments)

    def decode(self, latent: Tensor) -> Tensor:
        """Tokens in float32 data units, clamped to the data's range.

        Raises:
            IncompatibleError: what is no token, such as a mask.
        """
        return self._decoded(self.bottleneck.embed(latent))
