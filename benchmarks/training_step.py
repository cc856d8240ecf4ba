"""What a step of training costs: a peer's network in our loop and in its own, our U-Net beside it and the machine.

    python benchmarks/training_step.py [--threads 1] [--turns 7] [--learn 500] [--quick]

Each contestant is a process of its own, told in turn to do one step. On one thread the clock is the processor time of
the process, so that waiting for a shared core counts for nothing; on more it is the wall's, and the machine should have
nothing else to do. The losses after --learn steps are kept in runs/bench/training_step, and found there again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outcome import Outcome, Table, Target, ratio
from peers import denoising_diffusion_pytorch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from diff_diffusion import DiffusionModel, TrainSettings, load_image_dataset, train
from diff_diffusion.data import ImageDataset
from diff_diffusion.networks.unet import UNet
from diff_diffusion.registry import register
from diff_diffusion.training.runtime import autocast

CACHE = Path(__file__).parent.parent / "runs" / "bench" / "training_step"
Step = Callable[[], object]
BATCH, SIDE = 16, 32
LUCIDRAINS: dict[str, Any] = {"dim": 64, "dim_mults": (1, 2, 4, 8)}
EQUAL: dict[str, Any] = {"width": 64, "multipliers": (1, 2, 3, 4), "depth": 2, "attention": (8,), "group_width": 16}
"""Sizes of our U-Net whose FLOPs are those of denoising-diffusion-pytorch's at 32 × 32, within 3 %."""
SAID = """A step is data in memory to updated and averaged weights, of {batch} images of 3 × {side} × {side}. In the
first table the network is the peer's own, and contestants are its own step and our `train` with its defaults, which
measures bfloat16 and takes it where it is faster. denoising-diffusion-pytorch's step is its own `Trainer.train`, given
batches that are ready instead of image files. diffusers' is the loop of its example for unconditional images in our
words, with the example's network, optimizer, averaging and `accelerate`. In the second table 64 × 64 images come 8 at a
time."""


# ---- contestants, each made in a process of its own ------------------------------------------------------------------


@register("network/peers")
class Foreign(nn.Module):
    """A peer's network, which takes an image and a time of 1000, in our loop."""

    def __init__(self, peer: str, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.peer, self.sizes = peer, sizes
        self.network = NETWORKS[peer](**sizes)

    def forward(self, x: Tensor, log_snr: Tensor, cond: None) -> Tensor:
        said = self.network(x, 999.0 * torch.sigmoid(-0.5 * log_snr))
        output: Tensor = getattr(said, "sample", said)
        return output


def lucidrains(**sizes: Any) -> nn.Module:
    network: nn.Module = denoising_diffusion_pytorch().Unet(**LUCIDRAINS | sizes)
    return network


def diffusers(**sizes: Any) -> nn.Module:
    from diffusers import UNet2DModel

    down, up = ["DownBlock2D"] * 6, ["UpBlock2D"] * 6
    down[4], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
    widths = tuple(sizes.get("widths", (128, 128, 256, 256, 512, 512)))
    network: nn.Module = UNet2DModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
    )
    return network


NETWORKS = {"denoising-diffusion-pytorch": lucidrains, "diffusers": diffusers}


