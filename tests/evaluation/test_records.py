"""Records: intervals that hold, comparisons that are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diff_diffusion.errors import DataError, IncompatibleError
from diff_diffusion.evaluation.distances import frechet, sliced_wasserstein
from diff_diffusion.evaluation.measure import METRICS, measured
from diff_diffusion.evaluation.records import GROUPS, Record, Setting, jackknife, read_records, side_by_side

SETTING = Setting(
    model="0123456789abcdef",
    weights="ema",
    sampler="Heun",
    grid="Karras",
    steps=18,
    guidance=1.0,
    seeds=(0, 200),
    data="手写",
    fingerprint="feedface",
    split="200 train, 200 held out (cafe)",
    images=(1, 8, 8),
    version="0",
)


class Named:
    """A network that is a name and a hash."""

    name, sha256, size, filter = "cnn-1234", 64 * "1", (8, 8), "area"

    def features(self, images: Tensor) -> Tensor:
        return images


NETWORK = Named()


def normal(count: int, width: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0.0, scale, (count, width)))


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_of_a_mean_it_is_the_textbooks() -> None:
    """With a sample a group, t s/√n; with any number, near it."""
    x = normal(20, 1, 0)[:, 0]
    assert jackknife(lambda rows: float(x[rows].mean()), 20) == pytest.approx(
        2.093024 * float(x.std()) / math.sqrt(20), rel=1e-6
    )
    with pytest.raises(DataError, match=f"at least {GROUPS} samples, not 19"):
        jackknife(lambda rows: 0.0, 19)


@pytest.mark.parametrize("distance", [frechet, sliced_wasserstein])
def test_intervals_hold_the_distance_expected_at_this_n(distance) -> None:  # type: ignore[no-untyped-def]
    """95 in a hundred; five standard errors of 40 draws allow 78."""
    real = normal(300, 3, 999)
    draws = [normal(100, 3, i, 1.3) for i in range(40)]
    values = [distance(x, real) for x in draws]
    halves = [jackknife(lambda rows, x=x: distance(x[rows], real), 100) for x in draws]
    held = [abs(value - np.mean(values)) <= half for value, half in zip(values, halves, strict=True)]
    assert np.mean(held) > 0.78
    assert np.mean(halves) < 2 * 2.1 * np.std(values)


def test_what_was_asked_for_does_not_vary() -> None:
    """The share of a class that was asked for is no chance: with strata its interval is a point."""
    asked = torch.tensor([0, 1] * 100)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    share = lambda rows: float(asked[rows].double().mean())  # noqa: E731
    assert jackknife(share, 200) > 0.03
    assert jackknife(share, 200, asked) == pytest.approx(0.0, abs=1e-12)


# ---- records ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records() -> tuple[Record, ...]:
    return measured(NETWORK, normal(200, 4, 0, 1.5), normal(200, 4, 1), normal(500, 4, 2), SETTING)


def test_each_metric_is_named_by_all_that_it_depends_on(records: tuple[Record, ...]) -> None:
    assert [record.metric for record in records] == list(METRICS)
    assert records[0].name == "FD-手写-cnn-1234, n=200"
    for record in records:
        assert record.interval[0] <= record.value <= record.interval[1]
        assert (record.n, record.reference) == (200, 500 if record.metric == "FD" else 200)
        worse = record.value < record.floor if record.higher_is_better else record.value > record.floor
        assert worse == (record.metric != "recall"), record  # samples of a wider distribution miss little


def test_the_floor_is_the_distance_of_held_out_images(records: tuple[Record, ...]) -> None:
    by_name = {record.metric: record for record in records}
    assert by_name["FD"].value == frechet(normal(200, 4, 0, 1.5), normal(500, 4, 2))
    assert by_name["FD"].floor == frechet(normal(200, 4, 1), normal(500, 4, 2))
    same = measured(NETWORK, normal(200, 4, 1), normal(200, 4, 1), normal(500, 4, 2), SETTING)
    assert all(record.value == record.floor for record in same)


def test_the_kernel_distance_does_not_depend_on_the_features_unit() -> None:
    one = measured(NETWORK, normal(50, 4, 0), normal(50, 4, 1), normal(50, 4, 2), SETTING, only=["KID"])[0]
    other = measured(NETWORK, *(normal(50, 4, i) * 40 for i in range(3)), SETTING, only=["KID"])[0]
    assert other.value == pytest.approx(one.value, rel=1e-9)


def test_a_share_of_one_is_not_known_for_certain() -> None:
    x = normal(100, 2, 0)
    found = measured(NETWORK, x, x, x, SETTING, only=["precision"])[0]
    assert found.value == 1.0
    assert found.interval == (pytest.approx(0.963, abs=1e-3), 1.0)


def test_a_record_is_read_back(records: tuple[Record, ...]) -> None:
    for record in (*records, replace(records[0], size=None, filter=None)):
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    with pytest.raises(DataError, match="no record"):
        Record.from_json({"name": "FD"})


def test_a_record_says_the_whole_network(records: tuple[Record, ...]) -> None:
    for record in records:
        assert (record.features, record.sha256) == ("cnn-1234", 64 * "1")
        assert (record.size, record.filter) == ((8, 8), "area")
    network = Named()
    network.size = None  # type: ignore[assignment]
    (found,) = measured(network, *(normal(30, 2, i) for i in range(3)), SETTING, only=["SW"])
    assert (found.size, found.filter) == (None, None)  # a filter that nothing went through is not told


def test_records_are_found_in_a_file_its_folder_or_its_run(records: tuple[Record, ...], tmp_path: Path) -> None:
    home = tmp_path / "运行" / "evaluation"
    home.mkdir(parents=True)
    file = home / "record.json"
    file.write_text(json.dumps({"records": [record.to_json() for record in records]}, ensure_ascii=False), "utf-8")
    for place in (file, home, home.parent):
        assert read_records(place) == records
    with pytest.raises(DataError, match="has none in it"):
        read_records(tmp_path)
    older = {name: value for name, value in records[0].to_json().items() if name != "sha256"}
    for content, said in {
        json.dumps({"records": []}): "no distances",
        json.dumps({"records": [older]}): "by this version.*Evaluate that model again",
        json.dumps([1]): "no records",
        "[" * 100_000: "no records",
        "猫": "no records",
    }.items():
        file.write_text(content, "utf-8")
        with pytest.raises(DataError, match=said):
            read_records(home)


def test_two_evaluations_stand_side_by_side(records: tuple[Record, ...]) -> None:
    others = [replace(record, value=record.value + 1.0, setting=replace(SETTING, model="other")) for record in records]
    pairs = side_by_side(records, others)
    assert [one.name for one, _, _ in pairs] == [record.name for record in records]
    assert [how.difference for _, _, how in pairs] == pytest.approx([-1.0] * len(records))
    with pytest.raises(IncompatibleError, match="7 numbers cannot be compared with 6"):
        side_by_side(records, others[1:])
    with pytest.raises(IncompatibleError, match="metric: FD and KID"):
        side_by_side(records, [others[1], others[0], *others[2:]])


def test_unlike_records_are_not_compared(records: tuple[Record, ...]) -> None:
    mine = records[0]
    changes = {
        "metric: FD and KID": replace(mine, metric="KID"),
        "features: cnn-1234 and cnn-5678": replace(mine, features="cnn-5678"),
        "network hash: 1111": replace(mine, sha256=64 * "2"),
        r"input size: \(8, 8\) and None": replace(mine, size=None),
        "resize filter: area and bicubic": replace(mine, filter="bicubic"),
        "n: 200 and 100": replace(mine, n=100),
        "reference images: 500 and 400": replace(mine, reference=400),
        "data: feedface and 0": replace(mine, setting=replace(SETTING, fingerprint="0")),
        "split: 200 train": replace(mine, setting=replace(SETTING, split="9 train")),
        "image shape": replace(mine, setting=replace(SETTING, images=(3, 8, 8))),
    }
    for said, other in changes.items():
        with pytest.raises(IncompatibleError, match=said):
            mine.against(other)
    both = replace(mine, n=100, features="x")
    with pytest.raises(IncompatibleError, match=r"features.*n: 200 and 100"):
        mine.against(both)


def test_records_are_apart_where_their_intervals_are(records: tuple[Record, ...]) -> None:
    """Another model, sampler or guidance may differ: that is what is compared."""
    of = {record.metric: record for record in records}
    low, setting = of["FD"], replace(SETTING, model="other", sampler="DDIM", guidance=3.0)
    high = replace(low, value=low.value + 10, interval=(low.value + 9, low.value + 11), setting=setting)
    assert low.against(high).better == "first"
    assert high.against(low).better == "second"
    assert high.against(low).difference == pytest.approx(10.0)
    assert low.against(replace(low, value=low.value + 0.01, setting=setting)).better == "neither"
    more = replace(of["density"], value=9.0, interval=(8.0, 10.0))
    assert more.against(of["density"]).better == "first"
