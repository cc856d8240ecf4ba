"""The whole evaluation, on models whose samples are known: fresh draws, copies, one class only, noise."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import os
import shutil
import subprocess
import sys
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
from test_outside import Small, exported
from torch import Tensor, nn
from typer.testing import CliRunner

from diff_diffusion.cli import evaluate as command
from diff_diffusion.cli.app import app
from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.errors import CheckpointError, ConfigError, DiffusionError, IncompatibleError
from diff_diffusion.evaluation import samples as module
from diff_diffusion.evaluation.evaluate import evaluate
from diff_diffusion.evaluation.feature_networks import ModuleFeatures, Pixels
from diff_diffusion.evaluation.features import Classifier, save_classifier, train_classifier
from diff_diffusion.evaluation.findings import Evaluation
from diff_diffusion.evaluation.measure import METRICS
from diff_diffusion.evaluation.outside import onnx_features
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


def test_pixels_are_features_and_the_audit_sees_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances on pixels alone; copies are sought by pixels and by a network, as ever."""
    pretending(monkeypatch, fresh)
    model = tiny.fresh(PLAIN)
    found, plain = (evaluate(model, PLAIN, 64, features=of) for of in (Pixels(PLAIN.shape), None))
    assert [record.metric for record in found.records] == list(METRICS)
    assert {record.features for record in found.records} == {"pixels@8x8"}
    assert found.records[2] == plain.records[-1]
    assert found.audit == plain.audit
    with pytest.raises(IncompatibleError, match="features: pixels@8x8 and random"):
        evaluate(model, PLAIN, 64, features=Pixels(PLAIN.shape), against=plain.records)


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


def test_processes_share_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draws its own; the first draws what is missing in the end, from the back, and nothing twice."""
    calls = pretending(monkeypatch, fresh)
    whole = torch.cat(list(samples(None).parts(300)))
    calls.clear()
    samples(tmp_path).share(300, 1, 3)
    assert sorted(path.name[:7] for path in tmp_path.rglob("0*")) == ["0000064", "0000256"]
    seen = list[tuple[int, int]]()
    samples(tmp_path).share(300, 0, 3, lambda *done: seen.append(done))  # the third never came
    assert calls == [64, 44, 64, 64, 64]
    assert seen[0] == (192, 300)
    assert seen[-1] == (300, 300)
    assert torch.equal(torch.cat(list(samples(tmp_path).parts(300))), whole)
    assert len(calls) == 5
    samples(tmp_path).share(300, 2, 3)
    assert len(calls) == 5
    with pytest.raises(ConfigError, match="through a folder"):
        samples(None).share(300, 0, 2)


def test_the_first_of_two_begins_at_the_back_of_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    pretending(monkeypatch, lambda num, labels, seed: (seeds.append(seed - 3), fresh(num, labels, seed))[1])
    samples(tmp_path).share(320, 0, 2)
    assert seeds == [0, 128, 256, 192, 64]


def test_only_two_sets_of_samples_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretending(monkeypatch, fresh)
    (tmp_path / "judge-猫.safetensors").write_bytes(b"")
    for age, seed in enumerate((30, 10, 20, 40)):
        one = samples(tmp_path, seed=seed)
        list(one.parts(2))
        os.utime(one._home, ns=(age, age))
    mine = samples(tmp_path, seed=10)
    mine.forget_others()
    left = {path.name for path in tmp_path.glob("samples-*")}
    assert left == {mine._home.name, samples(tmp_path, seed=40)._home.name}
    mine.forget_others()
    assert len(list(tmp_path.glob("samples-*"))) == 2
    assert (tmp_path / "judge-猫.safetensors").exists()


def test_an_evaluation_forgets_older_samples(
    judge: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretending(monkeypatch, fresh)
    for age in range(1, 4):
        (tmp_path / f"samples-{age}").mkdir()
        os.utime(tmp_path / f"samples-{age}", ns=(age, age))
    evaluate(tiny.fresh(DATA), DATA, 20, judge=judge, folder=tmp_path)
    assert len(list(tmp_path.glob("samples-*"))) == 2
    assert (tmp_path / "samples-3").exists()


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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images in two classes, 图, an untrained model of them, and a judge."""
    home = tmp_path_factory.mktemp("评估")
    data = tiny.images(count=240, classes=2)
    for i, image in enumerate(data):
        place = home / "图" / data.class_names[int(data.labels[i])]  # type: ignore[index]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{i}.png")
    tiny.fresh(data).save(home / "model")
    train, held_out = load_image_dataset(str(home / "图"), size=8).split()
    save_classifier(train_classifier(train, held_out, steps=20), train, home / "judge.safetensors")
    return home


