"""All that needs a GPU: is it right, how much of the peak training reaches, images a second beside diffusers' networks
in the same loop, and what CUDA graphs do for the latency of sampling.

    python benchmarks/gpu.py [--device cuda] [--batch 64] [--turns 20] [--tiny]

Writes results/gpu.json, on a real GPU and at full size only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from outcome import Outcome, Table, Target

from diff_diffusion import DiffusionModel, ImageDataset, Noise, TrainSettings, train
from diff_diffusion.core.denoiser import NetworkDenoiser
from diff_diffusion.presets import recipe
from diff_diffusion.registry import build
from diff_diffusion.samplers import trajectory
from diff_diffusion.sizing import describe_for_data

CHANNELS = 4
PEAKS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 operations a second by the makers' data sheets, by what the device's name contains."""
WANTED = {"DiT-B/2, 32×32": 0.5}
SIZES = {
    False: {"dit": {"width": 768, "depth": 12, "heads": 12}, "unet": (128, (1, 2, 4)), "sides": (32, 64)},
    True: {"dit": {"width": 32, "depth": 2, "heads": 2}, "unet": (32, (1, 2)), "sides": (8,)},
}


class Theirs(nn.Module):
    """A network of diffusers, called as ours are."""

    def __init__(self, inner: nn.Module, classes: bool) -> None:
        super().__init__()
        self.inner, self.classes = inner, classes

    def forward(self, x: Tensor, log_snr: Tensor, cond: None) -> Tensor:
        times = (1000 * torch.sigmoid(-0.5 * log_snr)).long()
        words = {"class_labels": torch.zeros_like(times)} if self.classes else {}
        output: Tensor = self.inner(x, times, **words, return_dict=False)[0]
        return output


def networks(side: int, tiny: bool) -> dict[str, dict[str, Callable[[], nn.Module]]]:
    """By name: ours and diffusers' of the same widths and depths."""
    from diffusers import DiTTransformer2DModel, UNet2DModel

    size: dict[str, Any] = SIZES[tiny]
    dit, (width, multipliers) = size["dit"], size["unet"]
    levels, deepest = len(multipliers), 2 ** (len(multipliers) - 1)
    unet = {"width": width, "multipliers": list(multipliers), "attention": [deepest]}
    kinds = ["Block2D"] * (levels - 1) + ["AttnBlock2D"]
    name = "DiT-B/2" if not tiny else "DiT"
    return {
        f"{name}, {side}×{side}": {
            "ours": lambda: build({"type": "network/dit", "channels": CHANNELS, "patch": 2, **dit}),
            "diffusers": lambda: Theirs(
                DiTTransformer2DModel(
                    num_attention_heads=dit["heads"],
                    attention_head_dim=dit["width"] // dit["heads"],
                    num_layers=dit["depth"],
                    in_channels=CHANNELS,
                    sample_size=side,
                    patch_size=2,
                ),
                classes=True,
            ),
        },
        f"U-Net, {side}×{side}": {
            "ours": lambda: build({"type": "network/unet", "channels": CHANNELS, **unet}),
            "diffusers": lambda: Theirs(
                UNet2DModel(
                    sample_size=side,
                    in_channels=CHANNELS,
                    out_channels=CHANNELS,
                    layers_per_block=2,
                    block_out_channels=tuple(width * multiplier for multiplier in multipliers),
                    down_block_types=tuple(f"{'Attn' if k[0] == 'A' else ''}DownBlock2D" for k in kinds),
                    up_block_types=tuple(f"{'Attn' if k[0] == 'A' else ''}UpBlock2D" for k in reversed(kinds)),
                ),
                classes=False,
            ),
        },
    }


def synchronised(device: torch.device) -> float:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def compiled(network: nn.Module, tiny: bool, **options: Any) -> Any:
    return torch.compile(network, backend="eager") if tiny else torch.compile(network, **options)


