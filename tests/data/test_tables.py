"""Metadata files that are wrong, hostile or merely odd: what is said of them, and that nothing else happens."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diff_diffusion.data import load_image_dataset, tables
from diff_diffusion.errors import DataError

Make = Callable[..., Path]


@pytest.fixture
def folder(make: Make, tmp_path: Path) -> Path:
    for name in ("0.png", "1.png", "猫.png"):
        make(name, 8, 8)
    return tmp_path


def said(folder: Path, name: str, content: str | bytes, **asked: str) -> str:
    """The error that a metadata file of this content is."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        load_image_dataset(folder, columns=asked)
    message = str(caught.value)
    assert len(message) < 1000
    message.encode()
    return message


CSV: list[tuple[str | bytes, list[str]]] = [
    (
        "file_name,n\n0.png,1\n1.png,nan\n",
        ["metadata.csv, line 3: nan is no number to train on", "leave the cell empty"],
    ),
    ("file_name,n\n0.png,1\n1.png,-Infinity\n", ["metadata.csv, line 3: -Infinity"]),
    ("file_name,n\n0.png,1\n1.png,1e999\n", ["metadata.csv, line 3: 1e999"]),
    (
        "file_name,text\n0.png,a, b\n",
        ["metadata.csv, line 2: 3 cells under a header of 2", "',' must stand in double quotes"],
    ),
    ("file_name;text\n0.png\n", ["line 2: 1 cells under a header of 2"]),
    ('file_name,text\n0.png,"open\n1.png,b\n', ["metadata.csv, line 2", "left open"]),
    ('file_name,text\n0.png,"a "quoted" word"\n', ["metadata.csv, line 2", "not doubled"]),
    ('file_name,text\n0.png,"two\nlines"\n1.png,"open\n', ["metadata.csv, line 4"]),
    ("file_name,a,a\n0.png,1,2\n", ["line 1: two columns are called 'a'"]),
    (b"file_name,text\n0.png,caf\xe9\n", ["metadata.csv, line 2: byte 10 of the line, 0xe9, is not UTF-8"]),
    ("file_name,text\n0.png,汉字\n".encode("gb18030"), ["metadata.csv, line 2: byte 7 of the line"]),
    ("file_name,text\n0.png,a\n".encode("utf-16"), ["metadata.csv, line 1: byte 1 of the line, 0xff"]),
    ("name,text\n0.png,a\n", ["line 2: no column names the image (there are 'name', 'text')", "call it file_name"]),
    (
        "file_name,text\n甲.png,a\n乙.png,b\n丙.png,c\n",
        ["none of its 3 rows", "'file_name' has '甲.png', '乙.png', and", "are '0.png', '1.png', … (3 in all)"],
    ),
    (
        'file_name,at\n0.png,"[1, 2]"\n1.png,[3]\n',
        ["vectors of 2 numbers (metadata.csv, line 2) and of 1 (metadata.csv, line 3)"],
    ),
    (
        "file_name,year\n0.png,1\n0.png,2\n",
        ["column 'year' says two things of one image: 1.0 (metadata.csv, line 2) and 2.0"],
    ),
]


@pytest.mark.parametrize(("content", "parts"), CSV)
def test_csv_that_is_wrong(folder: Path, content: str | bytes, parts: list[str]) -> None:
    message = said(folder, "metadata.csv", content)
    for part in parts:
        assert part in message


