"""Bits per dimension of a trained model on data it has not seen: by the variational bound and by the ODE."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.codecs.bottleneck import Gauss
from diff_diffusion.codecs.codec import Codec, learned
from diff_diffusion.core.denoiser import LOG_SNR_LIMIT
from diff_diffusion.core.likelihood import Bins, continuous_bound, log_likelihood
from diff_diffusion.data import ImageDataset
from diff_diffusion.data.survey import Progress
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise, derive

METHODS = ("bound", "ode")
PARTS = ("prior", "levels", "reconstruction", "decoding")
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
        parts: for the bound, its mean parts in bits: prior, levels, reconstruction; of a model on latents also
            decoding, what the autoencoder's decoder leaves to say.
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

    Of a model on latents z of x: E_q[-ln P(x | z)] + E_q[ln q(z | x)] - E_q[ln p(z)], an upper bound on -ln P(x) by
    either method, with P the mass that the autoencoder's density around what is decoded puts in a value's bin. What
    diffusion adds to the autoencoder's own bound is a p(z) in place of N(0, 1).

    The level at which the data are read off is where noise has half a bin's width. With less, a model pays for knowing
    where in its bin a value lies, which is no news; with more, the value itself is in doubt. Latents are read off at
    half their encoder's own noise.

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
        IncompatibleError: latents that have no density, such as codes, or of an autoencoder that does not say how near
            to the data what it decodes lies.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}: it is one of {', '.join(METHODS)}")
    if num < 1 or not 2 <= values <= 65536:
        raise ConfigError(f"num must be at least 1 and values from 2 to 65536, not {num} and {values}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:num].tolist()
    model.check_data(data)
    reading = _Reading.of(model.codec, data.batch(order[:BATCH]).to(model.device), values)
    log_snr_max, in_bits = reading.log_snr_max, math.log(2.0) * math.prod(model.codec.data.shape)
    found, parts, strata = [], [], []
    with model.evaluating():
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]
            noise = Noise([derive(seed, "likelihood", row) for row in rows], "likelihood")
            images = data.batch(rows).to(model.device)
            x_0 = model.codec.encode(images, noise.fork("latent"))
            beside = reading.beside(images, x_0)
            cond = model.encode(model.known(data.cond(rows)), len(rows))
            if method == "bound":
                bound = continuous_bound(
                    model.denoiser,
                    x_0,
                    noise,
                    num_levels=num_levels,
                    cond=cond,
                    bins=reading.bins,
                    log_snr_max=log_snr_max,
                )
                found.append((bound.nats + sum(beside)) / in_bits)
                reconstruction = bound.reconstruction + (beside[0] if beside else 0.0)
                parts.append(torch.stack([bound.prior, bound.terms.sum(1), reconstruction, *beside[1:]], 1))
                strata.append(bound.terms)
                levels = bound.log_snr
            else:
                nats = _by_ode(model, x_0, noise, reading.bins, num_steps, cond, log_snr_max)
                found.append((nats + sum(beside)) / in_bits)
            if progress is not None:
                progress(min(first + BATCH, len(order)), len(order))
    every = torch.cat(found)
    error = 1.96 * float(every.std()) / math.sqrt(len(every)) if len(every) > 1 else None
    about = BitsPerDim(method, float(every.mean()), error, len(every), values, log_snr_max)
    if method == "ode":
        return about
    means = (torch.cat(parts).mean(0) / in_bits).tolist()
    each = (torch.cat(strata).mean(0) / in_bits).tolist()
    return BitsPerDim(
        **asdict(about)
        | {
            "parts": dict(zip(PARTS[: len(means)], means, strict=True)),
            "levels": list(zip(levels.tolist(), each, strict=True)),
        }
    )


def _by_ode(
    model: DiffusionModel,
    x_0: Tensor,
    noise: Noise,
    bins: Bins | None,
    num_steps: int,
    cond: Any,
    log_snr_max: float,
) -> Tensor:
    """-ln p(x_0) in nats; of what has bins, of the mass in them."""
    size = x_0[0].numel()
    width = bins.width if bins is not None else torch.zeros(())
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
    volume = torch.log(width.double()).expand(x_0.shape[1:]).sum().item() if bins is not None else 0.0
    return nats.cpu() - volume


@dataclass(frozen=True)
class _Reading:
    """How what a codec gives is read off, and what is to be said of the data beside it."""

    codec: Codec
    values: int
    bins: Bins | None
    log_snr_max: float

    @classmethod
    def of(cls, codec: Codec, images: Tensor, values: int) -> _Reading:
        if isinstance(codec, Affine):
            low, high = codec.bounds
            width = (high - low) / (values - 1)
            return cls(codec, values, Bins(width, low, high), -2.0 * math.log(float(width.min()) / 2.0))
        if learned(codec) is None:
            raise IncompatibleError(
                f"bits per dimension are told of data that are worked on as they are, and this model works on what a "
                f"{type(codec).__name__} gives, whose numbers have not the even steps of the data's: compare held-out "
                "losses instead"
            )
        if not isinstance(codec, Autoencoded) or not isinstance(codec.bottleneck, Gauss):
            raise IncompatibleError(
                "this model works in an autoencoder's latents, and these are codes, which have no density: bits per "
                "dimension are told of latents of a 'kl' autoencoder; compare held-out losses instead"
            )
        if codec.width is None:
            raise IncompatibleError(
                "this model's autoencoder does not say how near to the data what it decodes lies, so bits per "
                "dimension are not known: make its codec with Autoencoder.as_codec"
            )
        _, log_variance = codec.bottleneck.moments(codec.moments(images))
        std = torch.tensor(codec.std, dtype=torch.float64).log().mean()
        log_std = float(0.5 * log_variance.double().mean() - std)
        return cls(codec, values, None, min(-2.0 * (log_std - math.log(2.0)), LOG_SNR_LIMIT))

    def beside(self, images: Tensor, latents: Tensor) -> list[Tensor]:
        """In nats, [B] each: E ln q(z | x), and -ln P(x | z). Of data that are worked on as they are, nothing."""
        codec = self.codec
        if not isinstance(codec, Autoencoded):
            return []
        assert isinstance(codec.bottleneck, Gauss)
        assert codec.width is not None
        places = latents[0, 0].numel()
        # Latents are scaled: their density is that of the bottleneck's times each channel's standard deviation.
        known = -codec.bottleneck.entropy(codec.moments(images)) + places * sum(map(math.log, codec.std))
        spread = codec.width * torch.tensor(codec.pixels.std, dtype=torch.float64, device=images.device)
        spread = spread.view(-1, *[1] * (images.ndim - 2))
        half = 0.5 * (codec.data.high - codec.data.low) / (self.values - 1) / spread
        missed = (images.double() - codec.decode(latents).double()).abs() / spread
        masses = {"laplace": _laplace_mass, "gauss": _gauss_mass}[codec.density](missed, half)
        return [known.cpu(), -masses.flatten(1).sum(1).cpu()]


def _laplace_mass(missed: Tensor, half: Tensor) -> Tensor:
    """ln of the mass of a Laplace of width 1 within `half` of a place `missed` from its middle."""
    outside = -(missed - half) + torch.log(-torch.expm1(-2.0 * half)) - math.log(2.0)
    inside = torch.log1p(-(0.5 * (torch.exp(missed - half) + torch.exp(-missed - half))).clamp(max=1.0))
    return torch.where(missed > half, outside, inside)


def _gauss_mass(missed: Tensor, half: Tensor) -> Tensor:
    """ln of the mass of N(0, 1) within `half` of `missed`, both at least 0, where its tail does not cancel."""
    upper, lower = (torch.special.log_ndtr(-(missed + sign * half)) for sign in (-1.0, 1.0))
    mass: Tensor = upper + torch.log1p(-torch.exp(lower - upper))
    return mass
