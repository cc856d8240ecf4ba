"""The evaluation as one HTML file: pictures inside, nothing from a network, warnings on top."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL.Image import Image

from diff_diffusion.evaluation.beside import ClassRow, Share
from diff_diffusion.evaluation.captions import CaptionAgreement
from diff_diffusion.evaluation.findings import Evaluation
from diff_diffusion.evaluation.records import Record
from diff_diffusion.storage.folder import refusals, to_json, write_file

RECORD, REPORT = "record.json", "report.html"
CAPTIONS = {
    "samples": "Samples",
    "real": "Real images, held out, of what these samples were asked for",
    "nearest": "The closest pairs: samples over their nearest training images",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --paper: #fff; --line: #e4e7ec; --wash: #f7f8fa;
  --warn: #8a2c0d; --warnwash: #fdf0ea; --good: #155e3c; --goodwash: #ebf7f0; --a: #2563a8; --b: #d9622b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b3; --paper: #14181f; --line: #2b323d;
  --wash: #1b212a; --warn: #ffb59a; --warnwash: #3a2018; --good: #8fd9b0; --goodwash: #16301f; --a: #6fa8e8;
  --b: #f0925f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", "PingFang SC",
  "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); }
.note { border-left: 4px solid; border-radius: 4px; padding: .55rem .9rem; margin: .5rem 0; }
.warn { color: var(--warn); background: var(--warnwash); } .good { color: var(--good); background: var(--goodwash); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; } th:first-child, td:first-child { text-align: left; }
tr.off td { color: var(--warn); background: var(--warnwash); }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .3rem; }
img { max-width: 100%; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1.25rem; }
svg { width: 100%; max-width: 40rem; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""


def write_report(found: Evaluation, folder: Path) -> tuple[Path, Path]:
    """record.json and report.html in `folder`, each whole or not at all.

    Raises:
        CheckpointError: the disk refused.
    """
    record, page = folder / RECORD, folder / REPORT
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_file(record, to_json(found.to_json()))
    write_file(page, report(found).encode())
    return record, page


def report(found: Evaluation) -> str:
    """The page."""
    of = found.setting
    title = f"{of.data}: {found.num} samples"
    asked = f"{of.sampler} on {of.grid}, {of.steps} steps, guidance {of.guidance:g}, {of.weights} weights"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="soft">{_text(asked)}, seeds {of.seeds[0]} to {of.seeds[1] - 1}</p>',
        *(f'<p class="note warn">{_text(warning)}</p>' for warning in found.warnings),
    ]
    if not found.audit.copies:
        parts.append(f'<p class="note good">{_text(found.audit.verdict)}</p>')
    shown = {name: _picture(image, CAPTIONS[name]) for name, image in found.pictures.items()}
    parts.append(f'<div class="two">{shown.pop("samples", "")}{shown.pop("real", "")}</div>')
    if found.records:
        rows = [_metric(record) for record in found.records]
        parts += [
            "<h2>Distances and shares</h2>",
            _table(("", "samples", "95 % interval", "real images", "better", "against"), rows),
            '<p class="soft">“Real images” is the floor: held-out images in the samples’ place, at the same n. A model '
            "as good as the data would come out there, not at 0 or 1. “Against” is how many training images it is "
            "compared with.</p>",
        ]
    parts += ["<h2>Copies of training images</h2>", *_audit(found), *shown.values()]
    if found.classes and found.judge is not None:
        parts += _fares("Classes", "class", found.classes, found.judge)
    for attribute in found.attributes:
        parts += _fares(attribute.name, "value", attribute.rows, attribute.judge)
    if found.captions is not None:
        parts += _captions(found.captions)
    parts += ["<h2>Loss at each noise level</h2>", _curves(found), *_beside(found)]
    parts.append(
        f"<footer>model {_text(of.model)} · data {_text(of.fingerprint)}, {_text(of.split)} · "
        f"diff-diffusion {_text(of.version)}</footer>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{_text(title)}</title><style>{STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _text(said: object) -> str:
    return html.escape(str(said))


def _picture(image: Image, caption: str) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    data = base64.b64encode(content.getvalue()).decode()
    text = _text(caption)
    return f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="data:image/png;base64,{data}"></figure>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], off: Sequence[bool] = ()) -> str:
    """Rows of HTML under a head of text; those that are `off` are marked."""
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    lines = [f"<td>{'</td><td>'.join(row)}</td>" for row in rows]
    marks = [' class="off"' if i < len(off) and off[i] else "" for i in range(len(lines))]
    body = "".join(f"<tr{mark}>{line}</tr>" for mark, line in zip(marks, lines, strict=True))
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _metric(record: Record) -> list[str]:
    title, (low, high) = _text(record.name), record.interval
    numbers = [f"{record.value:.4g}", f"{low:.4g} to {high:.4g}", f"{record.floor:.4g}"]
    return [title, *numbers, "higher" if record.higher_is_better else "lower", str(record.reference)]


def _share(share: Share | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share[0]:.1f} % <span class='soft'>({100 * share[1][0]:.0f} to {100 * share[1][1]:.0f})</span>"


def _fares(title: str, what: str, rows: Sequence[ClassRow], judge: tuple[str, float]) -> list[str]:
    head = (what, "share of samples", "of real images", "as asked", "judge on real images", "look real", "real ones do")
    cells = [
        [_text(r.name), *map(_share, (r.share, r.real_share, r.agreement, r.judge, r.precision, r.real_precision))]
        for r in rows
    ]
    counts = ", ".join(f"{row.name} {row.n} and {row.real_n}" for row in rows)
    says = (
        f"Told by {judge[0]}, right on {100 * judge[1]:.1f} % of held-out images. Looking real is lying within the "
        f"training images of the same {what}, on its features; n, samples and held-out images: {counts}. Marked: "
        "behind real images by more than chance."
    )
    marked = [row.behind or row.worse for row in rows]
    return [f"<h2>{_text(title)}</h2>", _table(head, cells, marked), f'<p class="soft">{_text(says)}</p>']


def _captions(of: CaptionAgreement) -> list[str]:
    says = (
        f"Told by {of.judge}, among an image's own and {of.few - 1} others of {of.captions} held-out captions; chance "
        f"is {100 / of.few:.1f} %. What it finds of real images, whose captions it never saw, is the most that can be "
        f"expected; n = {of.n}."
    )
    rows = [["find their own caption first", _share(of.share), _share(of.real)]]
    table = _table((of.column, "samples", "real images"), rows, [of.behind])
    return ["<h2>Captions</h2>", table, f'<p class="soft">{_text(says)}</p>']


def _audit(found: Evaluation) -> list[str]:
    of = found.audit
    rows = [
        ["copies", _share((of.share, of.share_interval)), _share((of.real_share, of.real_interval))],
        ["median distance to the nearest, grey values", f"{of.median:.1f}", f"{of.real_median:.1f}"],
    ]
    says = (
        f"A copy is nearer to a training image, by pixels and by features, than all but one in a hundred of {of.real} "
        f"(by pixels alone {100 * of.share_pixels:.1f} % of samples are, by features alone "
        f"{100 * of.share_features:.1f} %)."
    )
    return [_table(("", f"{of.n} samples", f"{of.real_n} real images"), rows), f'<p class="soft">{_text(says)}</p>']


def _curves(found: Evaluation) -> str:
    """Held-out and training loss against the noise level, noisier to the right."""
    curves = {"held out": found.held_out_loss["levels"], "training": found.train_loss["levels"]}
    points = [point for levels in curves.values() for point in levels]
    (left, right), top = (max(p[0] for p in points), min(p[0] for p in points)), max(p[1] for p in points) or 1.0
    wide = (left - right) or 1.0

    def place(level: float, loss: float) -> str:
        return f"{50 + 520 * (left - level) / wide:.1f},{170 - 150 * max(loss, 0.0) / top:.1f}"

    lines = [
        f'<polyline points="{" ".join(place(*p) for p in levels)}" fill="none" stroke="var(--{ink})" '
        f'stroke-width="2"{dash}/>'
        for levels, ink, dash in zip(curves.values(), "ab", ("", ' stroke-dasharray="5 4"'), strict=True)
    ]
    means = f"held out {found.held_out_loss['mean']:.4g} (line), training {found.train_loss['mean']:.4g} (dashed)"
    return (
        '<svg viewBox="0 0 600 205" role="img" aria-label="loss at each noise level">'
        '<line x1="50" y1="170" x2="570" y2="170" stroke="var(--line)"/>'
        '<line x1="50" y1="20" x2="50" y2="170" stroke="var(--line)"/>'
        f'{"".join(lines)}<text x="44" y="24" text-anchor="end">{top:.3g}</text>'
        f'<text x="44" y="174" text-anchor="end">0</text><text x="50" y="190">λ = {left:.1f}</text>'
        f'<text x="570" y="190" text-anchor="end">λ = {right:.1f}, noisier</text></svg><p class="soft">{means}</p>'
    )


def _beside(found: Evaluation) -> list[str]:
    rows = []
    if found.bits is not None:
        error = "" if found.bits.error is None else f" ± {found.bits.error:.3f}"
        rows.append(["bits per dimension, held out", f"{found.bits.bits:.3f}{error}", "-"])
    if found.spread[1]:
        rows.append(["mean distance between two, on features", *(f"{spread:.4g}" for spread in found.spread)])
    off = [False] * len(rows)
    for i, channel in enumerate(found.channels):
        sides = ((channel.mean, channel.std), (channel.real_mean, channel.real_std))
        rows.append([f"channel {i}, mean and deviation", *(f"{mean:.1f}, {std:.1f}" for mean, std in sides)])
        off.append(channel.drifts)
    return ["<h2>Beside quality</h2>", _table(("", "samples", "real images"), rows, off)]
