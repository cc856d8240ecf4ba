"""The whole evaluation, on models whose samples are known: fresh draws, copies, one class only, noise."""

from __future__ import annotations

import base64
import html.parser
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from PIL import Image
from test_audit import smooth
from torch import Tensor, nn
from typer.testing import CliRunner

from diff_diffusion.cli import evaluate as command
from diff_diffusion.cli.app import app
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError, DiffusionError, IncompatibleError
from diff_diffusion.evaluation import samples as module
from diff_diffusion.evaluation.evaluate import evaluate
from diff_diffusion.evaluation.feature_networks import ModuleFeatures
from diff_diffusion.evaluation.features import Classifier, train_classifier
from diff_diffusion.evaluation.findings import Evaluation
from diff_diffusion.evaluation.report import report, write_report
from diff_diffusion.evaluation.samples import Samples
from diff_diffusion.models import DiffusionModel
from diff_diffusion.models.held_out import held_out_loss

NAMES = ("竖<b>", "flat")


def drawn(labels: Sequence[int], seed: int) -> Tensor:
    """Waves; those of the second class darker and turned."""
    pixels, second = smooth(len(labels), seed), np.asarray(labels) == 1
    pixels[second] = 255 - pixels[second].swapaxes(2, 3) // 2 - 127
    return torch.from_numpy(pixels)


def dataset(count: int, seed: int, labelled: bool = True) -> ImageDataset:
    labels = np.arange(count) % 2
    return ImageDataset.from_arrays(
        drawn(labels.tolist(), seed), labels if labelled else None, NAMES if labelled else ()
    )


DATA, PLAIN = dataset(600, 0), dataset(300, 0, labelled=False)


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return train_classifier(*DATA.split(), steps=60)


def pretending(monkeypatch: pytest.MonkeyPatch, draw: Callable[[int, list[int], int], Tensor]) -> list[int]:
    """Every model now draws `draw(num, labels, seed)`; returned is how many each call was for."""
    calls: list[int] = []

    def sample(self: DiffusionModel, num: int, *, cond: Any, seed: int, **options: Any) -> Tensor:
        calls.append(num)
        return draw(num, cond["label"] if cond else [i % 2 for i in range(num)], seed).float()

    monkeypatch.setattr(DiffusionModel, "sample", sample)
    return calls


def copied(num: int, labels: list[int], seed: int) -> Tensor:
    train, rng = DATA.split()[0], np.random.default_rng(seed)
    rows = [int(rng.choice(np.flatnonzero(train.labels == label))) for label in labels]  # type: ignore[operator]
    noise = torch.from_numpy(rng.normal(0, 2, (num, *train.shape)))
    return train.batch(rows).double() + noise


def fresh(num: int, labels: list[int], seed: int) -> Tensor:
    return drawn(labels, 5000 + seed)


def warned(found: Evaluation, text: str) -> bool:
    return any(text in warning for warning in found.warnings)


