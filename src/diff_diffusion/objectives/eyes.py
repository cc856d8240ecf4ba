"""How unlike two pictures look. An eye is a module: (x, x̂) [B, *shape], as the network sees data, to a number each [B].

It stays as it is: an autoencoder is taught by it, and never teaches it. Any registered module of that signature is one.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from diff_diffusion.core.denoiser import LOG_SNR_LIMIT
from diff_diffusion.errors import ConfigError
from diff_diffusion.objectives.perception import unlike
from diff_diffusion.registry import register

NETS, SMALLEST = ("alex", "vgg", "squeeze"), 32


class Eye(nn.Module):
    """A module that never learns, and never drops anything at random."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


@register("eye/features")
class Features(Eye):
    """`unlike` of what a network that knows the data sees in both.

    Args:
        network: with `features(x, log_snr)`, a list of [B, C, ...]: that of a classifier of these data.
        log_snr: the least noise that it knows.

    Raises:
        ConfigError: a network that tells no features.
    """

    def __init__(self, network: nn.Module, log_snr: float = LOG_SNR_LIMIT) -> None:
        super().__init__()
        if not callable(getattr(network, "features", None)):
            raise ConfigError(f"an eye needs a network that tells its features, and {type(network).__name__} does not")
        self.network: Any = network.requires_grad_(False).eval()
        self.log_snr = log_snr

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        clean = torch.full((len(x),), self.log_snr, device=x.device)
        return unlike(*(self.network.features(each, clean) for each in (x, other)))


@register("eye/lpips")
class Lpips(Eye):
    """LPIPS itself, by the package `lpips`, which fetches the weights of its network when it is first used.

    They are the package's, and no part of a model that is saved.

    Args:
        codec: from the data's units to x: of grey or RGB pictures of at least 32 pixels a side.
        net: "alex", "vgg" or "squeeze".

    Raises:
        ConfigError: other data, or another net; and, when first used, a package that is not there or does not work.

    Source: Zhang et al., arXiv 1801.03924.
    """

    def __init__(self, codec: Any, net: str = "alex") -> None:
        super().__init__()
        shape = codec.data.shape
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < SMALLEST:
            raise ConfigError(
                f"LPIPS is of grey or RGB pictures of at least {SMALLEST} pixels a side, and these are {list(shape)}: "
                "train a classifier of them, `train --classifier`, and give its run as the eye"
            )
        if net not in NETS:
            raise ConfigError(f"the net of LPIPS is one of {', '.join(NETS)}, not {net!r}")
        self.codec, self.net = codec, net

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        low, high = self.codec.data.low, self.codec.data.high
        shown = [2 * (self.codec.decode(each) - low) / (high - low) - 1 for each in (x, other)]
        found: Tensor = judge(self.net).to(x.device)(*(each.expand(-1, 3, -1, -1) for each in shown))
        return found.flatten()


@cache
def judge(net: str) -> Any:
    """The package's module.

    Raises:
        ConfigError: it is not there, or does not work.
    """
    try:
        from lpips import LPIPS

        return LPIPS(net=net, verbose=False).requires_grad_(False).eval()
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"LPIPS cannot be used here ({type(error).__name__}: {error}): it needs `pip install lpips`, a torchvision "
            "made for this torch, and the network to fetch weights once. Or train a classifier of your data, "
            "`train --classifier`, and give its run as the eye"
        ) from error
