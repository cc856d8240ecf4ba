"""Steps as long as the error allows, sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.quadrature import gauss_legendre
from diff_diffusion.samplers.sampler import Sampler
from diff_diffusion.tensors import expand

_DARK = -6.0  # ln(α/σ) below which x̂_0 is held: so little signal moves no sample
_FIRST, _SHORTEST = 0.25, 1e-6  # the first step tried, and the least, in ln(α/σ)


@register("sampler/adaptive")
@dataclass(frozen=True)
class Adaptive(Sampler):
    """The probability-flow ODE in steps of its own choice between two times of the grid: one evaluation a step.

    A step is predicted with the last two answers and corrected with the one at its end (UniPC's rule, of orders 2 and
    3); what the correction changes is the error. It is accepted if the root mean square of
    |change| / (atol √(α² + σ²) + rtol |x|) is at most 1, and sets the next step's length (a PI controller). Each sample
    has steps of its own, so that none depends on its batch; they are evaluated together, each at its own time.

    A grid of 2 steps leaves all to the sampler: it walks to the grid's last inner time, then holds x̂_0.

    Args:
        rtol: relative tolerance of a step.
        atol: absolute tolerance, for data of variance 1.
        max_evaluations: in one step of the grid, before giving up.

    Raises:
        ConfigError: a tolerance that is not above 0; at a step, more evaluations than allowed.

    Source: Zhao et al., "UniPC", arXiv 2302.04867, for the pair; Hairer & Wanner, "Solving Ordinary Differential
    Equations II", for the controller.
    """

    needs: ClassVar[type[Process]] = Gaussian
    adaptive: ClassVar[bool] = True
    order: ClassVar[int] = 3  # type: ignore[misc]
    rtol: float = 0.05
    atol: float = 0.005
    max_evaluations: int = 1000

    def __post_init__(self) -> None:
        if not (self.rtol > 0.0 and self.atol > 0.0 and self.max_evaluations > 0):
            raise ConfigError(
                f"adaptive needs rtol, atol and max_evaluations above 0, not {self.rtol}, {self.atol} and "
                f"{self.max_evaluations}"
            )

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: float, s: float, state: Any, cond: Cond | None, noise: Noise
    ) -> tuple[Tensor, Any]:
        process = denoiser.process
        assert isinstance(process, Gaussian)
        posterior = denoiser(x_t, t, cond)
        start, end = (0.5 * process.time_map.log_snr(time) for time in (t, s))
        if s == 0.0 or end <= _DARK:
            return process.reverse(x_t, posterior, t, s), None
        if start < _DARK:
            start, dusk = _DARK, process.time_map.time(2.0 * _DARK)
            x_t = process.reverse(x_t, posterior, t, dusk)
            posterior = denoiser(x_t, dusk, cond)

        x = x_t.clone()
        # Of each sample: the last two answers, and where they were asked, the latest first.
        answers = torch.stack([posterior.mean, torch.zeros_like(x)])
        places = [[start] for _ in x]
        lengths, errors = [_FIRST] * len(x), [1.0] * len(x)
        left = list(range(len(x)))
        for _ in range(self.max_evaluations):
            rows, known = torch.tensor(left, device=x.device), [places[i] for i in left]
            ends = [_step_end(here[0], end, lengths[i]) for i, here in zip(left, known, strict=True)]
            past = list(answers[:, rows])
            guess = _taken(process, x[rows], past, known, ends)
            times = torch.tensor([process.time_map.time(2.0 * place) for place in ends], dtype=torch.float64)
            answer = denoiser(guess, times, None if cond is None else cond[rows]).mean
            known = [[place, *here] for place, here in zip(ends, known, strict=True)]
            better = _taken(process, x[rows], [answer, *past], known, ends)
            accepted, stuck = [], False
            for row, (i, error) in enumerate(zip(left, self._errors(process, guess, better, ends), strict=True)):
                length, power = ends[row] - places[i][0], 1.0 / (len(places[i]) + 1)
                if error <= 1.0:
                    growth = 0.9 * max(error, 1e-6) ** (-0.7 * power) * errors[i] ** (0.4 * power)
                    lengths[i], errors[i] = length * min(max(growth, 0.2), 5.0), max(error, 0.01)
                    places[i] = known[row][:2]
                    accepted.append(row)
                else:
                    lengths[i] = length * max(0.9 * error**-power, 0.2) if error < math.inf else 0.2 * length
                    stuck = stuck or lengths[i] < _SHORTEST
            done = rows[accepted]
            x[done] = better[accepted]
            answers[1, done], answers[0, done] = answers[0, done], answer[accepted]
            left = [i for i in left if places[i][0] < end]
            if not left:
                return x, None
            if stuck:
                break
        raise ConfigError(
            f"{len(left)} of {len(x)} samples did not come from time {t:g} to {s:g} within rtol={self.rtol:g}, "
            f"atol={self.atol:g} and max_evaluations={self.max_evaluations}, in steps of λ above {2 * _SHORTEST:g}: "
            "raise these, or see whether the model's answers are finite and smooth"
        )

    def _errors(self, process: Gaussian, guess: Tensor, better: Tensor, places: list[float]) -> list[float]:
        scales = [process.scales(process.time_map.time(2.0 * u)) for u in places]
        unit = torch.tensor([self.atol * math.sqrt(alpha**2 + sigma**2) for alpha, sigma in scales])
        share = (better - guess).abs_().div_(better.abs().mul_(self.rtol).add_(expand(unit, better)))
        # Row by row: a sum over a whole batch may round as the batch's shape has it.
        norms = torch.stack([torch.linalg.vector_norm(row) for row in share]).tolist()
        return [norm / math.sqrt(share[0].numel()) for norm in norms]


def _taken(process: Gaussian, x: Tensor, answers: list[Tensor], places: list[list[float]], ends: list[float]) -> Tensor:
    """Each sample's step from the place of its x to its end, with the polynomial through its answers."""
    starts = [known[1] if known[0] == end else known[0] for known, end in zip(places, ends, strict=True)]
    before, after = ([process.scales(process.time_map.time(2.0 * u)) for u in where] for where in (starts, ends))
    h = np.subtract(ends, starts)
    share = np.array([-alpha * math.expm1(-length) for (alpha, _), length in zip(after, h, strict=True)])
    nodes = np.array([known + [math.nan] * (len(answers) - len(known)) for known in places])
    data = _rules((nodes - np.array(starts)[:, None]) / h[:, None], h) * share[:, None]
    kept = [sigma / sigma_t for (_, sigma), (_, sigma_t) in zip(after, before, strict=True)]
    taken = x * expand(torch.tensor(kept, dtype=torch.float64), x)
    for column, answer in zip(data.T, answers, strict=True):
        taken += answer * expand(torch.from_numpy(column.copy()), x)
    return taken


def _rules(nodes: np.ndarray, h: np.ndarray) -> np.ndarray:
    """`data_weights` of each row's nodes [B, k], of which those that are nan are none and have weight 0."""
    points, masses = (np.array(column) for column in zip(*gauss_legendre(), strict=True))
    density = masses * np.exp((points - 1.0) * h[:, None])
    density /= density.sum(1, keepdims=True)
    columns = []
    for j, here in enumerate(nodes.T):
        share = density
        for i, other in enumerate(nodes.T):
            if i != j:
                factor = (points - other[:, None]) / (here - other)[:, None]
                share = share * np.where(np.isnan(other)[:, None], 1.0, factor)
        columns.append(np.where(np.isnan(here), 0.0, share.sum(1)))
    return np.stack(columns, 1)


def _step_end(here: float, end: float, length: float) -> float:
    """Where a step of about `length` ends, such that those still to come are equal."""
    count = math.ceil((end - here) / length)
    return end if count <= 1 else here + (end - here) / count