def peak(device: torch.device) -> tuple[float, str]:
    """bf16 operations a second of the device, and where that is from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for part, operations in PEAKS.items():
        if part in name:
            return operations, "the maker's data sheet"
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = synchronised(device)
        a @ b
        best = min(best, synchronised(device) - began)
    return 2 * side**3 / best, f"a product of {side} × {side} matrices"


def training(
    network: nn.Module, side: int, batch: int, turns: int, device: torch.device, tiny: bool
) -> dict[str, float]:
    """Operations and seconds of a training step: forward, backward and AdamW, in bf16 and compiled."""
    network = network.to(device).train()
    x, log_snr = torch.randn(batch, CHANNELS, side, side, device=device), torch.zeros(batch, device=device)
    with FlopCounterMode(display=False) as counted:
        _loss(network, x[:2], log_snr[:2]).backward()
    operations = counted.get_total_flops() / 2 * batch
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    fast, seconds = compiled(network, tiny), []
    for turn in range(turns + 3):
        began = synchronised(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = _loss(fast, x, log_snr)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if turn >= 3:
            seconds.append(synchronised(device) - began)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"operations": operations, "seconds": statistics.median(seconds), "parameters": parameters}


def _loss(network: Any, x: Tensor, log_snr: Tensor) -> Tensor:
    output = network(x, log_snr, None)[:, :CHANNELS]  # diffusers' DiT says a variance too
    return nn.functional.mse_loss(output.float(), x)


class Graphed(nn.Module):
    """A network whose launches are one graph. Its output is overwritten by the next call, so it is copied."""

    def __init__(self, network: nn.Module, tiny: bool) -> None:
        super().__init__()
        self.inner = compiled(network, tiny, mode="reduce-overhead")

    def forward(self, x: Tensor, log_snr: Tensor, cond: None) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        output: Tensor = self.inner(x, log_snr, cond).clone()
        return output


def latency(network: nn.Module, side: int, turns: int, device: torch.device, tiny: bool) -> dict[str, float]:
    """Seconds of one sample by 20 steps in bf16, with graphs and without."""
    network, chosen, found = network.to(device).eval(), recipe("rectified_flow"), {}
    times = chosen.grid.with_steps(4 if tiny else 20).times(chosen.process)
    for name, each in (("eager", network), ("graphs", Graphed(network, tiny))):
        denoiser, seconds = NetworkDenoiser(each, chosen.process, chosen.target), []
        for turn in range(turns + 3):
            noise = Noise([turn])
            x = chosen.process.prior((1, CHANNELS, side, side), noise.at(0)).to(device)
            began = synchronised(device)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                for _ in trajectory(denoiser, chosen.sampler, times, x, noise=noise):
                    pass
            if turn >= 3:
                seconds.append(synchronised(device) - began)
        found[name] = statistics.median(seconds)
    return found


def correct(device: torch.device) -> dict[str, str]:
    """What must hold on the device as on the CPU, in words; "yes" where it does."""
    pixels = torch.randint(0, 256, (64, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data, found = ImageDataset.from_arrays(pixels), {}
    description = describe_for_data(data)

    def run(out: Path, steps: int) -> DiffusionModel:
        model = DiffusionModel.from_description(description)
        for _ in train(model, data, out, TrainSettings(steps=steps, batch_size=8, precision="fp32", warmup_steps=0)):
            pass
        return model

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = run(home / "whole", 8)
        run(home / "parts", 4)
        run(home / "parts", 8)
        weights = [(home / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
        found["a run resumed has the bytes of one that was not"] = "yes" if weights[0] == weights[1] else "**no**"
        drawn = [DiffusionModel.load(home / "whole").to(place).sample(4).cpu() for place in (device, "cpu")]
        apart = float((drawn[0] - drawn[1]).abs().max())
        found["samples are the CPU's, within two grey levels of 255"] = (
            "yes" if apart <= 2.0 else f"**no**: {apart:.1f}"
        )
        found["trained on"] = model.device.type
        words = ["plan", "digits", "--steps", "10", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "diff_diffusion", *words], capture_output=True, text=True, cwd=home, check=False
        )
        found["`plan` runs"] = "yes" if done.returncode == 0 else f"**no**: {done.stderr.strip().splitlines()[-1:]}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="small networks, to see that all of it runs")
    arguments = parser.parse_args()
    device, tiny = torch.device(arguments.device), arguments.tiny
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is here: torch finds no CUDA device. To see that it runs: --device cpu --tiny")
    torch.set_float32_matmul_precision("high")
    turns, batch = (1, 2) if tiny else (arguments.turns, arguments.batch)
    operations, source = peak(device)
    numbers: dict[str, Any] = {"peak": operations, "correct": correct(device), "training": {}, "latency": {}}
    for side in SIZES[tiny]["sides"]:  # type: ignore[attr-defined]
        for name, makers in networks(side, tiny).items():
            found = {who: training(make(), side, batch, turns, device, tiny) for who, make in makers.items()}
            numbers["training"][name] = found
            numbers["latency"][name] = latency(makers["ours"](), side, turns, device, tiny)
            print(name, json.dumps([found, numbers["latency"][name]]), flush=True)
    outcome = told(numbers, source, batch)
    if device.type == "cuda" and not tiny:
        outcome.write(("diffusers",))
    else:
        print(f"nothing is written: {len(outcome.tables)} tables of a try")


def told(numbers: dict[str, Any], source: str, batch: int) -> Outcome:
    rows, targets, slow = [], [], []
    for name, found in numbers["training"].items():
        for who, each in found.items():
            share = each["operations"] / each["seconds"] / numbers["peak"]
            rate = f"{batch / each['seconds']:.0f}"
            rows.append((name, who, f"{each['parameters'] / 1e6:.0f} M", f"{share:.1%}", rate))
            if who == "ours" and name in WANTED:
                targets.append(Target(f"share of the bf16 peak, {name}", share, WANTED[name]))
        eager, graphs = (numbers["latency"][name][key] for key in ("eager", "graphs"))
        slow.append((name, f"{1e3 * eager:.0f}", f"{1e3 * graphs:.0f}", f"{eager / graphs:.2f}"))
    return Outcome(
        name="gpu",
        title="On a GPU",
        command="benchmarks/gpu.sh",
        said=f"Training steps (forward, backward, AdamW) of {batch} latents of 4 channels in bf16, compiled, the same "
        "loop for both; operations are those of matrix products, convolutions and attention, counted by torch; the "
        f"peak is {numbers['peak'] / 1e12:.0f} TFLOP/s by {source}. Latency is of one sample, 20 steps, batch 1.",
        tables=(
            Table("Is it right", ("what", ""), list(numbers["correct"].items())),
            Table("Training", ("network", "whose", "parameters", "of the peak", "images/s"), rows),
            Table("Latency of a sample", ("network", "eager, ms", "CUDA graphs, ms", "ratio"), slow),
        ),
        targets=targets,
        numbers=numbers,
        notes=("The peak of a name in the table is dense bf16 by the maker's data sheet; of others, a large product.",),
    )


if __name__ == "__main__":
    main()
