"""Images as the numbers of an autoencoder's codes: an exact joint on a grid, the bound in nats, refusals."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diff_diffusion import DiffusionModel, TrainSettings, load_image_dataset, train
from diff_diffusion.codecs.affine import Affine
from diff_diffusion.codecs.tokens import Tokenised
from diff_diffusion.core.categorical import Absorbing
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import IncompatibleError
from diff_diffusion.evaluation.figures import process_figure
from diff_diffusion.evaluation.likelihood import bits_per_dim
from diff_diffusion.models import Autoencoder, Guidance, Model
from diff_diffusion.models.held_out import held_out_loss
from diff_diffusion.presets import recipe
from diff_diffusion.registry import build
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.sampler import trajectory
from diff_diffusion.samplers.tokens import Confidence
from diff_diffusion.sizing import describe_autoencoder, describe_for_data

VOCAB = 8
SMALL = {"width": 32, "depth": 2, "heads": 2}
SETTINGS = TrainSettings(steps=4, batch_size=16, precision="fp32", warmup_steps=1)


def digits() -> tuple[ImageDataset, ImageDataset]:
    return load_image_dataset("digits").split()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What encoders say is kept; not in the user's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "缓存"))


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return digits()[0]


def autoencoder(data: ImageDataset, bottleneck: str = "vq") -> Autoencoder:
    """Untrained, but for the codes, which begin with places of the first batch."""
    description = describe_autoencoder(data, bottleneck, factor=2, channels=None if bottleneck == "fsq" else 2)
    description["network"]["width"] = 8
    if bottleneck == "vq":
        description["bottleneck"]["size"] = VOCAB
    model = Autoencoder.from_description(description, seed=5)
    model.objective(model.codec.encode(data.batch(range(64))), None, Noise(range(64)))
    return model.eval()


@pytest.fixture(scope="module")
def codec(data: ImageDataset) -> Tokenised:
    return autoencoder(data).as_tokens()


def token_model(data: ImageDataset, codec: Tokenised, preset: str | None = None) -> DiffusionModel:
    description = describe_for_data(data, preset, codec=codec)
    description["network"] |= SMALL
    description["recipe"]["grid"]["num_steps"] = 4
    model = DiffusionModel.from_description(description)
    model.take_weights(codec)
    return model


def stirred(model: DiffusionModel) -> DiffusionModel:
    """With weights that say something, as a fresh network does not."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


# ---- the codec ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bottleneck", "vocab"), [("vq", VOCAB), ("fsq", 512)])
def test_tokens_decode_to_what_the_autoencoder_gives_back(data: ImageDataset, bottleneck: str, vocab: int) -> None:
    model = autoencoder(data, bottleneck)
    codec, images = model.as_tokens(), data.batch(range(6))
    tokens = codec.encode(images)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (6, 4, 4)
    assert codec.vocab == vocab == codec.latent.high + 1
    assert len(tokens.unique()) > 3
    with torch.no_grad():
        passed = model.network.decode(model.bottleneck.latent(model.network.encode(model.codec.encode(images))))
    torch.testing.assert_close(codec.decode(tokens), model.codec.decode(passed))
    other = (tokens + 1) % vocab
    assert not torch.allclose(codec.decode(other), codec.decode(tokens)) or bottleneck == "fsq"


def test_what_has_no_codes_has_no_tokens_and_a_mask_is_no_token(data: ImageDataset, codec: Tokenised) -> None:
    with pytest.raises(IncompatibleError, match=r"a Gauss bottleneck has none: train .* 'vq' or 'fsq'"):
        autoencoder(data, "kl").as_tokens()
    with pytest.raises(IncompatibleError, match="there are 8 codes, numbered from 0, and this holds 8 to 8"):
        codec.decode(torch.full((1, 4, 4), VOCAB))


