"""`verify RUN` of a model on latents: its codec is judged by what comes back of its own samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diff_diffusion.models import Autoencoder, DiffusionModel
from diff_diffusion.sizing import describe_autoencoder, describe_for_data
from diff_diffusion.training import train
from diff_diffusion.verification import Check, trained


def checks(folder: Path) -> dict[str, Check]:
    return {check.law: check for job in trained(folder) for check in job.run()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffusionModel, Path]:
    import tiny

    data = tiny.images()
    description = describe_autoencoder(data, factor=2, channels=4)
    description["network"]["width"] = 16
    autoencoder = Autoencoder.from_description(description, seed=1)
    list(train(autoencoder, data, None, tiny.settings(steps=60, batch_size=20, lr=3e-3, ema_decay=0.0)))
    codec = autoencoder.as_codec(data)
    described = describe_for_data(data, codec=codec)
    described["network"] |= {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": [], "group_width": None}
    described["recipe"]["grid"]["num_steps"] = 4
    found = DiffusionModel.from_description(described)
    found.take_weights(codec)
    folder = tmp_path_factory.mktemp("runs") / "潜空间"
    list(train(found, data, folder, tiny.settings(steps=2)))
    return found, folder


def test_a_run_on_latents_is_checked_with_its_codec(model: tuple[DiffusionModel, Path]) -> None:
    found = checks(model[1])
    assert set(found) == {
        "damaged files", "not finite", "EMA moved", "decode(encode), PSNR in dB", "signal at t = 1",
        "samples not finite", "channel mean", "channel std",
    }  # fmt: skip
    assert found["decode(encode), PSNR in dB"].passed, found
    assert found["EMA moved"].passed
    samples = model[0].sample(32, cond=[f"class {i % 3}" for i in range(32)])
    assert found["channel std"].measured == pytest.approx(
        float(((samples.double() - model[0].codec.pixels.mean[0]) / model[0].codec.pixels.std[0]).std()), rel=1e-3
    )


def test_a_codec_with_other_weights_is_a_miss(model: tuple[DiffusionModel, Path], tmp_path: Path) -> None:
    spoiled = DiffusionModel.load(model[1])
    with torch.no_grad():
        for weight in spoiled.codec.network.encoder.parameters():
            weight.copy_(weight.flatten().roll(1).view_as(weight))
    spoiled.save(tmp_path / "spoiled")
    assert {law for law, check in checks(tmp_path / "spoiled").items() if not check.passed} >= {
        "decode(encode), PSNR in dB"
    }
