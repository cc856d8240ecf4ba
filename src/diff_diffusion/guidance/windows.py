"""Windows: x̂_0 of what is larger than the model's own size, asked piece by piece and averaged."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior, Posterior
from diff_diffusion.errors import ConfigError, IncompatibleError


class Windowed(Denoiser):
    """A denoiser of images larger than its own size: x̂_0 = Σ_k w_k x̂_0^k, of windows of that size that overlap.

    All windows of all samples are asked in one call. The weights are a raised cosine over each window, divided by their
    sum: they are one together everywhere and fade to nothing at a window's edge, so there is no seam. Without `wrap` an
    image of the denoiser's own size is one window, and the answer is the denoiser's. Where a place's answer depends on
    that place alone, so does this, and equals it, for any sizes.

    Conditions go to every window whole, but for those of four axes, images, of which each window sees its own part.

    Args:
        denoiser: of a Gaussian process, of images [B, C, *size]; guidance goes inside.
        size: (height, width) of a window.
        overlap: share of a window that the next one covers, at least, in [0, 1).
        wrap: the right edge meets the left, as in a panorama of 360°. Of windows `count` across a width W, x rolled by
            a multiple of W / gcd(count, W) columns gives the answer rolled as far, exactly; by others, nearly.

    Raises:
        ConfigError: a size below 1 or an overlap out of range; at the call, x smaller than a window, a t for each
            place, or an image condition of another size than x.
        IncompatibleError: a process that is not Gaussian.

    Source: Bar-Tal et al., "MultiDiffusion", arXiv 2302.08113, which averages steps of a sampler; a step is linear in
    x̂_0, so averaging that is the same for first-order samplers and serves the others too.
    """

    def __init__(self, denoiser: Denoiser, size: tuple[int, int], overlap: float = 0.5, wrap: bool = False) -> None:
        if min(size) < 1:
            raise ConfigError(f"a window is at least 1 × 1, not {size[0]} × {size[1]}")
        if not 0.0 <= overlap < 1.0:
            raise ConfigError(f"the overlap must be a share of a window of at least 0 and below 1, not {overlap}")
        if not isinstance(denoiser.process, Gaussian):
            raise IncompatibleError(
                f"Windowed averages means and needs a Gaussian process; this model uses "
                f"{type(denoiser.process).__name__}"
            )
        self.denoiser = denoiser
        self.process = denoiser.process
        self.size = size
        self.overlap = overlap
        self.wrap = wrap

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Posterior:
        places = x_t.shape[2:]
        if x_t.ndim != 4 or places[0] < self.size[0] or places[1] < self.size[1]:
            raise ConfigError(
                f"windows of {self.size[0]} × {self.size[1]} need images [B, C, H, W] at least as large, not "
                f"{list(x_t.shape)}"
            )
        if tuple(places) == self.size and not self.wrap:
            return self.denoiser(x_t, t, cond)
        if isinstance(t, Tensor) and t.ndim > 1:
            raise ConfigError(f"windows need one time for a sample, not times of shape {list(t.shape)}")
        rows, row_weights = _windows(places[0], self.size[0], self.overlap, False)
        columns, column_weights = _windows(places[1], self.size[1], self.overlap, self.wrap)
        at = [(row[:, None], column) for row in rows for column in columns]
        weights = [torch.outer(row, column) for row in row_weights for column in column_weights]
        posterior = self.denoiser(
            torch.cat([x_t[..., i, j] for i, j in at]),
            t.repeat(len(at)) if isinstance(t, Tensor) and t.ndim else t,
            _seen(cond, at, places) if cond else cond,
        )
        assert isinstance(posterior, GaussianPosterior)
        mean, share = torch.zeros_like(x_t), None if posterior.share is None else torch.zeros_like(x_t)
        for k, ((i, j), weight) in enumerate(zip(at, weights, strict=True)):
            part = posterior[k * len(x_t) : (k + 1) * len(x_t)]
            weight = weight.to(mean)
            mean[..., i, j] += weight * part.mean
            if share is not None:
                assert part.share is not None
                share[..., i, j] += weight * part.share
        return GaussianPosterior(mean, posterior[: len(x_t)].tweedie, share)


def _seen(cond: Cond, at: list[tuple[Tensor, Tensor]], places: torch.Size) -> Cond:
    """What each window sees of the condition, window after window."""
    other = next((value for value in cond.values.values() if value.ndim == 4 and value.shape[2:] != places), None)
    if other is not None:
        raise ConfigError(f"an image condition of {list(other.shape[2:])} does not fit images of {list(places)}")
    values = {
        name: torch.cat([value[..., i, j] if value.ndim == 4 else value for i, j in at])
        for name, value in cond.values.items()
    }
    return Cond(values, {name: keep.repeat(len(at)) for name, keep in cond.keep.items()})


@lru_cache(maxsize=64)
def _windows(length: int, size: int, overlap: float, wrap: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Along one axis the places of each window and their weights, float64; all windows' sum to one at every place."""
    step = max(1, math.floor(size * (1.0 - overlap)))
    if wrap:
        count = -(-length // step)
        starts = [k * length // count for k in range(count)]
    else:
        count = 1 + -(-(length - size) // step)
        starts = [round(k * (length - size) / max(1, count - 1)) for k in range(count)]
    bump = torch.sin(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2
    places = [(start + torch.arange(size)) % length for start in starts]
    total = torch.zeros(length, dtype=torch.float64)
    for place in places:
        total[place] += bump
    return places, [bump / total[place] for place in places]
