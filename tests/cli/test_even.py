"""Classes asked for equally often, whatever their shares in the data: exactly, in Python and on the command line."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diff_diffusion.cli.sample import wishes
from diff_diffusion.data import Column, ImageDataset
from diff_diffusion.errors import ConfigError
from diff_diffusion.evaluation.beside import Seen, class_rows
from diff_diffusion.models import DiffusionModel
from diff_diffusion.pictures import read_recipe

HAIR, GLASSES = ("棕=浅", "none", "黑"), ("false", "true")
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 60 faces of unequal shares: two of three are 黑, nine of ten without glasses."""
    from diff_diffusion.cli.app import app

    folder, rng = tmp_path_factory.mktemp("脸"), np.random.default_rng(0)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "发", "glasses", "age"])
        for i in range(60):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i}.png")
            rows.writerow([f"{i}.png", HAIR[min(i % 6, 2)], i % 10 == 0, 20.5 + i])
    out = tmp_path_factory.mktemp("runs") / "faces"
    app(["train", str(folder), "--out", str(out), "--steps", "2", *tiny], standalone_mode=False)
    return out


def test_every_combination_is_asked_for_exactly_as_often(run: Path) -> None:
    model = DiffusionModel.load(run)
    cond = model.even(120, "发", "glasses")
    counts = Counter(zip(cond["发"], cond["glasses"], strict=True))
    assert counts == dict.fromkeys(product(HAIR, GLASSES), 20)
    assert model.even(120) == model.even(120, "glasses", "发")  # all that are classes, and no age
    assert Counter(model.even(6, "发")["发"]) == dict.fromkeys(HAIR, 2)
    assert set(model.even(6, "发")) == {"发"}
    odd = Counter(model.even(8, "发")["发"])
    assert max(odd.values()) - min(odd.values()) == 1
    asked = model.asked(cond, 120)
    assert asked is not None
    assert model.sample(6, cond=model.even(6), steps=1).shape == (6, 1, 8, 8)


def test_the_command_asks_evenly_and_its_pictures_are_made_again(cli: Cli, run: Path, tmp_path: Path) -> None:
    words = ("sample", run, "-n", 12, "--even", "发", "--even", "glasses", "--steps", 1, "--json")
    code, out, err = cli(*words, "--out", tmp_path / "均")
    assert code == 0, err
    files = [Path(file) for file in json.loads(out)["files"]]
    counts = Counter(tuple(read_recipe(file)["asked"]["cond"]) for file in files)
    assert counts == {(f"发={hair}", f"glasses={worn}"): 2 for hair in HAIR for worn in GLASSES}
    for file in files[:2]:
        _, out, err = cli("repro", file, "--out", tmp_path / "again.png")
        assert "identical pixels" in out, err
    with Image.open(files[0]) as one, Image.open(files[6]) as other:
        assert one.tobytes() != other.tobytes()  # asked for the same, of other seeds


def test_labels_and_prompts_come_with_every_class(run: Path) -> None:
    """Not the first prompt always with the first class."""
    model = DiffusionModel.load(run)
    wished = wishes(model, [], ["a", "一", "b"], ["age=30"], 18, ["发"])
    counts = Counter((wish["prompt"], *wish["cond"]) for wish in wished)
    assert counts == {(prompt, "age=30", f"发={hair}"): 2 for prompt in ("a", "一", "b") for hair in HAIR}


def test_what_cannot_be_evened_out_is_refused(cli: Cli, run: Path, tmp_path: Path) -> None:
    model = DiffusionModel.load(run)
    with pytest.raises(ConfigError, match=r"age cannot be evened out: its classes are glasses, 发"):
        model.even(4, "age")
    plain = DiffusionModel.for_data(ImageDataset.from_arrays(torch.zeros(4, 8, 8, dtype=torch.uint8)))
    with pytest.raises(ConfigError, match="classes cannot be evened out: it is asked for none"):
        plain.even(4)
    for more, said in (((), ""), (("--cond", "发=黑"), "said twice")):
        name = "发" if more else "发色"
        code, _, err = cli("sample", run, "--even", name, *more, "--out", tmp_path / "x")
        assert code == 2
        assert said in err
        assert not (tmp_path / "x").exists()


def test_the_table_of_shares_shows_it(run: Path) -> None:
    """A model that draws what it is asked, asked evenly, beside data of which nine of ten are of one class."""
    data = ImageDataset.from_arrays(
        np.zeros((100, 8, 8), np.uint8),
        columns={"glasses": Column("class", [int(i < 10) for i in range(100)], GLASSES)},
    )
    true = torch.tensor(data.values("glasses"))
    drawn = torch.tensor([GLASSES.index(value) for value in DiffusionModel.load(run).even(100, "glasses")["glasses"]])
    features = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    real = Seen(features, true, true)
    off, on = class_rows(GLASSES, Seen(features, drawn, drawn), real, real)
    assert (off.share[0], on.share[0]) == (0.5, 0.5)
    assert (off.real_share[0], on.real_share[0]) == (0.9, 0.1)
    assert off.behind  # and the table says of the common class that it is rarer than in the data
    assert not on.behind
