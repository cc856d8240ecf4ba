"""A classifier that knows noise: Bayes' law of a mixture, its gradient, missing labels, its folder and its errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from diff_diffusion.codecs.affine import Affine
from diff_diffusion.cond import Cond
from diff_diffusion.conditions.conditions import Conditions
from diff_diffusion.conditions.labels import ClassLabel
from diff_diffusion.conditions.numbers import Number
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.categorical import Absorbing
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.learned_map import Learned
from diff_diffusion.core.time_maps import Flow, LinearLogSnr
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import CheckpointError, ConfigError, IncompatibleError
from diff_diffusion.models import DiffusionModel, Guidance, Model, NoisyClassifier
from diff_diffusion.objectives.levels import LossAware
from diff_diffusion.registry import build, describe
from diff_diffusion.rng import Noise
from diff_diffusion.sizing import describe_classifier
from diff_diffusion.training import train

NAMES = ("猫", "dog")
PROCESS = Gaussian(LinearLogSnr(9.0, -9.0))
MEANS, VARIANCES, WEIGHTS = [[-1.0, 0.2], [0.9, -0.4]], [0.2, 0.5], [0.6, 0.4]


class Perceptron(nn.Module):
    """Scores of points of the plane."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, num_classes)
        )

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        # σ and λ / 10: a linear rule that depends on the level needs no more.
        level = torch.stack([torch.sigmoid(-log_snr).sqrt(), log_snr / 10.0], -1).to(x)
        scores: Tensor = self.layers(torch.cat([x, level], -1))
        return scores


