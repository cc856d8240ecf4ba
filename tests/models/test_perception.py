"""An autoencoder's critic and eye: who learns from what, by how much, from when on, and what stays as it is."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diff_diffusion import TrainSettings, load_image_dataset, train
from diff_diffusion.codecs import Affine
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.models import Autoencoder
from diff_diffusion.networks.critic import PatchCritic
from diff_diffusion.objectives.eyes import Features, Lpips, judge
from diff_diffusion.objectives.perception import balance, ssim, taken_for_real, told_apart, unlike
from diff_diffusion.registry import build, describe
from diff_diffusion.rng import Noise
from diff_diffusion.sizing import describe_autoencoder
from diff_diffusion.training.together import begin_batch

JUDGE = {"type": "classifier/unet_encoder", "channels": 1, "num_classes": 3, "width": 8, "multipliers": [1, 2]}
JUDGE |= {"depth": 1, "attention": [], "head_width": 8, "dropout": 0.5}
EYE = {"type": "eye/features", "network": JUDGE}
CRITIC = {"type": "critic/patch", "channels": 1, "width": 8, "layers": 1}


def digits() -> ImageDataset:
    return load_image_dataset("digits").split()[0]


def autoencoder(data: ImageDataset, start: int = 0, **parts: Any) -> Autoencoder:
    description = describe_autoencoder(data, factor=2, channels=2, start=start) | parts
    description["network"]["width"] = 8
    return Autoencoder.from_description(description)


def pictures(seed: int) -> Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class Plain(nn.Module):
    """D(x) = w x, for each number: every loss is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).flatten(1)


def test_the_critic_pays_by_the_hinge_and_the_decoder_by_the_score() -> None:
    critic = Plain()
    real, decoded = torch.tensor([[[0.2]], [[3.0]]]), torch.tensor([[[0.1]], [[-4.0]]], requires_grad=True)
    loss = told_apart(critic, real, decoded)
    torch.testing.assert_close(loss, torch.tensor([0.5 * (0.6 + 1.2), 0.0]))
    loss.sum().backward()
    assert decoded.grad is None, "the critic's loss is not the decoder's"
    torch.testing.assert_close(critic.weight.grad, torch.tensor(0.5 * (-0.2 + 0.1)))
    critic.weight.grad = None
    taken_for_real(critic, decoded).sum().backward()
    assert critic.weight.grad is None, "the decoder's loss is not the critic's"
    torch.testing.assert_close(decoded.grad, torch.full((2, 1, 1), -2.0))


