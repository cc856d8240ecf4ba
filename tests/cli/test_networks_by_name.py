"""`--set network=NAME`: another network, sized for the data, between the same channels and condition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diff_diffusion.cli.app import app
from diff_diffusion.cli.config import merged, network_named, read_changes
from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.errors import ConfigError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.registry import build
from diff_diffusion.sizing import describe_for_data, dit_size


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_image_dataset("digits").split()[0]


def network(digits: ImageDataset, *sets: str, config: Path | None = None, preset: str | None = None) -> dict[str, Any]:
    """The network's description that a command line comes to."""
    changes = read_changes(config, sets)
    model = merged(describe_for_data(digits, preset, network_named(changes)), changes.get("model", {}), "model.")
    described: dict[str, Any] = model["network"]
    return described


def test_a_name_chooses_a_network_of_the_datas_size(digits: ImageDataset) -> None:
    unet, dit = network(digits), network(digits, "network=dit")
    assert unet["type"] == "network/unet"
    assert dit == {"type": "network/dit", "channels": 1, **dit_size(8), "cond_width": unet["cond_width"]}
    assert network(digits, "network=network/dit") == dit
    assert network(digits, "network=unet") == unet


def test_its_settings_can_be_set_before_or_after(digits: ImageDataset) -> None:
    expected = network(digits, "network=dit") | {"depth": 3, "positions": "sincos"}
    after = network(digits, "network=dit", "network.depth=3", "network.positions=sincos")
    before = network(digits, "network.depth=3", "network.positions=sincos", "network=dit")
    assert after == before == expected


def test_a_file_may_name_it_and_the_command_line_another(digits: ImageDataset, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text in ("model: {network: dit}", "model: {network: {type: dit, depth: 5}}"):
        file.write_text(text, encoding="utf-8")
        depth = 5 if "depth" in text else dit_size(8)["depth"]
        assert network(digits, config=file) == network(digits, "network=dit") | {"depth": depth}
        assert network(digits, "network.depth=2", config=file) == network(digits, "network=dit") | {"depth": 2}
        assert network(digits, "network=unet", config=file) == network(digits)
    whole = describe_for_data(digits)
    file.write_text(json.dumps({"model": whole}), encoding="utf-8")
    assert network(digits, "network=dit", config=file) == network(digits, "network=dit")


def test_a_name_that_says_a_size_keeps_it(digits: ImageDataset) -> None:
    described = network(digits, "network=dit_s_4")
    assert described == {"type": "network/dit_s_4", "channels": 1, "cond_width": 128}
    with torch.device("meta"):
        made = build(described)
    assert (made.patch, made.width, made.depth) == (4, 384, 12)


def test_the_learned_variance_has_its_channels(digits: ImageDataset) -> None:
    assert network(digits, "network=dit", preset="iddpm")["out_channels"] == 2


def test_an_unknown_network_lists_those_there_are(digits: ImageDataset) -> None:
    with pytest.raises(ConfigError, match=r"unknown network 'ditt': did you mean 'dit'\? available: dit, .*unet"):
        network(digits, "network=ditt")


def test_a_part_named_and_then_set_is_both(digits: ImageDataset) -> None:
    """Also where it is no network: what a --set names, the next may set."""
    changes = read_changes(None, ["sampler=ancestral", "sampler.eta=0.3"])
    recipe = merged(describe_for_data(digits), changes["model"])["recipe"]
    assert recipe["sampler"] == {"type": "sampler/ancestral", "eta": 0.3}


@pytest.mark.parametrize("side", [8, 16, 17, 32, 33, 64, 65, 128])
def test_every_size_can_be_built_and_has_few_tokens(side: int) -> None:
    with torch.device("meta"):
        made = build({"type": "network/dit", "channels": 3, **dit_size(side)})
    assert (-(-side // made.patch)) ** 2 <= 256


@pytest.mark.parametrize("preset", ["rectified_flow", "iddpm"])
def test_it_trains_and_samples_by_the_same_commands(preset: str, tmp_path: Path) -> None:
    small = ("network.depth=2", "grid.num_steps=4", "network.width=16", "train.precision=fp32", "train.batch_size=16")
    words = [word for text in ("network=dit", *small) for word in ("--set", text)]
    run = tmp_path / "run"
    app(
        ["train", "digits", "--out", str(run), "--steps", "3", "--preset", preset, *words], standalone_mode=False
    )  # fmt: skip
    model = DiffusionModel.load(run)
    assert type(model.network).__name__ == "DiT"
    assert model.sample(2, cond="3", steps=2).shape == (2, 1, 8, 8)
