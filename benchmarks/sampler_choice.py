"""How far each sampler is from the end of its ODE after so many network evaluations: the pictures of
docs/choosing-a-sampler.md.

    python benchmarks/sampler_choice.py [--run FOLDER] [--train-steps 600] [--draw-only]

FOLDER keeps the trained network (default: runs/sampler_choice); training is done once. Writes
results/sampler_choice.json, and by sampler_choice_told.py sampler_choice.png and grid_choice.png in docs/images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from outcome import RESULTS
from sampler_choice_told import BUDGETS, COARSE, Curve, pictures, told
from torch import Tensor

from diff_diffusion import DiffusionModel, Noise, TrainSettings, load_image_dataset, train
from diff_diffusion.core.denoiser import Denoiser
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.time_maps import LinearLogSnr
from diff_diffusion.evaluation.distances import frechet
from diff_diffusion.evaluation.features import train_classifier
from diff_diffusion.models import sampler_named
from diff_diffusion.samplers.adaptive import Adaptive
from diff_diffusion.samplers.grid import Grid, Karras, LogSnr, Uniform
from diff_diffusion.samplers.optimised import optimised
from diff_diffusion.samplers.sampler import Sampler, trajectory
from diff_diffusion.samplers.transforms import Churn
from diff_diffusion.verification.closed_forms import TwoModes

TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.003)
TWICE = {"heun", "dpm2", "dpmpp_2s", "dpmpp_sde"}  # two evaluations a step
DETERMINISTIC = ("ddim", "heun", "dpm2", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "deis", "lms", "unipc")
QUALITY = ("ddim", "dpmpp_2m", "unipc", "heun", "ddpm", "dpmpp_2m_sde", "heun on churn")
SEEDS = range(32)


def walked(
    denoiser: Denoiser, sampler: Sampler, times: list[float], x: Tensor, noise: Noise, cond: Any = None
) -> tuple[Tensor, int]:
    """The end of a walk and the evaluations it took."""
    for step in trajectory(denoiser, sampler, times, x, noise=noise, cond=cond):
        last = step
    return last.x, last.nfe


def rms(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


def steps_for(name: str, budget: int) -> int:
    return budget // 2 + 1 if name in TWICE else budget


def curves(denoiser: Denoiser, grid: Grid, x: Tensor, end: Tensor, noise: Noise, cond: Any = None) -> dict[str, Curve]:
    """The error of every deterministic sampler on one grid, by evaluations."""
    process, found = denoiser.process, {}
    for name in DETERMINISTIC:
        sampler, curve = sampler_named(name), []
        for budget in BUDGETS:
            times = grid.with_steps(steps_for(name, budget)).times(process)
            got, nfe = walked(denoiser, sampler, times, x, noise, cond)
            curve.append((nfe, rms(got, end)))
        found[name] = curve
        print(name, curve, flush=True)
    curve = []
    for rtol in TOLERANCES:
        # Two times of the grid: the sampler's own steps to the last inner one, then the step to the data.
        times = [1.0, grid.with_steps(2).times(process)[-2], 0.0]
        got, nfe = walked(denoiser, Adaptive(rtol=rtol, atol=0.1 * rtol), times, x, noise, cond)
        curve.append((nfe, rms(got, end)))
    found["adaptive"] = curve
    print("adaptive", curve, flush=True)
    return found


def on_grids(
    denoiser: Denoiser, grids: dict[str, Grid], x: Tensor, end: Tensor, noise: Noise, cond: Any = None
) -> dict[str, Curve]:
    """dpmpp_2m on several grids."""
    sampler = sampler_named("dpmpp_2m")
    return {
        name: [
            (nfe, rms(got, end))
            for budget in BUDGETS
            for got, nfe in [walked(denoiser, sampler, grid.with_steps(budget).times(denoiser.process), x, noise, cond)]
        ]
        for name, grid in grids.items()
    }


def two_modes() -> dict[str, Any]:
    """Errors to the exact end of the flow, which keeps the distribution function."""
    process = Gaussian(LinearLogSnr(12.0, -12.0))
    modes, noise = TwoModes(process), Noise(range(256))
    x = process.prior((256, 1), noise.at(0)).double()
    end = modes(modes.carried(x, 1.0, 1e-9), 1e-9).mean  # the last step holds x̂_0 at λ = 12, whatever the sampler
    return {"samplers": curves(modes, LogSnr(50), x, end, noise)}


def trained(folder: Path, steps: int) -> tuple[DiffusionModel, Any, Any]:
    data, held_out = load_image_dataset("digits").split()
    settings = TrainSettings(
        steps=steps, lr=2e-3, precision="fp32", sample_interval=10**6, checkpoint_interval=steps, eval_interval=200
    )
    for record in train(DiffusionModel.for_data(data), data, folder, settings, held_out=held_out):  # or goes on
        if record.step % 50 == 0:
            print("step", record.step, "loss", round(record.loss, 4), flush=True)
    return DiffusionModel.load(folder), data, held_out


def digits(folder: Path, train_steps: int) -> dict[str, Any]:
    model, data, held_out = trained(folder, train_steps)
    process, noise = model.recipe.process, Noise(SEEDS)
    x = process.prior((len(SEEDS), *model.codec.latent.shape), noise.at(0))
    cond = model.encode([str(seed % 10) for seed in SEEDS], len(SEEDS))
    grid = model.recipe.grid
    assert isinstance(grid, LogSnr)
    fine = grid.with_steps(300).times(process)
    result: dict[str, Any] = {"train_steps": model.facts.get("steps", train_steps)}

    end, nfe = walked(model.denoiser, sampler_named("heun"), fine, x, noise, cond)
    half = grid.with_steps(250).times(process)
    other, _ = walked(model.denoiser, sampler_named("dpmpp_3m"), half, x, noise, cond)
    result["reference"] = {"sampler": "heun, 300 steps", "nfe": nfe, "rms to dpmpp_3m, 250 steps": rms(end, other)}
    print(result, flush=True)
    result["samplers"] = curves(model.denoiser, grid, x, end, noise, cond)

    steps = optimised(model.denoiser, model.codec.latent.shape, 2, noise=Noise(range(1000, 1032)), cond=cond)
    grids = {"log_snr": grid, "karras": Karras(), "optimised, order 2": steps, "uniform": Uniform()}
    result["grids"] = on_grids(model.denoiser, grids, x, end, noise, cond)

    result["guided"] = {}
    for scale in (1.0, 3.0):
        denoiser, _, _ = model.plan(guidance=scale)
        guided, _ = walked(denoiser, sampler_named("dpmpp_3m"), half, x, noise, cond)
        result["guided"][f"{scale:g}"] = {
            name: rms(
                walked(
                    denoiser,
                    sampler_named(name),
                    grid.with_steps(steps_for(name, 16)).times(process),
                    x,
                    noise,
                    cond,
                )[0],
                guided,
            )
            for name in ("ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "lms")
        }

    classifier = train_classifier(data, held_out)
    labels, n = held_out.labels.tolist(), len(held_out)
    reference = classifier.features(data.batch(range(len(data))))
    result["frechet"] = {}
    for name in QUALITY:
        short, _, churned = name.partition(" on ")
        rows = []
        for budget in COARSE:
            count = steps_for(short, budget)
            chosen = Churn(grid.with_steps(count)) if churned else grid.with_steps(count)
            drawn = model.sample(n, cond=labels, batch_size=512, sampler=short, grid=chosen).round()
            rows.append((budget, frechet(classifier.features(drawn), reference)))
        result["frechet"][name] = rows
        print(name, rows, flush=True)
    result["frechet_floor"] = frechet(classifier.features(held_out.batch(range(n))), reference)
    result["frechet_n"], result["features"] = n, classifier.name
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kept = Path(__file__).parent.parent / "runs" / "sampler_choice"
    parser.add_argument("--run", type=Path, default=kept, help="where the trained network is kept")
    parser.add_argument("--train-steps", type=int, default=600)
    parser.add_argument("--draw-only", action="store_true", help="the pictures again, from the stored results")
    arguments = parser.parse_args()
    if arguments.draw_only:
        path = RESULTS / "sampler_choice.json"
    else:
        about = {
            "n": {"two modes": 256, "digits": len(SEEDS)},
            "seeds": "0 upwards",
            "grid": "log_snr; of two modes from λ = -12 to 12, of the digits from -10 to 10",
        }
        trained_on = digits(arguments.run, arguments.train_steps)
        path = told({"about": about, "two modes": two_modes(), "digits": trained_on}).write()
    pictures(json.loads(path.read_text(encoding="utf-8"))["numbers"])


if __name__ == "__main__":
    main()
