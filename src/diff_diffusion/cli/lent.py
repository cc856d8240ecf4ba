"""What a run takes from other runs: the codec that it works in, the eye that it learns by; weights and all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.codecs.encoded import Encoded
from diff_diffusion.core.categorical import Tokens
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.models import Autoencoder, Model, NoisyClassifier
from diff_diffusion.objectives.eyes import Eye, Features, Lpips, judge
from diff_diffusion.presets import recipe
from diff_diffusion.registry import build, describe

PSNR, WORSE = "held-out PSNR", 6.0
"""By how many decibels images may come back worse than an autoencoder's own."""


def codec_of(folder: Path, data: ImageDataset, preset: str | None = None, held: Path | None = None) -> Encoded:
    """The codec that a run is, or works in: for a preset of tokens, the one that tells the numbers of codes.

    Args:
        folder: the run.
        data: the train split.
        preset: of the model that is to work in it.
        held: a run that works in that codec already, and goes on with what it holds.

    Raises:
        ConfigError: a run of a model that has no latents; `held` works in those of another.
        IncompatibleError: an autoencoder of data of another shape, or that gives these back far worse than its own.
    """
    model = Model.load(folder)
    if model.codec.data.shape != data.shape:
        raise IncompatibleError(
            f"the model in {folder} is for samples {list(model.codec.data.shape)}; {data.name} has {list(data.shape)}"
        )
    if not isinstance(model, Autoencoder) and not isinstance(model.codec, Encoded):
        raise ConfigError(
            f"--codec {folder} is a {type(model).__name__} of pixels: give a run of `train --model autoencoder`, or "
            "one that was trained on latents"
        )
    if held is not None:
        codec, source = Model.load(held).codec, model if isinstance(model, Autoencoder) else model.codec
        if not isinstance(codec, Encoded) or not _alike(codec, source):
            raise ConfigError(
                f"{held} does not work in the latents of {folder} as that is now: go on with `--codec {held}`, the "
                "codec that it holds, or give another --out"
            )
        return codec
    if isinstance(model.codec, Encoded):
        return model.codec
    assert isinstance(model, Autoencoder)
    own, here = (facts.get(PSNR) for facts in (model.facts, model.held_out_facts(data)))
    if own is not None and here is not None and here < own - WORSE:
        raise IncompatibleError(
            f"the autoencoder in {folder} gives {data.name} back at {here:.1f} dB, and its own held-out images at "
            f"{own:.1f}: it was trained on other data ({model.facts.get('data')}). Train one on these"
        )
    return model.as_tokens() if _of_tokens(preset) else model.as_codec(data)


def untrained_codec(model: Model, preset: str | None) -> Encoded:
    """What the codec of an autoencoder that has yet to learn will be like.

    Raises:
        IncompatibleError: a preset of tokens, and latents that are none.
    """
    assert isinstance(model, Autoencoder)
    if _of_tokens(preset):
        return model.as_tokens()
    channels = model.bottleneck.channels
    return Autoencoded(model.network, model.bottleneck, model.codec, [0.0] * channels, [1.0] * channels)


def eye_of(named: str, described: Mapping[str, Any]) -> Eye:
    """By what an autoencoder that is described so is told how pictures look: "lpips", or a classifier's run.

    Raises:
        ConfigError: a run of another model, or LPIPS that cannot be used.
        IncompatibleError: a classifier of latents, or of other data.
    """
    if named == "lpips":
        eye = Lpips(build(described["codec"]))
        judge(eye.net)  # which may not be there, and that shall be known now
        return eye
    knows = Model.load(named)
    if not isinstance(knows, NoisyClassifier):
        raise ConfigError(
            f"--eye {named} is a run of a model {type(knows).__name__}: give one of `train --classifier` on the "
            "pictures, or lpips"
        )
    with torch.device("meta"):
        coder = build(described)
    knows.check_units(coder, f"--eye {named}")
    return Features(knows.network, knows.levels_known[1])


def _of_tokens(preset: str | None) -> bool:
    return preset is not None and isinstance(recipe(preset).process, Tokens)


def _alike(codec: Encoded, other: Any) -> bool:
    """Whether network and bottleneck are another's, weights and all; the statistics are the codec's own."""
    pairs = ((codec.network, other.network), (codec.bottleneck, other.bottleneck))
    if any(describe(mine) != describe(theirs) for mine, theirs in pairs):
        return False
    states = ((mine.state_dict(), theirs.state_dict()) for mine, theirs in pairs)
    return all(torch.equal(mine[name], theirs[name]) for mine, theirs in states for name in mine)


def check_lent(
    description: Mapping[str, Any], described: Mapping[str, Any], part: str, lent: bool, option: str
) -> None:
    """Nothing, or a ConfigError: a part whose weights another run learned comes from that run, and as it is."""
    has_weights = isinstance(description.get(part), Mapping) and "network" in description[part]
    if has_weights and not lent:
        raise ConfigError(f"the {part} that is described has weights, which are in the run that learned them: {option}")
    if lent and description.get(part) != described.get(part):
        raise ConfigError(f"the {part} is as the run that it comes from says: leave model.{part} out of the changes")
