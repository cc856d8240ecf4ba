"""A codebook that learns by averaging: each place of a latent becomes the nearest of a few learned vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from diff_diffusion.codecs.bottleneck import Passed, Tokens
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import finite

PART = 8192


@register("bottleneck/vq")
class VectorQuantised(Tokens):
    """Each place becomes its nearest code; codes are the moving averages of what chose them, and take no gradient.

    N_k ← γ N_k + (1 - γ) n_k, m_k ← γ m_k + (1 - γ) Σ h, e_k = m_k / N_k; the encoder gets the decoder's gradient as if
    it had been the code, and β ‖h - e‖² besides. A code that next to nothing chooses starts again at a place of the
    batch, and so do all of them in the first.

    Args:
        size: how many codes.
        channels: of a code.
        decay: γ.
        commitment: β.
        least: a code chosen less often than this share of an even one's part starts again.

    Raises:
        ConfigError: a number out of range.

    Source: van den Oord et al., arXiv 1711.00937, appendix A.1; restarts after arXiv 2005.00341.
    """

    counts: Tensor
    sums: Tensor
    restarts: Tensor | None
    """What of `sums` codes that start again brought in this step, [size, channels]: every process has its own, and all
    must take one's."""

    def __init__(
        self, size: int = 512, channels: int = 4, decay: float = 0.99, commitment: float = 0.25, least: float = 0.03
    ) -> None:
        super().__init__()
        for name, value, low, high in [
            ("size", size, 2, 1 << 20),
            ("channels", channels, 1, 4096),
            ("decay", decay, 0.0, 0.999999),
            ("commitment", commitment, 0.0, 1e6),
            ("least", least, 0.0, 1.0),
        ]:
            if not low <= value <= high:
                raise ConfigError(f"a codebook's {name} must be from {low} to {high}, not {value}")
        self.size, self.channels, self.decay, self.commitment, self.least = size, channels, decay, commitment, least
        self.codes_out = channels
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, channels))
        self.restarts = None

    @property
    def codes(self) -> Tensor:
        """The vectors, float32 [size, channels]; zeros before the first batch."""
        return self.sums / self.counts.clamp(min=1e-12)[:, None]

    def forward(self, h: Tensor, noise: Noise) -> Passed:
        h = h if h.dtype == torch.float64 else h.float()
        places = self._places(h)
        learning = self.training and finite(places)  # a step that is skipped teaches nothing
        if learning:
            self._restart(places.detach(), noise)
        chosen = self._nearest(places)
        latent = self._back(functional.embedding(chosen, self.codes.to(places.dtype)), h)
        commitment = self.commitment * (h - latent.detach()).flatten(1).pow(2).mean(1)
        if learning:
            self._learn(places.detach(), chosen)
        return Passed(h + (latent - h).detach(), self.rate(latent), commitment)

    def latent(self, h: Tensor, noise: Noise | None = None) -> Tensor:
        return self.embed(self.tokens(h))

    def tokens(self, h: Tensor) -> Tensor:
        return self._nearest(self._places(h)).view(len(h), *h.shape[2:])

    def embed(self, tokens: Tensor) -> Tensor:
        return functional.embedding(self._known(tokens), self.codes).movedim(-1, 1)

    @property
    def usage(self) -> Tensor:
        """The share of places that chose each code, over the last batches: [size], sum 1."""
        return self.counts / self.counts.sum().clamp(min=1e-12)

    def _places(self, h: Tensor) -> Tensor:
        """[B, C, ...] to [B · places, C], in float32 at least."""
        return (h if h.dtype == torch.float64 else h.float()).movedim(1, -1).flatten(0, -2)

    def _back(self, places: Tensor, like: Tensor) -> Tensor:
        return places.view(len(like), *like.shape[2:], -1).movedim(-1, 1)

    def _nearest(self, places: Tensor) -> Tensor:
        codes = self.codes.to(places.dtype)
        # bfloat16 tells too few distances apart.
        with torch.no_grad(), torch.autocast(places.device.type, enabled=False):
            squares = codes.pow(2).sum(1)
            return torch.cat([(squares - 2.0 * part @ codes.T).argmin(1) for part in places.split(PART)])

    @torch.no_grad()
    def _restart(self, places: Tensor, noise: Noise) -> None:
        even = self.counts.sum() / self.size
        dead = (self.counts <= self.least * even).nonzero()[:, 0]
        if not len(dead):
            return
        drawn = noise.fork("restart").uniform((len(noise), -(-len(dead) // len(noise)))).flatten()[: len(dead)]
        rows = (drawn * len(places)).long().to(places.device)
        # As if chosen evenly from here on: less, and it would start again before it had a chance.
        count = even if float(even) > 0 else torch.ones_like(even)
        self.counts[dead] = count
        self.sums[dead] = count * places[rows].to(self.sums.dtype)
        self.restarts = torch.zeros_like(self.sums) if self.restarts is None else self.restarts
        self.restarts[dead] = self.sums[dead]

    @torch.no_grad()
    def _learn(self, places: Tensor, chosen: Tensor) -> None:
        new = torch.bincount(chosen, minlength=self.size).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, places.to(self.sums.dtype))
        self.counts.lerp_(new, 1.0 - self.decay)
        self.sums.lerp_(sums, 1.0 - self.decay)
        if self.restarts is not None:
            self.restarts.mul_(self.decay)

    def begin(self) -> None:
        """A new batch begins."""
        self.restarts = None
