"""What is known of each image: found, typed, read beside its pixels, and the same on every resume."""

from __future__ import annotations

import csv
import itertools
import json
import pickle
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.data import store as stores
from diff_diffusion.data.columns import Column, luma, shrunk
from diff_diffusion.data.loader import Batch, Batches
from diff_diffusion.errors import ConfigError, DataError, MissingPackageError

Make = Callable[..., Path]

ROWS: list[dict[str, Any]] = [
    {
        "file_name": "0.png",
        "text": "一只橙色的猫",
        "kind": "猫",
        "age": 3,
        "size": 1.5,
        "at": [0.5, 1.0],
        "wild": False,
    },
    {
        "file_name": "1.png",
        "text": 'a "big", grey dog',
        "kind": "dog",
        "age": None,
        "size": 2.0,
        "at": None,
        "wild": False,
    },
    {"file_name": "二.png", "text": None, "kind": "猫", "age": -7, "size": None, "at": [0.0, -2.5], "wild": True},
    {"file_name": "3.png", "text": "café 咖啡", "kind": None, "age": 0, "size": 1e-3, "at": [1, 2], "wild": None},
    {"file_name": "4.png", "text": "two\nlines", "kind": "猫", "age": 11, "size": 4, "at": [3, 4], "wild": True},
    {"file_name": "5.png", "text": "dog", "kind": "dog", "age": 12, "size": 4, "at": [3, 4], "wild": True},
    {"file_name": "6.png", "text": "cat", "kind": "猫", "age": 13, "size": 4, "at": [3, 4], "wild": True},
    {"file_name": "7.png", "text": "bird", "kind": "猫", "age": 14, "size": 4, "at": [3, 4], "wild": True},
    {"file_name": "8.png", "text": "bird", "kind": "dog", "age": 14, "size": 4, "at": [3, 4], "wild": True},
]


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    def cell(value: object) -> object:
        return "" if value is None else json.dumps(value) if isinstance(value, list) else value

    lines: list[str] = []

    class Sink:
        def write(self, text: str) -> None:
            lines.append(text)

    writer = csv.writer(Sink(), delimiter=delimiter)
    writer.writerow(rows[0])
    writer.writerows([cell(value) for value in row.values()] for row in rows)
    return "".join(lines).encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(root: Path, rows: list[dict[str, Any]], form: str) -> None:
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), root / "metadata.parquet")
    elif form == "jsonl":
        (root / "metadata.jsonl").write_bytes(as_jsonl(rows))
    else:
        delimiter = {"csv": ",", "semicolons": ";", "tabs": "\t", "bom": ","}[form]
        bom = b"\xef\xbb\xbf" if form == "bom" else b""
        (root / "metadata.csv").write_bytes(bom + as_csv(rows, delimiter))


