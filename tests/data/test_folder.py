"""What a folder says: which files, in which order, held out or not, and of which class."""

from __future__ import annotations

import os
import random
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from diff_diffusion.data.folder import Found, arrange, existing, scan, walk
from diff_diffusion.errors import DataError


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def labels(*names: str) -> dict[str, str]:
    files, _ = arrange(names)
    return {file.name: file.label for file in files}


def test_a_flat_folder_has_no_classes() -> None:
    assert labels("a.png", "b.png") == {"a.png": "", "b.png": ""}


def test_class_folders_at_any_depth() -> None:
    assert labels("cat/a.png", "cat/2024/05/b.png", "dog/c.png") == {
        "cat/a.png": "cat",
        "cat/2024/05/b.png": "cat",
        "dog/c.png": "dog",
    }


def test_a_folder_that_is_alone_says_nothing() -> None:
    assert set(labels("images/a.png", "images/b.png").values()) == {""}
    assert labels("set/images/cat/a.png", "set/images/dog/b.png") == {
        "set/images/cat/a.png": "cat",
        "set/images/dog/b.png": "dog",
    }


def test_images_beside_the_sub_folders_mean_no_classes_and_are_used() -> None:
    files, notes = arrange(["cat/a.png", "dog/b.png", "c.png"])
    assert [file.label for file in files] == ["", "", ""]
    assert "1 images lie beside them" in notes[0]


def test_train_and_val() -> None:
    files, notes = arrange(["train/a.png", "train/b.png", "val/c.png"])
    assert files == (Found("train/a.png"), Found("train/b.png"), Found("val/c.png", held_out=True))
    assert notes == []


@pytest.mark.parametrize("val", ["valid", "validation", "Val", "VALIDATION"])
@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
def test_other_names_of_the_splits(train: str, val: str) -> None:
    files, notes = arrange([f"{train}/a.png", f"{val}/c.png"])
    assert [file.held_out for file in files] == [False, True]
    assert (f"{val}/ is read as val/" in notes) == (val.lower() != "val")
    assert (f"{train}/ is read as train/" in notes) == (train.lower() != "train")


def test_of_two_names_of_a_split_the_proper_one_counts() -> None:
    files, notes = arrange(["train/a.png", "training/b.png", "val/c.png", "valid/d.png"])
    assert files == (Found("train/a.png"), Found("val/c.png", held_out=True))
    assert notes == ["1 images in training/ are left alone", "1 images in valid/ are left alone"]


def test_classes_inside_train_and_val() -> None:
    files, _ = arrange(["train/cat/a.png", "train/dog/b.png", "val/dog/c.png"])
    assert [(file.label, file.held_out) for file in files] == [("cat", False), ("dog", False), ("dog", True)]
    deep, _ = arrange(["x/train/imgs/cat/a.png", "x/train/imgs/dog/b.png", "x/val/imgs/dog/c.png"])
    assert [(file.label, file.held_out) for file in deep] == [("cat", False), ("dog", False), ("dog", True)]


def test_val_has_no_classes_where_train_has_none() -> None:
    files, _ = arrange(["train/a.png", "val/cat/b.png", "val/dog/c.png"])
    assert [file.label for file in files] == ["", "", ""]


def test_test_and_what_lies_beside_the_splits_is_left_alone_and_said() -> None:
    files, notes = arrange(["a.png", "test/b.png", "test/c.png", "train/d.png", "val/e.png", "extra/f.png"])
    assert [file.name for file in files] == ["train/d.png", "val/e.png"]
    assert set(notes) == {
        "1 images beside the split folders are left alone",
        "2 images in test/ are left alone",
        "1 images in extra/ are left alone",
    }


def test_train_beside_test_only() -> None:
    files, notes = arrange(["test/b.png", "train/d.png"])
    assert files == (Found("train/d.png"),)
    assert notes == ["1 images in test/ are left alone"]


def test_a_class_of_trains_is_a_class() -> None:
    assert labels("bus/a.png", "train/b.png", "tram/c.png") == {
        "bus/a.png": "bus",
        "train/b.png": "train",
        "tram/c.png": "tram",
    }


