"""What both oracles need: samplers by name, and the noise that our walk drew, for the other side to use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diff_diffusion.registry import build
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import Sampler

MODES = {"means": [[-0.6, 0.3], [0.9, -1.1]], "covariances": [0.09, 0.0625], "weights": [0.6, 0.4]}
NOISE = Noise(range(6))


def named(name: str) -> Sampler:
    """A sampler as a user asks for it."""
    sampler = build({"type": f"sampler/{name}"})
    assert isinstance(sampler, Sampler)
    return sampler


@dataclass(frozen=True)
class Overheard(Sampler):
    """Another sampler, with the noise that each of its steps draws."""

    sampler: Sampler
    drawn: list[list[Tensor]] = field(default_factory=list)

    def step(self, denoiser: Any, x_t: Tensor, t: float, s: float, state: Any, cond: Any, noise: Any) -> Any:
        self.drawn.append([])
        return self.sampler.step(denoiser, x_t, t, s, state, cond, Tap(noise, self.drawn[-1]))


class Tap:
    """Noise that notes what it gives."""

    def __init__(self, noise: Noise, drawn: list[Tensor]) -> None:
        self.noise, self.drawn = noise, drawn

    def normal(self, shape: Any, like: Tensor | None = None) -> Tensor:
        self.drawn.append(self.noise.normal(shape, like))
        return self.drawn[-1]

    def __getattr__(self, name: str) -> Any:
        """Noise of another kind, from the same tap."""
        return lambda *arguments: Tap(getattr(self.noise, name)(*arguments), self.drawn)
