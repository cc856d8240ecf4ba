"""Fairness by attribute: how each value of every column fares that the data have beside the label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from diff_diffusion.data import ImageDataset
from diff_diffusion.data.loader import order
from diff_diffusion.data.survey import Progress
from diff_diffusion.evaluation.beside import ClassRow, Seen, class_rows
from diff_diffusion.evaluation.feature_networks import weights_hash
from diff_diffusion.evaluation.features import Classifier, layers
from diff_diffusion.models.model import LABEL
from diff_diffusion.rng import derive

FEW = 10
"""Different values of a number, at most, to be told apart as classes are."""
BATCH, PART = 64, 512
UNKNOWN = -1


@dataclass(frozen=True)
class Attribute:
    """How the values of one column fare.

    Attributes:
        name: of the column.
        judge: the classifier that tells its values, and its accuracy on held-out images that have one.
        rows: one for each value. Where samples were asked for other things alone, none has an agreement, and quality
            is of the samples that the judge sees as it.
    """

    name: str
    judge: tuple[str, float]
    rows: tuple[ClassRow, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "judge": self.judge, "rows": [row.to_json() for row in self.rows]}


def attribute_values(data: ImageDataset) -> dict[str, tuple[Any, ...]]:
    """The columns beside the label that are classes, or numbers of at most ten different values; and their values.

    A class's value is its number, as in `ImageDataset.cond`. A column of one value is none.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for name, column in data.columns.items():
        if column.kind == "class":
            found[name] = tuple(range(len(column.names)))
        elif column.kind == "number":
            found[name] = tuple(sorted(set(data.known(name))))
    return {
        name: values
        for name, values in found.items()
        if name != LABEL and len(values) > 1 and (data.columns[name].kind == "class" or len(values) <= FEW)
    }