def lines(root: Path, *texts: str | dict[str, Any], name: str = "metadata.jsonl") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    text = "".join((item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)) + "\n" for item in texts)
    (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(make: Make, tmp_path: Path) -> Path:
    """Nine images, 0.png to 8.png, the third with a Chinese name."""
    for row in ROWS:
        make(row["file_name"], 8, 8)
    return tmp_path


def in_order(dataset: ImageDataset) -> list[int]:
    """For each of ROWS its item."""
    names = [dataset._store.names[row] for row in dataset._rows]
    return [names.index(row["file_name"]) for row in ROWS]


@pytest.mark.parametrize("form", ["csv", "semicolons", "tabs", "bom", "jsonl", "parquet"])
def test_every_format_gives_the_same_columns(folder: Path, form: str) -> None:
    write(folder, ROWS, form)
    dataset = load_image_dataset(folder)
    assert {name: column.kind for name, column in dataset.columns.items()} == {
        "text": "text",
        "kind": "class",
        "age": "number",
        "size": "number",
        "at": "vector",
        "wild": "class",
    }
    assert dataset.columns["kind"].names == ("dog", "猫")
    assert dataset.columns["wild"].names == ("false", "true")
    cond = dataset.cond(in_order(dataset))
    assert cond["text"] == [row["text"] for row in ROWS]
    assert cond["kind"] == [1, 0, 1, None, 1, 0, 1, 1, 0]
    assert cond["age"] == [row["age"] for row in ROWS]
    assert all(isinstance(value, float) for value in cond["age"] if value is not None)
    assert cond["size"] == [row["size"] for row in ROWS]
    assert cond["at"] == [row["at"] for row in ROWS]
    assert cond["wild"] == [0, 0, 1, None, 1, 1, 1, 1, 1]
    assert dataset.report.others == {}
    assert dataset.labels is None
    text = "\n".join(dataset.report.lines())
    for line in (
        "text: text, such as '一只橙色的猫', 1 of 9 missing",
        "kind: class, 2 names (dog, 猫), 1 of 9 missing",
        "age: number, -7 to 14, 1 of 9 missing",
        "at: vector, 2 numbers each, -2.5 to 4, 1 of 9 missing",
        f"metadata.{form if form in ('jsonl', 'parquet') else 'csv'}: 9 rows name an image",
    ):
        assert line in text


def test_names_match_in_any_normal_form_and_relative_to_their_table(make: Make, tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    for name in (f"train/猫/{composed}", "train/dog/1.png", "val/dog/2.png"):
        make(name)
    lines(tmp_path, {"file_name": f"./猫/{decomposed}", "text": "一"}, name="train/metadata.jsonl")
    lines(tmp_path, {"file_name": "dog\\2.png", "text": "二"}, name="val/metadata.jsonl")
    dataset = load_image_dataset(tmp_path)
    assert dataset.class_names == ("dog", "猫")
    assert dataset.cond([0, 1]) == {"label": [0, 1], "text": [None, "一"]}
    assert dataset.val is not None
    assert dataset.val.cond([0]) == {"label": [0], "text": ["二"]}


@pytest.mark.parametrize("key", ["file_name", "file", "filename", "image", "File_Name"])
def test_the_names_of_the_key(folder: Path, key: str) -> None:
    lines(folder, {key: "0.png", "text": "猫"})
    assert load_image_dataset(folder).cond([0]) == {"text": ["猫"]}


KIND_CASES: list[tuple[str, list[Any], str]] = [
    ("word", ["猫", "狗"] * 4, "class"),
    ("word", ["猫", "狗", "鸟"] * 2 + ["猫", "猫"], "text"),
    ("caption", ["猫"] * 8, "text"),
    ("my_prompt", ["猫"] * 8, "text"),
    ("context", ["猫"] * 8, "class"),
    ("text", [1, "b", 2.5, "d"] * 2, "text"),
    ("label", ["猫", "狗", "鸟", "d", "e", "f", "g", "h"], "class"),
    ("label", [3, 1, 2, 3, 1, 2, 3, 1], "class"),
    ("label", [3.5, 1, 2, 3, 1, 2, 3, 1], "number"),
    ("category", [3, 1, 2, 3, 1, 2, 3, 1], "class"),
    ("year", [3, 1, 2, 3, 1, 2, 3, 1], "number"),
    ("tags", [["a", "b"], ["c"]] * 4, "text"),
    ("tags", [["a", "b"], "c"] * 4, "text"),
    ("pose", [[1, 2.5]] * 8, "vector"),
    ("yes", [True, False] * 4, "class"),
    ("zip", ["007", "008"] * 4, "class"),
]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize(("name", "values", "kind"), KIND_CASES)
def test_the_kind_is_inferred(folder: Path, form: str, name: str, values: list[Any], kind: str) -> None:
    if form == "csv" and any(isinstance(value, list) for value in values) and any(isinstance(v, str) for v in values):
        pytest.skip("a CSV column is either JSON or not")
    rows = [{"file_name": row["file_name"], name: value} for row, value in zip(ROWS, values, strict=False)]
    write(folder, rows, form)
    assert load_image_dataset(folder).columns[name].kind == kind
    if form == "jsonl":
        arrays = ImageDataset.from_arrays(np.zeros((8, 4, 4), np.uint8), columns={name: values})
        assert arrays.columns[name].kind == kind


def test_what_a_terminal_would_obey_is_escaped(folder: Path) -> None:
    row = {"kind\n": "\x1b[2Jgone", "text": "a\x07b" + "长" * 100}
    lines(folder, *({"file_name": row_["file_name"]} | row for row_ in ROWS))
    text = load_image_dataset(folder, columns={"kind": "class"}).report.lines()
    assert any(r"kind: class, 1 names ('\x1b[2Jgone')" in line for line in text)
    assert all(line.isprintable() and len(line) < 150 for line in text)
    dataset = ImageDataset.from_arrays(np.zeros((1, 4, 4), np.uint8), columns={"a\nb": ["x"]})
    assert dataset.report.columns == {r"'a\nb'": "text, such as 'x'"}


def test_an_asked_for_kind_wins(folder: Path) -> None:
    lines(
        folder,
        *(
            {"file_name": row["file_name"], "year": 1990 + i // 3, "id": f"a{i}", "n": f" {i}.5 "}
            for i, row in enumerate(ROWS)
        ),
    )
    asked = {"year": "class", "id": "ignore", "n": "number"}
    dataset = load_image_dataset(folder, columns=asked)
    assert dataset.columns["year"].names == ("1990", "1991", "1992")
    assert set(dataset.columns) == {"year", "n"}
    assert dataset.cond(in_order(dataset))["n"] == [i + 0.5 for i in range(9)]
    assert load_image_dataset(folder, columns={"year": "text", "n": "text"}).cond([0])["year"] == ["1990"]


def test_a_vocabulary_is_of_the_training_rows(make: Make, tmp_path: Path) -> None:
    for name in ("train/0.png", "train/1.png", "val/2.png", "val/3.png"):
        make(name)
    words = ["b", "a", "b", "未见"]
    rows = [{"file_name": f"{'train' if i < 2 else 'val'}/{i}.png", "word": word} for i, word in enumerate(words)]
    lines(tmp_path, *rows)
    dataset = load_image_dataset(tmp_path, columns={"word": "class"})
    assert dataset.columns["word"].names == ("a", "b")
    assert dataset.cond([0, 1])["word"] == [1, 0]
    assert dataset.val is not None
    assert dataset.val.cond([0, 1])["word"] == [1, None]


def test_a_column_that_no_training_image_has_is_left_alone(make: Make, tmp_path: Path) -> None:
    for name in ("train/0.png", "val/1.png"):
        make(name)
    lines(tmp_path, {"file_name": "train/0.png", "n": 1}, {"file_name": "val/1.png", "m": 1, "label": 3})
    dataset = load_image_dataset(tmp_path)
    assert set(dataset.columns) == {"n"}
    assert "the column 'm' is known of no training image" in "\n".join(dataset.report.notes)


def test_a_complete_label_is_the_class(folder: Path) -> None:
    rows = [{"file_name": row["file_name"], "label": "猫" if i % 2 else "dog"} for i, row in enumerate(ROWS)]
    lines(folder, *rows)
    dataset = load_image_dataset(folder)
    assert dataset.class_names == ("dog", "猫")
    assert dataset.labels is not None
    assert dataset.labels[in_order(dataset)].tolist() == [0, 1] * 4 + [0]
    assert dataset.cond(in_order(dataset))["label"] == [0, 1] * 4 + [0]
    assert dataset.report.classes == {"dog": 5, "猫": 4}
    assert dataset.report.columns == {}
    assert dataset.report.notes == ["metadata.jsonl: 9 rows name an image"]
    lines(folder, *rows[1:])
    dataset = load_image_dataset(folder)
    assert dataset.labels is None
    assert dataset.cond(in_order(dataset))["label"] == [None, *([1, 0] * 4)]


def test_whole_numbers_with_a_gap_are_classes(folder: Path) -> None:
    """As a table is often written that has one label missing: 0.0, 1.0 and an empty cell."""
    cells = ["0.0", "1.0", "", "10.0", "1.0", "0.0", "1.0", "0.0", "1.0"]
    rows = [f"{row['file_name']},{cell}" for row, cell in zip(ROWS, cells, strict=True)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]), encoding="utf-8")
    dataset = load_image_dataset(folder)
    assert dataset.columns["label"].kind == "class"
    assert dataset.columns["label"].names == ("0", "1", "10")


def test_of_two_labels_the_complete_metadata_wins(make: Make, tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        make(name)
    rows = [
        {"file_name": name, "label": label} for name, label in (("a/0.png", "x"), ("a/1.png", "y"), ("b/2.png", "y"))
    ]
    lines(tmp_path, *rows)
    dataset = load_image_dataset(tmp_path)
    assert dataset.class_names == ("x", "y")
    assert "the classes are the metadata's label" in "\n".join(dataset.report.notes)
    lines(tmp_path, *rows[:2])
    dataset = load_image_dataset(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert dataset.cond([0, 1, 2]) == {"label": [0, 0, 1]}
    assert "the metadata's label is left alone" in "\n".join(dataset.report.notes)


def test_folder_names_can_be_captions_or_nothing(make: Make, tmp_path: Path) -> None:
    for name in ("猫/0.png", "dog/1.png"):
        make(name)
    assert load_image_dataset(tmp_path).cond([0, 1]) == {"label": [0, 1]}
    dataset = load_image_dataset(tmp_path, columns={"label": "text"})
    assert dataset.cond([0, 1]) == {"label": ["dog", "猫"]}
    assert dataset.labels is None
    nothing = load_image_dataset(tmp_path, columns={"label": "ignore"})
    assert nothing.cond([0, 1]) == {}
    assert nothing.class_names == ()


def test_sidecar_captions(folder: Path) -> None:
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"\ufeff第{i}张图\n\n  second {i} \n", encoding="utf-8")
    (folder / "二.txt").write_text("中文", encoding="utf-8")
    dataset = load_image_dataset(folder)
    cond = dataset.cond(in_order(dataset))
    assert cond["caption"] == ["第0张图", "第1张图", "中文", "第3张图", "第4张图", None, None, None, None]
    assert dataset.columns["caption"].values[0] == ("第0张图", "second 0")
    assert dataset.report.others == {".txt": 1}  # 2.txt, since that image has a Chinese name
    assert "caption: text, 1 to 2 each, such as '第0张图', 4 of 9 missing" in "\n".join(dataset.report.lines())
    assert load_image_dataset(folder, columns={"caption": "ignore"}).columns == {}


def test_too_few_sidecars_or_numbers_are_no_captions(folder: Path) -> None:
    for i in range(3):
        (folder / f"{i}.txt").write_text("a")
    dataset = load_image_dataset(folder)
    assert dataset.columns == {}
    assert "2 of 9 images have a .txt file" in "\n".join(dataset.report.notes)
    for i in range(9):
        (folder / f"{i}.txt").write_text("0 0.5 0.25 -1e-3\n1 0.5 0.5 0.1\n")
    dataset = load_image_dataset(folder)
    assert dataset.columns == {}
    assert "hold numbers" in "\n".join(dataset.report.notes)


def test_of_two_captions_the_metadata_wins(folder: Path) -> None:
    for row in ROWS:
        (folder / row["file_name"]).with_suffix(".txt").write_text("sidecar")
    lines(folder, {"file_name": "0.png", "caption": "metadata"})
    dataset = load_image_dataset(folder)
    assert dataset.cond([0, 1]) == {"caption": ["metadata", None]}
    assert "the captions are those of the metadata" in "\n".join(dataset.report.notes)


def test_several_rows_are_several_captions(folder: Path) -> None:
    lines(folder, "file_name,caption,year", "0.png,一,1999", "0.png,two,", "0.png,一,1999", name="metadata.csv")
    dataset = load_image_dataset(folder)
    assert dataset.columns["caption"].values[0] == ("一", "two")
    assert dataset.cond([0])["year"] == [1999.0]
    picks = dataset.cond([0, 0, 0], np.array([0, 1, 2**64 - 1], np.uint64))["caption"]
    assert picks == ["一", "two", "two"]


def test_conditions_line_up_with_their_images(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = []
    for i, (height, width) in enumerate([(50, 90), (90, 50), (200, 320), (40, 40)]):
        path = make(f"图/{i}.jpg", height, width, exif=exif)
        (tmp_path / "cond").mkdir(exist_ok=True)
        (tmp_path / f"cond/{i}.jpg").write_bytes(path.read_bytes())
        rows.append({"file_name": f"图/{i}.jpg", "same": f"cond/{i}.jpg"})
    lines(tmp_path, *rows)
    dataset = load_image_dataset(tmp_path, size=(16, 24))
    assert len(dataset) == 4  # the conditions are not trained on
    assert dataset.labels is None  # and their folder is no class
    assert dataset.columns["same"] == Column("image", [f"cond/{i}.jpg" for i in range(4)], channels=3)
    same = dataset.cond(range(4))["same"]
    assert all(torch.equal(one, other) for one, other in zip(same, dataset, strict=True))
    assert "same: image, 3 channels, such as 'cond/0.jpg'" in "\n".join(dataset.report.lines())
    monkeypatch.setattr(stores, "MEMORY_BUDGET", 0)
    far = load_image_dataset(tmp_path, size=(16, 24)).cond(range(4))["same"]
    assert all(map(torch.equal, same, far))


def test_masks_are_0_or_255_and_line_up(make: Make, tmp_path: Path) -> None:
    shape = np.zeros((40, 60), np.uint8)
    shape[10:30, 20:50] = 1
    for i, values in enumerate([shape, shape * 255, shape * 200 + 20]):
        make(f"{i}.png", 40, 60)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / f"masks/{i}.png")
    make("3.png", 40, 60)
    lines(tmp_path, *({"file_name": f"{i}.png", "inner_mask": f"masks/{i}.png"} for i in range(3)))
    dataset = load_image_dataset(tmp_path, size=(20, 20))
    masks = dataset.cond(range(4))["inner_mask"]
    # 20 × 20 of the middle 40 × 40: columns 10 to 50, every second pixel.
    wanted = torch.zeros(1, 20, 20, dtype=torch.uint8)
    wanted[:, 5:15, 5:20] = 255
    assert all(torch.equal(mask, wanted) for mask in masks[:3])
    assert masks[3] is None
    assert dataset.columns["inner_mask"].kind == "mask"


def test_a_mask_takes_its_nearest_pixels(make: Make, tmp_path: Path) -> None:
    make("0.png", 60, 60)
    pixels = np.random.default_rng(0).integers(0, 2, (60, 60)).astype(np.uint8) * 255
    (tmp_path / "m").mkdir()
    Image.fromarray(pixels).save(tmp_path / "m/0.png")
    lines(tmp_path, {"file_name": "0.png", "mask": "m/0.png"})
    (mask,) = load_image_dataset(tmp_path, size=20).cond([0])["mask"]
    assert (mask[0].numpy() == pixels[1::3, 1::3]).all()


def test_grey_conditions_have_one_channel(make: Make, tmp_path: Path) -> None:
    make("0.png")
    make("depth/0.png", mode="L")
    lines(tmp_path, {"file_name": "0.png", "depth": "depth/0.png"})
    depth = load_image_dataset(tmp_path).cond([0])["depth"][0]
    assert (depth[0].numpy() == np.asarray(Image.open(tmp_path / "depth/0.png"))).all()
    assert depth.shape == (1, 16, 16)


def test_another_aspect_is_warned_of(make: Make, tmp_path: Path) -> None:
    make("0.png", 16, 16)
    make("c/0.png", 16, 24)
    lines(tmp_path, {"file_name": "0.png", "low": "c/0.png"})
    assert "1 of 1 files of the column 'low' have another aspect" in "\n".join(
        load_image_dataset(tmp_path).report.warnings
    )


def test_an_image_with_a_row_is_trained_on_though_it_is_a_condition_too(folder: Path) -> None:
    lines(
        folder,
        {"file_name": "1.png", "before": "0.png"},
        {"file_name": "0.png"},
        {"file_name": "3.png", "before": "4.png"},
    )
    dataset = load_image_dataset(folder)
    assert len(dataset) == 8
    names = [dataset._store.names[row] for row in dataset._rows]
    assert "0.png" in names
    assert "4.png" not in names
    assert torch.equal(dataset.cond([names.index("1.png")])["before"][0], dataset[names.index("0.png")])


def test_a_condition_that_breaks_is_missing(make: Make, tmp_path: Path) -> None:
    make("0.png")
    make("c/0.png")
    lines(tmp_path, {"file_name": "0.png", "low": "c/0.png"})
    dataset = load_image_dataset(tmp_path)
    (tmp_path / "c/0.png").unlink()
    assert dataset.cond([0]) == {"low": [None]}
    assert dataset.report.replaced == {"c/0.png": "missing file"}


def test_what_is_known_is_that_of_the_image_that_stands_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MEMORY_BUDGET", 0)
    write(folder, ROWS, "jsonl")
    dataset = load_image_dataset(folder)
    (folder / "4.png").unlink()
    (gone,) = in_order(dataset)[4:5]
    pixels = dataset.batch([gone])
    assert torch.equal(pixels[0], dataset[in_order(dataset)[5]])
    assert dataset.cond([gone])["text"] == ["dog"]


def test_a_file_that_is_back_is_itself_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MEMORY_BUDGET", 0)
    write(folder, ROWS, "jsonl")
    dataset = load_image_dataset(folder)
    (row,) = in_order(dataset)[4:5]
    before = dataset.batch([row])
    (folder / "4.png").rename(folder / "away")
    assert not torch.equal(dataset.batch([row]), before)
    (folder / "away").rename(folder / "4.png")
    assert torch.equal(dataset.batch([row]), before)
    assert dataset.cond([row])["text"] == ["two\nlines"]


def test_shrunk_is_the_mean_enlarged_bilinearly() -> None:
    pixels = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    pixels[..., 4:] = 80
    pixels[..., 0, 0] = 255  # 255 / 16 = 15.9 is 16
    # Means 16 and 80; between their centres, 4 pixels apart, the line from one to the other.
    line = [16, 16, 24, 40, 56, 72, 80, 80]
    assert shrunk(pixels, 4).squeeze().tolist() == [line] * 4
    # The small image has whole grey values, as one in a file: 264 / 16 = 16.5 is 16, and 1/8 of the way to 17 as well.
    pixels[..., 1:, :4] = 0
    pixels[..., 0, :4] = torch.tensor([255, 9, 0, 0])
    pixels[..., 4:] = 17
    assert shrunk(pixels, 4)[0, 0, 0].tolist() == [16, 16, 16, 16, 17, 17, 17, 17]
    constant = torch.full((2, 3, 8, 8), 201, dtype=torch.uint8)
    assert torch.equal(shrunk(constant, 2), constant)


def test_grey_is_what_pillow_makes_of_it() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), np.uint8))
    wanted = np.asarray(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).convert("L"))
    assert (luma(pixels)[0, 0].numpy() == wanted).all()


