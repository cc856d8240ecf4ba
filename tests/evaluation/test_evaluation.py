"""The numbers of an evaluation against closed forms, scipy and brute force; its classifier and its figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import tiny
import torch
from PIL import Image

from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.errors import DataError
from diff_diffusion.evaluation.distances import frechet, nearest
from diff_diffusion.evaluation.features import Classifier, train_classifier
from diff_diffusion.evaluation.figures import curve_figure, process_figure
from diff_diffusion.evaluation.score import interval, score
from diff_diffusion.models import DiffusionModel


def features(count: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated, of unequal scales."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width)) * np.geomspace(0.1, 10, width)
    return torch.from_numpy(rng.normal(size=(count, width)) @ mix + shift)


# ---- Fréchet distance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(200, 1), (200, 2), (300, 16), (40, 64)])
def test_the_frechet_distance_is_that_of_scipy(count: int, width: int) -> None:
    """Also where there are fewer samples than features, and the covariances are singular."""
    a, b = features(count, width, 0), features(count + 7, width, 1, shift=0.5)
    cov_a, cov_b = np.atleast_2d(np.cov(a.numpy().T)), np.atleast_2d(np.cov(b.numpy().T))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    difference = (a.mean(0) - b.mean(0)).numpy()
    expected = difference @ difference + np.trace(cov_a + cov_b - 2 * root.real)
    tolerance = 1e-9 if count > width else 1e-4  # scipy's root of a singular matrix is not exact
    assert frechet(a, b) == pytest.approx(expected, rel=tolerance)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-7)


def test_the_frechet_distance_of_one_feature_is_the_closed_form() -> None:
    """(μ_a - μ_b)² + (s_a - s_b)²."""
    a = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)
    b = 3.0 * a + 5.0
    assert frechet(a, b) == pytest.approx((2.0 - 11.0) ** 2 + (2.0 - 6.0) ** 2)


def test_a_shift_adds_its_square_and_a_rotation_nothing() -> None:
    a = features(500, 8, 0)
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-9 * float(a.var(0).sum()))
    assert frechet(a, a + 3.0) == pytest.approx(8 * 9.0, rel=1e-9)
    rotation = torch.linalg.qr(features(8, 8, 1))[0]
    b = features(300, 8, 2)
    assert frechet(a @ rotation, b @ rotation) == pytest.approx(frechet(a, b), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3)),
        (torch.zeros(5, 3), torch.zeros(0, 3)),
        (torch.zeros(5, 3), torch.zeros(5, 2)),
        (torch.full((5, 3), math.nan), torch.zeros(5, 3)),
        (torch.zeros(5, 3), torch.full((5, 3), math.inf)),
    ],
)
def test_sets_without_a_distance_are_refused(a: torch.Tensor, b: torch.Tensor) -> None:
    with pytest.raises(DataError):
        frechet(a.double(), b.double())


# ---- nearest images --------------------------------------------------------------------------------------------------


def test_the_nearest_image_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    samples = torch.from_numpy(rng.integers(0, 256, (600, 1, 4, 4), np.uint8))  # in more than one part
    reference = torch.from_numpy(rng.integers(0, 256, (50, 1, 4, 4), np.uint8))
    samples[5], samples[300] = reference[7], reference[49]
    distance, which = nearest(samples, reference)
    every = ((samples[:, None].double() - reference[None].double()) ** 2).mean((2, 3, 4)).sqrt()
    expected, place = every.min(1)
    torch.testing.assert_close(distance, expected, rtol=1e-6, atol=1e-3)
    assert torch.equal(which, place)
    assert (which[5], which[300]) == (7, 49)
    assert distance[[5, 300]].max() < 1e-3


# ---- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [1, 5, 60, 10_000])
def test_the_interval_of_a_share_is_wilsons(trials: int) -> None:
    for successes in {0, 1, trials // 3, trials - 1, trials}:
        expected = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-7)


# ---- the classifier and the scores -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    return load_image_dataset("digits").split()


@pytest.fixture(scope="module")
def classifier(digits: tuple[ImageDataset, ImageDataset]) -> Classifier:
    return train_classifier(*digits, steps=250)


def test_the_classifier_knows_the_digits(
    classifier: Classifier, digits: tuple[ImageDataset, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, test = digits
    assert classifier.test_accuracy >= 0.95
    right = classifier.labels(test.batch(range(len(test)))).numpy() == test.labels
    assert right.mean() == pytest.approx(classifier.test_accuracy)
    assert classifier.features(test.batch(range(3))).shape == (3, 64)
    assert classifier.features(test.batch(range(3))).dtype == torch.float64


def test_the_classifier_is_the_same_every_time(digits: tuple[ImageDataset, ImageDataset]) -> None:
    torch.manual_seed(1)
    first = train_classifier(*digits, steps=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert train_classifier(*digits, steps=3).name == first.name
    assert torch.equal(torch.get_rng_state(), before)
    assert train_classifier(*digits, steps=3, seed=1).name != first.name


def test_a_classifier_needs_labels() -> None:
    with pytest.raises(DataError, match="needs labels, and arrays has none"):
        train_classifier(tiny.images(classes=0), tiny.images(classes=0))


def test_a_model_that_returns_the_held_out_images_scores_as_they_do(
    classifier: Classifier, digits: tuple[ImageDataset, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then every number equals the one that stands beside it."""
    train_split, test = digits
    model, asked = tiny.fresh(train_split), []

    def perfect(self: DiffusionModel, num: int, *, cond: list[int], seed: int, **options: object) -> torch.Tensor:
        asked.append(seed)
        assert cond == test.labels.tolist()  # type: ignore[union-attr]
        return test.batch(range(num)).float()

    monkeypatch.setattr(DiffusionModel, "sample", perfect)
    scores = score(model, train_split, test, classifier, sets=2)
    assert asked == [0, len(test)]
    assert scores.agreement == pytest.approx(scores.classifier_accuracy)
    assert scores.agreement_interval[0] < scores.agreement < scores.agreement_interval[1]
    assert scores.frechet == pytest.approx(scores.frechet_floor)
    assert scores.frechet_spread == pytest.approx(0.0)
    assert scores.nearest == pytest.approx(scores.nearest_real)
    assert scores.n == len(test)
    assert json.loads(json.dumps(scores.to_json()))["features"] == classifier.name


