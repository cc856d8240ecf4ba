"""An evaluation that cannot mislead: samples and held-out real images, both against the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from diff_diffusion import __version__
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.data import ImageDataset
from diff_diffusion.data.survey import Progress
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.evaluation.attributes import attributes, label_rows, parts_of
from diff_diffusion.evaluation.audit import Audit, audit, nearest_training, pairs_sheet, real_images
from diff_diffusion.evaluation.beside import ClassRow, channels
from diff_diffusion.evaluation.captions import CaptionJudge, caption_agreement, caption_column
from diff_diffusion.evaluation.distances import diversity
from diff_diffusion.evaluation.dual import dual_of
from diff_diffusion.evaluation.feature_networks import FeatureNetwork, Pixels, random_features
from diff_diffusion.evaluation.features import Classifier, train_classifier
from diff_diffusion.evaluation.findings import Evaluation, warnings
from diff_diffusion.evaluation.likelihood import bits_per_dim
from diff_diffusion.evaluation.measure import LEAST, METRICS, described, measured
from diff_diffusion.evaluation.records import Record, Setting
from diff_diffusion.evaluation.samples import Samples
from diff_diffusion.models import DiffusionModel
from diff_diffusion.models.held_out import held_out_loss
from diff_diffusion.models.model import LABEL
from diff_diffusion.pictures import sheet
from diff_diffusion.samplers.sampler import Sampler

FEWEST, MOST = 256, 2000
"""How many samples are drawn when nothing is said: as many as images are held out, within these."""
REFERENCE = 10_000
"""Training images whose features are kept, at most; the audit looks at all of them."""
BITS_OF = 64
"""Held-out images of bits per dimension."""
SHOWN, COLUMNS = 40, 10

Tell = Callable[[str], Progress]


def evaluate(
    model: DiffusionModel,
    data: ImageDataset,
    num: int | None = None,
    *,
    features: FeatureNetwork | None = None,
    judge: Classifier | None = None,
    captions_judge: CaptionJudge | None = None,
    seed: int = 0,
    steps: int | None = None,
    sampler: Sampler | str | None = None,
    guidance: float | None = None,
    weights: str = "ema",
    folder: Path | None = None,
    ranks: int = 1,
    against: Sequence[Record] = (),
    tell: Tell | None = None,
) -> Evaluation:
    """What a model's samples are, beside held-out real images, both compared with the training images.

    Samples are asked for what the held-out images are, in a fixed random order of them, so that neither side of a
    distance has classes, captions or masks that the other has not; those beyond, for what training images are.

    Args:
        model: of images of the data's shape.
        data: what it was trained on, as training saw it: the same images are held out.
        num: samples; as many as are held out when left out, from 256 to 2,000.
        features: the network that distances are measured on; the judge when left out, or random features where the
            data have no labels.
        judge: a classifier of the data's classes that saw the train split alone; trained on the spot when left out.
        captions_judge: what tells whether images show their captions; a dual encoder trained on the spot on the train
            split when left out and samples are asked for captions.
        seed: of the first sample.
        steps, sampler, guidance: the model's own where None.
        weights: which of the model's weights it holds, for the records.
        folder: where drawn samples are kept and found again; nowhere where None. Those of two settings at most.
        ranks: how many processes draw them together, of which this is the first; the others call `draw_share`.
        against: records of another evaluation: if these will not be of their kind, nothing is drawn.
        tell: called with what is being done, gives a callback (done, total).

    Raises:
        ConfigError: a number out of range, or options the model has no use for.
        IncompatibleError: the data are of another shape, other classes or other conditions than the model's; or
            `against` is of another kind.
    """
    train, held_out = data.split()
    samples, num = _asked_for(model, train, held_out, num, seed, steps, sampler, guidance, folder)
    asked, order = samples.asked, _some(len(held_out), len(held_out))
    said, asked_of = caption_column(train, asked), min(num, len(held_out))
    if captions_judge is not None and said is None:
        raise ConfigError("a judge of captions was given, and samples are asked for none: leave it out")
    say: Callable[[str], Progress | None] = tell or (lambda what: None)
    if judge is None and train.labels is not None and len(train.class_names) > 1:
        judge = train_classifier(train, held_out)
    # Pixels alone know no copy from a blur, so that the audit looks with another network beside.
    by_pixels = isinstance(features, Pixels)
    network: FeatureNetwork = (None if by_pixels else features) or judge or random_features(train.shape)
    pixels = Pixels(train.shape)
    n, setting = min(num, len(held_out), len(train)), _setting(samples, num, weights, train, held_out)
    for other in against[:1]:
        replace(other, **described(pixels if by_pixels else network, n, setting)).against(other)
    if ranks > 1:
        samples.share(num, 0, ranks, say("sampling"))

    real, own, what = real_images(train, held_out)
    drawn, drawn_pixels = _features(samples, num, (network, pixels), say("sampling"))
    if folder is not None:
        samples.forget_others()
    held = [_of_rows(net, held_out, order[:n]) for net in (network, pixels)]
    reference = [_of_rows(net, train, _some(len(train), REFERENCE)) for net in (network, pixels)]
    seeking = [(net, torch.cat([f, net.features(real)])) for net, f in ((pixels, drawn_pixels), (network, drawn))]
    near, seen = nearest_training(seeking, torch.cat([torch.full((num,), -1), own]), train, say("searching for copies"))
    found = audit(near.split(num), seen.split(num), what)
    labels = None
    if asked is not None and LABEL in asked and model.class_names:
        labels = torch.tensor([asked[LABEL][i % len(asked[LABEL])] for i in range(num)])
    strata = None if labels is None else labels[:n]
    records: tuple[Record, ...] = ()
    if n >= LEAST:
        if not by_pixels:
            records = measured(network, drawn[:n], held[0], reference[0], setting, strata=strata)
        only = METRICS if by_pixels else ("SW",)
        records += measured(pixels, drawn_pixels[:n], held[1], reference[1], setting, only, strata)
    classes: tuple[ClassRow, ...] = ()
    if judge is not None and held_out.labels is not None:
        classes = label_rows(judge, samples.parts(num), labels, train, held_out, _some(len(train), REFERENCE))
    fair = attributes(
        samples.parts(num), num, asked, train, held_out, _some(len(train), REFERENCE), progress=say("judging columns")
    )
    shown = None
    if said is not None and asked is not None and len(set(asked[said][:asked_of])) > 1:
        reader, real_parts = captions_judge or dual_of(train, said), parts_of(held_out, order[:asked_of])
        shown = caption_agreement(reader, said, asked[said][:asked_of], samples.parts(num), real_parts)
    bits, beyond = None, []
    if isinstance(model.recipe.process, Gaussian):
        try:
            bits = bits_per_dim(model, held_out, num=BITS_OF, progress=say("measuring likelihood"))
        except IncompatibleError as error:
            beyond.append(f"no bits per dimension: {error}")
    result = Evaluation(
        setting=setting,
        num=num,
        records=records,
        held_out_loss=held_out_loss(model, held_out),
        train_loss=held_out_loss(model, train),
        bits=bits,
        channels=channels(samples.parts(num), _parts(train), train.shape[0]),
        spread=(diversity(drawn[:n]), diversity(held[0])) if n > 1 else (0.0, 0.0),
        judge=None if judge is None else (judge.name, judge.test_accuracy),
        classes=classes,
        attributes=fair,
        captions=shown,
        audit=found,
        warnings=(),
        pictures=_pictures(samples, num, held_out.batch(order[:SHOWN]), train, found),
    )
    trained_on = model.facts.get("train images", len(train))
    if trained_on != len(train):
        beyond.append(
            f"the model was trained on {trained_on} images of {model.facts.get('data')}, and these are {len(train)} of "
            f"{result.setting.data}: if they are not what it was trained on, it may have seen images that are held out"
        )
    if n < LEAST:
        beyond.append(f"no distances: {n} images can be compared, and at least {LEAST} are needed")
    elif n < num:
        beyond.append(f"distances compare {n} samples, not {num}: a floor at the same n needs as many real images")
    return replace(result, warnings=(*warnings(result), *beyond))


def draw_share(
    model: DiffusionModel,
    data: ImageDataset,
    num: int | None = None,
    *,
    rank: int,
    ranks: int,
    folder: Path,
    seed: int = 0,
    steps: int | None = None,
    sampler: Sampler | str | None = None,
    guidance: float | None = None,
) -> None:
    """What a process beside the first does for an evaluation: it draws each `ranks`-th part of the samples.

    Args:
        rank: which of the processes this is, from 1; all else as for `evaluate`, the same in all processes.
    """
    samples, num = _asked_for(model, *data.split(), num, seed, steps, sampler, guidance, folder)
    samples.share(num, rank, ranks)


def _asked_for(
    model: DiffusionModel,
    train: ImageDataset,
    held_out: ImageDataset,
    num: int | None,
    seed: int,
    steps: int | None,
    sampler: Sampler | str | None,
    guidance: float | None,
    folder: Path | None,
) -> tuple[Samples, int]:
    """The samples of an evaluation, none of them drawn yet, and their number."""
    if num is not None and num < 2:
        raise ConfigError(f"an evaluation needs at least 2 samples, not {num}; hundreds, to say anything")
    model.check_data(train)
    first, more = held_out.cond(_some(len(held_out), len(held_out))), train.cond(_some(len(train), MOST))
    asked = _asked(model, first, more)
    _, walker, _ = model.plan(steps=steps, sampler=sampler, guidance=guidance, conditional=asked is not None)
    grid = model.chosen_grid(None, steps)
    scale = (model.recipe.guidance if guidance is None else guidance) if asked else 1.0
    return Samples(model, asked, seed, walker, grid, scale, folder), num or min(max(FEWEST, len(held_out)), MOST)


def _setting(samples: Samples, num: int, weights: str, train: ImageDataset, held_out: ImageDataset) -> Setting:
    return Setting(
        model=samples.model.fingerprint(),
        weights=weights,
        sampler=repr(samples.sampler),
        grid=repr(samples.grid),
        steps=samples.grid.num_steps,
        guidance=samples.guidance,
        seeds=(samples.seed, samples.seed + num),
        data=Path(train.name).name,
        fingerprint=train.fingerprint()[:16],
        split=f"{len(train)} train, {len(held_out)} held out ({held_out.fingerprint()[:8]})",
        images=train.shape,
        version=__version__,
    )


def _asked(model: DiffusionModel, first: dict[str, Any], more: dict[str, Any]) -> dict[str, list[Any]] | None:
    """What the model can be asked for, of two sets one after the other; None if nothing."""
    known, others = model.known(first), model.known(more)
    return {name: [*values, *others[name]] for name, values in known.items()} if known and others else None


def _features(
    samples: Samples, num: int, networks: tuple[FeatureNetwork, FeatureNetwork], progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Of samples, part by part, so that no more than a part is in memory."""
    found = [[network.features(part) for network in networks] for part in samples.parts(num, progress)]
    first, second = (torch.cat(list(column)) for column in zip(*found, strict=True))
    return first, second


def _some(count: int, most: int) -> list[int]:
    """Which rows stand for `count`: all, or a fixed random choice; in random order, so that its start is one too."""
    chosen: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(1))[:most].tolist()
    return chosen


def _of_rows(network: FeatureNetwork, data: ImageDataset, rows: list[int]) -> Tensor:
    return torch.cat([network.features(data.batch(rows[i : i + 512])) for i in range(0, len(rows), 512)])


def _parts(data: ImageDataset) -> Any:
    rows = _some(len(data), REFERENCE)
    return map(data.batch, (rows[i : i + 512] for i in range(0, len(rows), 512)))


def _pictures(samples: Samples, num: int, real: Tensor, train: ImageDataset, found: Audit) -> dict[str, Image]:
    closest = torch.stack([samples.image(sample, num) for sample, _, _ in found.pairs])
    return {
        "samples": sheet(next(samples.parts(num))[:SHOWN], COLUMNS),
        "real": sheet(real, COLUMNS),
        "nearest": pairs_sheet(closest, found, train),
    }
