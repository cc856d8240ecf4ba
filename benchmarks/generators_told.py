"""What benchmarks/generators.py says of its numbers: tables, the articles' among them, and those of docs/compare.md."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outcome import RESULTS, Outcome, Table, markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compare.md"
MARKS = ("<!-- by benchmarks/generators.py, from here -->", "<!-- to here -->")
PARTS = {"ours": "diffusion", "gan": "GAN", "vae": "VAE"}
MISSING, SPREAD = 0.02, 0.5
"""A class with less than this share of the samples is missing; samples collapse where one is, or where the mean
distance between two of them is below this part of the real images'."""

Part = dict[str, Any]


def collapsed(part: Part) -> bool:
    return not part["diverged"] and (bool(missing(part["drawn"][0])) or part["drawn"][0]["spread"] < SPREAD)


def missing(drawn: dict[str, Any]) -> list[int]:
    return [number for number, share in enumerate(drawn["classes"]) if share < MISSING]


def values(parts: Sequence[Part], name: str, metric: str, evaluations: int = 0) -> list[float]:
    """A metric of each training of a contestant that did not diverge, at its own number of evaluations or another."""
    mine = [part for part in parts if part["asked"]["contestant"] == name and not part["diverged"]]
    rows = [drawn for part in mine for drawn in part["drawn"]]
    own = evaluations or (rows[0]["evaluations"] if rows else 0)
    return [float(row[metric]) for row in rows if row["evaluations"] == own]


def ranged(found: Sequence[float], how: str) -> str:
    """The median, and the range where there is one: "27.1 (25.0 to 30.2)"."""
    if not found:
        return "-"
    middle, low, high = (format(value, how) for value in (statistics.median(found), min(found), max(found)))
    return middle if low == high else f"{middle} ({low} to {high})"


def ordered(parts: Sequence[Part], metric: str, higher: bool) -> str:
    """The contestants from best to worst; "≈" where the worse's best seed is not behind the better's worst."""
    found = {name: values(parts, name, metric) for name in PARTS if values(parts, name, metric)}
    sign = -1.0 if higher else 1.0
    names = sorted(found, key=lambda name: sign * statistics.median(found[name]))
    said = PARTS[names[0]] if names else "-"
    for better, worse in itertools.pairwise(names):
        apart = max(sign * value for value in found[better]) < min(sign * value for value in found[worse])
        said += f" {'>' if apart else '≈'} {PARTS[worse]}"
    return said


def measured(parts: Sequence[Part], floor: dict[str, Any]) -> Table:
    """Everything of each contestant, beside the floor."""
    columns = (
        "",
        "parameters trained",
        "of the generator",
        "steps",
        "images seen",
        "FD",
        "precision",
        "recall",
        "coverage",
    )
    rows = []
    for name, label in PARTS.items():
        mine = [part for part in parts if part["asked"]["contestant"] == name]
        size = (f"{mine[0]['parameters']:,}", f"{mine[0]['of the generator']:,}")
        long = (ranged([part[key] for part in mine], ",.0f") for key in ("steps", "images seen"))
        good = (ranged(values(parts, name, metric), ".3f") for metric in ("precision", "recall", "coverage"))
        rows.append((label, *size, *long, ranged(values(parts, name, "FD"), ".1f"), *good))
    shares = (f"{floor[metric]:.3f}" for metric in ("precision", "recall", "coverage"))
    rows.append(("real images, held out", "-", "-", "-", "-", f"{floor['FD']:.1f}", *shares))
    return Table("The same images, minutes and number of parameters: median (range) of the seeds", columns, rows)