def test_derived_columns(folder: Path) -> None:
    dataset = load_image_dataset(folder, columns={"low": "shrunk:4", "light": "grey"})
    assert dataset.columns["low"] == Column("shrunk", factor=4, channels=3)
    images = dataset.batch([1, 5])
    cond = dataset.cond([1, 5])
    assert torch.equal(torch.stack(cond["low"]), shrunk(images, 4))
    assert torch.equal(torch.stack(cond["light"]), luma(images))
    assert "low: shrunk, the image itself 4 times smaller" in "\n".join(dataset.report.lines())
    held_out = dataset.split(0.5)[1]
    assert torch.equal(held_out.cond([0])["light"][0], luma(held_out[0]))
    digits = load_image_dataset("digits", columns={"low": "shrunk:2"})
    assert digits.val is not None
    assert torch.equal(digits.val.cond([3])["low"][0], shrunk(digits.val.batch([3]), 2)[0])


def test_columns_from_memory() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    dataset = ImageDataset.from_arrays(
        images,
        [0, 1, 1, 0],
        ("a", "b"),
        columns={
            "text": ["一", None, ("三", "three"), ""],
            "year": np.array([1, 2, 3, 4]),
            "pose": np.arange(8).reshape(4, 2),
            "edges": images[..., :1],
            "low": Column("shrunk", factor=2),
        },
    )
    cond = dataset.cond([2, -1], np.array([1, 1], np.uint64))
    assert {name: cond[name] for name in ("label", "text", "year", "pose")} == {
        "label": [1, 0],
        "text": ["three", None],
        "year": [3.0, 4.0],
        "pose": [[4.0, 5.0], [6.0, 7.0]],
    }
    assert (cond["edges"][0].numpy() == images[2, None, ..., 0]).all()
    cond["edges"][0].zero_()
    assert (dataset.cond([2])["edges"][0].numpy() == images[2, None, ..., 0]).all()
    assert dataset.columns["low"].channels == 3
    train, held_out = dataset.split(0.25)
    assert [*train.cond(range(3))["year"], *held_out.cond([0])["year"]] != [None] * 4
    assert sorted([*train.cond(range(3))["year"], *held_out.cond([0])["year"]]) == [1, 2, 3, 4]
    assert pickle.loads(pickle.dumps(dataset)).cond([0])["text"] == ["一"]