def test_splits_without_train_are_an_error() -> None:
    with pytest.raises(DataError, match="no train/"):
        arrange(["test/a.png", "val/b.png"])


def test_class_names_are_normalised() -> None:
    composed, decomposed = (unicodedata.normalize(form, "école") for form in ("NFC", "NFD"))
    assert composed != decomposed
    files, _ = arrange([f"{composed}/a.png", f"{decomposed}/b.png", "猫/c.png"])
    assert {file.label for file in files} == {composed, "猫"}


def test_extensions_in_any_case_and_unicode_names(tmp_path: Path) -> None:
    names = {"a.JPG", "b.Jpeg", "c.pNg", "d.WEBP", "e.bmp", "f.TIF", "g.tiff", "h.GIF", "图片/三.PNG", "пёс é.jpg"}
    found, others, _ = walk(fill(tmp_path, *names))
    assert set(found) == names
    assert not others


def test_litter_is_passed_over_and_other_files_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, ".DS_Store", "Thumbs.db", "._a.png", "__MACOSX/a.png", ".cache/b.png", "desktop.ini")
    fill(tmp_path, "a.png", "a.txt", "b.TXT", "README", "metadata.csv")
    found, others, _ = walk(tmp_path)
    assert found == ["a.png"]
    assert dict(others) == {".txt": 2, ".csv": 1, "no extension": 1}


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    names = [f"{folder}/{i}.png" for folder in ("a", "b-1", "b", "É", "z") for i in range(12)]
    random.Random(0).shuffle(names)
    found, _, _ = walk(fill(tmp_path, *names))
    assert found == sorted(names)
    assert [file.name for file in scan(tmp_path).files] == found


def test_the_order_does_not_depend_on_how_a_system_spells_a_letter(tmp_path: Path) -> None:
    def spelt(form: Literal["NFC", "NFD"], root: Path) -> list[str]:
        fill(root, *(unicodedata.normalize(form, name) for name in ("é.png", "f.png", "e\u0301a.png", "z.png")))
        return [unicodedata.normalize("NFC", name) for name in walk(root)[0]]

    assert spelt("NFC", tmp_path / "linux") == spelt("NFD", tmp_path / "mac")


def test_link_loops_end_and_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path, "in/a/x.png", "elsewhere/y.png")
    (tmp_path / "in" / "a" / "up").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in" / "z.png").symlink_to(tmp_path / "elsewhere" / "y.png")
    (tmp_path / "in" / "self").symlink_to("self")
    assert walk(tmp_path / "in")[0] == ["a/x.png", "b/y.png", "z.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    found, others, _ = walk(fill(tmp_path, "b.png"))
    assert found == ["b.png"]
    assert others["not a plain file"] == 1


def test_nothing_usable_lists_what_was_found_and_what_is_near(tmp_path: Path) -> None:
    fill(tmp_path, "set/labels/a.txt", "set/labels/b.txt", "set/labels/c.zip", "set/images/a.png")
    with pytest.raises(DataError) as caught:
        scan(tmp_path / "set" / "labels")
    message = str(caught.value)
    assert "3 other files (2 .txt, 1 .zip)" in message
    assert str(tmp_path / "set" / "images") in message
    assert "Unpack the archive" in message
    assert "train/ and val/" in message


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file at all"):
        scan(tmp_path)


def test_a_path_that_does_not_exist_names_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    with pytest.raises(DataError, match=r"did you mean 'flowers'\?.*digits"):
        existing(tmp_path / "Flower", ["digits"])
    with pytest.raises(DataError, match=r"no 'flower' in .*did you mean 'flowers'"):
        existing(tmp_path / "flower" / "train" / "cat", ["digits"])
    with pytest.raises(DataError, match="did you mean 'digits'"):
        existing(tmp_path / "digit", ["digits"])


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.zip")
    with pytest.raises(DataError, match=r"a\.png is a file, not a folder: give the folder"):
        existing(tmp_path / "a.png", ["digits"])
    with pytest.raises(DataError, match="unpack"):
        existing(tmp_path / "b.zip", ["digits"])
