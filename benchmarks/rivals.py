"""A GAN and a VAE of one architecture, as small images want them: rivals of benchmarks/generators.py.

Both have a trunk that halves the sides three times and one that doubles them as often. Trained by Adam, in fp32, with
averaged weights, until a clock says stop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion import ImageDataset, TrainSettings
from diff_diffusion.data.loader import Batches
from diff_diffusion.rng import derive
from diff_diffusion.training.ema import Ema

LATENT, HIDDEN, SLOPE = 64, 128, 0.2


def _halved(sides: tuple[int, int]) -> list[tuple[int, int]]:
    """The sides, largest first, as three convolutions of stride 2 leave them."""
    found = [sides]
    for _ in range(3):
        found.append(((found[-1][0] + 1) // 2, (found[-1][1] + 1) // 2))
    return found


def _started(module: nn.Module) -> nn.Module:
    """He's initial weights for leaky ReLUs, which networks without normalisation need."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            # A transposed convolution of stride 2 adds a quarter of its kernel's taps to each pixel.
            inputs = part.in_channels * 4 if isinstance(part, nn.ConvTranspose2d) else part.weight[0].numel()
            nn.init.normal_(part.weight, std=(2.0 / (1.0 + SLOPE**2) / inputs) ** 0.5)
            assert part.bias is not None
            nn.init.zeros_(part.bias)
    return module


class Down(nn.Module):
    """Images [B, C, H, W] to [B, out]."""

    def __init__(self, shape: tuple[int, int, int], width: int, out: int, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (low, high) in enumerate(itertools.pairwise((shape[0], width, 2 * width, 4 * width))):
            # An odd side is rounded up: 7 becomes 4.
            layers += [nn.ZeroPad2d((1, 2, 1, 2)) if _halved(shape[1:])[i][0] % 2 else nn.ZeroPad2d(1)]
            normed = nn.GroupNorm(8, high) if norm else nn.Identity()
            layers += [nn.Conv2d(low, high, 4, 2), normed, nn.LeakyReLU(SLOPE)]
        height, wide = _halved(shape[1:])[-1]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * height * wide, out))
        _started(self)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


class Up(nn.Module):
    """Latents [B, LATENT] to images [B, C, H, W], where -1 is black and 1 is white."""

    def __init__(self, shape: tuple[int, int, int], width: int, norm: bool) -> None:
        super().__init__()
        self.sides = _halved(shape[1:])[::-1]
        self.enter = nn.Linear(LATENT, 4 * width * self.sides[0][0] * self.sides[0][1])
        widths = (4 * width, 2 * width, width, shape[0])
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(8, a) if norm else nn.Identity() for a in widths[:-1])
        _started(self)

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.enter(z).unflatten(1, (-1, *self.sides[0]))
        for norm, grow, (height, width) in zip(self.norms, self.grow, self.sides[1:], strict=True):
            x = grow(functional.leaky_relu(norm(x), SLOPE))[..., :height, :width]
        return x