def seeds(parts: Sequence[Part]) -> Table:
    rows = []
    for part in sorted(parts, key=lambda part: (list(PARTS).index(part["asked"]["contestant"]), part["asked"]["seed"])):
        drawn = part["drawn"][0] if part["drawn"] else None
        fits = (
            ("-", "-", "-", "-")
            if drawn is None
            else (f"{drawn['FD']:.1f}", f"{drawn['recall']:.3f}", f"{drawn['spread']:.2f}", str(len(missing(drawn))))
        )
        flags = ("yes" if part["diverged"] else "no", "yes" if collapsed(part) else "no")
        rows.append((PARTS[part["asked"]["contestant"]], str(part["asked"]["seed"]), *fits, *flags))
    columns = ("", "seed", "FD", "recall", "spread by real images'", "classes missing", "diverged", "collapsed")
    return Table("Each training", columns, rows)


def fewer(parts: Sequence[Part]) -> Table:
    """Diffusion at several numbers of evaluations, beside the GAN's time."""
    counts = sorted({row["evaluations"] for part in parts for row in part["drawn"] if row["evaluations"] > 1})[::-1]
    one = values(parts, "gan", "ms")
    rows = []
    for evaluations in counts:
        shares = (ranged(values(parts, "ours", metric, evaluations), ".3f") for metric in ("precision", "recall"))
        ms = values(parts, "ours", "ms", evaluations)
        slower = f"{statistics.median(ms) / statistics.median(one):,.0f} ×" if ms and one else "-"
        fd = ranged(values(parts, "ours", "FD", evaluations), ".1f")
        rows.append((str(evaluations), fd, *shares, ranged(ms, ".1f"), slower))
    columns = ("evaluations", "FD", "precision", "recall", "ms an image", "the GAN's time")
    return Table("Diffusion in fewer evaluations, the same weights", columns, rows)


def articles(parts: Sequence[Part]) -> Table:
    """The articles' table, what was measured under each word."""

    def each(said: Callable[[str], str]) -> list[str]:
        return [said(name) for name in PARTS]

    def stable(name: str) -> str:
        mine = [part for part in parts if part["asked"]["contestant"] == name]
        ends = sum(part["diverged"] for part in mine), sum(collapsed(part) for part in mine)
        fd = values(parts, name, "FD")
        spread = f"; worst FD {max(fd) / min(fd):.2f} × the best" if len(fd) > 1 else ""
        return f"{ends[0]} of {len(mine)} diverged, {ends[1]} collapsed{spread}"

    def quality(name: str) -> str:
        fd, share = ranged(values(parts, name, "FD"), ".1f"), ranged(values(parts, name, "precision"), ".2f")
        return f"FD {fd}, precision {share}"

    def variety(name: str) -> str:
        mine = [part for part in parts if part["asked"]["contestant"] == name and part["drawn"]]
        gone = max((len(missing(part["drawn"][0])) for part in mine), default=0)
        shares = (f"{metric} {ranged(values(parts, name, metric), '.2f')}" for metric in ("recall", "coverage"))
        return f"{', '.join(shares)}, at most {gone} classes missing"

    def speed(name: str) -> str:
        return f"{ranged(values(parts, name, 'ms'), '.3g')} ms an image"

    def by(*metrics: str) -> str:
        return "; ".join(f"by {metric} {ordered(parts, metric, metric != 'FD')}" for metric in metrics)

    rows = [
        ("training", "*stable*", "*most unstable*", "*fairly stable*", "-"),
        ("", *each(stable), "-"),
        ("quality", "*high*", "*very high*", "*medium*", "GAN > diffusion > VAE"),
        ("", *each(quality), by("FD", "precision")),
        ("variety", "*high*", "*modes may collapse*", "*high*", "diffusion ≈ VAE > GAN"),
        (
            "",
            *each(variety),
            by("recall", "coverage"),
        ),
        ("sampling", "*slow*", "*extremely fast*", "*fast*", "GAN > VAE > diffusion"),
        ("", *each(speed), ordered(parts, "ms", False)),
        ("theory", "*variational, a chain*", "*a game*", "*variational*", "-"),
        ("", "nothing to measure", "nothing to measure", "nothing to measure", "-"),
    ]
    columns = ("", *PARTS.values(), "order, best first")
    return Table("The articles' table: their word in italics, ours measured below it", columns, rows)


