"""The memory of three training steps in this process, for benchmarks/costs.py: prints MiB as JSON.

    python benchmarks/costs_memory.py "ddpm theirs"|"ddpm ours"|"ddpm ours fp32"|"diffusers theirs"|… [--tiny]

Random images of 32 × 32 in batches of 16, the batch of both peers. "theirs" is the trainer of
denoising-diffusion-pytorch, its images from memory, and the steps of diffusers' train_unconditional.py with averaged
weights, as its own command line has them. "ours" is `train` with the same network.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.registry import register

STEPS, SIDE, BATCH = 3, 32, 16


@register("network/peers")
class Foreign(nn.Module):
    """A peer's network as ours are called: its time is a number from 0 to 1000 that falls with λ."""

    def __init__(self, whose: str, tiny: bool) -> None:
        super().__init__()
        self.whose, self.tiny = whose, tiny
        self.inner = UNETS[whose](tiny)

    def forward(self, x: Tensor, log_snr: Tensor, cond: object) -> Tensor:
        said = self.inner(x, 1000 * torch.sigmoid(-0.5 * log_snr))
        output: Tensor = getattr(said, "sample", said)
        return output


class Pictures(torch.utils.data.Dataset[Tensor]):
    """A thousand random images; the arguments are those of the peer's data set of files, which it stands in for."""

    def __init__(self, *_: object, **__: object) -> None:
        self.images = torch.rand(1000, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def resident() -> float:
    """MiB of this process now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def unet_of_ddpm(tiny: bool) -> nn.Module:
    import peers

    network: nn.Module = peers.denoising_diffusion_pytorch().Unet(8 if tiny else 64)
    return network


def unet_of_diffusers(tiny: bool) -> nn.Module:
    from diffusers import UNet2DModel

    widths = (32, 32) if tiny else (128, 128, 256, 256, 512, 512)  # of the example
    kinds = ["Block2D"] * len(widths)
    kinds[-2] = "AttnBlock2D"
    network: nn.Module = UNet2DModel(
        sample_size=SIDE,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=tuple(kind.replace("Block", "DownBlock") for kind in kinds),
        up_block_types=tuple(kind.replace("Block", "UpBlock") for kind in reversed(kinds)),
    )
    return network


UNETS = {"ddpm": unet_of_ddpm, "diffusers": unet_of_diffusers}


def ddpm_theirs(tiny: bool) -> None:
    import peers
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as home

    package = peers.denoising_diffusion_pytorch()
    home.Dataset = Pictures
    diffusion = package.GaussianDiffusion(unet_of_ddpm(tiny), image_size=SIDE)
    with tempfile.TemporaryDirectory() as folder:
        package.Trainer(diffusion, folder, results_folder=folder, train_num_steps=STEPS, calculate_fid=False).train()


def diffusers_theirs(tiny: bool) -> None:
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    accelerator, network, noising = Accelerator(), unet_of_diffusers(tiny), DDPMScheduler(1000)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    images = torch.utils.data.DataLoader(Pictures(), batch_size=BATCH, shuffle=True)
    rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10000)
    network, optimizer, images, rates = accelerator.prepare(network, optimizer, images, rates)
    for _, clean in zip(range(STEPS), images, strict=False):
        noise, times = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
        said = network(noising.add_noise(clean, noise, times), times).sample
        accelerator.backward(nn.functional.mse_loss(said.float(), noise.float()))
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(network.parameters())


def ours(network: Foreign, precision: str) -> None:
    from diff_diffusion import DiffusionModel, ImageDataset, TrainSettings, train
    from diff_diffusion.codecs.affine import Affine
    from diff_diffusion.presets import recipe

    data = ImageDataset.from_arrays((Pictures().images * 255).to(torch.uint8))
    codec = Affine.fit([data.batch(range(len(data)))])
    model = DiffusionModel(network, codec, recipe("rectified_flow"))
    settings: Any = {"steps": STEPS, "batch_size": BATCH, "precision": precision}
    for _ in train(model, data, None, TrainSettings(**settings)):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who")
    parser.add_argument("--tiny", action="store_true", help="small networks")
    arguments = parser.parse_args()
    whose, who, *rest = arguments.who.split()
    if whose == "ddpm":
        import peers

        peers.denoising_diffusion_pytorch()
        step = ddpm_theirs
    else:
        import diffusers  # noqa: F401
        from diffusers import UNet2DModel  # noqa: F401  # diffusers imports its parts when they are asked for

        step = diffusers_theirs
    if who == "ours":
        pass
    imported = resident()
    if who == "ours":
        ours(Foreign(whose, arguments.tiny), rest[0] if rest else "auto")
    else:
        step(arguments.tiny)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"imported": imported, "peak": peak, "taken": peak - imported}))


if __name__ == "__main__":
    main()