JSONL: list[tuple[str | bytes, list[str]]] = [
    ('{"file_name": "0.png"}\n\n{"file_name"\n', ["metadata.jsonl, line 3: ", "each line is one JSON object"]),
    ("[1, 2]\n", ["metadata.jsonl, line 1: this is no object"]),
    ('{"file_name": "0.png", "n": NaN}\n', ["metadata.jsonl, line 1: NaN is no number to train on", "write null"]),
    ('{"file_name": "0.png", "n": -Infinity}\n', ["line 1: -Infinity is no number"]),
    ('{"file_name": "0.png", "n": 1e999}\n', ["metadata.jsonl, line 1: inf in column 'n' is no finite number"]),
    ('{"file_name": "0.png", "n": [1, 1e999]}\n', ["metadata.jsonl, line 1: inf in column 'n' is no finite number"]),
    (f'{{"file_name": "0.png", "n": 1{"0" * 400}}}\n', ["line 1: 1000", "…", "is no number"]),
    (f'{{"file_name": "0.png", "n": 1{"0" * 5000}}}\n', ["metadata.jsonl, line 1: "]),
    ('{"file_name": "0.png", "n": ' + "[" * 100_000 + "]" * 100_000 + "}\n", ["metadata.jsonl, line 1: "]),
    ('{"file_name": "0.png", "text": "\\ud800"}\n', ["metadata.jsonl, line 1: ", "surrogates"]),
    (b'{"file_name": "0.png", "text": "\xff"}\n', ["metadata.jsonl, line 1: byte 33 of the line, 0xff"]),
    (
        '{"file_name": "0.png", "n": 1}\n{"file_name": "1.png", "n": "一"}\n',
        [
            "column 'n' holds numbers (metadata.jsonl, line 1) and text (metadata.jsonl, line 2)",
            "columns={'n': 'text'}",
        ],
    ),
    ('{"file_name": "0.png", "n": [1]}\n{"file_name": "1.png", "n": 1}\n', ["lists of numbers", "and numbers"]),
    ('{"file_name": "0.png", "n": 1}\n{"file_name": "1.png", "n": ["a"]}\n', ["holds numbers", "and lists of text"]),
    ('{"text": "a"}\n', ["line 1: no column names the image (there are 'text')"]),
    ('{"file_name": 7}\n', ["none of its 1 rows", "has 7, and"]),
]


@pytest.mark.parametrize(("content", "parts"), JSONL)
def test_jsonl_that_is_wrong(folder: Path, content: str | bytes, parts: list[str]) -> None:
    message = said(folder, "metadata.jsonl", content)
    for part in parts:
        assert part in message


ASKED: list[tuple[str, object, str]] = [
    ("number", "eleven", "line 1: 'eleven' in column 'x' is no number"),
    ("number", "nan", "line 1: 'nan' in column 'x' is no finite number"),
    ("number", [1], "is no number"),
    ("vector", 3, "3 in column 'x' is no list of numbers"),
    ("vector", ["a"], "is no list of numbers"),
    ("class", [1, 2], "[1, 2] in column 'x' is no class"),
    ("text", {"a": 1}, "{'a': 1} in column 'x' is no text"),
    ("image", "gone.png", "line 1: 'gone.png' in column 'x' is no image file of this folder"),
    ("mask", 3, "3 in column 'x' is no image file"),
    ("image", "../../etc/passwd.png", "is no image file of this folder"),
]


@pytest.mark.parametrize(("kind", "value", "part"), ASKED)
def test_values_that_are_not_what_was_asked_for(folder: Path, kind: str, value: object, part: str) -> None:
    assert part in said(folder, "metadata.jsonl", json.dumps({"file_name": "0.png", "x": value}), x=kind)


@pytest.mark.parametrize(
    "row",
    [
        {"file_name": "x" * 900_000},
        {"file" + "x" * 900_000: "0.png"},
        {"file_name": "0.png", "c" * 900_000: [1, "a"] * 3, "d" * 90_000: {}, "text": [[]]},
        {"file_name": "0.png", "c" * 100_000: 1e999},
    ],
)
def test_an_error_is_never_as_long_as_what_it_is_about(folder: Path, row: dict[str, Any]) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps(row).replace("Infinity", "1e999") + "\n")
    try:
        text = "\n".join(load_image_dataset(folder).report.lines())
    except DataError as error:
        text = str(error)
    assert len(text) < 1200


def test_an_endless_line_is_read_no_further_than_a_megabyte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("metadata.jsonl", "metadata.csv"):
        with (folder / name).open("wb") as file:
            file.write(b'file_name,text\n0.png,"')
            file.truncate(300_000_000)  # a hole: it costs no disk
        before = _peak()
        with pytest.raises(DataError, match=rf"{name}, line [12]: "):
            load_image_dataset(folder)
        assert _peak() - before < 50_000_000
        (folder / name).unlink()


def _peak() -> int:
    resource = pytest.importorskip("resource")
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def test_limits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_TABLE", 100)
    assert "metadata.jsonl has 105 bytes: at most 100 are read" in said(folder, "metadata.jsonl", "x" * 105)
    monkeypatch.undo()
    keys = {f"k{i}": 1 for i in range(600)}
    other = {f"j{i}": 1 for i in range(600)}
    content = "".join(json.dumps({"file_name": "0.png"} | row) + "\n" for row in (keys, other))
    assert "line 2: this is column number 1201: at most 1000" in said(folder, "metadata.jsonl", content)
    (folder / "metadata.jsonl").unlink()
    for name in ("0", "1", "猫"):
        (folder / f"{name}.txt").write_text("a\n" * 600_000)
    with pytest.raises(DataError, match=r"0\.txt has 1,200,000 bytes, too many for captions"):
        load_image_dataset(folder)
    (folder / "0.txt").write_bytes("一\n".encode() + b"caf\xe9\n")
    for name in ("1", "猫"):
        (folder / f"{name}.txt").write_text("a")
    with pytest.raises(DataError, match=r"0\.txt, line 2: byte 4 of the line, 0xe9, is not UTF-8"):
        load_image_dataset(folder)


