"""The autoencoder against closed forms: bound, width, the codec's statistics; and that it learns and resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Laplace, Normal

from diff_diffusion import TrainSettings, load_image_dataset, train
from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.models import Autoencoder, Model
from diff_diffusion.objectives.reconstruction import Reconstruction, Width
from diff_diffusion.registry import build, describe
from diff_diffusion.rng import Noise, derive

KL, VQ = {"type": "bottleneck/kl", "channels": 2}, {"type": "bottleneck/vq", "size": 16, "channels": 2}
FSQ = {"type": "bottleneck/fsq", "levels": [5, 5, 3]}
EVERY = pytest.mark.parametrize("bottleneck", [KL, VQ, FSQ], ids=["kl", "vq", "fsq"])
LAPLACE, GAUSS = Reconstruction("laplace"), Reconstruction("gauss")


def digits() -> tuple[ImageDataset, ImageDataset]:
    return load_image_dataset("digits").split()


def autoencoder(bottleneck: dict[str, Any], data: ImageDataset, seed: int = 0, **reconstruction: Any) -> Autoencoder:
    made = build(bottleneck)
    network = {"type": "autoencoder/conv", "channels": 1, "codes_out": made.codes_out, "codes_in": made.channels}
    return Autoencoder.from_description(
        {
            "type": "model/autoencoder",
            "network": network | {"width": 8, "multipliers": [1, 2], "depth": 1},
            "codec": describe(Affine.fit([data.batch(range(len(data)))])),
            "bottleneck": bottleneck,
            "reconstruction": {"type": "objective/reconstruction", **reconstruction},
        },
        seed,
    )


@pytest.mark.parametrize(("reconstruction", "shape"), [(LAPLACE, Laplace), (GAUSS, Normal)])
def test_what_decoding_misses_costs_the_densitys_nats(reconstruction: Reconstruction, shape: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, decoded = torch.randn(2, 3, 1, 2, 2, generator=generator).double()
    width = torch.tensor(0.3, dtype=torch.float64)
    expected = -shape(decoded, width).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(reconstruction.nats(x, decoded, width), expected)


@pytest.mark.parametrize("reconstruction", [LAPLACE, GAUSS])
def test_the_deviation_is_the_best_width(reconstruction: Reconstruction) -> None:
    generator = torch.Generator().manual_seed(0)
    x, decoded = torch.randn(2, 5, 1, 4, 4, generator=generator).double()
    best = reconstruction.deviation(x, decoded)
    least = float(reconstruction.nats(x, decoded, best).mean())
    for share in (0.9, 0.99, 1.01, 1.1):
        assert float(reconstruction.nats(x, decoded, share * best).mean()) > least


def test_a_step_that_is_skipped_teaches_no_code_and_no_width() -> None:
    """One batch that is not finite would be remembered for ever."""
    train_split, _ = digits()
    model = autoencoder({"type": "bottleneck/vq", "size": 8, "channels": 2}, train_split).train()
    x = model.codec.encode(train_split.batch(range(8)))
    model.objective(x, None, Noise(range(8)))
    before = {name: value.clone() for name, value in model.learns.state_dict().items()}
    model.objective(torch.full_like(x, torch.inf), None, Noise(range(8)))
    assert all(torch.equal(value, before[name]) for name, value in model.learns.state_dict().items())
    model.objective(x, None, Noise(range(8)))
    assert any(not torch.equal(value, before[name]) for name, value in model.learns.state_dict().items())


def test_the_width_is_the_average_of_what_was_measured() -> None:
    width = Width()
    width.learn(torch.tensor(torch.nan))
    width.learn(torch.tensor(2.0))
    assert float(width.value) == 2.0, "the first is all there is"
    width.learn(torch.tensor(1.0))
    assert float(width.value) == pytest.approx(0.95 * 2.0 + 0.05 * 1.0)


def test_the_loss_is_the_bound_by_the_number_of_pixels() -> None:
    train_split, _ = digits()
    model = autoencoder(KL, train_split, rate=1.0)
    x = model.codec.encode(train_split.batch(range(4)))
    model.objective(x, None, Noise(range(4)))
    width = model.learns["width"].value
    passed = model.bottleneck(model.network.encode(x), Noise(range(4)).fork("latent"))
    nats = -Laplace(model.network.decode(passed.latent), width).log_prob(x).flatten(1).sum(1) + passed.nats
    torch.testing.assert_close(model.loss_at(x, torch.zeros(4), None, Noise(range(4))).per_sample, nats / 64)


def test_the_bound_is_told_in_bits_of_grey_values() -> None:
    """-log2 of a density over grey values of 0 to 255, which the codec's change of scale must not change."""
    train_split, held_out = digits()
    model = autoencoder(KL, train_split)
    x = model.codec.encode(held_out.batch(range(len(held_out))))
    model.objective(x[:64], None, Noise(range(64)))
    told = model.held_out_facts(held_out)["held-out bits per dimension, at most"]
    [scale] = model.codec.std
    other = Affine(model.codec.shape, model.codec.mean, [2.0 * scale])
    # The same numbers in grey values from a model of half the units: all of its widths are half as large.
    half = Autoencoder(_Scaled(model.network, 2.0), other, model.bottleneck, model.reconstruction)
    half.learns["width"].value.copy_(0.5 * model.learns["width"].value)
    assert half.held_out_facts(held_out)["held-out bits per dimension, at most"] == pytest.approx(told, abs=1e-4)


