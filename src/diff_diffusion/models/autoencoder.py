"""Autoencoder: data as small latents and back; the first stage of latent diffusion, and a VAE that draws by itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.codecs.bottleneck import Bottleneck, Passed, Tokens
from diff_diffusion.codecs.tokens import Tokenised
from diff_diffusion.cond import Cond
from diff_diffusion.conditions.conditions import Conditions
from diff_diffusion.data.latents import at_once
from diff_diffusion.errors import IncompatibleError
from diff_diffusion.models.model import Model
from diff_diffusion.networks.autoencoder import ConvAutoencoder
from diff_diffusion.objectives.denoising import Loss
from diff_diffusion.objectives.perception import balance, ssim, taken_for_real, told_apart
from diff_diffusion.objectives.reconstruction import Reconstruction, Width
from diff_diffusion.pictures import sheet
from diff_diffusion.registry import register
from diff_diffusion.rng import Noise, derive
from diff_diffusion.sizing import describe_autoencoder

if TYPE_CHECKING:
    from diff_diffusion.data import ImageDataset

MAX_IMAGES, MAX_FITTED = 512, 10_000


@register("model/autoencoder")
class Autoencoder(Model):
    """p(x | z) around what a decoder makes of a latent z, and an encoder that finds the latent.

    Args:
        network: with `encode` and `decode`, whose channels are the bottleneck's.
        codec: from data units to what the network works on.
        bottleneck: what a latent is: Gaussian, or one of a finite number of codes.
        reconstruction: what it learns.
        critic: (x [B, C, H, W]) to scores [B, patches] of what seems real: the opponent that learns along.
        eye: (x, x̂) to how unlike they look, [B], as in `objectives.eyes`; it stays as it is.

    Raises:
        IncompatibleError: a network of other channels than the bottleneck's or the data's.

    Source: arXiv 1312.6114; arXiv 1711.00937; arXiv 2112.10752.
    """

    codec: Affine
    eye: Any

    def __init__(
        self,
        network: ConvAutoencoder,
        codec: Affine,
        bottleneck: Bottleneck,
        reconstruction: Reconstruction | None = None,
        critic: nn.Module | None = None,
        eye: nn.Module | None = None,
    ) -> None:
        super().__init__()
        found = (network.channels, network.codes_out, network.codes_in)
        wanted = (codec.latent.shape[0], bottleneck.codes_out, bottleneck.channels)
        if found != wanted:
            raise IncompatibleError(
                f"the network's channels, codes_out and codes_in are {found}, and the data and the bottleneck need "
                f"{wanted}"
            )
        self.network, self.codec, self.bottleneck = network, codec, bottleneck
        self.reconstruction = reconstruction or Reconstruction()
        self.critic, self.eye = critic, eye
        if critic is not None:
            _check_critic(critic, codec.latent.shape)
        if eye is not None:
            eye.requires_grad_(False)
        # What is averaged and not optimised: saved with the weights, like any part that learns by being used.
        averages: dict[str, nn.Module] = {"width": Width()}
        self.learns = nn.ModuleDict(averages | ({"codes": bottleneck} if isinstance(bottleneck, Tokens) else {}))
        self.facts: dict[str, Any] = {}
        self.ema: dict[str, Tensor] | None = None

    @property
    def conditioner(self) -> Conditions | None:
        return None

    @classmethod
    def for_data(cls, data: ImageDataset, bottleneck: str = "kl", seed: int = 0, **options: Any) -> Autoencoder:
        """An autoencoder sized for `data`, the train split; `options` as for `describe_autoencoder`.

        Raises:
            ConfigError: an unknown bottleneck, or a factor that does not divide the data's sizes.
        """
        return cls.from_description(describe_autoencoder(data, bottleneck, **options), seed)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.bottleneck.channels, *(size // self.network.factor for size in self.codec.shape[1:]))

    # ---- trained --------------------------------------------------------------------------------------------------

    def objective(
        self, latents: Tensor, cond: Cond | None, noise: Noise, first: int = 0, whole: int | None = None
    ) -> Loss:
        passed, decoded = self._passed(latents, noise)
        self._width.learn(self.reconstruction.deviation(latents, decoded))
        loss = self._loss(latents, passed, decoded)
        if self.critic is None or int(self._width.batches) <= self.reconstruction.start:
            return loss
        fooling = taken_for_real(self.critic, decoded)
        pull = self.reconstruction.adversarial * balance(loss.mean, fooling.mean(), self.network.last)
        per_sample = loss.per_sample + pull * fooling + told_apart(self.critic, latents, decoded)
        return Loss(per_sample.mean(), per_sample, loss.log_snr)

    def held_out_levels(self, count: int) -> Tensor:
        """No sample is noised."""
        return torch.zeros(count, dtype=torch.float64)

    def loss_at(self, latents: Tensor, t: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        return self._loss(latents, *self._passed(latents, noise))

    def _loss(self, x: Tensor, passed: Passed, decoded: Tensor) -> Loss:
        """-ln p(x | z) + β rate(z) by the number of a sample's numbers, and the bottleneck's commitment."""
        nats = self.reconstruction.nats(x, decoded, self._width.value) + self.reconstruction.rate * passed.nats
        per_sample = nats / x[0].numel() + passed.commitment
        if self.eye is not None:
            per_sample = per_sample + self.reconstruction.perceptual * self.eye(x, decoded)
        return Loss(per_sample.mean(), per_sample, torch.full((len(x),), math.inf, dtype=torch.float64))

    def _passed(self, x: Tensor, noise: Noise) -> tuple[Passed, Tensor]:
        passed: Passed = self.bottleneck(self.network.encode(x), noise.fork("latent"))
        return passed, self.network.decode(passed.latent).to(x.dtype)

    @property
    def _width(self) -> Width:
        width = self.learns["width"]
        assert isinstance(width, Width)
        return width

    def averages(self) -> list[Tensor]:
        return [value for value in self.learns.buffers() if value.is_floating_point()]

    @torch.no_grad()
    def held_out_facts(self, data: ImageDataset) -> dict[str, Any]:
        """What is lost on the way (PSNR in decibels, SSIM), the bound on -ln p(x) in bits per number of the data, and
        what the latents are: each channel's standard deviation, or how many codes are used."""
        squares, nats, alike, count = 0.0, 0.0, 0.0, 0
        latents, tokens = [], []
        with self.evaluating():
            chosen = data.spread(MAX_IMAGES)
            batch = at_once(data.shape)
            for first in range(0, len(chosen), batch):
                rows = chosen[first : first + batch]
                images = data.batch(rows).to(self.device)
                x = self.codec.encode(images)
                h = self.network.encode(x)
                passed = self.bottleneck(h, Noise([derive(0, "held out", row) for row in rows]).fork("latent"))
                decoded = self.network.decode(passed.latent).to(x.dtype)
                whole = self.codec.decode(decoded).round()
                squares += float((whole - images).double().pow(2).flatten(1).mean(1).sum())
                alike += float(ssim(whole, images.float(), self.codec.high - self.codec.low).double().sum())
                nats += float((self.reconstruction.nats(x, decoded, self._width.value) + passed.nats).double().sum())
                count += len(rows)
                latents.append(passed.latent.double().transpose(0, 1).flatten(1))
                if isinstance(self.bottleneck, Tokens):
                    tokens.append(self.bottleneck.tokens(h).flatten())
        low, high = self.codec.data.low, self.codec.data.high
        # The bound is of data of mean 0 and std 1; a grey value is 1 / std of that.
        grey = sum(math.log2(std) for std in self.codec.std) / len(self.codec.std)
        facts: dict[str, Any] = {
            "held-out PSNR": round(10.0 * math.log10((high - low) ** 2 * count / max(squares, 1e-12)), 2),
            "held-out SSIM": round(alike / count, 4),
            "held-out bits per dimension, at most": nats / count / math.prod(self.codec.shape) / math.log(2.0) + grey,
            "latent std": [round(float(std), 4) for std in torch.cat(latents, 1).std(1)],
        }
        if isinstance(self.bottleneck, Tokens):
            facts["codes used"] = f"{len(torch.cat(tokens).unique())} of {self.bottleneck.size}"
        return facts

    def sheet(self, examples: Mapping[str, Any] | None = None, images: Tensor | None = None) -> Image | None:
        """Images, and what comes back of them."""
        if images is None:
            return None
        with self.evaluating(), torch.no_grad():
            latent = self.bottleneck.latent(self.network.encode(self.codec.encode(images.to(self.device))))
            back = self.codec.decode(self.network.decode(latent)).cpu()
        return sheet(torch.cat([images.to(back.dtype), back]), len(images), labels=["real", "decoded"])

    # ---- used -----------------------------------------------------------------------------------------------------

    def as_codec(self, data: ImageDataset) -> Autoencoded:
        """The codec that this is now, with statistics of the latents of `data`, the train split.

        With weights of its own, since a codec's stay as they are and the autoencoder may learn on.
        """
        some = data.spread(MAX_FITTED)
        batch = at_once(data.shape)
        batches = (data.batch(some[i : i + batch]).to(self.device) for i in range(0, len(some), batch))
        with self.evaluating():
            network, bottleneck = copy.deepcopy((self.network, self.bottleneck))
        return Autoencoded.fit(network, bottleneck, self.codec, batches, self.reconstruction.shape)

    def as_tokens(self) -> Tokenised:
        """The codec whose latents are the numbers of this one's codes.

        Raises:
            IncompatibleError: its latents are no codes of a finite number.
        """
        with self.evaluating():
            network, bottleneck = copy.deepcopy((self.network, self.bottleneck))
        return Tokenised(network, bottleneck, self.codec)  # type: ignore[arg-type]  # which it checks


def _check_critic(critic: nn.Module, shape: tuple[int, ...]) -> None:
    """Nothing, or an IncompatibleError: it joins in late, and must not be found unfit then."""
    try:
        copy.deepcopy(critic).to("meta")(torch.empty(1, *shape, device="meta"))
    except RuntimeError as error:
        raise IncompatibleError(
            f"the critic cannot look at samples {list(shape)}: {error}. Give it as many channels as the data have, and "
            "fewer layers where they are small"
        ) from error