class Gan(nn.Module):
    """R3GAN's losses: every fake is judged against a real image, and the judge's slope is held down on both.

    Discriminator: softplus(D(fake) - D(real)) + γ/2 · (‖∇D(real)‖² + ‖∇D(fake)‖²); generator: softplus(D(real) -
    D(fake)). No normalisation, as in the paper.

    Source: Huang et al., arXiv 2501.05441.
    """

    betas = (0.0, 0.99)

    def __init__(self, shape: tuple[int, int, int], width: int, gamma: float) -> None:
        super().__init__()
        self.generator, self.gamma = Up(shape, width, norm=False), gamma
        self.critic = nn.Sequential(Down(shape, width, HIDDEN, norm=False), nn.LeakyReLU(SLOPE), nn.Linear(HIDDEN, 1))

    def parts(self) -> list[nn.Module]:
        """What has an optimiser each."""
        return [self.critic, self.generator]

    def losses(self, real: Tensor, noise: torch.Generator) -> list[Callable[[], Tensor]]:
        """One after another, each for the part of the same place."""
        z = [torch.randn(len(real), LATENT, generator=noise) for _ in range(2)]
        return [lambda: self._critics(real, z[0]), lambda: self._generators(real, z[1])]

    def _critics(self, real: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            fake = self.generator(z)
        seen = torch.cat([real, fake]).requires_grad_()
        said = self.critic(seen)[:, 0]
        [slope] = torch.autograd.grad(said.sum(), seen, create_graph=True)
        penalty = slope.square().sum((1, 2, 3)).mean() * 2  # R1 + R2, the mean over the batch of each
        of_real, of_fake = said.chunk(2)
        return functional.softplus(of_fake - of_real).mean() + self.gamma / 2 * penalty

    def _generators(self, real: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            of_real = self.critic(real)
        return functional.softplus(of_real - self.critic(self.generator(z))).mean()


class Vae(nn.Module):
    """A VAE whose decoder's one variance is always the best one: σ² = the batch's mean squared error.

    The bound per image is then D/2 · ln σ² + KL, D the number of values; nothing weighs the two but the data.

    Source: Rybkin et al., arXiv 2006.13202.
    """

    betas = (0.9, 0.99)

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        assert HIDDEN == 2 * LATENT
        self.encoder, self.generator = Down(shape, width, HIDDEN, norm=True), Up(shape, width, norm=True)

    def parts(self) -> list[nn.Module]:
        """What has an optimiser each."""
        return [self]

    def losses(self, real: Tensor, noise: torch.Generator) -> list[Callable[[], Tensor]]:
        """Of its one part."""
        return [lambda: self._bound(real, torch.randn(len(real), LATENT, generator=noise))]

    def _bound(self, real: Tensor, eps: Tensor) -> Tensor:
        mean, log_var = self.encoder(real).chunk(2, 1)
        log_var = log_var.clamp(-12.0, 4.0)
        drawn = self.generator(mean + (log_var / 2).exp() * eps)
        divergence: Tensor = (mean**2 + log_var.exp() - 1.0 - log_var).sum(1).mean() / 2
        return divergence + real[0].numel() / 2 * functional.mse_loss(drawn, real).log()


class Trained(NamedTuple):
    """How a training went: steps, and whether a loss was not finite, which ends it."""

    steps: int
    diverged: bool


def fit(
    model: Gan | Vae, data: ImageDataset, batch_size: int, lr: float, seed: int, stop: Callable[[], bool]
) -> Trained:
    """Trains until `stop`, asked after each step. The generator holds its averaged weights when it ends.

    Warm-up, averaging and the order of the data are those of `diff_diffusion.train`.
    """
    settings = TrainSettings(lr=lr, steps=1)
    parts = [list(part.parameters()) for part in model.parts()]
    optimizers = [torch.optim.Adam(weights, lr, model.betas, fused=True) for weights in parts]
    noise, ema = torch.Generator().manual_seed(derive(seed, "rival") % (1 << 63)), Ema(model.generator)
    with closing(iter(Batches(data, batch_size, seed))) as batches:
        for batch in batches:
            losses = model.losses(batch.pixels.float() / 127.5 - 1.0, noise)
            for loss_of, weights, optimizer in zip(losses, parts, optimizers, strict=True):
                loss = loss_of()
                if not bool(torch.isfinite(loss)):
                    return Trained(batch.step, True)
                optimizer.param_groups[0]["lr"] = settings.lr_at(batch.step)
                optimizer.zero_grad(set_to_none=True)
                loss.backward(inputs=weights)
                optimizer.step()
            ema.update(settings.ema_rate(batch.step))
            if stop():
                break
    ema.swap()
    return Trained(batch.step + 1, False)


@torch.no_grad()
def drawn(generator: Up, num: int, seed: int, batch_size: int = 64) -> Tensor:
    """Samples in data units, float32 [num, C, H, W]: of a VAE the decoder's mean, without its noise."""
    noise = torch.Generator().manual_seed(derive(seed, "drawn") % (1 << 63))
    z = torch.randn(num, LATENT, generator=noise)
    return torch.cat([(generator(some) + 1.0) * 127.5 for some in z.split(batch_size)])
