"""A diffusion model in an autoencoder's latents: the codec's weights stay, are stored once, and nobody else knows."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diff_diffusion import DiffusionModel, TrainSettings, load_image_dataset, train
from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.evaluation import figures
from diff_diffusion.models import Autoencoder, Guidance, Model, NoisyClassifier
from diff_diffusion.rng import Noise
from diff_diffusion.sizing import describe_autoencoder, describe_for_data
from diff_diffusion.training import latents

SMALL = {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": []}
SETTINGS = TrainSettings(steps=4, batch_size=16, precision="fp32", warmup_steps=1)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return load_image_dataset("digits").split()[0]


@pytest.fixture(scope="module")
def codec(data: ImageDataset) -> Autoencoded:
    return Autoencoder.from_description(autoencoder_of(data), seed=5).as_codec(data)


def autoencoder_of(data: ImageDataset) -> dict[str, Any]:
    description = describe_autoencoder(data, factor=2, channels=3)
    description["network"]["width"] = 8
    return description


def latent_model(data: ImageDataset, codec: Autoencoded, preset: str | None = None) -> DiffusionModel:
    description = describe_for_data(data, preset, codec=codec)
    description["network"] |= SMALL
    description["recipe"]["grid"]["num_steps"] = 2
    model = DiffusionModel.from_description(description)
    model.take_weights(codec)
    return model


def test_a_model_for_data_and_a_codec_works_on_its_latents(data: ImageDataset, codec: Autoencoded) -> None:
    model = DiffusionModel.for_data(data, codec=codec)
    assert model.codec.latent.shape == (3, 4, 4)
    x, _ = model.walk([0, 1], {"label": ["3", "4"]})
    assert x.shape == (2, 3, 4, 4)
    images = data.batch(range(4))
    assert torch.equal(model.codec.encode(images), codec.encode(images)), "it has the codec's own weights"


def test_training_leaves_the_codec_alone_and_its_weights_are_stored_once(
    data: ImageDataset, codec: Autoencoded, tmp_path: Path
) -> None:
    model = latent_model(data, codec)
    list(train(model, data, tmp_path / "潜空间", SETTINGS))
    assert all(
        torch.equal(a, b) for a, b in zip(model.codec.state_dict().values(), codec.state_dict().values(), strict=True)
    )  # type: ignore[attr-defined]
    stored = load_file(tmp_path / "潜空间" / "model.safetensors")
    names = {name.split("/", 1)[1] for name in stored}
    assert {f"codec.{name}" for name in codec.state_dict()} <= names
    assert not [name for name in stored if name.startswith("ema/codec.")]
    assert any(
        not torch.equal(stored[f"ema/{name}"], stored[f"raw/{name}"]) for name in names if f"ema/{name}" in stored
    )
    moments = load_file(tmp_path / "潜空间" / "train_state.safetensors")
    assert moments
    assert not [name for name in moments if name.startswith("codec.")]


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_loaded_it_draws_the_same(data: ImageDataset, codec: Autoencoded, tmp_path: Path, weights: str) -> None:
    list(train(latent_model(data, codec), data, tmp_path / "run", SETTINGS))
    first, again = (Model.load(tmp_path / "run", weights) for _ in range(2))
    assert isinstance(first, DiffusionModel)
    assert isinstance(again, DiffusionModel)
    first.save(tmp_path / "copy")
    copied = DiffusionModel.load(tmp_path / "copy")
    samples = [each.sample(2, cond="3") for each in (first, again, copied)]
    assert samples[0].shape == (2, 1, 8, 8)
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])
    images = data.batch(range(3))
    assert torch.equal(first.codec.encode(images), codec.encode(images))


def test_a_run_that_goes_on_ends_with_the_same_bytes(data: ImageDataset, codec: Autoencoded, tmp_path: Path) -> None:
    for name, stops in (("一", [4]), ("二", [1, 4])):
        for steps in stops:
            settings = SETTINGS.model_copy(update={"steps": steps})
            list(train(latent_model(data, codec), data, tmp_path / name, settings))
    for file in ("model.safetensors", "train_state.safetensors"):
        assert (tmp_path / "一" / file).read_bytes() == (tmp_path / "二" / file).read_bytes()


@pytest.mark.parametrize("preset", ["ddpm", "edm", "rectified_flow"])
def test_presets_that_clip_do_not_clip_latents(data: ImageDataset, codec: Autoencoded, preset: str) -> None:
    """Latents have no range, so both bounds are infinite."""
    model = latent_model(data, codec, preset)
    assert bool(torch.isfinite(model.sample(2)).all())
    far = torch.full((1, 3, 4, 4), 7.0)
    low, high = model.codec.bounds
    assert torch.equal(far.clamp(low, high), far)


def test_a_codec_of_other_data_is_refused_with_both_shapes(codec: Autoencoded) -> None:
    other = ImageDataset.from_arrays(torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(IncompatibleError, match=r"samples \[1, 8, 8\]; arrays has \[3, 16, 16\]"):
        DiffusionModel.for_data(other, codec=codec)


def test_training_encodes_every_image_once(
    data: ImageDataset, codec: Autoencoded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[int] = []
    moments = Autoencoded.moments
    monkeypatch.setattr(
        Autoencoded, "moments", lambda self, images: (asked.append(len(images)), moments(self, images))[1]
    )
    some = ImageDataset.from_arrays(data.batch(range(40))[:, 0], data.labels[:40], data.class_names)  # type: ignore[index]
    for _ in range(2):
        list(train(latent_model(some, codec), some, None, SETTINGS.model_copy(update={"steps": 6})))
    assert sum(asked) == 40 + 1, "the second run found them"


def test_what_is_kept_and_what_is_encoded_anew_train_alike(
    data: ImageDataset, codec: Autoencoded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To rounding: a convolution of another batch size may add in another order. And latents are drawn, not guessed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    losses = {}
    for room in (True, False):
        if not room:
            monkeypatch.setattr(latents, "moments_of", lambda *_, **__: None)
        losses[room] = [record.loss for record in train(latent_model(data, codec), data, None, SETTINGS)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    guessed = Autoencoded.latents
    monkeypatch.setattr(latents.Latents, "_check", lambda *_: None)  # guesses are of another scale than draws
    monkeypatch.setattr(Autoencoded, "latents", lambda self, moments, noise=None: guessed(self, moments))
    assert [record.loss for record in train(latent_model(data, codec), data, None, SETTINGS)] != pytest.approx(
        losses[False], rel=1e-4
    )


def test_latents_of_another_scale_are_an_error_with_the_number(data: ImageDataset, codec: Autoencoded) -> None:
    for factor in (0.3, 4.0):
        std = [codec.std[0], codec.std[1] * factor, codec.std[2]]
        off = Autoencoded(codec.network, codec.bottleneck, codec.pixels, codec.mean, std)
        with pytest.raises(IncompatibleError, match=f"channel 1 .* standard deviation {1 / factor:.2g}"):
            list(train(latent_model(data, off), data, None, SETTINGS))
    near = Autoencoded(codec.network, codec.bottleneck, codec.pixels, codec.mean, [1.7 * std for std in codec.std])
    assert len(list(train(latent_model(data, near), data, None, SETTINGS))) == 4


def test_what_would_keep_latents_in_a_range_is_refused(data: ImageDataset, codec: Autoencoded) -> None:
    model = latent_model(data, codec, "ddpm")
    with pytest.raises(ConfigError, match="dynamic thresholding keeps guesses in the range of the data, and latents"):
        model.sample(1, cond="3", guidance=Guidance(2.0, dynamic=0.99))
    with pytest.raises(ConfigError, match="clipping keeps guesses"):
        model.walk([0], clip=True)


def test_a_classifier_of_the_same_latents_guides_and_any_other_is_refused(
    data: ImageDataset, codec: Autoencoded, tmp_path: Path
) -> None:
    model = latent_model(data, codec)
    judge = NoisyClassifier.for_data(data, codec=codec)
    assert judge.network.channels == 3
    with torch.no_grad():
        for weight in judge.network.parameters():  # the scores of a fresh one are all 0
            weight += 0.05 * Noise([1]).normal((1, *weight.shape))[0]
    judge.save(tmp_path / "judge")
    loaded = NoisyClassifier.load(tmp_path / "judge")
    plain, guided = (model.sample(1, cond="3", guidance=each) for each in (1.0, Guidance(50.0, classifier=loaded)))
    assert not torch.equal(plain, guided)
    assert 0.0 <= loaded.accuracy(data, log_snr=0.0, num=8) <= 1.0
    moved = deepcopy(codec)
    with torch.no_grad():
        moved.network.last.add_(1e-3)
    for other, why in (
        (moved, "works on an autoencoder's latents and the model on an autoencoder's latents of another"),
        (None, "works on pixels and the model on an autoencoder's latents: make both with one codec"),
    ):
        with pytest.raises(IncompatibleError, match=why):
            NoisyClassifier.for_data(data, codec=other).check_fits(model)


def test_samples_of_another_size_are_said_in_pixels(data: ImageDataset, codec: Autoencoded) -> None:
    model = latent_model(data, codec)
    assert model.sample(1, cond="3", size=(6, 12)).shape == (1, 1, 6, 12)
    assert torch.equal(model.sample(1, cond="3", size=(8, 8)), model.sample(1, cond="3"))
    with pytest.raises(ConfigError, match="multiples of 2, not 7 × 8"):
        model.sample(1, size=(7, 8))


def test_the_process_is_shown_decoded(
    data: ImageDataset, codec: Autoencoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture of it: above the image's own latents, below the walk's."""
    shown: list[torch.Tensor] = []
    picture = figures.to_picture
    monkeypatch.setattr(figures, "to_picture", lambda image: (shown.append(image), picture(image))[1])
    image = data.batch([0])[0]
    figures.process_figure(latent_model(data, codec), tmp_path / "过程.png", image=image, cond={"label": "3"})
    assert (tmp_path / "过程.png").stat().st_size > 1000
    assert {tuple(each.shape) for each in shown} == {(1, 8, 8)}
    assert torch.allclose(shown[0], codec.decode(codec.encode(image[None]))[0], atol=1e-3)