def take(batches: Batches, count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def plain(cond: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [v.tolist() if isinstance(v, torch.Tensor) else v for v in values] for name, values in cond.items()}


def test_a_resumed_training_sees_the_same_captions(make: Make, tmp_path: Path) -> None:
    rows = []
    for i in range(7):
        make(f"{i}.png", 4, 4)
        make(f"c/{i}.png", 4, 4)
        captions = [f"第{i}句, {k}" for k in range(5)]
        rows.append({"file_name": f"{i}.png", "text": captions, "low": f"c/{i}.png", "n": i})
    lines(tmp_path, *rows)
    dataset = load_image_dataset(tmp_path)
    assert dataset.in_memory
    assert Batches(dataset, 3, 0).ahead == 2  # the conditions are not
    whole = take(Batches(dataset, 3, seed=1, ahead=0), 20)
    for batch in whole:
        assert batch.cond["n"] == [float(i) for i in batch.indices]
        assert all(text.startswith(f"第{i}句") for text, i in zip(batch.cond["text"], batch.indices, strict=True))
        assert all(
            torch.equal(low, dataset.cond([i])["low"][0])
            for low, i in zip(batch.cond["low"], batch.indices, strict=True)
        )
    resumed = take(Batches(dataset, 3, seed=1, start_step=6, threads=3), 14)
    assert [plain(batch.cond) for batch in resumed] == [plain(batch.cond) for batch in whole[6:]]
    # Cut into other batches the samples are the same ones; with another seed they are not.
    single = [batch.cond["text"][0] for batch in take(Batches(dataset, 1, seed=1), 60)]
    assert single == [text for batch in whole for text in batch.cond["text"]]
    assert len({text for text in single if text.startswith("第0句")}) > 1
    one = ImageDataset.from_arrays(np.zeros((1, 4, 4), np.uint8), columns={"text": [tuple("一二三四五")]})
    first, second = (take(Batches(one, 1, seed), 1000) for seed in (1, 2))
    assert [batch.cond for batch in first] != [batch.cond for batch in second]
    drawn = Counter(batch.cond["text"][0] for batch in first)
    assert all(abs(drawn[text] - 200) < 5 * 12.65 for text in "一二三四五")  # five standard deviations of 1000 draws


def test_the_fingerprint_covers_the_columns(folder: Path, make: Make) -> None:
    plain_print = load_image_dataset(folder).fingerprint()
    prints = [plain_print]
    make("c/0.png")

    def load(row: dict[str, Any], **asked: str) -> str:
        lines(folder, {"file_name": "0.png", "low": "c/0.png"} | row)
        return load_image_dataset(folder, columns=asked).fingerprint()

    prints.append(load({}))
    prints += [load({"text": text}) for text in ("一", "二", "一 ")]
    assert prints.pop() == prints[2]  # a space at the end is no other caption
    prints.append(load({"prompt": "一"}))
    prints += [load({"n": n}) for n in (1, 2)]
    prints.append(load({"n": 1}, n="text"))
    prints += [load({}, x=kind) for kind in ("shrunk:2", "shrunk:4", "grey")]
    make("d.png").replace(folder / "c/0.png")
    prints.append(load({}))
    assert len(set(prints)) == len(prints)
    assert load({"n": 1}, n="ignore", low="ignore") != plain_print  # the condition is an image like the others now
    (folder / "c/0.png").unlink()
    assert load({"n": 1, "low": None}, n="ignore") == plain_print


def test_data_without_columns_keep_their_fingerprint() -> None:
    images = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    dataset = ImageDataset.from_arrays(images, [0, 1, 0, 1], ("cat", "猫"))
    # A run of an earlier version resumes.
    assert dataset.fingerprint() == "4136cd9e3b1115f95c3dc8753ddec0193333c74534b8895d5bd67e2fcd9fcfe9"


def test_metadata_that_needs_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'diff-diffusion\[tables\]'"):
        load_image_dataset(folder)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"text": "prose"},
            r"column 'text': 'prose' is no kind; there are class, number, vector, text, image, mask, ignore, grey",
        ),
        ({"text": "shrunk:1"}, "'shrunk:1' is no kind"),
        ({"text": "grey:2"}, "'grey:2' is no kind"),
        ({"texts": "text"}, r"there is no column 'texts' to be read as text; there are 'text', 'n'"),
        ({"text": "grey"}, "there is a column 'text' already"),
        ({"low": "shrunk:3"}, r"images of 8×8 cannot be shrunk 3 times; they can be 2, 4, 8 times"),
    ],
)
def test_kinds_that_cannot_be_had(folder: Path, asked: dict[str, str], message: str) -> None:
    lines(folder, {"file_name": "0.png", "text": "a", "n": 1})
    with pytest.raises(ConfigError, match=message):
        load_image_dataset(folder, columns=asked)


