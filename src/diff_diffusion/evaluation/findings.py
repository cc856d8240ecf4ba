"""What an evaluation finds: every number with its interval, its floor and all that it depends on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from typing import Any

from PIL.Image import Image

from diff_diffusion.errors import listed
from diff_diffusion.evaluation.attributes import Attribute
from diff_diffusion.evaluation.audit import Audit
from diff_diffusion.evaluation.beside import Channel, ClassRow
from diff_diffusion.evaluation.captions import CaptionAgreement
from diff_diffusion.evaluation.likelihood import BitsPerDim
from diff_diffusion.evaluation.records import Record, Setting

SMALL = 200
_BEHIND, _WORSE = attrgetter("behind"), attrgetter("worse")
ALIKE = 0.8
"""Samples that lie less than this share of real images' distance from each other are alike."""


@dataclass(frozen=True)
class Evaluation:
    """All that was measured.

    Attributes:
        setting: what every number depends on.
        num: samples drawn; distances compare fewer where fewer real images are held out, and say so.
        records: distances and shares on feature networks.
        held_out_loss, train_loss: mean, and [λ, loss] at eight noise levels; the same noise for both.
        bits: bits per dimension of held-out images; None where the process has none.
        channels: statistics of each channel.
        spread: mean pairwise feature distance of samples, and of as many held-out images.
        judge: the classifier that told labels, and its accuracy on held-out images; None without labels.
        classes: a row for each class.
        attributes: a table like it for every other column of few values; quality is told on their judge's features.
        captions: how many samples show their caption; None where they were asked for none.
        audit: whether samples copy training images.
        warnings: what to know before any number is believed, the gravest first.
        pictures: sheets of samples, of real images asked for the same, and of samples over their nearest training
            images, the closest first; by title.
    """

    setting: Setting
    num: int
    records: tuple[Record, ...]
    held_out_loss: dict[str, Any]
    train_loss: dict[str, Any]
    bits: BitsPerDim | None
    channels: tuple[Channel, ...]
    spread: tuple[float, float]
    judge: tuple[str, float] | None
    classes: tuple[ClassRow, ...]
    attributes: tuple[Attribute, ...]
    captions: CaptionAgreement | None
    audit: Audit
    warnings: tuple[str, ...]
    pictures: dict[str, Image] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        told = asdict(replace(self, pictures={}))
        del told["pictures"]
        return told | {
            "audit": self.audit.to_json(),
            "classes": [row.to_json() for row in self.classes],
            "captions": None if self.captions is None else self.captions.to_json(),
            "attributes": [attribute.to_json() for attribute in self.attributes],
        }


def warnings(found: Evaluation) -> list[str]:
    """What is to be known before any of these numbers is believed, the gravest first."""
    told = [found.audit.verdict] if found.audit.copies else []
    for i, channel in enumerate(found.channels):
        if channel.drifts:
            told.append(
                f"channel {i} drifts: samples have mean {channel.mean:.1f} and standard deviation {channel.std:.1f}, "
                f"the training images {channel.real_mean:.1f} and {channel.real_std:.1f}"
            )
    if found.spread[0] < ALIKE * found.spread[1]:
        share = found.spread[0] / found.spread[1]
        told.append(f"samples are alike: they lie {100 * share:.0f} % as far from each other as real images do")
    for what, rows in (("classes", found.classes), *((f"{each.name}:", each.rows) for each in found.attributes)):
        behind, worse = ([row.name for row in rows if off(row)] for off in (_BEHIND, _WORSE))
        if behind:
            told.append(f"{what} drawn too rarely or wrongly, beyond chance: {listed(behind)}")
        if worse:
            told.append(f"{what} drawn worse than real images of their kind, beyond chance: {listed(worse)}")
    if found.captions is not None and found.captions.weak:
        told.append(
            f"captions cannot be judged: {found.captions.judge} finds those of real images no better than chance"
        )
    elif found.captions is not None and found.captions.behind:
        shares = (f"{100 * share[0]:.1f} %" for share in (found.captions.share, found.captions.real))
        told.append(
            "captions are not drawn as real images show them: {} of samples are found, {} of those".format(*shares)
        )
    if found.setting.weights == "raw":
        told.append("these are the raw weights; the averaged ones are what `sample` uses")
    small = min((record.n for record in found.records), default=SMALL)
    if small < SMALL:
        told.append(f"n = {small} is small: intervals are wide, and distances far above 0 for real images too")
    return told