# ---- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [None, "masked_tokens", "uniform_tokens"])
def test_a_model_for_tokens_has_their_vocabulary_and_shape(
    data: ImageDataset, codec: Tokenised, preset: str | None
) -> None:
    described = describe_for_data(data, preset, codec=codec)
    assert described["network"]["type"] == "network/token_transformer"
    assert described["network"]["vocab"] == described["recipe"]["process"]["vocab"] == VOCAB
    assert described["recipe"]["process"]["type"] == f"process/{'absorbing' if preset != 'uniform_tokens' else preset}"
    model = stirred(token_model(data, codec, preset))
    x, _ = model.walk([0, 1], {"label": ["3", "4"]})
    assert x.dtype == torch.int64
    assert x.shape == (2, 4, 4)
    images = data.batch(range(4))
    assert torch.equal(model.codec.encode(images), codec.encode(images)), "it has the codec's own weights"
    samples = model.sample(3, cond=["3", "4", "5"])
    assert samples.shape == (3, 1, 8, 8)
    assert bool(torch.isfinite(samples).all())
    torch.testing.assert_close(model.sample(1, seed=1, cond="4")[0], samples[1])  # a convolution's rounding apart
    assert model.sheet().size


def test_guidance_moves_samples_and_none_leaves_them(data: ImageDataset, codec: Tokenised) -> None:
    model = stirred(token_model(data, codec))
    plain = model.sample(8, cond="3")
    assert torch.equal(model.sample(8, cond="3", guidance=1.0), plain)
    assert not torch.equal(model.sample(8, cond="3", guidance=6.0), plain)
    x = model.recipe.process.prior((2, 4, 4), Noise([0, 1]))
    cond = model.encode({"label": "3"}, 2)
    assert cond is not None
    with torch.no_grad():
        guided = model.plan(guidance=3.0)[0](x, 1.0, cond).mean
        with_it, without = (model.denoiser(x, 1.0, each).mean for each in (cond, None))
    expected = with_it**3 / without**2
    torch.testing.assert_close(guided, expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_a_fresh_model_costs_ln_vocab_a_token(data: ImageDataset, codec: Tokenised, t: float) -> None:
    """The bound's integrand is -x'(t) / x(t) nats of each masked token, x the masked share: ln(vocab) · masked / t."""
    model = token_model(data, codec)
    tokens, times = codec.encode(data.batch(range(32))), torch.full((32,), t, dtype=torch.float64)
    noise = Noise(range(32))
    loss = model.loss_at(tokens, times, None, noise)
    masked = (model.recipe.process.marginal(tokens, times, noise).x_t == VOCAB).double().flatten(1).mean(1)
    torch.testing.assert_close(loss.per_sample.double(), math.log(VOCAB) * masked / t, rtol=1e-5, atol=1e-6)


def test_training_learns_how_places_go_together() -> None:
    """Images of one grey each: the first token seen says all others, and a model of independent places could not know.

    The best that one can do is the mean entropy of a place; the joint's is a sixteenth of it.
    """
    greys = torch.arange(256) * 7 % 4 * 80
    images = ImageDataset.from_arrays(greys.to(torch.uint8)[:, None, None].expand(256, 8, 8).contiguous())
    codec = autoencoder(images).as_tokens()
    shares = nn.functional.one_hot(codec.encode(images.batch(range(256))), VOCAB).double().mean(0)
    alone = -torch.xlogy(shares, shares).sum(-1).mean().item()
    model = token_model(images, codec)
    before = held_out_loss(model, images)["mean"]
    settings = TrainSettings(steps=150, batch_size=32, lr=1e-2, precision="fp32", warmup_steps=5)
    *_, last = train(model, images, None, settings, held_out=images)
    assert last.held_out is not None
    assert before == pytest.approx(math.log(VOCAB), rel=0.1)
    assert last.held_out["mean"] < 0.75 * alone


def test_its_codec_is_stored_once_and_loaded_it_draws_the_same(
    data: ImageDataset, codec: Tokenised, tmp_path: Path
) -> None:
    list(train(token_model(data, codec), data, tmp_path / "词元", SETTINGS))
    stored = load_file(tmp_path / "词元" / "model.safetensors")
    names = {name for name in stored if ".bottleneck." in name}
    assert names == {"raw/codec.bottleneck.counts", "raw/codec.bottleneck.sums"}
    assert not [name for name in stored if name.startswith("ema/codec.")]
    first, again = (Model.load(tmp_path / "词元") for _ in range(2))
    assert isinstance(first, DiffusionModel)
    assert isinstance(again, DiffusionModel)
    assert torch.equal(first.sample(2, cond="3"), again.sample(2, cond="3"))
    images = data.batch(range(3))
    assert torch.equal(first.codec.encode(images), codec.encode(images))
    assert "absorbing" in (tmp_path / "词元" / "README.md").read_text(encoding="utf-8")


def test_a_run_that_goes_on_ends_with_the_same_bytes(data: ImageDataset, codec: Tokenised, tmp_path: Path) -> None:
    for name, stops in (("一", [4]), ("二", [1, 4])):
        for steps in stops:
            settings = SETTINGS.model_copy(update={"steps": steps})
            list(train(token_model(data, codec), data, tmp_path / name, settings))
    for file in ("model.safetensors", "train_state.safetensors"):
        assert (tmp_path / "一" / file).read_bytes() == (tmp_path / "二" / file).read_bytes()


# ---- exact, on a grid -----------------------------------------------------------------------------------------------

STATES, ROWS, COLUMNS = 3, 2, 2
JOINT = torch.rand((STATES,) * 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 4
JOINT = JOINT / JOINT.sum()


class Exact(nn.Module):
    """Logits of each place given the places that are no mask, by summing over all grids of tokens."""

    vocab, cond_width = STATES, 0

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.register_buffer("grids", torch.tensor(list(product(range(STATES), repeat=ROWS * COLUMNS))))

    def forward(self, x: Tensor, log_snr: Tensor, cond: Any = None) -> Tensor:
        flat = x.flatten(1)[:, None]
        agrees = ((flat == self.grids) | (flat == STATES)).all(-1).double()  # [B, N]
        weights = agrees * JOINT.flatten()
        own = nn.functional.one_hot(self.grids, STATES).double()  # type: ignore[arg-type]
        shares = torch.einsum("bn,nlv->blv", weights / weights.sum(1, keepdim=True), own)
        return shares.log().view(*x.shape, STATES)


@pytest.fixture(scope="module")
def exact() -> DiffusionModel:
    """A model of 4 × 4 images whose tokens have this joint."""
    network = {"type": "autoencoder/conv", "channels": 1, "codes_out": 1, "codes_in": 1}
    network |= {"width": 8, "multipliers": [1, 2], "depth": 1}
    codec = Tokenised(build(network), build({"type": "bottleneck/fsq", "levels": [3]}), Affine([1, 4, 4], [0.0], [1.0]))
    return DiffusionModel(Exact(), codec, recipe("masked_tokens", vocab=STATES))


def distance_to_the_joint(x: Tensor) -> float:
    """Total variation between how often grids came and how often they should."""
    places = STATES ** torch.arange(ROWS * COLUMNS - 1, -1, -1)
    found = (x.flatten(1) * places).sum(1).bincount(minlength=JOINT.numel()) / len(x)
    return 0.5 * float((found.double() - JOINT.flatten()).abs().sum())


def floor(count: int) -> float:
    """About the largest that `count` exact draws show: the mean of |p̂ - p|, and 4 deviations."""
    p = JOINT.flatten()
    return 0.5 * float((2 * p * (1 - p) / (math.pi * count)).sqrt().sum()) + 2 / count**0.5


def test_one_place_at_a_time_in_any_order_is_the_exact_joint(exact: DiffusionModel) -> None:
    """Confidence drowned in noise is any order, ranked over all places of the grid."""
    count, process = 10_000, exact.recipe.process
    assert isinstance(process, Absorbing)
    times = [1.0, *(process.time_map.time(math.log(k / (4 - k))) for k in (1, 2, 3)), 0.0]
    x = process.prior((count, ROWS, COLUMNS), Noise(range(count)))
    for index, step in enumerate(trajectory(exact.denoiser, Confidence(1e6), times, x, noise=Noise(range(count)))):
        x = step.x
        assert ((x == process.mask).flatten(1).sum(1) == 3 - index).all()
    assert x.shape == (count, ROWS, COLUMNS)
    assert distance_to_the_joint(x) < floor(count)


def test_the_models_own_walk_is_the_joint_as_steps_grow_small(exact: DiffusionModel) -> None:
    """Two places in one step are drawn as if independent: far off in one step, near in the preset's 64."""
    count = 2000
    found = []
    for steps in (1, 64):
        x, walk = exact.walk(range(count), steps=steps)
        for step in walk:
            x = step.x
        found.append(distance_to_the_joint(x))
    assert found[0] > 0.1
    assert found[1] < floor(count) + 0.01
    samples = exact.sample(3)
    assert samples.shape == (3, 1, 4, 4)


def test_confidence_by_name_unmasks_the_share_that_the_process_would(data: ImageDataset, codec: Tokenised) -> None:
    model = stirred(token_model(data, codec))
    process = model.recipe.process
    assert isinstance(process, Absorbing)
    x, walk = model.walk(range(5), sampler="confidence", steps=6)
    before = x
    for step in walk:
        left = round((1.0 - process.keep(step.s)) * 16) if step.s > 0 else 0
        assert ((step.x == process.mask).flatten(1).sum(1) == left).all()
        assert torch.equal(step.x[before != process.mask], before[before != process.mask])
        before = step.x
    assert bool(torch.isfinite(model.decode(before)).all())


# ---- what does not fit ----------------------------------------------------------------------------------------------


def test_a_preset_or_a_network_for_something_else_is_refused_with_what_fits(
    data: ImageDataset, codec: Tokenised
) -> None:
    numbers = autoencoder(data, "fsq").as_codec(data)
    for preset, given, message in [
        ("ddpm", codec, r"'ddpm' is for numbers, and the codec gives tokens: .* one of masked_tokens, uniform_tokens$"),
        ("masked_tokens", numbers, "'masked_tokens' is for tokens, and the codec gives numbers: .* one of ddim, ddpm"),
        ("uniform_tokens", None, "'uniform_tokens' is for tokens, and digits holds images: for images use one of ddim"),
    ]:
        with pytest.raises(IncompatibleError, match=message):
            DiffusionModel.for_data(data, preset, codec=given)
    with pytest.raises(IncompatibleError, match="'ddim' is for numbers"):
        DiffusionModel.for_data(data, codec=codec, timesteps=500)
    with pytest.raises(IncompatibleError, match=r"'unet' is for numbers, .* for tokens use one of token_transformer$"):
        DiffusionModel.for_data(data, codec=codec, network="unet")
    with pytest.raises(IncompatibleError, match=r"'token_transformer' is for tokens, .* use one of dit, mmdit, unet"):
        DiffusionModel.for_data(data, network="token_transformer")
    with pytest.raises(IncompatibleError, match=r"vocabulary of 9, .* of 8: presets that fit .*, with vocab=8"):
        DiffusionModel.for_data(data, codec=codec, vocab=9)


def test_a_model_put_together_by_hand_is_checked_too(data: ImageDataset, codec: Tokenised) -> None:
    model, affine = token_model(data, codec), Affine([1, 8, 8], [0.0], [1.0])
    network = build({"type": "network/token_transformer", "vocab": VOCAB, **SMALL})
    with pytest.raises(IncompatibleError, match=r"Gaussian destroys numbers, and the codec gives tokens .* of 8"):
        DiffusionModel(build({"type": "network/dit", "channels": 1}), codec, recipe("rectified_flow"))
    with pytest.raises(IncompatibleError, match=r"Absorbing destroys tokens .* of 8, and the codec gives numbers"):
        DiffusionModel(network, affine, recipe("masked_tokens", vocab=VOCAB))
    other = build({"type": "network/token_transformer", "vocab": VOCAB + 1, **SMALL})
    with pytest.raises(IncompatibleError, match="the network knows 9 tokens, and the codec gives 8"):
        DiffusionModel(other, codec, model.recipe)


def test_what_is_for_numbers_says_that_these_are_tokens(data: ImageDataset, codec: Tokenised, tmp_path: Path) -> None:
    model = token_model(data, codec)
    with pytest.raises(IncompatibleError, match="Absorbing destroys tokens, which cannot be decoded half-way"):
        process_figure(model, tmp_path / "图.png")
    with pytest.raises(IncompatibleError, match="works in an autoencoder's latents"):
        bits_per_dim(model, data)
    with pytest.raises(IncompatibleError, match="Absorbing has tokens: leave it out"):
        model.plan(clip=True)
    with pytest.raises(IncompatibleError, match="Absorbing has tokens: leave it out"):
        model.plan(guidance=Guidance(2.0, dynamic=0.99))
    with pytest.raises(IncompatibleError, match=r"Heun needs .*Samplers that fit: ancestral, confidence"):
        model.sample(1, sampler="heun")
    shown = ImageDataset.from_arrays(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    assert describe_for_data(shown, codec=codec)["conditioner"] is None
