"""A measured number with all that it depends on, so that unlike numbers cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diff_diffusion.errors import DataError, IncompatibleError

FOLDER, FILE = "evaluation", "record.json"
"""Where an evaluation is kept, in the folder of the model, and its records in there."""
GROUPS = 20
_T = 2.093024
"""Student's 97.5 % quantile with GROUPS - 1 degrees of freedom."""


@dataclass(frozen=True)
class Setting:
    """What all numbers of one evaluation share.

    Attributes:
        model: fingerprint of the weights and the description.
        weights: "ema" or "raw".
        sampler, grid, steps, guidance: how samples were drawn; the first two with all their arguments.
        seeds: the first sample's, and one past the last's.
        data: name of the data set.
        fingerprint: of the train split, which samples are compared with.
        split: sizes of both splits, and a fingerprint of the held-out one.
        images: (C, H, W) of real images and samples alike.
        version: of this package.
    """

    model: str
    weights: str
    sampler: str
    grid: str
    steps: int
    guidance: float
    seeds: tuple[int, int]
    data: str
    fingerprint: str
    split: str
    images: tuple[int, int, int]
    version: str


@dataclass(frozen=True)
class Record:
    """One number, its interval and its floor.

    Attributes:
        name: metric, data, feature network and n, "FD-digits-cnn64-1a2b3c4d@8x8, n=359".
        metric: alone: "FD".
        value: of the samples.
        interval: 95 %, over other samples of the same model; see `jackknife`.
        floor: the same number for held-out real images in the samples' place, at the same n.
        higher_is_better: else lower is.
        features: the feature network's name, with its input size and resize filter.
        sha256: of the network, 64 hex digits.
        size, filter: (height, width) that images were brought to, and how; None where they were taken as they are.
        n, reference: how many samples and how many real images were compared.
        setting: what it depends on beside.
    """

    name: str
    metric: str
    value: float
    interval: tuple[float, float]
    floor: float
    higher_is_better: bool
    features: str
    sha256: str
    size: tuple[int, int] | None
    filter: str | None
    n: int
    reference: int
    setting: Setting

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Record:
        """The record that `to_json` told.

        Raises:
            DataError: it is not one.
        """
        try:
            about = dict(stored["setting"])
            about |= {name: tuple(about[name]) for name in ("seeds", "images")}
            size = None if stored["size"] is None else tuple(stored["size"])
            told = {"interval": tuple(stored["interval"]), "size": size, "setting": Setting(**about)}
            return cls(**stored | told)
        except (TypeError, KeyError) as error:
            raise DataError(
                f"this is no record of an evaluation by this version: {error}. Evaluate that model again"
            ) from error

    @property
    def kind(self) -> dict[str, object]:
        """What two numbers must share to be compared, by what it is called."""
        return {
            "metric": self.metric,
            "features": self.features,
            "network hash": self.sha256,
            "input size": self.size,
            "resize filter": self.filter,
            "n": self.n,
            "reference images": self.reference,
            "image shape": list(self.setting.images),
            "data": self.setting.fingerprint,
            "split": self.setting.split,
        }

    def against(self, other: Record) -> Comparison:
        """How this number stands to another of the same kind.

        Raises:
            IncompatibleError: they are not of one metric, feature network, n and data; with what differs.
        """
        theirs = other.kind
        unlike = [f"{what}: {mine} and {theirs[what]}" for what, mine in self.kind.items() if mine != theirs[what]]
        if unlike:
            raise IncompatibleError(
                f"this cannot be compared with {other.name}; they differ in {'; '.join(unlike)}. Evaluate both models "
                "on the same data with the same -n and --features, a classifier from the same file"
            )
        apart = self.interval[1] < other.interval[0] or other.interval[1] < self.interval[0]
        gain = (self.value - other.value) * (1.0 if self.higher_is_better else -1.0)
        return Comparison(self.value - other.value, "neither" if not apart else "first" if gain > 0 else "second")


@dataclass(frozen=True)
class Comparison:
    """Two records of one kind.

    Attributes:
        difference: the first's value less the second's.
        better: "first" or "second", or "neither" where their intervals overlap.
    """

    difference: float
    better: str


def read_records(path: Path) -> tuple[Record, ...]:
    """The records of an evaluation: of its file, of the folder that it is in, or of the run that was evaluated.

    Raises:
        DataError: no such file, or one that holds no records.
    """
    places = (path, path / FILE, path / FOLDER / FILE)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise DataError(f"{path} is no record of an evaluation and has none in it: name {FILE}, its folder, or the run")
    try:
        records = tuple(map(Record.from_json, json.loads(file.read_text(encoding="utf-8"))["records"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{file} holds no records that can be read: {error}") from error
    if not records:
        raise DataError(f"{file} has no distances in it: too few images were compared")
    return records


def side_by_side(mine: Sequence[Record], others: Sequence[Record]) -> list[tuple[Record, Record, Comparison]]:
    """Each record of one evaluation with the same of another, both with the metrics in the same order.

    Raises:
        IncompatibleError: some are unlike; with what differs.
    """
    if not mine or len(mine) != len(others):
        raise IncompatibleError(
            f"{len(mine)} numbers cannot be compared with {len(others)}: evaluate both on the same data with the same "
            "-n and --features"
        )
    return [(one, other, one.against(other)) for one, other in zip(mine, others, strict=True)]


def jackknife(statistic: Callable[[Tensor], float], n: int, strata: Tensor | None = None) -> float:
    """Half the width of a 95 % interval of a statistic of n samples, from leaving out each twentieth of them.

    se² = (G - 1)/G Σ_g (θ_g - θ̄)² for G = 20 groups. Not the bootstrap: a sample drawn twice is its own nearest
    neighbour and narrows a covariance, which moves recall by 5 standard errors and a Fréchet distance by 2.

    Args:
        statistic: of the samples of these rows, int64 [m], which are in random order.
        n: at least GROUPS.
        strata: int64 [n], what each sample was asked to be, where that is no chance: every group then leaves out as
            many of each. Without it the shares of ten classes seem to vary, and intervals are twice as wide.

    Raises:
        DataError: fewer samples.

    Source: Efron and Tibshirani, "An introduction to the bootstrap" (1993), for the jackknife with groups.
    """
    if n < GROUPS:
        raise DataError(f"an interval needs at least {GROUPS} samples, not {n}")
    rows = torch.arange(n)
    groups = rows % GROUPS
    if strata is not None:
        groups = torch.empty(n, dtype=torch.int64).scatter_(0, strata.argsort(stable=True), groups)
    found = torch.tensor([statistic(rows[groups != group]) for group in range(GROUPS)], dtype=torch.float64)
    squared = (GROUPS - 1) / GROUPS * ((found - found.mean()) ** 2).sum()
    return _T * float(squared.sqrt())
