"""The second start: nothing is opened that has not changed, nothing is believed that has, and nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diff_diffusion.data import ImageDataset, array_file, index, load_image_dataset, survey
from diff_diffusion.data import store as stores
from diff_diffusion.errors import ConfigError, DataError

COUNT = 12


@pytest.fixture(autouse=True)
def _of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "缓存"))
    monkeypatch.setattr(index, "ENOUGH", COUNT // 2)


class Opened:
    """The names of the files whose pixels and whose headers were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: list[str] = []
        self.peeked: list[str] = []
        for name, seen in (("read_image", self.decoded), ("peek", self.peeked)):
            real = getattr(survey, name)

            def spy(path: Path, *shape: object, real: object = real, seen: list[str] = seen) -> object:
                seen.append(path.name)
                return real(path, *shape)  # type: ignore[operator]

            monkeypatch.setattr(survey, name, spy)

    def since(self) -> tuple[list[str], list[str]]:
        found = sorted(self.decoded), sorted(self.peeked)
        self.decoded.clear()
        self.peeked.clear()
        return found


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


def put(path: Path, seed: int, age: float = 100.0, side: int = 8) -> None:
    """An image that looks as if it had lain there for long; its ctime cannot be set, so YOUNG is 0 below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(path)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(age * 1e9)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index, "YOUNG", 0)
    for i in range(COUNT):
        put(tmp_path / "图片" / ("猫" if i % 2 else "狗") / f"{i:02d} 张.png", i)
    return tmp_path / "图片"


def same(one: ImageDataset, other: ImageDataset) -> bool:
    everything = range(len(one))
    return (
        one.fingerprint() == other.fingerprint()
        and torch.equal(one.batch(everything), other.batch(everything))
        and one.report == other.report
    )


@pytest.fixture(params=["in memory", "on disk"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "on disk":
        monkeypatch.setattr(stores, "MEMORY_BUDGET", 0)
    return str(request.param)


def test_the_second_start_opens_nothing(folder: Path, opened: Opened, memory: str) -> None:
    plain = load_image_dataset(folder, index=False)
    assert not index.home().exists()
    first = load_image_dataset(folder)
    opened.since()
    second = load_image_dataset(folder)
    assert opened.since() == ([], [])
    assert same(plain, first)
    assert same(plain, second)
    assert second.in_memory == (memory == "in memory")


def test_what_changed_is_looked_at_again_and_nothing_else(folder: Path, opened: Opened, memory: str) -> None:
    load_image_dataset(folder)
    put(folder / "猫" / "01 张.png", 99)  # other pixels
    put(folder / "猫" / "03 张.png", 3, age=50.0)  # the same ones, at another time
    put(folder / "猫" / "新.png", 77)
    (folder / "狗" / "02 张.png").unlink()
    os.rename(folder / "狗" / "04 张.png", folder / "狗" / "改名.png")
    opened.since()
    again = load_image_dataset(folder)
    looked_at = ["01 张.png", "03 张.png", "改名.png", "新.png"]
    assert opened.since() == (sorted(looked_at), sorted(looked_at))
    assert same(again, load_image_dataset(folder, index=False))
    opened.since()
    assert same(again, load_image_dataset(folder))
    assert opened.since() == ([], [])


def test_a_change_that_keeps_size_and_mtime_is_seen(folder: Path, opened: Opened) -> None:
    """As by a copy that keeps times: ctime is the system's own."""
    path = folder / "猫" / "01 张.png"
    load_image_dataset(folder)
    content, status = bytearray(path.read_bytes()), path.stat()
    path.write_bytes(bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    opened.since()
    load_image_dataset(folder)
    assert opened.since() == ([path.name], [path.name])


def test_a_young_file_is_not_believed(folder: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "YOUNG", 3600 * 10**9)
    for _ in range(2):
        load_image_dataset(folder)
        decoded, _ = opened.since()
        assert len(decoded) == COUNT


def test_a_broken_file_is_tried_each_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MAX_BAD", 0.2)
    path = folder / "猫" / "01 张.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    assert [len(load_image_dataset(folder)) for _ in range(2)] == [COUNT - 1] * 2
    path.write_bytes(whole)
    assert len(load_image_dataset(folder)) == COUNT
    assert same(load_image_dataset(folder), load_image_dataset(folder, index=False))


def test_another_size_is_another_index(folder: Path, opened: Opened) -> None:
    small, own = load_image_dataset(folder, size=4), load_image_dataset(folder)
    opened.since()
    assert same(load_image_dataset(folder, size=4), small)
    assert same(load_image_dataset(folder), own)
    assert opened.since() == ([], [])


def test_a_damaged_index_is_as_none(folder: Path, opened: Opened) -> None:
    plain = load_image_dataset(folder, index=False)
    load_image_dataset(folder)
    [path] = index.home().iterdir()
    content = path.read_bytes()
    for at in [0, 40, *range(1 << 16, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert index.read({"folder": str(folder), "size": None, "channels": None}) is None, at
    for cut in (0, 10, 1 << 16, len(content) - 1):
        path.write_bytes(content[:cut])
        opened.since()
        assert same(load_image_dataset(folder), plain)
        assert len(opened.since()[0]) == COUNT
    assert same(load_image_dataset(folder), plain)
    assert opened.since() == ([], [])  # and is mended
    assert [item.name for item in index.home().iterdir()] == [path.name]


def test_where_nothing_can_be_written_nothing_is(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert same(load_image_dataset(folder), load_image_dataset(folder, index=False))


def test_few_images_leave_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "ENOUGH", COUNT + 1)
    load_image_dataset(folder)
    assert not index.home().exists()


def test_the_oldest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"a": np.zeros(100, np.uint8)}
    monkeypatch.setattr(index, "MAX_BYTES", 3 * 70_000)
    for number in range(3):
        index.write({"number": number}, kept)
        os.utime(index._path({"number": number}), (number, number))
    assert index.read({"number": 0}) is not None  # and is read lately
    index.write({"number": 3}, kept)
    assert [index.read({"number": number}) is not None for number in range(4)] == [True, False, True, True]


def test_what_is_not_of_the_kept_types_is_not_read() -> None:
    arrays = {"一": np.arange(6, dtype=np.int64).reshape(2, 3), "二": np.zeros(0, np.uint8), "三": np.ones(5, np.int32)}
    index.write({"of": "甲"}, arrays)
    found = index.read({"of": "甲"})
    assert found is not None
    assert all((found[name] == array).all() and found[name].shape == array.shape for name, array in arrays.items())
    index.write({"of": "乙"}, {"a": np.zeros(3, "datetime64[s]")})
    assert index.read({"of": "乙"}) is None


# ---- array files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_an_array_file_is_its_array(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, channels)[: 4 if channels else 3], np.uint8)
    labels = np.arange(COUNT) % 3
    np.save(tmp_path / "照片.npy", images)
    np.save(tmp_path / "照片.labels.npy", labels)
    data = load_image_dataset(tmp_path / "照片.npy")
    other = ImageDataset.from_arrays(images, labels)
    assert torch.equal(data.batch(range(COUNT)), other.batch(range(COUNT)))
    assert data.batch([3, 1]).is_contiguous()
    assert data.fingerprint() == other.fingerprint()
    assert data.class_names == ("0", "1", "2")
    assert data.in_memory
    assert data.cond([-1])["label"] == [2]
    before = (tmp_path / "照片.npy").read_bytes()
    data._store.pixels[:] = 0  # type: ignore[index]
    assert (tmp_path / "照片.npy").read_bytes() == before
    if channels == 3:
        derived = load_image_dataset(tmp_path / "照片.npy", columns={"light": "grey"})
        assert derived.cond([0]).keys() == {"light", "label"}


def test_an_array_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "YOUNG", 0)
    calls: list[int] = []
    real = array_file.digest
    monkeypatch.setattr(array_file, "digest", lambda image: calls.append(1) or real(image))
    path = tmp_path / "照片.npy"
    np.save(path, np.zeros((COUNT, 4, 4), np.uint8))
    prints = [load_image_dataset(path).fingerprint() for _ in range(2)]
    assert (len(calls), len(set(prints))) == (COUNT, 1)
    np.save(path, np.ones((COUNT, 4, 4), np.uint8))
    assert load_image_dataset(path).fingerprint() not in prints
    assert len(calls) == 2 * COUNT


@pytest.mark.parametrize(
    ("array", "labels", "words"),
    [
        (np.zeros((3, 4, 4)), None, r"holds \[3, 4, 4\] of float64: images are uint8"),
        (np.zeros((3, 4, 4, 2), np.uint8), None, r"\[3, 4, 4, 2\] of uint8"),
        (np.zeros((0, 4, 4), np.uint8), None, r"\[0, 4, 4\]"),
        (np.array([{}], object), None, "is not an array that numpy.save wrote"),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, 1]), "labels are 3 whole numbers from 0"),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, -1, 1]), "labels are 3 whole numbers from 0"),
    ],
)
def test_what_is_no_array_of_images(tmp_path: Path, array: np.ndarray, labels: np.ndarray | None, words: str) -> None:
    np.save(tmp_path / "数据.npy", array)
    if labels is not None:
        np.save(tmp_path / "数据.labels.npy", labels)
    with pytest.raises(DataError, match=words):
        load_image_dataset(tmp_path / "数据.npy")


def test_an_array_file_is_used_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4), np.uint8))
    for wrong in ({"size": 8}, {"channels": 3}):
        with pytest.raises(ConfigError, match="images of 4×4 in grey, and an array file is used as it is"):
            load_image_dataset(tmp_path / "a.npy", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no columns but its labels, so there is no age"):
        load_image_dataset(tmp_path / "a.npy", columns={"age": "number"})
