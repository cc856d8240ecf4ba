"""How often a trained model draws what an unseen caption says, in English and in Chinese.

    python recipes/emoji/evaluate.py emoji --run runs/emoji --judge runs/judge [--per-prompt 4] [--guidance 3]

For every caption of val/ it draws a few pictures and asks which of all those captions each of them shows. The rows of
its table are the drawn pictures and the real ones, as the judge and its twin see them (dual.py says why there are two).
Real pictures are the ceiling: the drawn ones cannot be expected to be found more often. It writes evaluation.json, and
english.png and chinese.png: prompt, real picture, drawn pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from diff_diffusion import DiffusionModel
from diff_diffusion.errors import ConfigError, DiffusionError, IncompatibleError
from diff_diffusion.pictures import sheet, write_png
from diff_diffusion.storage.folder import to_json, write_file
from dual import Dual, judged, load_duals
from pairs import LANGUAGES, Pairs, read_pairs
from retrieval import Retrieval, table

ROWS = 24  # of a contact sheet, spread evenly over the prompts, so that nobody picks them


class Draws(Protocol):
    """What is asked of a model."""

    def sample(
        self, num: int, *, cond: Mapping[str, Sequence[str]], seed: int, guidance: float | None
    ) -> Tensor: ...  # float32 [num, 3, H, W] in 0..255


def drawn(
    model: Draws, prompts: Sequence[str], like: Tensor, per_prompt: int, seed: int = 0, guidance: float | None = None
) -> Tensor:
    """`per_prompt` pictures of each prompt, one prompt after the other [prompts · per_prompt, 3, H, W].

    Args:
        like: real pictures, whose shape the drawn ones must have.

    Raises:
        ConfigError: no picture asked for.
        IncompatibleError: the model draws pictures of another shape.
    """
    if per_prompt < 1:
        raise ConfigError(f"at least 1 picture a prompt is needed, not {per_prompt}")
    asked = [prompt for prompt in prompts for _ in range(per_prompt)]
    pictures = model.sample(len(asked), cond={"caption": asked}, seed=seed, guidance=guidance)
    if pictures.shape[1:] != like.shape[1:]:
        shapes = f"pictures of {list(pictures.shape[1:])}, and the real ones are {list(like.shape[1:])}"
        raise IncompatibleError(f"the model draws {shapes}: name the folder it was trained on")
    return pictures


def judgements(
    duals: Mapping[str, Dual], val: Pairs, pictures: Tensor, captions: Sequence[str]
) -> dict[str, Retrieval]:
    """How often drawn and real pictures find their own caption, in the eyes of each dual encoder."""
    each = len(pictures) // len(val)
    wanted = [caption for caption in captions for _ in range(each)]
    found = {}
    for name, dual in duals.items():
        found[f"drawn, to the {name}"] = judged(dual, pictures, wanted)
        found[f"real, to the {name}"] = judged(dual, val.images, captions)
    return found


def contact_sheet(val: Pairs, pictures: Tensor, captions: Sequence[str]) -> Image.Image:
    """A row for each of some prompts: the prompt, the real picture, and what was drawn."""
    each = len(pictures) // len(val)
    rows = torch.linspace(0, len(val) - 1, min(ROWS, len(val))).round().long()
    tiles = torch.cat([val.images[rows, None].float(), pictures.unflatten(0, (len(val), each))[rows]], dim=1)
    heads = ["real", *(f"drawn {i + 1}" for i in range(each))]
    return sheet(tiles.flatten(0, 1), 1 + each, [captions[row] for row in rows.tolist()], heads)


def evaluate(
    model: Draws,
    duals: Mapping[str, Dual],
    val: Pairs,
    out: Path,
    *,
    per_prompt: int = 4,
    seed: int = 0,
    guidance: float | None = None,
) -> dict[str, dict[str, Retrieval]]:
    """What was found for each language, also as files in `out`."""
    found = {}
    out.mkdir(parents=True, exist_ok=True)
    for language, captions in zip(LANGUAGES, val.captions, strict=True):
        pictures = drawn(model, captions, val.images, per_prompt, seed, guidance)
        found[language] = judgements(duals, val, pictures, captions)
        write_png(out / f"{language.lower()}.png", contact_sheet(val, pictures, captions))
    facts = {
        "per prompt": per_prompt,
        "guidance": guidance,
        "seed": seed,
        "prompts": dict(zip(LANGUAGES, map(list, val.captions), strict=True)),
        "found": {language: {name: asdict(row) for name, row in rows.items()} for language, rows in found.items()},
    }
    write_file(out / "evaluation.json", to_json(facts))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that build.py made")
    parser.add_argument("--run", type=Path, required=True, help="the model that was trained on it")
    parser.add_argument(
        "--judge", type=Path, default=Path("runs/judge"), help="what dual.py made (default: runs/judge)"
    )
    parser.add_argument("--out", type=Path, help="where the results go (default: evaluation in the run)")
    parser.add_argument("--per-prompt", type=int, default=4, help="pictures of each prompt (default: 4)")
    parser.add_argument("--guidance", type=float, help="the scale of guidance (default: the model's)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: 0)")
    asked = parser.parse_args(arguments)
    out = asked.out or asked.run / "evaluation"
    try:
        val = read_pairs(asked.data / "val")
        duals = load_duals(asked.judge, asked.data)
        model = DiffusionModel.load(asked.run)
        found = evaluate(model, duals, val, out, per_prompt=asked.per_prompt, seed=asked.seed, guidance=asked.guidance)
    except DiffusionError as error:
        raise SystemExit(f"error: {error}") from error
    for language, rows in found.items():
        print(f"{language}\n{table(rows)}\n")
    print(f"contact sheets and evaluation.json are in {out}")


if __name__ == "__main__":
    main()