def test_two_tables_in_one_folder(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,n\n0.png,1\n")
    assert "holds metadata.csv, metadata.jsonl: keep one" in said(folder, "metadata.jsonl", '{"file_name": "0.png"}')


def test_parquet_that_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = folder / "metadata.parquet"
    assert "metadata.parquet cannot be read as Parquet" in said(folder, path.name, b"no parquet at all")
    rows: list[dict[str, Any]] = [{"file_name": "0.png", "n": 1.0}, {"file_name": "猫.png", "n": float("nan")}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"metadata\.parquet, row 2: nan in column 'n' is no finite number"):
        load_image_dataset(folder)
    rows = [{"file_name": "0.png", "n": 1.0, "text": "猫" * 10_000}] * 200
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 100_000  # what six megabytes are packed into
    monkeypatch.setattr(tables, "MAX_TABLE", 1_000_000)
    with pytest.raises(DataError, match=r"bytes unpacked: at most"):
        load_image_dataset(folder)


def test_parquet_with_pictures_and_dates_in_it(folder: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    import datetime

    rows = [
        {"file_name": "猫.png", "text": "一", "jpg": b"\xff\xd8", "day": datetime.date(2026, 1, 2), "box": {"x": 1}}
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
    dataset = load_image_dataset(folder)
    assert dataset.cond([2]) == {"text": ["一"]}
    notes = "\n".join(dataset.report.notes)
    assert all(f"the column {name!r} holds objects, and is left alone" in notes for name in ("jpg", "day", "box"))


def test_what_is_counted_and_never_fatal(folder: Path) -> None:
    rows = [
        {"file_name": "0.png", "text": "a", "low": "gone/0.png", "own": "0.png"},
        {"file_name": "/nowhere.png", "text": "b"},
        {"file_name": None},
        {"file_name": "猫.png", "": 3, "text": " "},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load_image_dataset(folder)
    assert dataset.cond([0, 1, 2])["text"] == ["a", None, None]
    notes = "\n".join(dataset.report.notes)
    assert "2 rows name an image; 2 others name none that is there, such as '/nowhere.png'" in notes
    assert "the column 'low' names image files that are not there, and is left alone" in notes
    assert "the column 'own' names the image itself, and is left alone" in notes
    assert len(dataset) == 3


def test_damaged_tables_end_in_one_kind_of_error(folder: Path) -> None:
    """Whatever is done to the bytes of a metadata file, it is read or it is a DataError that names it."""
    rng = random.Random(0)
    whole = {
        "metadata.csv": 'file_name,text,n,at\n0.png,"一, ""two""",1.5,"[1, 2]"\n猫.png,,2,"[0, 1]"\n'.encode(),
        "metadata.jsonl": '{"file_name": "0.png", "text": ["一", "two"], "n": 1.5}\n'
        '{"file_name": "猫.png", "n": 2}\n'.encode(),
    }
    try:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"file_name": ["0.png", "猫.png"], "n": [1.0, 2.0]}), folder / "x.parquet")
        whole["metadata.parquet"] = (folder / "x.parquet").read_bytes()
    except ImportError:
        pass
    read, refused = 0, []
    for i in range(900):
        name = list(whole)[i % len(whole)]
        data = bytearray(whole[name])
        for _ in range(rng.randrange(1, 3)):
            place = rng.randrange(len(data))
            if rng.random() < 0.5:
                data[place] = rng.choice(b'"\n,{}[]\\\x00\xff9-' + bytes([rng.randrange(256)]))
            else:
                del data[place : place + rng.randrange(1, 9)]
        for other in whole:
            (folder / other).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
        try:
            dataset = load_image_dataset(folder)
        except DataError as error:
            refused.append(str(error))
        else:
            read += 1
            "\n".join(dataset.report.lines()).encode()
            dataset.fingerprint()
            dataset.cond(range(3))
    assert all(message.startswith("metadata.") or "column" in message for message in refused)
    assert min(read, len(refused)) > 100