class _Scaled(torch.nn.Module):
    """A network that is told data in other units."""

    def __init__(self, network: Any, factor: float) -> None:
        super().__init__()
        self.network, self.by = network, factor
        self.channels, self.codes_out, self.codes_in = network.channels, network.codes_out, network.codes_in

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        coded: torch.Tensor = self.network.encode(self.by * x)
        return coded

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.network.decode(codes) / self.by
        return decoded


@EVERY
def test_it_learns_to_give_back_what_it_has_not_seen(bottleneck: dict[str, Any]) -> None:
    train_split, held_out = digits()
    model = autoencoder(bottleneck, train_split)
    settings = TrainSettings(steps=70, batch_size=64, lr=5e-3, precision="fp32", warmup_steps=10)
    *_, last = train(model, train_split, None, settings, held_out=held_out)
    assert last.held_out is not None
    # What is coded says more than one picture for all, the mean of the train split.
    images = held_out.batch(range(len(held_out))).double()
    mean = train_split.batch(range(len(train_split))).double().mean(0)
    alike = 10.0 * math.log10(255.0**2 / float((images - mean).pow(2).mean()))
    assert model.facts["held-out PSNR"] > alike + 2.0


@EVERY
def test_a_run_that_goes_on_ends_with_the_same_bytes(bottleneck: dict[str, Any], tmp_path: Path) -> None:
    """Codes, counts and widths are part of its state."""
    train_split, _ = digits()
    for name, stops in (("一", [6]), ("二", [2, 6])):
        for steps in stops:
            settings = TrainSettings(steps=steps, batch_size=32, precision="fp32", warmup_steps=2)
            model = autoencoder(bottleneck, train_split)
            list(train(model, train_split, tmp_path / name, settings))
    files = [[(tmp_path / name / file).read_bytes() for name in "一二"] for file in ("model.safetensors",)]
    assert all(first == second for first, second in files)


@EVERY
def test_saved_and_loaded_it_is_the_same(bottleneck: dict[str, Any], tmp_path: Path) -> None:
    train_split, held_out = digits()
    model = autoencoder(bottleneck, train_split)
    x = model.codec.encode(train_split.batch(range(32)))
    model.objective(x, None, Noise(range(32)))  # a codebook has codes
    model.eval().save(tmp_path / "模型")
    again = Model.load(tmp_path / "模型")
    assert describe(again) == describe(model)
    with torch.no_grad():
        both = [each.loss_at(x, torch.zeros(32), None, Noise(range(32))).per_sample for each in (model, again)]
    assert torch.equal(*both)
    assert held_out.shape == again.codec.data.shape