@pytest.fixture
def model(home: Path, tmp_path: Path) -> Path:
    """A copy of the model that has not been evaluated."""
    return Path(shutil.copytree(home / "model", tmp_path / "model"))


def words(home: Path, model: Path, *more: str) -> list[str]:
    judge = ["--judge", str(home / "judge.safetensors")]
    return ["evaluate", str(model), "--data", str(home / "图"), "-n", "70", *judge, *more]


def told(*arguments: str, code: int = 0) -> Any:
    """What a command says, checked for its exit code."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_the_command(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model: it runs, warns, tells the same as JSON, and keeps judge and samples for the next time."""
    monkeypatch.setattr(command, "train_classifier", partial(train_classifier, steps=20))
    arguments = ["evaluate", str(model), "--data", str(home / "图"), "-n", "70"]
    said = told(*arguments).stdout
    kept = model / "evaluation"
    assert "WARNING: " in said
    assert "FD-图-cnn64-" in said
    assert str(kept / "report.html") in said
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")}
    assert len(before) == 3
    again = json.loads(told(*arguments, "--json", "--judge", str(next(kept.glob("judge-*")))).stdout)
    assert again["records"] == json.loads((kept / "record.json").read_text())["records"]
    assert "against" not in again
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")} == before
    DiffusionModel.load(model)  # and the model folder is as whole as before


def test_info_tells_the_evaluation_of_these_weights(home: Path, model: Path) -> None:
    """And of no others: those of a model that has been trained on since say nothing of it."""
    assert json.loads(told("info", str(model), "--json").stdout)["evaluation"] == {}
    first = json.loads(told(*words(home, model, "--json")).stdout)["records"][0]
    found = json.loads(told("info", str(model), "--json").stdout)["evaluation"]
    assert found[first["name"]] == {key: first[key] for key in ("value", "interval", "floor")}
    assert len(found) == 8
    assert f"{first['name']}: {first['value']:.4g} (95 %: " in told("info", str(model)).stdout
    other = tiny.fresh(tiny.images(count=240, classes=2), seed=1)
    other.save(model.parent / "other")
    shutil.copytree(model / "evaluation", model.parent / "other" / "evaluation")
    assert json.loads(told("info", str(model.parent / "other"), "--json").stdout)["evaluation"] == {}


def test_features_by_name_or_file(home: Path, model: Path, tmp_path: Path) -> None:
    """The main network of the records is the one that was asked for, and the judge still tells classes."""
    path = tmp_path / "网络.onnx"
    path.write_bytes(exported(Small(), ("n", 3, 8, 8)))
    expected = {
        "judge": "cnn64-",
        "random": "random-cnn-",
        "pixels": "pixels@8x8",
        str(path): f"{onnx_features(path).name}",
        str(home / "judge.safetensors"): "cnn64-",
    }
    for what, name in expected.items():
        arguments = words(home, model, "--features", what, "--json")
        if what.endswith(".safetensors"):  # which judges too, so that none is trained
            del arguments[arguments.index("--judge") : arguments.index("--judge") + 2]
        found = json.loads(told(*arguments).stdout)
        metrics = [record["metric"] for record in found["records"]]
        assert metrics == [*METRICS, "SW"][: 7 if what == "pixels" else 8]
        assert found["records"][0]["features"].startswith(name)
        assert len(found["records"][0]["sha256"]) == 64
        assert found["judge"][0].startswith("cnn64-")
        assert len(found["classes"]) == 2
        resized = {str(path): ([8, 8], "bicubic"), "pixels": ([8, 8], None)}.get(what, (None, None))
        assert (found["records"][0]["size"], found["records"][0]["filter"]) == resized
    assert not list((model / "evaluation").glob("judge-*"))


