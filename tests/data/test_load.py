"""Loading a folder: what is used, skipped, refused and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diff_diffusion.data import load_image_dataset
from diff_diffusion.data import store as stores
from diff_diffusion.errors import ConfigError, DataError, MissingPackageError

Make = Callable[..., Path]


def test_a_folder_of_one_size(make: Make, tmp_path: Path) -> None:
    for i in range(5):
        make(f"{i}.png", 28, 20)
    dataset = load_image_dataset(tmp_path)
    assert dataset.shape == (3, 28, 20)
    assert len(dataset) == 5
    assert dataset.labels is None
    assert dataset.class_names == ()
    assert dataset.val is None
    assert dataset.name == str(tmp_path)
    assert (dataset[3].numpy() == np.asarray(Image.open(tmp_path / "3.png")).transpose(2, 0, 1)).all()


def test_class_folders_with_chinese_names(make: Make, tmp_path: Path) -> None:
    for name in ("狗/甲.png", "狗/乙.PNG", "猫/深/丙.JPG", "cat/a.webp"):
        make(name, mode="L")
    dataset = load_image_dataset(str(tmp_path))
    assert dataset.class_names == ("cat", "狗", "猫")
    assert dataset.labels is not None
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == [0, 1, 1, 2]
    assert dataset.report.classes == {"cat": 1, "狗": 2, "猫": 1}
    assert "狗 (2)" in "\n".join(dataset.report.lines())
    # The files are in the order of their names: 乙 before 甲.
    assert (dataset[1].numpy()[0] == np.asarray(Image.open(tmp_path / "狗/乙.PNG"))).all()


def test_train_and_val(make: Make, tmp_path: Path) -> None:
    for i in range(4):
        make(f"train/cat/{i}.png")
        make(f"train/dog/{i}.png")
    make("valid/dog/a.png")
    make("valid/fish/b.png")
    make("test/dog/c.png")
    dataset = load_image_dataset(tmp_path)
    assert len(dataset) == 8
    assert dataset.val is not None
    assert len(dataset.val) == 1
    assert dataset.val.labels is not None
    assert dataset.val.labels.tolist() == [1]
    assert (dataset.val[0].numpy() == np.asarray(Image.open(tmp_path / "valid/dog/a.png")).transpose(2, 0, 1)).all()
    train, held_out = dataset.split(0.5)
    assert train is dataset
    assert held_out is dataset.val
    report = dataset.report
    assert (report.found, report.used, report.held_out) == (10, 8, 1)
    assert report.skipped == {"of a class without training images": ["valid/fish/b.png"]}
    text = "\n".join(report.lines())
    assert "valid/ is read as val/" in text
    assert "1 images in test/ are left alone" in text
    # Each split is a folder of its own, too, as the articles load them.
    assert len(load_image_dataset(tmp_path / "train")) == 8


def test_val_gets_the_shape_of_the_training_images(make: Make, tmp_path: Path) -> None:
    make("train/a.png", 24, 24, "L")
    make("train/b.png", 24, 24, "L")
    make("val/c.png", 90, 50, "RGB")
    dataset = load_image_dataset(tmp_path)
    assert dataset.shape == (1, 24, 24)
    assert dataset.val is not None
    assert dataset.val[0].shape == (1, 24, 24)


def test_one_bad_of_forty_is_named_and_skipped(make: Make, tmp_path: Path) -> None:
    for i in range(39):
        make(f"{i:02}.png")
    (tmp_path / "20b.png").write_bytes(make("x.png").read_bytes()[:300])
    (tmp_path / "x.png").unlink()
    (tmp_path / "notes.txt").write_text("hello")
    dataset = load_image_dataset(tmp_path)
    assert len(dataset) == 39
    assert (dataset[21].numpy() == np.asarray(Image.open(tmp_path / "21.png")).transpose(2, 0, 1)).all()
    report = dataset.report
    assert (report.found, report.used) == (40, 39)
    assert report.skipped == {"truncated": ["20b.png"]}
    assert report.others == {".txt": 1}
    assert any("1 truncated: 20b.png" in line for line in report.lines())
    assert json.loads(json.dumps(report.to_json()))["skipped"] == {"truncated": ["20b.png"]}


def test_more_than_5_percent_bad_stops_with_the_list(make: Make, tmp_path: Path) -> None:
    for i in range(36):
        make(f"{i}.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        load_image_dataset(tmp_path)
    message = str(caught.value)
    assert "3 of the 39 images" in message
    assert "7.7%" in message
    for part in ("1 empty file: empty.png", "1 not an image: text.jpg", "1 truncated: cut.png"):
        assert part in message


def test_nothing_but_bad_files(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_text("no picture")
    with pytest.raises(DataError, match="3 of the 3 images"):
        load_image_dataset(tmp_path)


def test_a_broken_file_decides_nothing(make: Make, tmp_path: Path) -> None:
    for i in range(39):
        make(f"{i}.png", 20, 20, "L")
    whole = make("bad.png", 300, 300).read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2])  # its header still says: large, and colour
    dataset = load_image_dataset(tmp_path)
    assert dataset.shape == (1, 20, 20)
    assert dataset.report.size_why == "every image has this size"
    assert dataset.report.modes == {"L": 39}


def test_mixed_sizes_and_channels(make: Make, tmp_path: Path) -> None:
    make("a.jpg", 100, 150)
    make("b.png", 120, 180, "L")
    make("c.png", 200, 300, "L")
    dataset = load_image_dataset(tmp_path)
    assert dataset.shape == (3, 40, 64)
    report = dataset.report
    assert report.channels_why == "1 of 3 images is colour: all become RGB"
    assert list(report.heights) == [100, 120, 200]
    assert report.modes == {"L": 2, "RGB": 1}
    assert load_image_dataset(tmp_path, size=16, channels=1).shape == (1, 16, 16)
    assert load_image_dataset(tmp_path, size=(16, 24)).batch([0, 1, 2]).shape == (3, 3, 16, 24)


def test_warnings(make: Make, tmp_path: Path) -> None:
    for i in range(42):
        make(f"many/{i}.png")
    for folder in ("few", "one"):
        (tmp_path / folder).mkdir()
    for name in ("few/a.png", "few/b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    make("one/a.png")
    warnings = "\n".join(load_image_dataset(tmp_path, size=32).report.warnings)
    assert "45 images are few" in warnings
    assert "45 of 45 images are enlarged 2 times or more" in warnings
    assert "1 of 45 images are exact copies" in warnings
    assert "class 'many' has 42 images, 'one' only 1" in warnings
    assert "1 classes have one image each (one)" in warnings
    assert "enlarged" not in "\n".join(load_image_dataset(tmp_path).report.warnings)


def test_the_first_twenty_skipped_are_named_in_the_text_and_all_in_the_json(make: Make, tmp_path: Path) -> None:
    report = load_image_dataset(make("a.png").parent).report
    report.skipped = {"truncated": [f"t{i}.png" for i in range(15)], "unreadable": [f"u{i}.png" for i in range(15)]}
    text = "\n".join(report.lines())
    assert all(f"t{i}.png" in text for i in range(15))
    assert "u4.png, …" in text
    assert "u5.png" not in text
    assert len(report.to_json()["skipped"]["unreadable"]) == 15


def test_a_name_that_is_not_utf8_can_be_loaded_and_written_down(make: Make, tmp_path: Path) -> None:
    strange = tmp_path / "caf\udce9.png"
    try:
        make("a.png").rename(strange)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for i in range(30):
        make(f"{i}.png")
    (tmp_path / "cut\udce9.png").write_bytes(b"x")
    dataset = load_image_dataset(tmp_path)
    assert len(dataset.fingerprint()) == 64
    "\n".join(dataset.report.lines()).encode()
    json.dumps(dataset.report.to_json(), ensure_ascii=False).encode()


def test_progress_ends_at_the_total(make: Make, tmp_path: Path) -> None:
    for i in range(7):
        make(f"{i}.png")
    seen: list[tuple[int, int]] = []
    load_image_dataset(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 7) for i in range(7)]


def test_on_disk_as_in_memory(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(6):
        make(f"c{i % 2}/{i}.jpg", 50 + i, 60)
    near = load_image_dataset(tmp_path, size=16)
    monkeypatch.setattr(stores, "MEMORY_BUDGET", 100)
    far = load_image_dataset(tmp_path, size=16)
    assert near.in_memory
    assert far.in_memory is False
    assert (near.batch(range(6)) == far.batch(range(6))).all()
    assert (far[4] == far.batch([4])[0]).all()
    assert near.fingerprint() == far.fingerprint()
    assert near.report == far.report


@pytest.mark.parametrize("size", [0, "big", (8, 8, 8)])
def test_a_bad_size_comes_before_anything_is_read(size: object) -> None:
    with pytest.raises(ConfigError, match="size"):
        load_image_dataset("/nowhere", size=size)  # type: ignore[arg-type]


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'digits'"):
        load_image_dataset("digit")
    with pytest.raises(DataError, match="empty"):
        load_image_dataset("")
    with pytest.raises(DataError, match="no file at all"):
        load_image_dataset(tmp_path)


def test_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    dataset = load_image_dataset("digits")
    assert dataset.shape == (1, 8, 8)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.val is not None
    assert dataset.labels is not None
    assert dataset.val.labels is not None
    assert (len(dataset), len(dataset.val)) == (1438, 359)
    per_class = np.bincount(datasets.load_digits().target)
    assert (abs(np.bincount(dataset.val.labels) - 0.2 * per_class) < 1).all()
    both = np.concatenate([dataset.batch(range(1438)).numpy(), dataset.val.batch(range(359)).numpy()]).reshape(-1, 64)
    whole = np.rint(datasets.load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, whole))
    # The split is a constant of the package: a score of one version can be compared with that of the next.
    assert dataset.val._rows[:5].tolist() == [0, 1, 5, 25, 35]
    assert load_image_dataset("digits", size=16, channels=3).shape == (3, 16, 16)


def test_the_bare_name_is_the_built_in_set_and_a_path_the_folder(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn.datasets")
    make("digits/a.png")
    monkeypatch.chdir(tmp_path)
    assert len(load_image_dataset("digits")) == 1438
    assert len(load_image_dataset("./digits")) == 1
    assert len(load_image_dataset(Path("digits"))) == 1


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'diff-diffusion\[demo\]'"):
        load_image_dataset("digits")