def train_judges(train: ImageDataset, held_out: ImageDataset, steps: int = 600, seed: int = 0) -> dict[str, Classifier]:
    """A classifier for each attribute, by its column: one body that learned all of them together, and a head for each.

    One training, so that forty columns take no longer than one. Images whose value is missing teach the others.
    """
    values = attribute_values(train)
    if not values:
        return {}
    targets = {name: numbered(train.values(name), known) for name, known in values.items()}
    sizes = [len(known) for known in values.values()]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "attributes") % (1 << 63))
        body, heads = layers(train.shape, sum(sizes))
        pixels = train.batch(range(min(len(train), 4096))).float()
        mean, std = float(pixels.mean()), float(pixels.std()) or 1.0
        both = nn.Sequential(body, heads)
        optimizer = torch.optim.AdamW(both.parameters(), lr=2e-3, weight_decay=1e-2)
        for step in range(steps):
            rows = order(len(train), seed, step * BATCH, BATCH)
            scores = both((train.batch(rows).float() - mean) / std).split(sizes, 1)
            losses = [
                functional.cross_entropy(score, target[rows], ignore_index=UNKNOWN, reduction="sum") / BATCH
                for score, target in zip(scores, targets.values(), strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.param_groups[0]["lr"] = 2e-3 * (1.0 - step / steps)
            optimizer.step()
    both.eval().requires_grad_(False)
    name = f"cnn64-{weights_hash(both.parameters(), mean, std)[:8]}@{train.shape[1]}x{train.shape[2]}"
    weights, biases = heads.weight.split(sizes), heads.bias.split(sizes)
    judges = {}
    for (column, known), weight, bias in zip(values.items(), weights, biases, strict=True):
        head = skip_init(nn.Linear, weight.shape[1], len(known)).requires_grad_(False)
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        titles = titles_of(train, column, known)
        judges[column] = Classifier(body, head, mean, std, 0.0, name, train.shape, titles)
    return {column: _tested(judge, held_out, column, values[column]) for column, judge in judges.items()}


def _tested(judge: Classifier, held_out: ImageDataset, column: str, values: Sequence[Any]) -> Classifier:
    true = numbered(held_out.values(column), values)
    rows = (true != UNKNOWN).nonzero()[:, 0]
    if not len(rows):
        return judge
    right = [judge.labels(held_out.batch(part.numpy())) == true[part] for part in rows.split(PART)]
    return replace(judge, test_accuracy=float(torch.cat(right).double().mean()))


def attributes(
    samples: Iterable[Tensor],
    num: int,
    asked: Mapping[str, Sequence[Any]] | None,
    train: ImageDataset,
    held_out: ImageDataset,
    training: Sequence[int],
    judges: Mapping[str, Classifier] | None = None,
    progress: Progress | None = None,
) -> tuple[Attribute, ...]:
    """How the values of every attribute of the data fare; () where there is none.

    Args:
        samples: `num` images, in parts.
        asked: what the samples were asked for, from its start again after its end; None for nothing.
        training: the training images, in random order, that a value's samples are compared with.
        judges: as `train_judges` gives them; trained on the spot when left out.
        progress: called with (done, total) judgements.
    """
    judges = train_judges(train, held_out) if judges is None else judges
    if not judges:
        return ()
    body = next(iter(judges.values()))
    drawn, held, reference = (
        torch.cat([body.features(part) for part in images])
        for images in (samples, parts_of(held_out, range(len(held_out))), parts_of(train, training))
    )
    values, found = attribute_values(train), []
    for done, (name, judge) in enumerate(judges.items(), 1):
        true, training_true = (numbered(data.values(name), values[name]) for data in (held_out, train))
        wanted = None
        if asked is not None and name in asked:
            row = [asked[name][i % len(asked[name])] for i in range(num)]
            wanted = numbered(row, values[name])
        rows = class_rows(
            judge.class_names,
            seen(judge, drawn, wanted),
            seen(judge, held, true),
            seen(judge, reference, training_true[list(training)]),
        )
        found.append(Attribute(name, (judge.name, judge.test_accuracy), rows))
        if progress is not None:
            progress(done, len(judges))
    return tuple(found)


def label_rows(
    judge: Classifier,
    samples: Iterable[Tensor],
    asked: Tensor | None,
    train: ImageDataset,
    held_out: ImageDataset,
    training: Sequence[int],
) -> tuple[ClassRow, ...]:
    """How the classes fare; arguments as for `attributes`, but `asked` the class of each sample."""
    assert train.labels is not None
    assert held_out.labels is not None
    sides: tuple[tuple[Iterable[Tensor], Tensor | None], ...] = (
        (samples, asked),
        (parts_of(held_out, range(len(held_out))), torch.from_numpy(held_out.labels)),
        (parts_of(train, training), torch.from_numpy(train.labels[list(training)])),
    )
    found = [seen(judge, torch.cat([judge.features(part) for part in images]), true) for images, true in sides]
    return class_rows(train.class_names, *found)


@torch.no_grad()
def seen(judge: Classifier, features: Tensor, true: Tensor | None) -> Seen:
    """What a judge sees, by features of its own."""
    return Seen(features, judge.head(features.float()).argmax(1), true)


def numbered(found: Sequence[Any], values: Sequence[Any]) -> Tensor:
    """Which of the values each is, int64 [N]; -1 where it is none of them, or missing."""
    place = {value: number for number, value in enumerate(values)}
    return torch.tensor([place.get(value, UNKNOWN) for value in found], dtype=torch.int64)


def titles_of(data: ImageDataset, column: str, values: Sequence[Any]) -> tuple[str, ...]:
    """What people call the values of a column."""
    names = data.columns[column].names
    return names or tuple(f"{value:g}" for value in values)


def parts_of(data: ImageDataset, rows: Sequence[int]) -> Iterator[Tensor]:
    """Some images, uint8 [at most 512, C, H, W] at a time."""
    return (data.batch(rows[first : first + PART]) for first in range(0, len(rows), PART))