def test_grey_of_grey_is_nothing(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the images are grey already"):
        load_image_dataset(folder, channels=1, columns={"light": "grey"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "column 'text' has 1 values for 2 images"),
        ({"n": [1, float("nan")]}, "column 'n', value 1: nan in column 'n' is no finite number"),
        ({"n": [None, None]}, "column 'n' has no value at all"),
        ({"n": [1, "a"]}, "column 'n' holds numbers .* and text"),
        ({"n": [[1], [1, 2]]}, "vectors of 1 numbers .* and of 2"),
        ({"n": [{}, {"a": 1}]}, "is none of a class or text"),
        ({"n": Column("class", [0, 2], ("a", "b"))}, "value 1 is 2: there are 2 names"),
        ({"n": Column("image", [None, "a.png"])}, "value 1 is 'a.png'.*must be a tensor"),
        ({"n": np.zeros((2, 3, 4), np.uint8)}, r"value 0 is \[1, 3, 4\]"),
        ({"label": ["a", "b"]}, "labels and a column 'label'"),
    ],
)
def test_columns_from_memory_that_do_not_fit(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageDataset.from_arrays(np.zeros((2, 4, 4), np.uint8), [0, 1], columns=columns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "word"}, "no kind of column 'word'; there are class, number"),
        ({"kind": "shrunk"}, "shrunk takes 2 or more"),
        ({"kind": "text", "factor": 2}, "others 1"),
        ({"kind": "text", "names": ("a",)}, "no names"),
        ({"kind": "grey", "values": [1]}, "takes no values"),
    ],
)
def test_a_column_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Column(**arguments)
