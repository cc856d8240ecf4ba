"""The account of a data set, with what may spoil a training and can be seen in the data beforehand."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from diff_diffusion.data.images import Header
from diff_diffusion.data.plan import Plan
from diff_diffusion.data.report import DataReport
from diff_diffusion.data.store import Digests
from diff_diffusion.errors import listed

FEW_IMAGES = 100
IMBALANCE = 20  # largest class : smallest class
ENLARGED = 2.0


def account(
    name: str,
    plan: Plan,
    headers: Sequence[Header],
    digests: Digests,
    labels: np.ndarray | None,
    class_names: Sequence[str],
) -> DataReport:
    """The account of training images that all could be used; a folder adds what it skipped and held out.

    Args:
        name: the path or built-in name.
        plan: the shape they got, and why.
        headers: of the images, as they lie.
        digests: hashes of their pixels after fitting.
        labels: int [N], indices into class_names; None without classes.
    """
    sizes = np.bincount(labels, minlength=len(class_names)).tolist() if labels is not None else []
    classes = dict(zip(class_names, sizes, strict=True))
    return DataReport(
        name=name,
        found=len(headers),
        used=len(headers),
        held_out=0,
        shape=plan.shape,
        size_why=plan.size_why,
        channels_why=plan.channels_why,
        heights=_spread([header.height for header in headers]),
        widths=_spread([header.width for header in headers]),
        modes=dict(Counter(header.mode for header in headers).most_common()),
        classes=classes,
        warnings=_warnings(plan.shape, headers, digests, classes),
    )


def _spread(sides: Sequence[int]) -> tuple[int, float, int]:
    return min(sides), statistics.median(sides), max(sides)


def _warnings(
    shape: tuple[int, int, int], headers: Sequence[Header], digests: Digests, classes: Mapping[str, int]
) -> list[str]:
    _, height, width = shape
    total = len(headers)
    warnings = []
    if total < FEW_IMAGES:
        warnings.append(f"{total} images are few: below {FEW_IMAGES}, expect near copies of them rather than new ones")
    enlarged = sum(max(height / header.height, width / header.width) >= ENLARGED for header in headers)
    if enlarged:
        warnings.append(f"{enlarged} of {total} images are enlarged {ENLARGED:g} times or more, and will look soft")
    copies = total - digests.distinct()
    if copies:
        warnings.append(f"{copies} of {total} images are exact copies of others at this size")
    if classes:
        small, large = min(classes, key=lambda name: classes[name]), max(classes, key=lambda name: classes[name])
        if classes[large] > IMBALANCE * classes[small]:
            warnings.append(f"class {large!r} has {classes[large]} images, {small!r} only {classes[small]}")
        single = [name for name, count in classes.items() if count == 1]
        if single:
            warnings.append(f"{len(single)} classes have one image each ({listed(single)}): are these folders classes?")
    return warnings