@EVERY
def test_as_a_codec_its_latents_have_mean_0_and_std_1(bottleneck: dict[str, Any]) -> None:
    train_split, _ = digits()
    model = autoencoder(bottleneck, train_split)
    model.objective(model.codec.encode(train_split.batch(range(64))), None, Noise(range(64)))
    codec = model.as_codec(train_split)
    noise = Noise([derive(0, "codec", row) for row in range(len(train_split))])
    latents = codec.encode(train_split.batch(range(len(train_split))), noise)
    assert tuple(latents.shape[1:]) == codec.latent.shape == (model.bottleneck.channels, 4, 4)
    columns = latents.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(columns.mean(1), torch.zeros(len(columns)).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(columns.std(1), torch.ones(len(columns)).double(), rtol=1e-3, atol=0)
    decoded = codec.decode(codec.encode(train_split.batch(range(8))))
    expected = model.network.decode(
        model.bottleneck.latent(model.network.encode(model.codec.encode(train_split.batch(range(8)))))
    )
    torch.testing.assert_close(decoded, model.codec.decode(expected).detach(), rtol=1e-4, atol=1e-2)
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_a_latent_that_says_nothing_is_no_codec() -> None:
    train_split, _ = digits()
    model = autoencoder(KL, train_split)
    with torch.no_grad():
        model.network.encoder[-1].weight[1] = 0.0
    with pytest.raises(
        ConfigError, match=r"channel 1 of the latents varies by 0 from place to place, and by 1.* it says nothing"
    ):
        model.as_codec(train_split)


def test_parts_that_do_not_fit_are_refused_with_both() -> None:
    train_split, _ = digits()
    model = autoencoder(KL, train_split)
    with pytest.raises(IncompatibleError, match=r"are \(1, 4, 2\), and the data and the bottleneck need \(1, 3, 3\)"):
        Autoencoder(model.network, model.codec, build(FSQ))
    with pytest.raises(ConfigError, match="2 channels need as many means and stds, not 1 and 2"):
        Autoencoded(model.network, model.bottleneck, model.codec, [0.0], [1.0, 1.0])
    odd = Affine([1, 7, 8], [0.0], [1.0])
    with pytest.raises(IncompatibleError, match="cannot be made 2 times smaller"):
        Autoencoded(model.network, model.bottleneck, odd, [0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("options", [{"shape": "cauchy"}, {"rate": -1.0}, {"rate": math.inf}])
def test_a_reconstruction_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Reconstruction(**options)


@EVERY
def test_a_sheet_shows_what_comes_back_and_facts_say_what_was_lost(bottleneck: dict[str, Any]) -> None:
    train_split, held_out = digits()
    model = autoencoder(bottleneck, train_split)
    model.objective(model.codec.encode(train_split.batch(range(64))), None, Noise(range(64)))
    picture = model.sheet(None, held_out.batch(range(5)))
    assert picture is not None
    assert picture.width > picture.height
    facts = model.held_out_facts(held_out)
    rows = range(64)
    x = model.codec.encode(held_out.batch(rows))
    with torch.no_grad():
        latent = (
            model.eval()
            .bottleneck(model.network.encode(x), Noise([derive(0, "held out", i) for i in rows]).fork("latent"))
            .latent
        )
        back = model.codec.decode(model.network.decode(latent)).round()
    first = ImageDataset.from_arrays(held_out.batch(rows)[:, 0])
    mean = float((back - held_out.batch(rows)).double().pow(2).mean())
    assert model.held_out_facts(first)["held-out PSNR"] == pytest.approx(10 * math.log10(255**2 / mean), abs=0.01)
    assert model.held_out_facts(first)["latent std"] == pytest.approx(
        latent.double().transpose(0, 1).flatten(1).std(1).tolist(), abs=1e-3
    )
    assert ("codes used" in facts) == (bottleneck is not KL)


@EVERY
def test_a_codec_has_weights_of_its_own(bottleneck: dict[str, Any], tmp_path: Path) -> None:
    """The autoencoder still learns, saves and loads, and what it learns then is not the codec's."""
    train_split, _ = digits()
    model = autoencoder(bottleneck, train_split)
    list(train(model, train_split, None, TrainSettings(steps=2, batch_size=32, precision="fp32", warmup_steps=1)))
    codec = model.as_codec(train_split)
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save(tmp_path / "模型")
    assert describe(Model.load(tmp_path / "模型")) == describe(model)
    list(train(model, train_split, None, TrainSettings(steps=2, batch_size=32, precision="fp32", warmup_steps=1)))
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())
    assert any(not torch.equal(value, before[f"network.{name}"]) for name, value in model.network.state_dict().items())