def points(process: Gaussian = PROCESS, levels: Any = None, names: tuple[str, ...] = NAMES) -> NoisyClassifier:
    """An untrained classifier of points of the plane that are data as they are."""
    codec = Affine((2,), (0.0, 0.0), (1.0, 1.0), -99.0, 99.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Perceptron(len(names))
    return NoisyClassifier(network, codec, process, Conditions({"label": ClassLabel(names, 0)}), levels)


def labels(values: Sequence[int | None]) -> Cond:
    keep = [value is not None for value in values]
    return Cond({"label": torch.tensor([int(value or 0) for value in values])}, {"label": torch.tensor(keep)})


def described(data: ImageDataset, **network: Any) -> dict[str, Any]:
    """The smallest classifier of images."""
    description = describe_classifier(data)
    description["network"] |= {"width": 8, "multipliers": [1, 2], "depth": 1, "attention": [2], **network}
    return description


def fresh(data: ImageDataset, seed: int = 0, **network: Any) -> NoisyClassifier:
    return NoisyClassifier.from_description(described(data, **network), seed)


def stirred(model: NoisyClassifier) -> NoisyClassifier:
    """The classifier with every weight moved, since a fresh one finds all classes alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


# ---- what it learns --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> NoisyClassifier:
    """600 batches of 512 draws of the mixture, in 3 s."""
    steps, batch, model = 600, 512, points()
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1.0 - step / steps)
        which = (rng.random(batch) > WEIGHTS[0]).astype(np.int64)
        x_0 = np.array(MEANS)[which] + np.sqrt(VARIANCES)[which, None] * rng.standard_normal((batch, 2))
        noise = Noise(range(step * batch, (step + 1) * batch), "bayes")
        optimizer.zero_grad()
        cond = Cond({"label": torch.from_numpy(which)})
        model.objective(torch.from_numpy(x_0).float(), cond, noise).mean.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("log_snr", [6.0, 3.0, 1.0, -1.0, -3.0])
def test_it_approaches_bayes_law(trained: NoisyClassifier, log_snr: float) -> None:
    """p(label | x_t) of the mixture to 0.02 on average over x_t; at every level the prior is five times as wrong."""
    exact, t = GaussianMixture(PROCESS, MEANS, VARIANCES, WEIGHTS), PROCESS.time_map.time(log_snr)
    noise = Noise(range(2000), "test")
    x_t = PROCESS.marginal(exact.draw(noise), torch.full((2000,), t, dtype=torch.float64), noise.fork("eps")).x_t
    own = Cond({"component": torch.zeros(2000, dtype=torch.int64)})
    bayes = (math.log(0.6) + exact.log_density(x_t, t, own) - exact.log_density(x_t, t)).exp()
    with torch.no_grad():
        said = trained.log_prob(x_t.float(), torch.full((2000,), log_snr), labels([0] * 2000)).exp()
        other = trained.log_prob(x_t.float(), torch.full((2000,), log_snr), labels([1] * 2000)).exp()
    assert torch.allclose(said + other, torch.ones(2000))
    wrong = (said - bayes).abs().mean()
    assert wrong < 0.02
    assert wrong < 0.2 * (WEIGHTS[0] - bayes).abs().mean()


def test_at_bayes_law_no_loss_is_left_but_the_entropy(trained: NoisyClassifier) -> None:
    """The mean loss of fresh draws is H(label | x_t), within 0.01 nats and 3 standard errors of both."""
    exact, t = GaussianMixture(PROCESS, MEANS, VARIANCES, WEIGHTS), PROCESS.time_map.time(0.0)
    count = 4000
    noise = Noise(range(count), "entropy")
    which = (noise.fork("which").uniform((count,)) > WEIGHTS[0]).long()
    x_0 = exact.draw(noise, Cond({"component": which}))
    times = torch.full((count,), t, dtype=torch.float64)
    x_t = PROCESS.marginal(x_0, times, noise.fork("eps")).x_t
    share = torch.log(torch.tensor(WEIGHTS, dtype=torch.float64))[which]
    entropy = -(share + exact.log_density(x_t, t, Cond({"component": which})) - exact.log_density(x_t, t))
    with torch.no_grad():
        loss = trained.loss_at(x_0.float(), times, Cond({"label": which}), noise.fork("eps")).per_sample
    assert abs(float((loss - entropy).mean())) < 0.01 + 3 * float((loss - entropy).std()) / math.sqrt(count)


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_what_has_no_label_has_no_loss_and_teaches_nothing() -> None:
    model, noise = points(), Noise(range(6), "train")
    x = Noise(range(6)).normal((6, 2))
    known, some = labels([0, 1, 1, 0, 1, 0]), labels([0, None, 1, None, 1, 0])
    every, loss = model.objective(x, known, noise), model.objective(x, some, noise)
    kept = some.keep["label"]
    assert torch.equal(loss.per_sample[kept], every.per_sample[kept])
    assert torch.equal(loss.per_sample[~kept], torch.zeros(2))
    assert torch.equal(loss.mean, loss.per_sample.mean())
    loss.mean.backward()
    gradient = [p.grad.clone() for p in model.network.parameters()]
    model.zero_grad()
    x[1], x[3] = math.pi, -math.pi  # of those without a label
    model.objective(x, some, noise).mean.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.network.parameters(), gradient, strict=True))


def test_a_fresh_network_finds_all_classes_alike() -> None:
    model, data = fresh(tiny.images()), tiny.images()
    latents = model.codec.encode(data.batch(range(20)))
    loss = model.objective(latents, model.encode(model.known(data.cond(range(20))), 20), Noise(range(20)))
    assert torch.allclose(loss.per_sample, torch.full((20,), math.log(3)))


@pytest.mark.parametrize("adapts", [False, True])
def test_levels_are_stratified_and_cut_batches_see_the_same(adapts: bool) -> None:
    levels = LossAware(num_bins=2) if adapts else None
    model = points(levels=levels)
    x, cond, noise = Noise(range(8)).normal((8, 2)), labels([0, 1] * 4), Noise(range(8), "train")
    if levels is not None:  # what a part of a batch teaches, the next part must not hear
        levels.counts.fill_(100)
        levels.moments.copy_(torch.tensor([1.0, 9.0]))
    start = copy.deepcopy(model.state_dict())
    whole = model.objective(x, cond, noise)
    if levels is None:
        strata = (PROCESS.time_map.time(whole.log_snr) * 8).floor()
        assert strata.tolist() == list(range(8))
    model.load_state_dict(start)
    parts = [model.objective(x[i : i + 3], cond[i : i + 3], noise[i : i + 3], i, 8) for i in (0, 3, 6)]
    assert torch.allclose(torch.cat([part.per_sample for part in parts]), whole.per_sample, rtol=1e-5)
    assert torch.equal(torch.cat([part.log_snr for part in parts]), whole.log_snr)


def test_levels_that_adapt_learn_of_what_has_a_label_alone() -> None:
    model = points(levels=LossAware(num_bins=2))
    assert set(model.learns) == {"levels"}
    model.objective(Noise(range(8)).normal((8, 2)), labels([0, None] * 4), Noise(range(8)))
    assert model.levels.fresh[1].sum() == 4
    assert (model.levels.fresh[0] > 0).all()
    model.levels.fresh.zero_()
    model.levels.counts.fill_(100)
    model.levels.moments.copy_(torch.tensor([1.0, 9.0]))  # the noisier half is drawn about three times as often
    noise = Noise(range(400))
    x, cond = noise.fork("x").normal((400, 2)), labels([0, 1] * 200)
    loss = model.objective(x, cond, noise)
    t = PROCESS.time_map.time(loss.log_snr)
    plain = model.loss_at(x, t, cond, noise.fork("eps")).per_sample
    noisy = t > 0.5
    assert 290 < noisy.sum() < 310
    assert torch.allclose(loss.per_sample[noisy] / plain[noisy], torch.tensor(1 / 1.5), rtol=0.02)
    assert torch.allclose(loss.per_sample[~noisy] / plain[~noisy], torch.tensor(2.0), rtol=0.02)


# ---- what it is asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["points", "images"])
def test_the_gradient_is_that_of_finite_differences(model: str) -> None:
    made = stirred(points() if model == "points" else fresh(tiny.images(side=5))).double()
    shape = made.codec.latent.shape
    x = Noise(range(3)).normal((3, *shape)).double().requires_grad_()
    log_snr, cond = torch.tensor([-2.0, 0.5, 4.0]).double(), labels([0, 1, 1])
    (gradient,) = torch.autograd.grad(made.log_prob(x, log_snr, cond).sum(), x)
    way, step = Noise(range(9, 12)).normal((3, *shape)).double(), 1e-5
    up, down = (made.log_prob((x + sign * step * way).detach(), log_snr, cond) for sign in (1, -1))
    assert torch.allclose((up - down) / (2 * step), (gradient * way).flatten(1).sum(1), rtol=1e-5, atol=1e-9)
    assert (gradient.flatten(1).norm(dim=1) > 1e-3).all()


def test_what_is_not_asked_for_is_0_and_pulls_nowhere() -> None:
    made, x = stirred(points()), Noise(range(3)).normal((3, 2)).requires_grad_()
    log_prob = made.log_prob(x, torch.zeros(3), labels([0, None, 1]))
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    assert [value == 0.0 for value in log_prob.tolist()] == [False, True, False]
    assert [bool((row == 0).all()) for row in gradient] == [False, True, False]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_one_classifier_guides_every_scaling(scaling: str) -> None:
    """x_t in the units of any scaling is the same evidence."""
    made, other = stirred(points()), Gaussian(LinearLogSnr(9.0, -9.0), scaling)
    t, cond, x_0 = torch.tensor([0.2, 0.5, 0.9]).double(), labels([0, 1, 1]), Noise(range(3)).normal((3, 2))
    own, moved = (process.marginal(x_0, t, Noise(range(3))).x_t for process in (PROCESS, other))
    log_snr = PROCESS.log_snr(t)
    expected = made.log_prob(own, log_snr, cond)
    assert torch.allclose(made.log_prob(moved, log_snr, cond, other), expected, rtol=1e-5)
    if scaling != "vp":
        assert not torch.allclose(made.log_prob(moved, log_snr, cond), expected, rtol=1e-2)


def test_beyond_its_levels_it_says_what_it_does_at_the_nearest() -> None:
    made, x, cond = stirred(points()), Noise(range(2)).normal((2, 2)), labels([0, 1])
    for far, near in ((math.inf, 9.0), (15.0, 9.0), (-math.inf, -9.0), (-12.0, -9.0)):
        shown = [made.scores(x, torch.full((2,), level)) for level in (far, near)]
        assert torch.equal(*shown)
        assert torch.isfinite(made.log_prob(x, torch.full((2,), far), cond)).all()
    assert not torch.equal(made.scores(x, torch.full((2,), 9.0)), made.scores(x, torch.full((2,), 8.0)))


def test_guiding_never_drops_activations() -> None:
    made, data = stirred(fresh(tiny.images(), dropout=0.5)), tiny.images()
    x, cond = made.codec.encode(data.batch(range(4))), labels([0, 1, 2, 0])
    expected = made.log_prob(x, torch.zeros(4), cond)
    made.train()
    assert torch.equal(made.log_prob(x, torch.zeros(4), cond), expected)
    assert made.training


class Brightness(nn.Module):
    """Class 1 where an image is brighter than the mean, told with all confidence."""

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1)
        return torch.stack([-bright, bright], 1)


def test_accuracy_counts_what_is_right_of_what_has_a_label() -> None:
    pixels = np.repeat(np.array([0, 20, 200, 255, 0, 255], np.uint8), 16).reshape(6, 4, 4)
    data = ImageDataset.from_arrays(pixels, columns={"label": ["bright", "猫", "猫", "猫", None, None]})
    names = data.columns["label"].names
    assert names == ("bright", "猫")  # so class 1, told where it is bright, is 猫
    codec = Affine.fit([data.batch(range(6))])
    made = NoisyClassifier(Brightness(), codec, PROCESS, Conditions({"label": ClassLabel(names, 0)}))
    assert made.accuracy(data) == 3 / 4
    assert made.accuracy(data, num=1) == 1.0
    assert made.accuracy(data, log_snr=20.0) == 3 / 4
    many = ImageDataset.from_arrays(pixels[[0, 3] * 200], labels=[0, 1] * 200, class_names=names)
    # The mean of 16 places is N(±α, σ²/16) about: P(right) = Φ(4 α / σ), here of α/σ = e^(λ/2).
    for log_snr in (-4.0, -6.0):
        low, high = ((value / 255 * 255 - codec.mean[0]) / codec.std[0] for value in (0, 255))
        expected = sum(0.5 * (1 + math.erf(4 * math.exp(log_snr / 2) * z / math.sqrt(2))) for z in (-low, high)) / 2
        assert abs(made.accuracy(many, log_snr) - expected) < 3 * math.sqrt(expected * (1 - expected) / 400)


# ---- guiding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["rectified_flow", "edm", "ddim"])
def test_it_guides_a_model_of_its_data_at_every_level_that_has_a_signal(preset: str) -> None:
    """x̂_0 + scale (σ²/α) ∇ ln p(label | x_t), and x̂_0 alone in pure noise, where no class can be told."""
    data = tiny.images()
    model, judge = DiffusionModel.for_data(data, preset, conditional=False), stirred(fresh(data))
    assert model.conditioner is None
    process, x = model.recipe.process, Noise(range(3)).normal((3, 1, 8, 8)).requires_grad_()
    cond = judge.encode(["class 1", None, "class 2"], 3)
    assert cond is not None
    guided, _, _ = model.plan(guidance=Guidance(2.5, classifier=judge), clip=False)
    for t in map(process.time_map.time, (2.0, 0.0, -5.0)):
        (gradient,) = torch.autograd.grad(
            judge.log_prob(x, torch.full((3,), process.log_snr(t)), cond, process).sum(), x
        )
        alpha, sigma = process.scales(t)
        plain, found = model.denoiser(x, t).mean, guided(x.detach(), t, cond).mean
        assert torch.allclose(found, plain + 2.5 * sigma**2 / alpha * gradient, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[[0, 2]], plain[[0, 2]], rtol=1e-3)
        assert torch.equal(found[1], plain[1])
    if process.log_snr(1.0) == -math.inf:
        assert torch.equal(guided(x.detach(), 1.0, cond).mean, model.denoiser(x, 1.0).mean)


def test_samples_are_guided_by_what_the_classifier_calls_its_classes() -> None:
    data = tiny.images()
    model, judge = DiffusionModel.for_data(data, conditional=False), stirred(fresh(data))

    def drawn(cond: Any, scale: float) -> Tensor:
        return model.sample(3, cond=cond, seed=5, steps=4, guidance=Guidance(scale, classifier=judge))

    plain, one = model.sample(3, seed=5, steps=4), drawn("class 1", 2.0)
    assert torch.equal(drawn("class 1", 0.0), plain)
    assert not torch.allclose(one, plain, atol=1.0)
    assert not torch.allclose(one, drawn("class 2", 2.0), atol=1.0)
    some = drawn([1, None, "class 1"], 2.0)
    assert torch.equal(some[1], plain[1])
    assert torch.allclose(some[[0, 2]], one[[0, 2]], atol=1e-2)
    within = model.sample(3, cond=1, seed=5, steps=4, guidance=Guidance(2.0, classifier=judge, interval=(0.0, 1e-9)))
    assert torch.equal(within, plain)
    with pytest.raises(ConfigError, match="unknown label"):
        drawn("class 9", 2.0)


def test_it_says_which_models_it_fits() -> None:
    data, other = tiny.images(), tiny.images(seed=1)
    judge = fresh(data)
    judge.check_fits(tiny.fresh(data))
    judge.check_fits(tiny.fresh(data, preset="edm"))
    close = replace(judge.codec, mean=[judge.codec.mean[0] * (1 + 1e-9)])
    judge.check_fits(DiffusionModel(nn.Identity(), close, tiny.fresh(data).recipe))
    with pytest.raises(IncompatibleError, match=r"data of mean .* and the model for .*: train both on the same data"):
        judge.check_fits(tiny.fresh(other))
    far = replace(judge.codec, std=[judge.codec.std[0] * 1.001])
    with pytest.raises(IncompatibleError, match="data of std"):
        judge.check_fits(DiffusionModel(nn.Identity(), far, tiny.fresh(data).recipe))
    with pytest.raises(IncompatibleError, match=r"samples \[1, 8, 8\] and the model for \[3, 8, 8\]"):
        judge.check_fits(tiny.fresh(tiny.images(channels=3)))
    with pytest.raises(IncompatibleError, match="train both on the same data"):
        tiny.fresh(other).sample(1, cond=[0], guidance=Guidance(2.0, classifier=judge))


# ---- trained and stored ----------------------------------------------------------------------------------------------


@pytest.fixture
def data() -> ImageDataset:
    return ImageDataset.from_arrays(
        tiny.images().batch(range(20)), columns={"label": ["猫", "dog", None, "鸟", "dog"] * 4}
    )


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 3}], ids=str)
def test_a_run_that_stopped_ends_like_one_that_did_not(
    changes: dict[str, Any], data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diff_diffusion.training.loop.choose_device", lambda: torch.device("cpu"))

    def go(out: Path, stop_at: int | None = None) -> Any:
        done: list[Any] = []
        steps = train(fresh(data, dropout=0.3), data, out, tiny.settings(**changes), held_out=data,
                      stop=lambda: stop_at is not None and len(done) + 1 >= stop_at)  # fmt: skip
        done.extend(steps)
        return done

    whole = go(tmp_path / "whole")
    parts = [record for stop_at in (1, 5, None) for record in go(tmp_path / "parts", stop_at)]
    assert [record.step for record in parts] == list(range(1, 13))
    assert tiny.ends(tmp_path / "parts") == tiny.ends(tmp_path / "whole")
    assert whole[-1].held_out["mean"] == parts[-1].held_out["mean"] > 0
    facts = NoisyClassifier.load(tmp_path / "whole").facts
    assert facts["held-out loss"] == whole[-1].held_out["mean"]
    assert facts["held-out accuracy"] == NoisyClassifier.load(tmp_path / "whole").accuracy(data)
    assert not (tmp_path / "whole" / "samples").exists()  # it draws nothing


def test_a_folder_holds_it_with_its_names_and_a_card(data: ImageDataset, tmp_path: Path) -> None:
    made = stirred(fresh(data))
    made.facts = {"name": "判官"}
    made.save(tmp_path / "judge")
    for again in (NoisyClassifier.load(tmp_path / "judge"), Model.load(tmp_path / "judge")):
        assert isinstance(again, NoisyClassifier)
        assert again.class_names == ("dog", "猫", "鸟")
        assert describe(again) == describe(made)
        assert again.fingerprint() == made.fingerprint()
    card = (tmp_path / "judge" / "README.md").read_text(encoding="utf-8")
    assert "diff-diffusion sample MODEL --classifier 判官" in card
    assert "| tells | label: one of 3 classes: dog, 猫, 鸟 |" in card
    assert "sampler" not in card


def test_neither_kind_is_loaded_as_the_other(data: ImageDataset, tmp_path: Path) -> None:
    fresh(data).save(tmp_path / "judge")
    tiny.fresh(data).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="describes a NoisyClassifier, and a DiffusionModel is needed here"):
        DiffusionModel.load(tmp_path / "judge")
    with pytest.raises(CheckpointError, match="describes a DiffusionModel, and a NoisyClassifier is needed here"):
        NoisyClassifier.load(tmp_path / "model")


def test_for_data_depends_on_its_seed_alone() -> None:
    data = tiny.images()
    one, same, other = (NoisyClassifier.for_data(data, seed=seed) for seed in (3, 3, 4))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert one.process == Gaussian(Flow(), "flow")
    assert NoisyClassifier.for_data(data, "edm").process == tiny.fresh(data, preset="edm").recipe.process
    assert one.codec == tiny.fresh(data).codec


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_it_says_what_it_needs(data: ImageDataset) -> None:
    codec, names = points().codec, Conditions({"label": ClassLabel(NAMES, 0)})
    with pytest.raises(IncompatibleError, match="the network scores 3 classes, and the labels are 2"):
        NoisyClassifier(Perceptron(3), codec, PROCESS, names)
    with pytest.raises(IncompatibleError, match="needs a Gaussian process, not Absorbing"):
        NoisyClassifier(Perceptron(), codec, Absorbing(4), names)  # type: ignore[arg-type]
    with pytest.raises(IncompatibleError, match="learned time map"):
        NoisyClassifier(Perceptron(), codec, Gaussian(Learned()), names)
    for parts in ({"colour": ClassLabel(NAMES, 0)}, {"label": Number(0.0, 1.0, 4)},
                  {"label": ClassLabel(NAMES, 0), "size": Number(0.0, 1.0, 4)}):  # fmt: skip
        with pytest.raises(ConfigError, match="tells the classes of one condition, 'label', not"):
            NoisyClassifier(Perceptron(), codec, PROCESS, Conditions(parts))
    for cond in (None, Cond(), Cond({"size": torch.zeros(1)})):
        with pytest.raises(ConfigError, match="asked for a label of 猫, dog, not for"):
            points().log_prob(torch.zeros(1, 2), torch.zeros(1), cond)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs classes, and plain has none: put each class into a folder"):
        describe_classifier(ImageDataset.from_arrays(data.batch(range(3)), name="plain"))
    with pytest.raises(ConfigError, match="has none; it has size: put"):
        describe_classifier(ImageDataset.from_arrays(data.batch(range(3)), columns={"size": [1.0, 2.0, 3.0]}))
    with pytest.raises(ConfigError, match="tells dog, 猫, 鸟; arrays has class 0, class 1, class 2"):
        fresh(data).accuracy(tiny.images())
    silent = ImageDataset.from_arrays(data.batch(range(3)), columns={"label": data.columns["label"].__class__(
        "class", [None] * 3, ("dog", "猫", "鸟"))})  # fmt: skip
    with pytest.raises(ConfigError, match="no image of arrays has a label"):
        fresh(data).accuracy(silent)


def test_a_described_classifier_is_built_again() -> None:
    stored = describe(fresh(tiny.images()))
    assert describe(build(stored)) == stored
    assert stored["conditioner"]["parts"]["label"]["width"] == 0
