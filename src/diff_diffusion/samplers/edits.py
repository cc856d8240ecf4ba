"""Edits: what is done to a sample after each step, whatever the sampler and the process.

To add one: a class with `__call__`, given to `trajectory`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.rng import Noise


class Edit(ABC):
    """A change to x_s after a step to time s."""

    @abstractmethod
    def __call__(self, x_s: Tensor, s: float, process: Process, noise: Noise) -> Tensor:
        """x_s, edited. `noise` is the step's, in a stream of the edit's own."""


class Keep(Edit):
    """The known part of a sample is what it is known to be: noised to each step's level, exact at the end.

    Args:
        known: clean data [B, ...] in the latent's units.
        mask: true where they are known; broadcasts with `known`.

    Source: Lugmayr et al., "RePaint", arXiv 2201.09865.
    """

    def __init__(self, known: Tensor, mask: Tensor) -> None:
        self.known, self.mask = known, mask.bool()

    def __call__(self, x_s: Tensor, s: float, process: Process, noise: Noise) -> Tensor:
        known = self.known.to(x_s)
        if s > 0.0:
            known = process.marginal(known, torch.full((len(known),), s, dtype=torch.float64), noise).x_t
        return torch.where(self.mask.to(x_s.device), known, x_s)


def time_travel(times: Sequence[float], length: int, repeats: int) -> list[float]:
    """A walk whose every `length` steps are walked `repeats` times, with jumps back up between: RePaint's resampling.

    What an edit put in and what the sampler drew around it are noised together and drawn again, until they fit. The
    last steps, to the data, are walked once.

    Args:
        times: a grid's times, falling to 0.
        length: steps that are walked again, RePaint's jump length.
        repeats: how often; 1 is the grid itself.

    Raises:
        ConfigError: numbers below 1.

    Source: Lugmayr et al., arXiv 2201.09865.

    >>> time_travel([1.0, 0.75, 0.5, 0.25, 0.0], 2, 2)
    [1.0, 0.75, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if length < 1 or repeats < 1:
        raise ConfigError(f"time travel needs a length and repeats of at least 1, not {length} and {repeats}")
    walk = [times[0]]
    for first in range(0, len(times) - 1, length):
        block = list(times[first + 1 : first + length + 1])
        walk += block
        if block[-1] > 0.0:
            for _ in range(repeats - 1):
                walk += [times[first], *block]
    return walk