def test_features_that_are_not_there_are_said(
    home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what, error, said in (
        ("inceptoin", ConfigError, "judge, random, pixels, inception, or a file"),
        (str(tmp_path / "无.onnx"), CheckpointError, "无.onnx is no ONNX file"),
        (str(tmp_path / "no.safetensors"), CheckpointError, "is no classifier"),
    ):
        found = CliRunner().invoke(app, words(home, model, "--features", what)).exception
        assert isinstance(found, error)
        assert said in str(found)
    for image in (home / "图").rglob("*.png"):
        (tmp_path / "平").mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / "平")
    tiny.fresh(tiny.images(classes=0)).save(tmp_path / "plain")
    arguments = ["evaluate", str(tmp_path / "plain"), "--data", str(tmp_path / "平"), "--features", "judge"]
    found = CliRunner().invoke(app, arguments).exception
    assert "needs classes" in str(found)
    assert not (tmp_path / "plain" / "evaluation").exists()
    assert not (model / "evaluation").exists()  # nothing was drawn for any of them


def test_against_another_evaluation(home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A darker model stands beside this one; unlike ones are refused before anything is drawn."""
    told(*words(home, model))
    other = Path(shutil.copytree(home / "model", tmp_path / "other"))
    bright = lambda num, labels, seed: 200 + fresh(num, labels, seed) % 30  # noqa: E731
    pretending(monkeypatch, bright)
    said = told(*words(home, other, "--against", str(model))).stdout
    table = said[said.index(f"against {model}") :].splitlines()
    assert table[0].split()[-3:] == ["this", "that", "difference"]
    mine, theirs = (
        json.loads((place / "evaluation" / "record.json").read_text())["records"] for place in (other, model)
    )
    for line, one, two in zip(table[1:9], mine, theirs, strict=True):
        assert line.startswith(one["name"])
        apart = one["interval"][1] < two["interval"][0] or two["interval"][1] < one["interval"][0]
        assert f"{one['value'] - two['value']:+.4g}" in line
        assert line.endswith("overlap") != apart
    assert any(line.endswith("worse") for line in table)
    told_again = json.loads(told(*words(home, other, "--json", "--against", str(model / "evaluation"))).stdout)[
        "against"
    ]
    assert told_again["of"] == str(model / "evaluation")
    first = told_again["numbers"][-1]
    assert first["name"] == "SW-图-pixels@8x8, n=24"
    assert first["difference"] == first["value"] - first["other"]
    assert (first["overlap"], first["better"]) == (False, "second")

    shutil.rmtree(other / "evaluation")
    for change in (["--features", "random"], ["-n", "20"]):
        found = CliRunner().invoke(app, words(home, other, *change, "--against", str(model))).exception
        assert isinstance(found, IncompatibleError)
        assert ("network hash: " if len(change[1]) > 2 else "n: 20 and 24") in str(found)
    assert not (other / "evaluation").exists()


def test_processes_draw_together_what_one_draws_alone(
    home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; the second draws its parts and says nothing. Where it never came, the first does all."""
    arguments = words(home, model)
    arguments[arguments.index("70")] = "200"
    place = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    second = subprocess.run(
        [sys.executable, "-m", "diff_diffusion", *arguments], env=os.environ | place, capture_output=True, timeout=100
    )
    assert (second.returncode, second.stdout, second.stderr) == (0, b"", b"")
    parts = lambda: sorted(path.name[:7] for path in (model / "evaluation").rglob("0*"))  # noqa: E731
    assert parts() == ["0000064", "0000192"]
    assert not (model / "evaluation" / "record.json").exists()
    records = []
    for count in (2, 2, 1):
        for name, value in {"WORLD_SIZE": str(count), "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        told(*arguments)
        assert parts() == ["0000000", "0000064", "0000128", "0000192"]
        records.append((model / "evaluation" / "record.json").read_bytes())
        model = Path(shutil.copytree(home / "model", tmp_path / str(len(records))))
        arguments[1] = str(model)
    assert records[0] == records[1] == records[2]


@pytest.mark.parametrize(
    "wrong", [{"RANK": None}, {"RANK": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "两"}, {"LOCAL_RANK": ""}]
)
def test_a_place_that_is_none_is_refused(wrong: dict[str, str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"} | wrong).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="start them with torchrun"):
        command.place()


def test_a_place_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert command.place() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert command.place() == (0, 1)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert command.place() == (3, 4)
