"""What editing keeps and what it makes: half of each held-out digit drawn anew, and threes turned into eights.

    python benchmarks/editing.py [--run runs/editing] [--steps 1000]

Trains a run on the digits by the command line, or goes on with that in the folder. Writes results/editing.json, and
inpainting.png and translation.png in docs/images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outcome import Outcome, Table
from torch import Tensor

from diff_diffusion import DiffusionModel, load_image_dataset
from diff_diffusion.editing import inpaint, translate
from diff_diffusion.evaluation.features import train_classifier
from diff_diffusion.evaluation.score import interval
from diff_diffusion.pictures import sheet, write_png

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SHOWN = 12


def halves(count: int, height: int, width: int) -> Tensor:
    """Masks bool [count, H, W], true where to draw: the left, right, upper and lower half in turn."""
    masks = torch.zeros(4, height, width, dtype=torch.bool)
    masks[0, :, : width // 2] = masks[1, :, width // 2 :] = masks[2, : height // 2] = masks[3, height // 2 :] = True
    return masks[torch.arange(count) % 4]


def slant(images: Tensor) -> np.ndarray:
    """How far ink leans to the right for each row upwards: -cov(x, y) / var(y) of the ink, [B]."""
    ink = images[:, 0].double()
    ink = ink / ink.sum((1, 2), keepdim=True)
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in ink.shape[1:]), indexing="ij")
    mean_x, mean_y = (ink * x).sum((1, 2), keepdim=True), (ink * y).sum((1, 2), keepdim=True)
    return (-(ink * (x - mean_x) * (y - mean_y)).sum((1, 2)) / (ink * (y - mean_y) ** 2).sum((1, 2))).numpy()


def share(right: Tensor) -> dict[str, Any]:
    return {"share": float(right.double().mean()), "interval": interval(int(right.sum()), len(right))}


def correlation(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Pearson's, with the 95 % interval by Fisher's z."""
    r = float(np.corrcoef(a, b)[0, 1])
    half = 1.96 / np.sqrt(len(a) - 3)
    return {"r": r, "interval": [float(np.tanh(np.arctanh(r) + s * half)) for s in (-1, 1)], "n": len(a)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/editing"))
    parser.add_argument("--steps", type=int, default=1000, help="of the training")
    arguments = parser.parse_args()
    words = ["train", "digits", "--out", str(arguments.run), "--steps", str(arguments.steps)]
    subprocess.run([sys.executable, "-c", "from diff_diffusion.cli import main; main()", *words], check=True)
    model = DiffusionModel.load(arguments.run)
    data, held_out = load_image_dataset("digits").split()
    judge = train_classifier(data, held_out)
    images, labels = held_out.batch(range(len(held_out))), held_out.labels
    assert labels is not None
    wanted = torch.from_numpy(labels)
    masks = halves(len(images), *held_out.shape[1:])

    result: dict[str, Any] = {
        "run": {fact: model.facts[fact] for fact in ("steps", "seed", "parameters")},
        "n": len(images),
        "interval": "Wilson, 95 %",
        "judge on the real digits": share(judge.labels(images) == wanted),
    }
    rows = [images[:SHOWN].float(), torch.where(masks[:SHOWN, None], 127.0, images[:SHOWN].float())]
    for name, cond in (("told the label", labels.tolist()), ("not told", None)):
        drawn = torch.cat(
            [
                inpaint(model, part, mask, cond=cond and cond[i * 64 : i * 64 + 64], seed=i * 64)
                for i, (part, mask) in enumerate(zip(images.split(64), masks.split(64), strict=True))
            ]
        )
        kept = ~masks[:, None].expand_as(images)
        assert torch.equal(drawn[kept], images.float()[kept])
        result[f"inpainting, {name}"] = share(judge.labels(drawn.round()) == wanted)
        rows.append(drawn[:SHOWN])
    titles = ["held out", "what is seen", "told its label", "not told"]
    write_png(IMAGES / "inpainting.png", sheet(torch.cat(rows), SHOWN, labels=titles))

    threes = images[wanted == 3]
    eights = translate(model, threes, from_cond="3", cond="8")
    fresh = model.sample(len(threes), cond="8")
    result["3 to 8"] = share(judge.labels(eights.round()) == 8)
    result["slant of a 3 and of its 8"] = correlation(slant(threes), slant(eights))
    result["slant of a 3 and of a fresh 8"] = correlation(slant(threes), slant(fresh))
    order = torch.from_numpy(np.argsort(slant(threes))[np.linspace(0, len(threes) - 1, SHOWN).astype(int)])
    pictures = torch.cat([threes[order].float(), eights[order]])
    write_png(IMAGES / "translation.png", sheet(pictures, SHOWN, labels=["held-out 3", "as an 8"]))
    told(result).write()


def told(result: Mapping[str, Any]) -> Outcome:
    def row(what: str, name: str) -> list[str]:
        found = result[name]
        low, high = found["interval"]
        if "r" in found:
            return [what, f"{found['r']:.2f}", f"{low:.2f} to {high:.2f}", str(found["n"])]
        return [what, f"{found['share']:.1%}", f"{low:.1%} to {high:.1%}", str(found.get("n", result["n"]))]

    threes = result["slant of a 3 and of its 8"]["n"]
    to_eight = row("threes that become an eight", "3 to 8")[:3]
    return Outcome(
        name="editing",
        title="Editing",
        command="python benchmarks/editing.py",
        said="One half of each held-out digit, left, right, upper or lower in turn, is drawn anew, once told the "
        "digit's label and once not; a classifier that saw the real training digits alone judges whether it is still "
        "the digit that it was. A half of some digits fits several. Then held-out threes go up the probability flow as "
        "threes and down as eights; whether slant stays is measured by the correlation of the slants, taken from "
        "second moments of ink, beside that with eights drawn afresh.",
        tables=[
            Table(
                "Still, or now, what it should be",
                ["", "share", "95 %", "n"],
                [
                    row("real digits, whole", "judge on the real digits"),
                    row("half drawn anew, told the label", "inpainting, told the label"),
                    row("half drawn anew, not told", "inpainting, not told"),
                    [*to_eight, str(threes)],
                ],
            ),
            Table(
                "Slant of a three, correlated with",
                ["", "r", "95 %", "n"],
                [
                    row("the eight that it becomes", "slant of a 3 and of its 8"),
                    row("an eight drawn afresh", "slant of a 3 and of a fresh 8"),
                ],
            ),
        ],
        numbers=result,
        notes=[
            f"One model, {result['run']['steps']:,} steps of training, seed {result['run']['seed']}. Intervals of "
            "shares are Wilson's, of correlations by Fisher's z. The pictures are on the page [Editing](editing.md).",
        ],
    )


if __name__ == "__main__":
    main()
