"""Bits per dimension of a trained model on data it has not seen: by the variational bound and by the ODE."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.codecs.codec import learned
from diff_diffusion.core.likelihood import Bins, continuous_bound, log_likelihood
from diff_diffusion.data import ImageDataset
from diff_diffusion.data.survey import Progress
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise, derive

METHODS = ("bound", "ode")
BATCH = 64
EXACT_DIVERGENCE_UP_TO = 16
"""Numbers in an image up to which the ODE's divergence is exact here: each costs a backward pass an evaluation."""


@dataclass(frozen=True)
class BitsPerDim:
    """What was measured, and on what.

    Attributes:
        method: "bound", the continuous variational bound, or "ode", the probability-flow ODE of data made continuous by
            uniform noise of a bin's width. Both are upper bounds on what the model needs to say a value.
        bits: mean over the images, for each number of an image.
        error: half the width of its 95 % interval; None for a single image.
        n: images.
        values: how many values the data are taken to have.
        log_snr_max: the level at which the data are read off.
        parts: for the bound, its mean parts in bits: prior, levels, reconstruction.
        levels: for the bound, [λ, bits] of each of its strata.
    """

    method: str
    bits: float
    error: float | None
    n: int
    values: int
    log_snr_max: float
    parts: dict[str, float] | None = None
    levels: list[tuple[float, float]] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bits_per_dim(
    model: DiffusionModel,
    data: ImageDataset,
    *,
    method: str = "bound",
    num: int = 256,
    values: int = 256,
    num_levels: int = 64,
    num_steps: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> BitsPerDim:
    """Bits for each number of `data` under the model, with labels if it takes them.

    The level at which the data are read off is where noise has half a bin's width. With less, a model pays for knowing
    where in its bin a value lies, which is no news; with more, the value itself is in doubt.

    Args:
        data: images the model was not trained on; the first `num` of them in an order of their own.
        method: "bound" or "ode".
        values: how many evenly spaced values the data have from lowest to highest: 256 for 8-bit images.
        num_levels: strata of the bound's integral, each a network evaluation an image.
        num_steps: steps of the ODE, each four evaluations; its divergence is exact up to 16 numbers an image, above
            that Hutchinson's estimate.
        seed: of the noise.

    Raises:
        ConfigError: an unknown method, or numbers out of range.
        IncompatibleError: a model of latents, which says how likely these are and not the images.
    """
    if learned(model.codec) is not None:
        raise IncompatibleError(
            "bits for each number of an image are told by a model that works on images as they are, and this one works "
            "in an autoencoder's latents: compare held-out losses of models with the same codec"
        )
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}: it is one of {', '.join(METHODS)}")
    if num < 1 or not 2 <= values <= 65536:
        raise ConfigError(f"num must be at least 1 and values from 2 to 65536, not {num} and {values}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:num].tolist()
    model.check_data(data)
    low, high = model.codec.bounds
    width = (high - low) / (values - 1)
    bins = Bins(width, low, high)
    log_snr_max = -2.0 * math.log(float(width.min()) / 2.0)
    found, parts, strata = [], [], []
    with model.evaluating():
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]
            noise = Noise([derive(seed, "likelihood", row) for row in rows], "likelihood")
            x_0 = model.codec.encode(data.batch(rows).to(model.device))
            cond = model.encode(model.known(data.cond(rows)), len(rows))
            if method == "bound":
                bound = continuous_bound(
                    model.denoiser, x_0, noise, num_levels=num_levels, cond=cond, bins=bins, log_snr_max=log_snr_max
                )
                found.append(bound.bits_per_dim)
                parts.append(torch.stack([bound.prior, bound.terms.sum(1), bound.reconstruction], 1))
                strata.append(bound.terms)
                levels = bound.log_snr
            else:
                found.append(_by_ode(model, x_0, noise, width, num_steps, cond, log_snr_max))
            if progress is not None:
                progress(min(first + BATCH, len(order)), len(order))
    every = torch.cat(found)
    error = 1.96 * float(every.std()) / math.sqrt(len(every)) if len(every) > 1 else None
    about = BitsPerDim(method, float(every.mean()), error, len(every), values, log_snr_max)
    if method == "ode":
        return about
    in_bits = math.log(2.0) * x_0[0].numel()
    means = (torch.cat(parts).mean(0) / in_bits).tolist()
    each = (torch.cat(strata).mean(0) / in_bits).tolist()
    return BitsPerDim(
        **asdict(about)
        | {
            "parts": dict(zip(("prior", "levels", "reconstruction"), means, strict=True)),
            "levels": list(zip(levels.tolist(), each, strict=True)),
        }
    )


def _by_ode(
    model: DiffusionModel,
    x_0: Tensor,
    noise: Noise,
    width: Tensor,
    num_steps: int,
    cond: Any,
    log_snr_max: float,
) -> Tensor:
    size = x_0[0].numel()
    spread = noise.fork("bin").uniform(x_0.shape).to(x_0) - 0.5
    probes = noise.fork("probe") if size > EXACT_DIVERGENCE_UP_TO else None
    nats = -log_likelihood(
        model.denoiser,
        x_0 + width.to(x_0) * spread,
        num_steps=num_steps,
        probes=probes,
        cond=cond,
        log_snr_max=log_snr_max,
    )
    # A density times a bin's width is a mass, and the mean of its logarithm over the bin no more than that of the mass.
    volume = torch.log(width.double()).expand(x_0.shape[1:]).sum().item()
    return (nats.cpu() - volume) / (size * math.log(2.0))
