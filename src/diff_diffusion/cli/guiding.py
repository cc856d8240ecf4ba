"""Guidance from the command line, and again from the recipe in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diff_diffusion.cli.asked import asked
from diff_diffusion.errors import CheckpointError, ConfigError
from diff_diffusion.models import DiffusionModel, Guidance


def request(
    scale: float | None,
    negative: str | None,
    how: str | None,
    interval: str | None,
    dynamic: float | None,
    autoguide: Path | None,
    classifier: Path | None,
) -> dict[str, Any]:
    """What was asked, as plain data for `guidance_of`; only what was given."""
    given: dict[str, Any] = {"scale": scale, "negative": negative, "how": how, "interval": interval}
    given |= {"dynamic": dynamic, "autoguide": autoguide, "classifier": classifier}
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return {name: value for name, value in given.items() if value is not None}


def guidance_of(model: DiffusionModel, request: Mapping[str, Any]) -> Guidance:
    """The guidance of a request; the model's own scale where it says none.

    Raises:
        ConfigError: an interval that is no pair of numbers; what `Guidance` refuses.
        CheckpointError: a model that guides is not there, or not the one of the recipe.
    """
    from diff_diffusion.models.classifier import NoisyClassifier

    about = dict(request)
    scale = about.pop("scale", None)
    if scale is None:
        scale = 1.0 if "classifier" in about else model.recipe.guidance
    negative = about.pop("negative", None)
    interval = about.pop("interval", None)
    prints = {name: about.pop(f"{name} fingerprint", None) for name in ("autoguide", "classifier")}
    autoguide, classifier = about.pop("autoguide", None), about.pop("classifier", None)
    guidance = Guidance(
        scale,
        None if negative is None else _negative(model, negative),
        interval=None if interval is None else _interval(interval),
        reference=None if autoguide is None else DiffusionModel.load(autoguide).to(model.device),
        classifier=None if classifier is None else NoisyClassifier.load(classifier).to(model.device),
        **about,
    )
    for name, guide in (("autoguide", guidance.reference), ("classifier", guidance.classifier)):
        if guide is not None and prints[name] not in (None, guide.fingerprint()):
            raise CheckpointError(f"{request[name]} holds another model than the one that guided this picture")
    return guidance


def recorded(request: Mapping[str, Any], guidance: Guidance) -> dict[str, Any]:
    """The request with what it came to: its scale, and the fingerprints of the models that guide."""
    about = {**request, "scale": guidance.scale}
    for name, guide in (("autoguide", guidance.reference), ("classifier", guidance.classifier)):
        if guide is not None:
            about[f"{name} fingerprint"] = guide.fingerprint()
    return about


def _negative(model: DiffusionModel, text: str) -> dict[str, Any] | None:
    """A negative prompt where the model reads text, else a class to move away from."""
    reads = model.conditioner is not None and any(part.token_width for part in model.conditioner.parts.values())
    return asked(model, None if reads else text, text if reads else None, [])


def _interval(text: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    try:
        return float(low or 0.0), float(high or 1.0) if colon else float("nan")
    except ValueError:
        raise ConfigError(f"an interval of times is LOW:HIGH between 0 and 1, such as 0.2:0.8, not {text!r}") from None