def test_a_healthy_model_stands_beside_the_floor(judge: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    pretending(monkeypatch, fresh)
    found = evaluate(tiny.fresh(DATA), DATA, 128, judge=judge)
    assert not found.audit.copies
    assert found.warnings == (
        "n = 60 is small: intervals are wide, and distances far above 0 for real images too",
        "distances compare 60 samples, not 128: a floor at the same n needs as many real images",
    )
    for record in found.records:
        width = record.interval[1] - record.interval[0]
        assert abs(record.value - record.floor) < 1.5 * width, record
    assert found.records[0].name == f"FD-arrays-{judge.name}, n=60"
    assert found.records[-1].name == "SW-arrays-pixels@8x8, n=60"
    assert [row.name for row in found.classes] == list(NAMES)
    assert not any(row.behind for row in found.classes)
    assert found.spread[0] == pytest.approx(found.spread[1], rel=0.15)
    assert len(found.held_out_loss["levels"]) == len(found.train_loss["levels"]) == 8
    assert found.bits is not None
    assert found.setting.seeds == (0, 128)


def test_classes_that_were_asked_for_are_no_chance(judge: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where samples of a class are all the same nothing is left to vary: a twentieth of 80 has two of each."""
    pretending(monkeypatch, lambda num, labels, seed: drawn([0, 1], 1)[labels])
    data = dataset(800, 0)
    found = evaluate(tiny.fresh(data), data, 80, judge=judge)
    distances = {record.metric: record for record in found.records[:-1]}
    for name in ("FD", "SW"):
        low, high = distances[name].interval
        assert high - low < 0.02 * distances[name].value


def test_a_model_that_copies_its_training_set_is_told(judge: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    pretending(monkeypatch, copied)
    found = evaluate(tiny.fresh(DATA), DATA, 128, judge=judge)
    assert found.warnings[0].startswith("this model copies its training set: ")
    assert found.warnings[0] == found.audit.verdict
    assert found.audit.share_pixels > 0.9
    assert found.audit.share > 0.3  # a judge that learned the training images by heart sees all of them as near


def test_a_class_that_is_not_drawn_is_told(judge: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quality stays; recall, coverage and variety fall, and the class is named."""
    pretending(monkeypatch, lambda num, labels, seed: drawn([1] * num, 5000 + seed))
    found = evaluate(tiny.fresh(DATA), DATA, 64, judge=judge)
    assert warned(found, f"classes drawn too rarely or wrongly, beyond chance: {NAMES[0]}")
    assert warned(found, "samples are alike")
    assert warned(found, "channel 0 drifts")
    of = {record.metric: record for record in found.records}
    assert of["precision"].interval[1] > of["precision"].floor
    assert of["coverage"].interval[1] < of["coverage"].floor
    row = found.classes[0]
    assert row.behind
    assert row.agreement is not None
    assert row.agreement[0] < 0.2


def test_noise_is_far_from_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without labels the features are those of a random network, and say so."""
    rng = np.random.default_rng(0)
    pretending(monkeypatch, lambda num, labels, seed: torch.from_numpy(rng.uniform(0, 255, (num, 1, 8, 8))))
    found = evaluate(tiny.fresh(PLAIN), PLAIN, 64)
    assert found.records[0].features.startswith("random-cnn-")
    assert found.classes == ()
    assert found.judge is None
    for record in found.records:
        assert record.metric == "recall" or not record.interval[0] <= record.floor <= record.interval[1], record


def test_features_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pretending(monkeypatch, fresh)
    network = ModuleFeatures(nn.AvgPool2d(2), "squares", size=(6, 6))
    found = evaluate(tiny.fresh(PLAIN), PLAIN, 64, features=network)
    assert found.records[0].name == f"FD-arrays-{network.name}, n=30"
    other = evaluate(tiny.fresh(PLAIN), PLAIN, 64)
    with pytest.raises(IncompatibleError, match="features: squares"):
        found.records[0].against(other.records[0])
    assert found.records[0].against(found.records[0]).better == "neither"


def test_few_images_have_no_distances_but_an_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    few = dataset(20, 0, labelled=False)
    rows = few.split()[0]
    pretending(monkeypatch, lambda num, labels, seed: rows.batch([i % 18 for i in range(seed, seed + num)]))
    found = evaluate(tiny.fresh(few), few)
    assert found.num == 256
    assert found.records == ()
    assert found.audit.copies
    assert warned(found, "no distances: 2 images can be compared, and at least 20 are needed")


def test_other_data_than_the_models_own_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretending(monkeypatch, fresh)
    model = tiny.fresh(PLAIN)
    model.facts = {"data": "旧", "train images": 270}
    assert not warned(evaluate(model, PLAIN, 64), "trained on")
    model.facts["train images"] = 18
    assert warned(evaluate(model, PLAIN, 64), "the model was trained on 18 images of 旧, and these are 270 of arrays")


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 samples, not 1"):
        evaluate(tiny.fresh(PLAIN), PLAIN, 1)
    other = tiny.images(classes=0, side=12)
    with pytest.raises(DiffusionError, match="8, 8"):
        evaluate(tiny.fresh(PLAIN), other)
    with pytest.raises(ConfigError):
        evaluate(tiny.fresh(PLAIN), PLAIN, guidance=3.0)  # which an unconditional model has no use for


def test_the_loss_is_of_images_of_every_class() -> None:
    """Of 1,200 images, class after class, as a folder has them: 512 at even distances, half of them of each."""
    labels, asked = np.repeat([0, 1], 600), list[int]()
    data = ImageDataset.from_arrays(drawn(labels.tolist(), 0), labels, NAMES)
    cond = data.cond
    data.cond = lambda rows, *more: (asked.extend(rows), cond(rows, *more))[1]  # type: ignore[method-assign]
    held_out_loss(tiny.fresh(data), data)
    assert len(set(asked)) == 512
    assert sum(labels[asked]) == 256


# ---- samples on disk -------------------------------------------------------------------------------------------------


def samples(folder: Path | None, **changes: Any) -> Samples:
    model = tiny.fresh(DATA)
    recipe = model.recipe
    plain = {"asked": {"label": [0, 1, 1]}, "seed": 3, "sampler": recipe.sampler, "grid": recipe.grid, "guidance": 1.0}
    return Samples(model, **plain | changes, folder=folder)  # type: ignore[arg-type]


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on disk is not drawn again; what is damaged, or another request's, is."""
    calls = pretending(monkeypatch, fresh)
    whole = torch.cat(list(samples(None).parts(150)))
    calls.clear()
    started = samples(tmp_path).parts(150)
    next(started), next(started)
    started.close()
    assert calls == [64, 64]
    assert torch.equal(torch.cat(list(samples(tmp_path).parts(150))), whole)
    assert calls == [64, 64, 22]
    assert torch.equal(torch.cat(list(samples(tmp_path).parts(128))), whole[:128])  # fewer are there already
    assert calls == [64, 64, 22]
    first = next(tmp_path.rglob("0000000-*"))
    first.write_bytes(first.read_bytes()[:100])
    assert torch.equal(torch.cat(list(samples(tmp_path).parts(150))), whole)
    assert calls == [64, 64, 22, 64]
    for other in ({"seed": 4}, {"guidance": 2.0}, {"asked": {"label": [1, 1, 1]}}, {"asked": None}):
        list(samples(tmp_path, **other).parts(64))
    assert calls[4:] == [64, 64, 64, 64]
    first.write_bytes(safetensors.torch.save({"images": whole[:63].contiguous()}))
    assert torch.equal(next(samples(tmp_path).parts(150)), whole[:64])
    assert calls[8:] == [64]
    assert not list(tmp_path.rglob(".*"))


def test_samples_are_those_of_the_model_whatever_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample i has seed 3 + i; and one can be had by its number."""
    made = samples(None)
    expected = made.model.sample(7, cond={"label": [0, 1, 1, 0, 1, 1, 0]}, seed=3).round().clamp(0, 255)
    monkeypatch.setattr(module, "PART", 3)
    assert torch.equal(torch.cat(list(samples(None).parts(7))).float(), expected)
    assert torch.equal(samples(None).image(5, 7).float(), expected[5])


def test_what_is_asked_begins_again_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    pretending(monkeypatch, lambda num, labels, seed: (asked.extend(labels), fresh(num, labels, seed))[1])
    list(samples(None).parts(70))
    assert asked == [0, 1, 1] * 23 + [0]


# ---- report and command ----------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags in order, pictures, and whether every tag was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        of = dict(attrs)
        if tag == "img":
            self.pictures.append(of["src"] or "")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "polyline")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_file_that_needs_no_network(
    judge: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretending(monkeypatch, copied)
    found = evaluate(tiny.fresh(DATA), DATA, 64, judge=judge)
    record, path = write_report(found, tmp_path / "评估")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert len(page.pictures) == 3
    for source in page.pictures:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            picture.load()
            assert min(picture.size) > 100
    assert NAMES[0] in page.text  # a class's name is text, whatever is in it
    assert page.text.index("this model copies its training set") < page.text.index("Distances and shares")
    for one in found.records:
        assert f"{one.value:.4g}" in page.text
        assert f"{one.floor:.4g}" in page.text
    told = json.loads(record.read_text(encoding="utf-8"))
    assert told["audit"]["verdict"] == found.audit.verdict
    assert told["records"][0]["name"] == found.records[0].name
    assert "pictures" not in told
    assert report(found) == text


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model: it runs, warns, tells the same as JSON, and keeps judge and samples for the next time."""
    monkeypatch.setattr(command, "train_classifier", partial(train_classifier, steps=20))
    data = tiny.images(count=240, classes=2)
    for i, image in enumerate(data):
        home = tmp_path / "图" / data.class_names[int(data.labels[i])]  # type: ignore[index]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(home / f"{i}.png")
    tiny.fresh(data).save(tmp_path / "model")
    arguments = ["evaluate", str(tmp_path / "model"), "--data", str(tmp_path / "图"), "-n", "70"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    home = tmp_path / "model" / "evaluation"
    assert "WARNING: " in told.stdout
    assert "FD-图-cnn64-" in told.stdout
    assert str(home / "report.html") in told.stdout
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")}
    assert len(before) == 3
    again = CliRunner().invoke(app, [*arguments, "--json", "--judge", str(next(home.glob("judge-*")))])
    assert json.loads(again.stdout)["records"] == json.loads((home / "record.json").read_text())["records"]
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")} == before
    DiffusionModel.load(tmp_path / "model")  # and the model folder is as whole as before