def batches() -> Iterator[Tensor]:
    """Images in [0, 1], ready."""
    ready = torch.rand(8, BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    while True:
        yield from ready


def ours(peer: str, **sizes: Any) -> Step:
    """`train` as a user calls it, on another's network."""
    images = np.random.default_rng(0).integers(0, 256, (512, SIDE, SIDE, 3), np.uint8)
    data = ImageDataset.from_arrays(images)
    own = DiffusionModel.for_data(data)
    model = DiffusionModel(Foreign(peer, sizes), own.codec, own.recipe)
    steps = train(model, data, None, TrainSettings(steps=10**9, batch_size=BATCH))
    return lambda: "; ".join(next(steps).notes)


def their_trainer(precision: str, **sizes: Any) -> Step:
    """denoising-diffusion-pytorch's `Trainer`, made as it makes itself but for files, data and pictures."""
    package = denoising_diffusion_pytorch()
    from accelerate import Accelerator
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as module

    trainer = package.Trainer.__new__(package.Trainer)
    trainer.accelerator = Accelerator(cpu=True, mixed_precision=precision)
    diffusion = package.GaussianDiffusion(lucidrains(**sizes), image_size=SIDE)
    optimizer = module.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    trainer.ema = module.EMA(diffusion, beta=0.995, update_every=10)
    trainer.model, trainer.opt = trainer.accelerator.prepare(diffusion, optimizer)
    trainer.dl, trainer.gradient_accumulate_every, trainer.max_grad_norm = batches(), 1, 1.0
    trainer.step = trainer.train_num_steps = 0
    trainer.save_and_sample_every = 10**9
    module.tqdm = lambda **_: _Quiet()  # a bar a step is no part of it
    trainer.accelerator.print = lambda *_: None

    def step() -> None:
        trainer.train_num_steps += 1
        trainer.train()

    return step


class _Quiet:
    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_description(self, _: str) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def their_example(precision: str, **sizes: Any) -> Step:
    """diffusers' example for unconditional images: epsilon, mean squared error, AdamW, EMA and accelerate."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    network, images = diffusers(**sizes), batches()
    chain = DDPMScheduler(num_train_timesteps=1000)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    adam = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    pace = get_scheduler("cosine", optimizer=adam, num_warmup_steps=500, num_training_steps=100_000)
    model, adam, pace = accelerator.prepare(network, adam, pace)
    average = EMAModel(network.parameters(), use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def step() -> float:
        x_0 = next(images) * 2.0 - 1.0
        eps, t = torch.randn(x_0.shape), torch.randint(0, 1000, (len(x_0),))
        x_t = chain.add_noise(x_0, eps, t)
        with accelerator.accumulate(model):
            loss = functional.mse_loss(model(x_t, t).sample.float(), eps)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            pace.step()
            adam.zero_grad()
        average.step(network.parameters())
        return loss.item()

    return step


def passes(which: str, precision: str, side: int, batch: int, **sizes: Any) -> Step:
    """Forward and backward alone, with weights as our loop keeps them where the network is ours."""
    network = UNet(3, **sizes) if which == "ours" else lucidrains(**sizes)
    if which == "ours":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    x, level = torch.randn(batch, 3, side, side), torch.linspace(1.0, 19.0, batch)

    def step() -> None:
        with autocast(torch.device("cpu"), precision):
            out = network(x, level)
        out.float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    return step


def product(precision: str, size: int) -> Step:
    """A large matrix product: what the machine can do."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b, out = (torch.randn(size, size).to(kind) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def flops(network: nn.Module, side: int, batch: int) -> int:
    """Of a forward pass; a step's are three times as many."""
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(torch.zeros(batch, 3, side, side), torch.ones(batch))
    return int(counted.get_total_flops())


# ---- their processes -------------------------------------------------------------------------------------------------


def serve(line: Connection, make: Callable[[], Step], threads: int) -> None:
    """Makes a contestant and does a step whenever told to; says how long it took."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    clock = time.process_time if threads == 1 else time.perf_counter
    step = make()
    told = step()  # and all that a first step makes
    line.send(told if isinstance(told, str) else "")
    while line.recv():
        began = clock()
        step()
        line.send(clock() - began)


def taken_in_turn(
    makers: Mapping[str, Callable[[], Step]], turns: int, threads: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of a step of each, turn by turn; and what each said of its first."""
    said: dict[str, str] = {}
    lines: dict[str, Connection] = {}
    running = []
    for name, make in makers.items():
        lines[name], far = get_context("spawn").Pipe()
        running.append(get_context("spawn").Process(target=serve, args=(far, make, threads), daemon=True))
        running[-1].start()
        far.close()
        said[name] = lines[name].recv()
        print(f"  {name} is ready {said[name]}", flush=True)
    found: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(turns):
        for name, line in lines.items():
            line.send(True)
            found[name].append(line.recv())
        now = ", ".join(f"{name} {1e3 * seconds[-1]:.0f}" for name, seconds in found.items())
        print(f"  turn {turn + 1} of {turns}, ms: {now}", flush=True)
    for line, process in zip(lines.values(), running, strict=True):
        line.send(False)
        process.join()
    return found, said


# ---- what is learned -------------------------------------------------------------------------------------------------


def learned(precision: str, steps: int) -> dict[str, float]:
    """Losses of the digits' default model after so many steps: mean of the last tenth, and held out."""
    kept = CACHE / f"learned-{precision}-{steps}.json"
    if not kept.exists():
        data, held_out = load_image_dataset("digits").split()
        settings = TrainSettings(steps=steps, precision=precision, eval_interval=10**9)
        losses, last = [], None
        for last in train(DiffusionModel.for_data(data), data, None, settings, held_out=held_out):
            losses.append(last.loss)
            if last.step % 50 == 0:
                print(f"  {precision}: step {last.step} of {steps}, loss {last.loss:.4f}", flush=True)
        assert last is not None
        assert last.held_out is not None
        CACHE.mkdir(parents=True, exist_ok=True)
        found = {"train": statistics.mean(losses[-max(1, steps // 10) :]), "held out": last.held_out["mean"]}
        kept.write_text(json.dumps(found), encoding="utf-8")
    told: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return told


# ---- the tables ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7, help="steps of each contestant that are timed")
    parser.add_argument("--learn", type=int, default=500, help="steps whose loss is compared, bf16 against fp32")
    parser.add_argument("--quick", action="store_true", help="small networks and few steps: shows that it runs")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    turns, learn = (2, 3) if asked.quick else (asked.turns, asked.learn)
    found: dict[str, dict[str, list[float]]] = {}
    tables, targets = [], []

    small: dict[str, dict[str, Any]] = {
        "denoising-diffusion-pytorch": {"dim": 8, "dim_mults": [1, 2]},
        "diffusers": {"widths": [32] * 6},
    }
    theirs = {"denoising-diffusion-pytorch": their_trainer, "diffusers": their_example}
    rows = []
    for peer, step in theirs.items():
        sizes = small[peer] if asked.quick else {}
        print(f"{peer}'s network", flush=True)
        makers: dict[str, Callable[[], Step]] = {
            "its own loop": partial(step, "no", **sizes),
            "its own loop, bf16": partial(step, "bf16", **sizes),
            "ours": partial(ours, peer, **sizes),
        }
        taken, said = taken_in_turn(makers, turns, asked.threads)
        found[peer] = taken
        for name in makers:
            middle, low, high = ratio(taken, name, "ours")
            times = f"{middle:.2f} ({low:.2f}–{high:.2f})" if name != "ours" else said[name]
            rows.append([peer, name, _ms(taken[name]), times])
        for name, wanted in (("its own loop", 1.7), ("its own loop, bf16", 1.0)):
            what = f"{peer}'s network: our loop against {name}, times as fast"
            targets.append(Target(what, ratio(taken, name, "ours")[0], wanted))
    columns = ["network", "loop", "ms a step: median (lowest–highest)", "ours is so many times as fast"]
    tables.append(Table(f"A peer's network in its loop and in ours, batch {BATCH}", columns, rows))

    print("U-Nets at equal FLOPs, and shares of the peak", flush=True)
    ours_sizes: dict[str, Any] = (
        {"width": 16, "multipliers": (1, 2), "depth": 1, "attention": (2,)} if asked.quick else EQUAL
    )
    peer_sizes = small["denoising-diffusion-pytorch"] if asked.quick else {}
    mine, other = flops(UNet(3, **ours_sizes), SIDE, BATCH), flops(lucidrains(**peer_sizes), SIDE, BATCH)
    emoji = {**EQUAL, "width": 16 if asked.quick else 64}
    emoji_side, emoji_batch = 64, 1 if asked.quick else 8
    emoji_flops = flops(UNet(3, **emoji), emoji_side, emoji_batch)
    size = 512 if asked.quick else 2048
    makers = {
        "denoising-diffusion-pytorch's U-Net": partial(passes, "theirs", "fp32", SIDE, BATCH, **peer_sizes),
        "our U-Net": partial(passes, "ours", "fp32", SIDE, BATCH, **ours_sizes),
        "our U-Net, bf16": partial(passes, "ours", "bf16", SIDE, BATCH, **ours_sizes),
        "our U-Net at 64 × 64": partial(passes, "ours", "fp32", emoji_side, emoji_batch, **emoji),
        "our U-Net at 64 × 64, bf16": partial(passes, "ours", "bf16", emoji_side, emoji_batch, **emoji),
        "matrix product": partial(product, "fp32", size),
        "matrix product, bf16": partial(product, "bf16", size),
    }
    counted = [3 * other, 3 * mine, 3 * mine, 3 * emoji_flops, 3 * emoji_flops, 2 * size**3, 2 * size**3]
    done = dict(zip(makers, counted, strict=True))
    taken, _ = taken_in_turn(makers, turns, asked.threads)
    found["passes"] = taken
    rows, shares = [], {}
    for name in makers:
        peak = "matrix product, bf16" if "bf16" in name else "matrix product"
        rate = done[name] / statistics.median(taken[name])
        # The best of the products: what the machine can do is not less for a slow spell.
        shares[name] = rate / (done[peak] / min(taken[peak]))
        rows.append([name, f"{done[name] / 1e9:.0f}", _ms(taken[name]), f"{rate / 1e9:.0f}", f"{shares[name]:.0%}"])
    columns = ["forward and backward", "GFLOP", "ms: median (lowest–highest)", "GFLOP/s", "of the product's"]
    tables.append(Table("Networks alone", columns, rows))
    quicker = ratio(taken, "denoising-diffusion-pytorch's U-Net", "our U-Net")[0] * mine / other
    what = f"our U-Net against denoising-diffusion-pytorch's in fp32, times the FLOP/s (FLOPs {mine / other:.3f} : 1)"
    targets.append(Target(what, quicker, 1.25))
    plain = "norms, activations and attention's weights take time, and count no FLOPs"
    half = (
        "the gradients of convolutions in bfloat16 reach about half of what a large product does"
        ", and what is no product takes as long as before"
    )
    for precision, who, wanted, why in (
        ("fp32", "our U-Net at 64 × 64", 0.85, plain),
        ("bf16", "our U-Net at 64 × 64, bf16", 0.70, half),
    ):
        what, share = f"share of the {precision} product's FLOP/s, 64 × 64", shares[who]
        targets.append(Target(what, share, wanted, why=why if share < wanted else ""))

    print(f"losses after {learn} steps", flush=True)
    losses = {precision: learned(precision, learn) for precision in ("fp32", "bf16")}
    rows = [[name, *(f"{value:.4f}" for value in told.values())] for name, told in losses.items()]
    tables.append(
        Table(f"Digits, {learn} steps of the default", ["precision", "loss, last tenth", "held-out loss"], rows)
    )
    apart = max(abs(losses["bf16"][name] / losses["fp32"][name] - 1.0) for name in losses["fp32"])
    targets.append(Target(f"bf16's loss after {learn} steps, apart from fp32's", apart, 0.01, at_least=False))

    Outcome(
        name="training_step",
        title="A step of training",
        command=f"python benchmarks/training_step.py --threads {asked.threads} --turns {asked.turns}",
        said=SAID.format(batch=BATCH, side=SIDE),
        tables=tables,
        targets=targets,
        numbers={"seconds": found, "flops": done, "losses": losses, "threads": asked.threads},
        notes=[
            "Unequal: our loop also measures how long data took and makes a record a step; the peers' draw their noise "
            "from one generator, ours from one per image; denoising-diffusion-pytorch averages its every 10th step.",
            "FLOPs are counted by torch: products and convolutions, three times the forward pass's.",
        ],
    ).write(["denoising-diffusion-pytorch", "diffusers", "accelerate", "ema-pytorch"])


def _ms(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.0f} ({1e3 * min(seconds):.0f}–{1e3 * max(seconds):.0f})"


if __name__ == "__main__":
    main()