# ---- figures ---------------------------------------------------------------------------------------------------------


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert min(image.size) > 200
        assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("preset", ["rectified_flow", "edm", "ddim"])
def test_the_process_is_drawn(classes: int, preset: str, tmp_path: Path) -> None:
    data = tiny.images(classes=classes)
    model = tiny.fresh(data, preset)
    process_figure(model, tmp_path / "sample.png")
    check_picture(tmp_path / "sample.png")
    process_figure(model, tmp_path / "image.png", image=data[3], cond="class 1" if classes else None, seed=5)
    check_picture(tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes() != (tmp_path / "sample.png").read_bytes()


def test_the_curves_of_a_run_are_drawn(tmp_path: Path) -> None:
    data = tiny.images()
    settings = tiny.settings(eval_interval=4)
    list(tiny.train(tiny.fresh(data), data, tmp_path / "run", settings, held_out=data))
    curve_figure(tmp_path / "run" / "metrics.jsonl", tmp_path / "curve.png")
    check_picture(tmp_path / "curve.png")


def test_curves_have_gaps_where_a_step_was_not_finite(tmp_path: Path) -> None:
    """Such a step has no loss in the journal, and a line that a crash cut short is none."""
    rows = [{"step": step, "loss": 1.0 / step} for step in range(1, 9)]
    rows[3] = {"step": 4, "skipped": True}
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    curve_figure(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    check_picture(tmp_path / "curve.png")


@pytest.mark.parametrize("text", [None, "", '{"step": 4, "skipped": true}\n'])
def test_curves_of_nothing_are_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DataError, match="holds no metrics to draw"):
        curve_figure(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