def test_pictures_are_alike_by_the_direction_of_their_features() -> None:
    a = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    turned, longer = torch.tensor([-4.0, 3.0]).view(1, 2, 1, 1), 10.0 * a
    torch.testing.assert_close(unlike([a], [longer]), torch.tensor([0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(unlike([a], [turned]), torch.tensor([2.0]))
    both = torch.cat([a, a], dim=3)
    torch.testing.assert_close(unlike([both, a], [torch.cat([a, turned], dim=3), turned]), torch.tensor([1.0 + 2.0]))


def test_two_losses_are_balanced_at_a_weight() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    loss, against = (weight**2).sum(), 0.5 * weight.sum()
    torch.testing.assert_close(balance(loss, against, weight), torch.tensor(10.0 / 0.5**0.5), rtol=1e-5, atol=0)
    assert float(balance(loss, 0.0 * against, weight)) == 1e4


def test_the_critic_joins_in_when_it_is_time() -> None:
    data = digits()
    alone, opposed = autoencoder(data, start=1), autoencoder(data, start=1, critic=CRITIC)
    opposed.load_state_dict(alone.state_dict(), strict=False)
    x = alone.codec.encode(data.batch(range(8)))
    for step in range(2):
        for model in (alone, opposed):
            begin_batch(model)
        losses = [model.objective(x, None, Noise(range(8))) for model in (alone, opposed)]
        same = torch.equal(losses[0].per_sample, losses[1].per_sample)
        assert same == (step == 0), step
    losses[1].mean.backward()
    assert opposed.critic is not None
    assert all(parameter.grad is not None for parameter in opposed.critic.parameters())


def test_the_decoder_is_pulled_by_the_share_that_was_asked_for() -> None:
    """At the last layer, the critic's part of the gradient has half the norm of the others' part."""
    data = digits()
    model = autoencoder(data, critic=CRITIC)
    x = model.codec.encode(data.batch(range(8)))
    last = model.network.last
    begin_batch(model)
    model.objective(x, None, Noise(range(8)))
    width = model.learns["width"].state_dict()
    [whole] = torch.autograd.grad(model.objective(x, None, Noise(range(8))).mean, last)
    model.learns["width"].load_state_dict(width)
    model.learns["width"].learn(model.reconstruction.deviation(x, model._passed(x, Noise(range(8)))[1]))  # type: ignore[attr-defined]
    [others] = torch.autograd.grad(model.loss_at(x, torch.zeros(8), None, Noise(range(8))).mean, last)
    assert float((whole - others).norm() / others.norm()) == pytest.approx(0.5, rel=1e-3)


def test_the_critic_waits_for_batches_in_however_many_pieces_they_come() -> None:
    data = digits()
    for micro in (None, 3):
        model = autoencoder(data, start=4, critic=CRITIC)
        settings = TrainSettings(steps=4, batch_size=8, micro_batch=micro, precision="fp32", warmup_steps=1)
        assert model.critic is not None
        before = [weight.clone() for weight in model.critic.parameters()]
        list(train(model, data, None, settings))
        assert int(model.learns["width"].batches) == 4  # type: ignore[arg-type]
        assert all(map(torch.equal, before, model.critic.parameters())), "weight decay aside, nothing pulled at it"


@pytest.mark.parametrize("unfit", [{"channels": 3}, {"layers": 4}])
def test_a_critic_that_cannot_look_at_the_data_is_refused_before_it_is_its_turn(unfit: dict[str, int]) -> None:
    with pytest.raises(IncompatibleError, match="cannot look at samples"):
        autoencoder(digits(), critic=CRITIC | unfit)


def test_an_eye_is_stored_and_never_taught() -> None:
    data = digits()
    model = autoencoder(data, eye=EYE)
    before = {name: value.clone() for name, value in model.eye.state_dict().items()}
    list(train(model, data, None, TrainSettings(steps=3, batch_size=8, precision="fp32", warmup_steps=1)))
    assert all(torch.equal(value, before[name]) for name, value in model.eye.state_dict().items())
    assert describe(model)["eye"] == describe(build(EYE))
    assert describe(model)["eye"]["network"]["dropout"] == 0.5


def test_what_looks_unlike_costs_more() -> None:
    data = digits()
    plain, seeing = autoencoder(data), autoencoder(data, eye=EYE)
    seeing.load_state_dict(plain.state_dict(), strict=False)
    x = plain.codec.encode(data.batch(range(8)))
    for model in (plain, seeing):
        model.learns["width"].learn(torch.tensor(1.0))  # type: ignore[operator]
    costs = [model.loss_at(x, torch.zeros(8), None, Noise(range(8))).per_sample for model in (plain, seeing)]
    decoded = plain._passed(x, Noise(range(8)))[1]
    level = torch.full((8,), 20.0)
    network = seeing.eye.network
    expected = unlike(network.features(x, level), network.features(decoded, level))
    torch.testing.assert_close(costs[1] - costs[0], expected, rtol=1e-4, atol=1e-5)


def test_an_eye_drops_nothing_at_random() -> None:
    """A classifier has dropout, and what is learned from it must not be noise."""
    model = autoencoder(digits(), eye=EYE).train()
    x, other = pictures(0), pictures(1)
    assert torch.equal(model.eye(x, other), model.eye(x, other))
    assert not any(module.training for module in model.eye.modules())


def test_an_eye_must_tell_what_it_sees() -> None:
    with pytest.raises(ConfigError, match="Plain does not"):
        Features(Plain())


class Absolute(nn.Module):
    """In the place of `lpips.LPIPS`: of pictures in [-1, 1] of three channels, a number each, [B, 1, 1, 1]."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.shape[1:] == b.shape[1:] == (3, 32, 32)
        assert float(a.detach().abs().max()) <= 1
        return self.weight * (a - b).abs().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_asked_about_pictures_as_it_knows_them(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    """The package itself needs weights from elsewhere."""
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Absolute))
    judge.cache_clear()
    images = torch.randint(0, 256, (4, channels, 32, 32), generator=torch.Generator().manual_seed(0))
    codec = Affine.fit([images])
    eye = Lpips(codec)
    x = codec.encode(images).requires_grad_()
    found = eye(x, codec.encode(255 - images))
    expected = 3.0 * (2.0 * images - 255.0).abs().mean((1, 2, 3)) * 2 / 255
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert float(torch.autograd.grad(found.sum(), x)[0].abs().max()) > 0
    assert not judge("alex").weight.requires_grad
    assert not list(eye.parameters()), "the package's weights are no part of a model"
    judge.cache_clear()
    with pytest.raises(ConfigError, match="alex, vgg, squeeze, not 'resnet'"):
        Lpips(codec, "resnet")


def test_lpips_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    judge.cache_clear()
    with pytest.raises(ConfigError, match="pip install lpips"):
        Lpips(Affine((3, 32, 32), [0.0] * 3, [1.0] * 3))(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="at least 32 pixels a side"):
        Lpips(Affine((1, 8, 8), [0.0], [1.0]))


def test_a_critic_scores_patches_and_no_sample_sees_another() -> None:
    critic, x = PatchCritic(1, width=8, layers=1), pictures(0)
    scores = critic(x)
    assert scores.shape[0] == 3
    assert scores.shape[1] > 1
    torch.testing.assert_close(scores[1:2], critic(x[1:2]), rtol=1e-4, atol=1e-6)


def test_structural_similarity_is_the_papers() -> None:
    images = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0)) * 255
    other = (images + 40 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255)
    torch.testing.assert_close(ssim(images, images, 255.0), torch.ones(2).double())
    flat, lighter = torch.full((1, 1, 12, 12), 100.0), torch.full((1, 1, 12, 12), 120.0)
    expected = (2 * 100 * 120 + 2.55**2) / (100**2 + 120**2 + 2.55**2)
    torch.testing.assert_close(ssim(flat, lighter, 255.0), torch.tensor([expected]).double(), rtol=1e-6, atol=0)
    # Of these very images, by torchmetrics 1.9 with data_range 255, without the rim that it pads by reflection.
    torch.testing.assert_close(
        ssim(images, other, 255.0), torch.tensor([0.878753, 0.851325]).double(), rtol=1e-4, atol=0
    )
