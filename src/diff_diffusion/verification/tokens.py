"""Token processes and samplers against a small joint distribution, by counting.

Monte Carlo throughout, so every bound is one that exact draws exceed once in a million times; seeds are fixed, so an
answer does not change from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diff_diffusion.cond import Cond
from diff_diffusion.core.categorical import Absorbing, TokenPosterior, Tokens
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.process import Corrupted
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.objectives.measures import Nats
from diff_diffusion.objectives.weights import Vlb
from diff_diffusion.registry import build, describe
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.grid import LogSnr
from diff_diffusion.samplers.sampler import Sampler, trajectory
from diff_diffusion.verification.check import Check
from diff_diffusion.verification.parts import parts

JOINT = torch.tensor([[0.30, 0.02, 0.03], [0.01, 0.04, 0.25], [0.05, 0.28, 0.02]], dtype=torch.float64)
VOCAB = len(JOINT)
# Settings at which a sampler draws from the joint. By confidence it would be the surest tokens that come first.
EXACT: dict[str, dict[str, Any]] = {"sampler/confidence": {"temperature": 1e6}}


class Pairs(Denoiser):
    """The exact denoiser of pairs of tokens with the joint distribution JOINT: x_t is [..., 2]."""

    def __init__(self, process: Tokens) -> None:
        self.process: Tokens = process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> TokenPosterior:
        if isinstance(t, Tensor):
            return TokenPosterior(self._logits(x_t, t))
        every = torch.cartesian_prod(*[torch.arange(VOCAB + 1)] * 2).reshape(VOCAB + 1, VOCAB + 1, 2)
        return TokenPosterior(self._logits(every, t)[x_t[..., 0], x_t[..., 1]])  # so few x_t can be

    def _logits(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        alpha = torch.as_tensor(self.process.keep(t), dtype=torch.float64)
        alpha = alpha.reshape(*alpha.shape, *[1] * (x_t.ndim - alpha.ndim + 1))
        own = one_hot(x_t, VOCAB + 1)[..., :VOCAB].double()
        pi = torch.as_tensor(self.process.forgotten(x_t), dtype=torch.float64)
        likely = alpha * own + (1.0 - alpha) * pi.expand(x_t.shape)[..., None]  # q(x_t | x_0), [..., 2, vocab]
        both = JOINT * likely[..., 0, :, None] * likely[..., 1, None, :]
        shares = torch.stack([both.sum(-1), both.sum(-2)], -2)
        return torch.log(shares / shares.sum(-1, keepdim=True))


@cache
def family() -> dict[str, Tokens]:
    """The registered processes of tokens, by name."""
    return {name: process for name, process in parts("process")[0].items() if isinstance(process, Tokens)}


def distance(states: Tensor, expected: Tensor) -> float:
    """Total variation between how often states occur and how often they should."""
    found = states.flatten().bincount(minlength=len(expected)).double() / states.numel()
    return 0.5 * (found - expected).abs().sum().item() if len(found) == len(expected) else math.nan


def distance_bound(expected: Tensor, count: int, chance: float = 1e-6) -> float:
    """What the total variation of `count` independent draws exceeds with probability at most `chance`.

    ½ Σ √(p (1 - p) / n) bounds its mean, by Jensen; one draw moves it by at most 1/n, so McDiarmid's inequality adds
    √(ln(1 / chance) / 2n).
    """
    mean = 0.5 * (expected * (1.0 - expected) / count).sqrt().sum().item()
    return mean + math.sqrt(-math.log(chance) / (2.0 * count))


# ---- samplers ------------------------------------------------------------------------------------------------------


def sampler_checks(name: str, sampler: Sampler, seeds: int = 25, num_steps: int = 100) -> Iterator[Check]:
    """The joint distribution of 400 × `seeds` pairs, at the end and at λ = 0, on each process that it fits."""
    described = describe(sampler)
    exact = build(described | EXACT.get(described["type"], {}))
    for process_name, process in family().items():
        if not isinstance(process, exact.needs):
            continue
        middle, x = drawn(exact, process, Noise(range(seeds)), num_steps)
        size = states(process)
        move = kernel(process, 0.5)[:VOCAB]
        for law, pairs, expected in (
            (process_name, VOCAB * x[..., 0] + x[..., 1], JOINT.flatten()),
            (f"{process_name}, λ = 0", size * middle[..., 0] + middle[..., 1], (move.T @ JOINT @ move).flatten()),
        ):
            note = f"total variation to the exact joint of two tokens; {pairs.numel()} pairs in {num_steps} steps"
            high = distance_bound(expected, pairs.numel())
            yield Check("token sampler", name, law, distance(pairs, expected), high, note=note)


def drawn(sampler: Sampler, process: Tokens, noise: Noise, num_steps: int) -> tuple[Tensor, Tensor]:
    """Pairs, [len(noise), 400, 2]: on their way at λ = 0, where a token is kept with probability ½, and at the end."""
    x = process.prior((len(noise), 400, 2), noise.at(0))
    half = process.time_map.time(0.0)
    times = sorted({*LogSnr(num_steps, 9.0, -9.0).times(process), half}, reverse=True)
    middle = x
    for step in trajectory(Pairs(process), sampler, times, x, noise=noise):
        x = step.x
        middle = x if step.s == half else middle
    return middle, x


# ---- processes -----------------------------------------------------------------------------------------------------


def process_checks(name: str, process: Tokens, seeds: int = 50) -> Iterator[Check]:
    """Forward kernels compose, the reverse kernel undoes them, and the bound of an exact denoiser is the entropy."""
    shape, noise = (seeds, 2000), Noise(range(seeds))
    x_0 = torch.full(shape, 1)

    def check(law: str, found: Tensor, expected: Tensor) -> Check:
        high = distance_bound(expected, found.numel())
        return Check("token process", name, law, distance(found, expected), high, note=f"{found.numel()} draws")

    def at(t: float, stream: str) -> Tensor:
        return process.marginal(x_0, torch.full((seeds,), t, dtype=torch.float64), noise.fork(stream)).x_t

    def kept(t: float) -> float:
        return 1.0 / (1.0 + math.exp(-process.time_map.log_snr(t)))

    def exact(t: float) -> Tensor:
        return kernel(process, kept(t))[1]

    yield check("marginal", at(0.4, "marginal"), exact(0.4))
    up = process.renoise(at(0.2, "up"), 0.2, 0.6, noise.fork("further"))
    yield check("Chapman-Kolmogorov", up, exact(0.6))
    known = TokenPosterior(one_hot(x_0, VOCAB).double().log())
    for eta in (0.0, 1.0):
        down = process.reverse(at(0.7, "down"), known, 0.7, 0.4, eta=eta, noise=noise.fork("reverse"))
        yield check(f"reverse, eta {eta:g}", down, exact(0.4))
    here = states(process) - 1
    fallen = process.reverse(torch.full(shape, here), known, 0.7, 0.4, eta=1.0, noise=noise.fork("posterior"))
    # Bayes' rule: q(x_s | x_t, x_0) ∝ q(x_t | x_s) q(x_s | x_0).
    bayes = kernel(process, kept(0.7) / kept(0.4))[:, here] * exact(0.4)
    yield check("posterior", fallen, bayes / bayes.sum())
    gap = abs(bound(process) - -(JOINT * JOINT.log()).sum().item())
    yield Check("token process", name, "entropy", gap, 1e-5, note="bound of an exact denoiser less the entropy, nats")


def states(process: Tokens) -> int:
    """How many values a token of x_t can have."""
    return VOCAB + isinstance(process, Absorbing)


def kernel(process: Tokens, alpha: float) -> Tensor:
    """q(next | now) of keeping with probability α, from the definition: [states, states]."""
    size = states(process)
    pi = torch.as_tensor(process.forgotten(torch.arange(size)), dtype=torch.float64).expand(size)
    return alpha * torch.eye(size, dtype=torch.float64) + (1.0 - alpha) * pi


def bound(process: Tokens) -> float:
    """The variational bound of the exact denoiser, in nats, by summing over all pairs x_0 and x_t at each level.

    Of an exact denoiser it is the entropy of JOINT, less what lies beyond λ of ±20.
    """
    process = replace(process, time_map=LinearLogSnr(20.0, -20.0))
    size, levels = states(process), torch.linspace(20.0, -20.0, 201, dtype=torch.float64)
    times = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
    axes = torch.arange(len(times)), *[torch.arange(VOCAB)] * 2, *[torch.arange(size)] * 2
    place, a, b, c, d = torch.cartesian_prod(*axes).unbind(1)
    moves = torch.stack([kernel(process, torch.sigmoid(level).item()) for level in levels])
    likely = JOINT[a, b] * moves[place, a, c] * moves[place, b, d]
    can = likely > 0.0
    x_0, x_t, t = (row[can] for row in (torch.stack([a, b], 1), torch.stack([c, d], 1), times[place]))
    error = process.error(Corrupted(x_t, x_0, x_t, t), Pairs(process)(x_t, t))
    nats = 2.0 * Vlb().of(t) * Nats().of(error.value, error.gain)  # the measure's mean is over the 2 positions
    each = torch.zeros(len(times), dtype=torch.float64).index_add_(0, place[can], likely[can] * nats)
    return -torch.trapezoid(each, levels).item()


# ---- targets -------------------------------------------------------------------------------------------------------


def target_checks(name: str, target: Any) -> Iterator[Check]:
    """A network that says x_0 is understood as saying it."""
    x_0 = torch.arange(VOCAB).repeat(4).reshape(4, VOCAB)
    for process_name, process in family().items():
        x_t = process.marginal(x_0, torch.full((4,), 0.5, dtype=torch.float64), Noise(range(4))).x_t
        x_t = torch.where(x_t == VOCAB, x_t, x_0)
        sure = torch.where(one_hot(x_0, VOCAB).bool(), 0.0, -200.0).double()
        gap = (target.decode(sure, x_t, process, 0.5).mean - one_hot(x_0, VOCAB)).abs().max().item()
        yield Check("token target", name, f"decode, {process_name}", gap, 1e-12)
