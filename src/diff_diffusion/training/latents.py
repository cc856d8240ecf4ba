"""What the network of a run works on: encoded at each step, or an autoencoder's latents, found out once and drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.codecs.encoded import Encoded
from diff_diffusion.data import ImageDataset
from diff_diffusion.data.latents import Moments, at_once, moments_of
from diff_diffusion.data.loader import Batch
from diff_diffusion.errors import IncompatibleError
from diff_diffusion.models import Model
from diff_diffusion.rng import Noise, derive
from diff_diffusion.training.runtime import Ranks

CHECKED = 512
"""Images, at most, whose latents are looked at before a run starts."""


class Latents:
    """The latents of a run's batches.

    Args:
        model: whose codec encodes.
        data: the train split.
        device: where the model is.
        ranks: the processes of the run; the first encodes what the others then read.
        keep: whether what an autoencoder's encoder says of every image is found out now, and kept.

    Attributes:
        kept: that; None where each batch is encoded when it comes.
        notes: what to say of it.

    Raises:
        IncompatibleError: latents that are not at the scale that noise is made for.
    """

    def __init__(self, model: Model, data: ImageDataset, device: torch.device, ranks: Ranks, *, keep: bool) -> None:
        self.model, self.device = model, device
        self.kept: Moments | None = None
        self.notes: list[str] = []
        codec = model.codec
        if isinstance(codec, Encoded) and keep:
            with model.evaluating(), ranks.first_then_others():
                self.kept = moments_of(data, lambda images: codec.moments(images.to(device)), codec.identity())
            if self.kept is None:
                self.notes.append("there is no room to keep the latents of all images: each batch is encoded anew")
        if isinstance(codec, Autoencoded):
            self._check(codec, data)

    def of(self, batch: Batch, noise: Noise) -> Tensor:
        """Of latents that can be drawn, draws."""
        codec, noise = self.model.codec, noise.fork("latent")
        if self.kept is None or not isinstance(codec, Encoded):
            return codec.encode(batch.pixels.to(self.device), noise)
        return codec.latents(self.kept.batch(batch.indices).to(self.device), noise)

    def _check(self, codec: Autoencoded, data: ImageDataset) -> None:
        rows = np.array(data.spread(CHECKED))
        if self.kept is not None:
            moments = self.kept.batch(rows).to(self.device)
        else:
            with self.model.evaluating():
                batch = at_once(data.shape)
                pieces = [rows[i : i + batch] for i in range(0, len(rows), batch)]
                moments = torch.cat([codec.moments(data.batch(piece).to(self.device)) for piece in pieces])
        noise = Noise([derive(0, "codec", int(row)) for row in rows])
        std = codec.latents(moments, noise).double().transpose(0, 1).flatten(1).std(1, correction=0)
        off = int(std.log2().abs().argmax())
        if not 0.5 <= float(std[off]) <= 2.0:
            raise IncompatibleError(
                f"channel {off} of the latents of {data.name} has standard deviation {float(std[off]):.3g}, and 0.5 to "
                "2 are allowed: the codec's statistics are of other data. Make it anew of this train split, by "
                "`as_codec` or --codec"
            )