def rates(tried: Sequence[Part]) -> Table:
    """The Fréchet distance of every setting that was tried, the chosen one's in bold."""
    rows = []
    for name, label in PARTS.items():
        found = {}
        for part in tried:
            if part["asked"]["contestant"] == name:
                how = f"{part['asked']['lr']:g}"
                how += f" with γ {part['asked']['gamma']:g}" if "gamma" in part["asked"] else ""
                found[how] = float("inf") if part["diverged"] else part["drawn"][0]["FD"]
        said = [f"{how}: {'diverged' if fd == float('inf') else format(fd, '.1f')}" for how, fd in found.items()]
        best = min(range(len(said)), key=list(found.values()).__getitem__)
        said[best] = f"**{said[best]}**"
        rows.append((label, "; ".join(said)))
    title = "How settings were chosen: a quarter of the minutes, half the samples, a seed of their own"
    return Table(title, ("", "learning rate: FD"), rows)


def outcome(parts: Sequence[Part], tried: Sequence[Part], about: dict[str, Any], floor: dict[str, Any]) -> Outcome:
    """All tables. `about` says of what data, by which judge, for how many minutes, of how many samples."""
    said = (
        "Diffusion (this package's default, flow matching with a U-Net, unconditional), a GAN (R3GAN's losses, arXiv "
        "2501.05441) and a VAE (the best single variance, arXiv 2006.13202) train on the "
        f"{about['images']:,} images of {about['data']} for {about['minutes']:g} minutes of processor time each, on "
        f"one thread, in fp32, without augmentation. {about['n']:,} samples of each are compared with the training "
        f"images on the features of {about['judge']}, a classifier of them that is right on "
        f"{100 * about['accuracy']:.1f} % of the held-out images; held-out images in the samples' place are the floor. "
        "Learning rates were chosen on another "
        "seed. All three average their weights in the same way."
    )
    notes = [
        "Parameters count what is trained: the GAN's discriminator and the VAE's encoder are of no use in sampling.",
        f"A class is missing where the judge finds less than {100 * MISSING:.0f} % of the samples in it (10 % is its "
        "share of the data); samples collapse where a class is missing or the mean distance between two is below "
        f"{SPREAD:g} of the real images'.",
        "The U-Net is smaller than the package's default for this size, which takes 50 steps in the time.",
        "A VAE is judged by its decoder's mean; its own noise would only lower its scores.",
        "In an order, ≈ is between two whose ranges over the seeds overlap.",
    ]
    tables = [measured(parts, floor), articles(parts), fewer(parts), seeds(parts), rates(tried)]
    numbers = {"about": about, "floor": floor, "trainings": list(parts), "learning rates": list(tried)}
    title, command = "Diffusion, GAN and VAE", "python benchmarks/generators.py"
    return Outcome("generators", title, command, said, tables, numbers=numbers, notes=notes)


SHOWN = """![Real images, and samples of the three](images/generators.png)

*Above, real images; below, what each of the three draws after the same minutes of training, the first that came, none
chosen.*"""


def block(told: dict[str, Any]) -> str:
    """What stands between the marks of the page, from results/generators.json."""
    machine = told["machine"]
    on = f"Measured on {machine['cpu']}, one thread, with torch {told['versions']['torch']}."
    return "\n\n".join((MARKS[0], SHOWN, *markdown(told), on, MARKS[1]))


def write_page() -> None:
    """The page, its block anew."""
    text = PAGE.read_text(encoding="utf-8")
    first, last = (text.index(mark) for mark in MARKS)
    told = json.loads((RESULTS / "generators.json").read_text(encoding="utf-8"))
    PAGE.write_text(text[:first] + block(told) + text[last + len(MARKS[1]) :], encoding="utf-8")
