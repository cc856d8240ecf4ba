"""Mixed data: several processes side by side under one clock, for rows that hold both numbers and categories.

A sample is one tensor; each process owns some of its columns (axis 1). Tokens are kept as the whole numbers they are,
in the numbers' dtype. Noise is independent and λ is one, so the bound is the sum of the parts' bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.core.categorical import TokenPosterior, Tokens
from diff_diffusion.core.learned_map import Learned
from diff_diffusion.core.posterior import Posterior
from diff_diffusion.core.process import Corrupted, Error, Process
from diff_diffusion.core.targets import Target
from diff_diffusion.core.time_maps import TimeMap
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise


@dataclass(frozen=True, slots=True)
class ProductPosterior(Posterior):
    """A posterior for each part."""

    parts: tuple[Posterior, ...]

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The guess of x_0: means of numbers, the likeliest tokens."""
        guesses = [part.logits.argmax(-1) if isinstance(part, TokenPosterior) else part.mean for part in self.parts]
        dtype = next((guess.dtype for guess in guesses if guess.is_floating_point()), torch.float32)
        return torch.cat([guess.to(dtype) for guess in guesses], 1)

    def extrapolate(self, reference: Posterior, scale: float) -> ProductPosterior:
        assert isinstance(reference, ProductPosterior)
        pairs = zip(self.parts, reference.parts, strict=True)
        return ProductPosterior(tuple(part.extrapolate(other, scale) for part, other in pairs))

    def tilt(self, gradient: Any) -> ProductPosterior:
        """`gradient` is a sequence, one entry for each part."""
        return ProductPosterior(tuple(part.tilt(own) for part, own in zip(self.parts, gradient, strict=True)))

    def __getitem__(self, rows: slice) -> ProductPosterior:
        return ProductPosterior(tuple(part[rows] for part in self.parts))


@register("process/product")
@dataclass(frozen=True)
class Product(Process):
    """Processes side by side: columns 0 … sizes[0] - 1 are the first one's, and so on.

    Args:
        parts: Gaussian processes and processes of tokens, all with the same time map.
        sizes: how many columns each has.

    Raises:
        ConfigError: numbers that do not match.
        IncompatibleError: parts with different clocks.
    """

    parts: Sequence[Process]
    sizes: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if not self.parts or len(self.parts) != len(self.sizes) or min(self.sizes) < 1:
            raise ConfigError(
                f"a product needs parts and as many sizes of at least 1, not {len(self.parts)} and {list(self.sizes)}"
            )
        if any(part.time_map != self.parts[0].time_map for part in self.parts):
            raise IncompatibleError("the parts of a product share one time map: give them all the same")
        if isinstance(self.parts[0].time_map, Learned):
            raise IncompatibleError("a product has no learned time map: each part would be stored with its own")

    @property
    def time_map(self) -> TimeMap:  # type: ignore[override]
        return self.parts[0].time_map

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts' columns, tokens as int64."""
        pieces = x.split(list(self.sizes), 1)
        return [
            piece.round().long() if isinstance(part, Tokens) else piece
            for part, piece in zip(self.parts, pieces, strict=True)
        ]

    def join(self, pieces: Sequence[Tensor], like: Tensor | None = None) -> Tensor:
        dtype = torch.float32 if like is None else like.dtype
        return torch.cat([piece.to(dtype) for piece in pieces], 1)

    def _each(self, noise: Noise | None) -> list[Any]:
        """A stream of noise for each part."""
        return [None if noise is None else noise.fork(f"part {i}") for i in range(len(self.parts))]

    def marginal(self, x_0: Tensor, t: Tensor, noise: Noise) -> Corrupted:
        rows = zip(self.parts, self.split(x_0), self._each(noise), strict=True)
        every = [part.marginal(piece, t, own) for part, piece, own in rows]
        return Corrupted(
            self.join([one.x_t for one in every], x_0), x_0, self.join([one.noise for one in every], x_0), t
        )

    def renoise(self, x_s: Tensor, s: float, t: float, noise: Noise) -> Tensor:
        rows = zip(self.parts, self.split(x_s), self._each(noise), strict=True)
        return self.join([part.renoise(piece, s, t, own) for part, piece, own in rows], x_s)

    def reverse(
        self, x_t: Tensor, posterior: Posterior, t: float, s: float, *, eta: float = 0.0, noise: Noise | None = None
    ) -> Tensor:
        assert isinstance(posterior, ProductPosterior)
        rows = zip(self.parts, self.split(x_t), posterior.parts, self._each(noise), strict=True)
        return self.join([part.reverse(piece, own, t, s, eta=eta, noise=n) for part, piece, own, n in rows], x_t)

    def prior(self, shape: Sequence[int], noise: Noise, t: float = 1.0) -> Tensor:
        rows = zip(self.parts, self.sizes, self._each(noise), strict=True)
        return self.join([part.prior((shape[0], size, *shape[2:]), own, t) for part, size, own in rows])

    def prior_gap(self, x_0: Tensor, t: float) -> Tensor:
        gaps = [part.prior_gap(piece, t) for part, piece in zip(self.parts, self.split(x_0), strict=True)]
        return torch.stack(gaps).sum(0)

    def error(self, corrupted: Corrupted, posterior: Posterior) -> Error:
        """The bound's nats for a unit of λ, number by number, with gain 2."""
        assert isinstance(posterior, ProductPosterior)
        pieces = zip(*(self.split(x) for x in (corrupted.x_t, corrupted.x_0, corrupted.noise)), strict=True)
        costs = []
        for part, (x_t, x_0, noise), own in zip(self.parts, pieces, posterior.parts, strict=True):
            costs.append(part.nats(part.error(Corrupted(x_t, x_0, noise, corrupted.t), own)))
        return Error(self.join(costs, corrupted.x_0), torch.full_like(corrupted.t.double(), 2.0))

    def reconstruction(self, x_0: Tensor, posterior: Posterior, t: float, bins: Any | None = None) -> Tensor:
        assert isinstance(posterior, ProductPosterior)
        rows = zip(self.parts, self.split(x_0), posterior.parts, strict=True)
        return torch.stack([part.reconstruction(piece, own, t, bins) for part, piece, own in rows]).sum(0)

    def with_time_map(self, time_map: TimeMap) -> Product:
        return Product([part.with_time_map(time_map) for part in self.parts], self.sizes)

    def shown(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        rows = zip(self.parts, self.split(x_t), strict=True)
        return self.join([part.shown(piece, t) for part, piece in rows], x_t)


@register("target/joint")
@dataclass(frozen=True)
class Joint(Target):
    """The network outputs a tuple, an output for each part of a product, each with its own target."""

    targets: Sequence[Target]

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))

    def check(self, process: Process) -> None:
        if not isinstance(process, Product) or len(process.parts) != len(self.targets):
            raise IncompatibleError(f"target 'joint' needs a product of {len(self.targets)} processes, one for each")
        for target, part in zip(self.targets, process.parts, strict=True):
            target.check(part)
            if target.outputs != 1:
                raise IncompatibleError(f"{type(target).__name__} cannot be a part of target 'joint', only on its own")

    def decode(self, output: Any, x_t: Tensor, process: Product, t: float | Tensor) -> ProductPosterior:
        rows = zip(self.targets, output, process.split(x_t), process.parts, strict=True)
        return ProductPosterior(tuple(target.decode(own, piece, part, t) for target, own, piece, part in rows))

    def error(self, output: Any, corrupted: Corrupted, process: Product) -> Error:
        return process.error(corrupted, self.decode(output, corrupted.x_t, process, corrupted.t))
