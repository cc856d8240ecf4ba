"""What the options of `train` and `plan` mean for some data: everything of a run but its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diff_diffusion.cli.config import SECTIONS, merged, network_named, parse_size, read_changes
from diff_diffusion.cli.console import count_progress
from diff_diffusion.cli.lent import check_lent, codec_of, eye_of
from diff_diffusion.codecs.encoded import Encoded
from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.errors import ConfigError, DataError, listed
from diff_diffusion.models import Autoencoder, Model
from diff_diffusion.objectives.eyes import Eye
from diff_diffusion.registry import describe
from diff_diffusion.sizing import describe_autoencoder, describe_classifier, describe_for_data
from diff_diffusion.training import TrainSettings
from diff_diffusion.training.settings import make_settings

DEFAULT_MINUTES = 10.0
DATA_DEFAULTS = {"path": None, "size": None, "channels": None, "held_out": 0.1, "index": True}
MODELS = ("diffusion", "classifier", "autoencoder")
CODEC = "codec"
"""Where in a run of both stages the autoencoder's own run is."""
OF_CODERS = ("bottleneck", "reconstruction", "critic")
FIRST_SHARE = 1 / 3
"""Of the minutes of both stages, what the autoencoder has."""


@dataclass(frozen=True)
class Request:
    """The options of `train` and of `plan`, as they were given."""

    data: str
    steps: int | None = None
    minutes: float | None = None
    size: str | None = None
    seed: int = 0
    preset: str | None = None
    sets: tuple[str, ...] = ()
    config: Path | None = None
    model: str = "diffusion"
    classifier: bool = False
    unconditional: bool = False
    text_encoder: Path | None = None
    bottleneck: str | None = None
    factor: int | None = None
    channels: int | None = None
    eye: str | None = None
    codec: Path | None = None
    latent: bool = False
    sections: tuple[str, ...] = SECTIONS
    """Of the file `config`, what counts."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ConfigError(f"--model is one of {listed(MODELS)}, not {self.model!r}")
        if self.classifier and self.model == "autoencoder":
            raise ConfigError(f"--classifier and --model {self.model} ask for two models: give one")
        if self.classifier:
            object.__setattr__(self, "model", "classifier")

    def check(self) -> None:
        """Nothing, or a ConfigError that names two options of which one has nothing to do."""
        coder = self.latent or self.model == "autoencoder"
        mine = {"bottleneck": self.bottleneck, "factor": self.factor, "latent-channels": self.channels, "eye": self.eye}
        for given, option, why in [
            (self.text_encoder is not None and (self.model != "diffusion" or self.unconditional), "--text-encoder",
             "it reads captions, and this model would not be asked for any"),
            (self.unconditional and self.model == "classifier", "--unconditional",
             "it leaves out the labels, which are all that a classifier learns"),
            (self.unconditional and self.model == "autoencoder", "--unconditional",
             "an autoencoder is asked for nothing anyway"),
            (self.preset is not None and self.model == "autoencoder", "--preset",
             "it says how noise comes and goes, and an autoencoder has none"),
            (self.latent and self.model != "diffusion", "--latent",
             f"it is for a diffusion model to work in, and this is a {self.model}"),
            (self.codec is not None and self.model == "autoencoder", "--codec",
             "its latents are for another model to work in, and this is an autoencoder"),
            (self.latent and self.codec is not None, "--latent", "--codec has an autoencoder already"),
            *((value is not None and not coder, f"--{name}", "no autoencoder is trained here")
              for name, value in mine.items()),
        ]:  # fmt: skip
            if given:
                raise ConfigError(f"{option} has nothing to do: {why}. Leave it out")


@dataclass(frozen=True)
class Prepared:
    """A run as `train` would start it: everything but the model's weights; those that others learned come along."""

    about_data: dict[str, Any]
    description: dict[str, Any]
    settings: TrainSettings
    train_split: ImageDataset
    held_out: ImageDataset
    report: list[str]
    codec: Encoded | None = None
    eye: Eye | None = None

    def model(self) -> Model:
        """The model, untrained, with the weights of its codec or its eye."""
        model = Model.from_description(self.description, self.settings.seed)
        model.take_weights(self.codec)
        if isinstance(model, Autoencoder) and self.eye is not None:
            model.eye.load_state_dict(self.eye.state_dict())
        return model


def prepared(
    request: Request,
    quiet: bool = False,
    read: Prepared | None = None,
    codec: Encoded | None = None,
    held: Path | None = None,
) -> Prepared:
    """What the options mean.

    Args:
        request: the options.
        quiet: no progress while images are read.
        read: of the same data, when they are read already.
        codec: what a diffusion model works in; that of `request.codec` when left out.
        held: a run that has begun in that codec, and goes on with it as it holds it.

    Raises:
        ConfigError: an option that is wrong or cannot take effect.
        DataError: data that cannot be used.
    """
    changes = read_changes(request.config, request.sets, request.sections)
    model_changes, kind = changes.get("model", {}), _kind(changes)
    if kind in MODELS:
        request = replace(request, model=kind)
    request.check()
    asked = _asked(request, changes.get("train", {}))
    make_settings(asked)  # a wrong one fails before the images are read
    about, train_split, held_out, report = _read(request, changes, quiet) if read is None else _again(read)
    settings = make_settings(asked).sized(train_split.shape)
    if codec is None and request.codec is not None:
        codec = codec_of(request.codec, train_split, request.preset, held)
    eye = None
    if request.model == "classifier":
        described = describe_classifier(train_split, request.preset, codec)
    elif request.model == "autoencoder":
        chosen = {"bottleneck": request.bottleneck, "factor": request.factor, "channels": request.channels}
        given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        described = describe_autoencoder(train_split, **given)
        if request.eye is not None:
            eye = eye_of(request.eye, described)
            described["eye"] = describe(eye)
    else:
        encoder = str(request.text_encoder) if request.text_encoder is not None else None
        described = describe_for_data(
            train_split, request.preset, network_named(changes), not request.unconditional, encoder, codec
        )
    description = merged(described, model_changes, "model.")
    check_lent(description, described, "codec", codec is not None, "--codec RUN, a run of `--model autoencoder`")
    check_lent(description, described, "eye", request.eye is not None, "--eye RUN, a run of `--classifier`")
    return Prepared(about, description, settings, train_split, held_out, report, codec, eye)


def stages(request: Request) -> tuple[Request, Request]:
    """The two runs of `--latent`: of the autoencoder, and of the diffusion model in its latents.

    Settings of the model, and what a file says of it, are the second's; those of `codec` are the first's.

    Raises:
        ConfigError: settings of an autoencoder that are not said to be the codec's, or a file that describes one.
    """
    request.check()
    mine = tuple(text for text in request.sets if text.startswith("codec."))
    others = tuple(text for text in request.sets if text not in mine)
    for text in others:
        if text.removeprefix("model.").startswith(OF_CODERS):
            raise ConfigError(f"--set {text}: of the two models the autoencoder is meant, so say codec.{text}")
    changes = read_changes(request.config, others)
    if _kind(changes) not in ("", "diffusion"):
        raise ConfigError(
            f"--config {request.config} describes a model of type {_kind(changes)}, and with --latent it is the "
            "diffusion model that a file describes: train the autoencoder by itself, and give its run to --codec"
        )
    of_training = changes.get("train", {})
    minutes = request.minutes or (None if request.steps else of_training.get("minutes"))
    if minutes is None and request.steps is None and of_training.get("steps") is None:
        minutes = DEFAULT_MINUTES
    both = tuple(text for text in others if text.startswith(("train.", "data.")))
    first = replace(
        request,
        model="autoencoder",
        latent=False,
        unconditional=False,
        text_encoder=None,
        preset=None,
        minutes=None if minutes is None else minutes * FIRST_SHARE,
        sets=(*both, *("model." + text.removeprefix("codec.") for text in mine)),
        sections=("data", "train"),
    )
    second = replace(
        request,
        latent=False,
        bottleneck=None,
        factor=None,
        channels=None,
        eye=None,
        minutes=None if minutes is None else minutes * (1 - FIRST_SHARE),
        sets=others,
    )
    return first, second


def _kind(changes: Mapping[str, Any]) -> str:
    """The model that changes name, or ""."""
    model = changes.get("model", {})
    return str(model.get("type", "")).removeprefix("model/") if isinstance(model, Mapping) else ""


def _asked(request: Request, changes: Mapping[str, Any]) -> dict[str, Any]:
    options = {"steps": request.steps, "minutes": request.minutes, "seed": request.seed or None}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if len(given.keys() & {"steps", "minutes"}) == 1:  # one of them on the command line replaces either in the file
        given = {"steps": None, "minutes": None} | given
    asked = {**changes, **given}
    if asked.get("steps") is None and asked.get("minutes") is None:
        asked["minutes"] = DEFAULT_MINUTES
    return asked


def _read(
    request: Request, changes: Mapping[str, Any], quiet: bool
) -> tuple[dict[str, Any], ImageDataset, ImageDataset, list[str]]:
    about_data = dict(changes.get("data", {}))
    columns = about_data.pop("columns", {})
    if not isinstance(columns, Mapping):
        raise ConfigError(f"data.columns says a kind for each column, as in data.columns.year=class, not {columns!r}")
    about = merged(DATA_DEFAULTS | {"path": request.data, "size": request.size}, about_data, "data.")
    about |= {"columns": columns}
    images = load_image_dataset(
        about["path"],
        size=_size(about["size"]),
        channels=about["channels"],
        columns=columns,
        progress=None if quiet else count_progress("reading images"),
        index=about["index"],
    )
    return about, *images.split(about["held_out"]), images.report.lines()


def _again(read: Prepared) -> tuple[dict[str, Any], ImageDataset, ImageDataset, list[str]]:
    return read.about_data, read.train_split, read.held_out, []


def _size(size: Any) -> int | tuple[int, int] | None:
    if isinstance(size, list):
        if len(size) != 2 or not all(isinstance(side, int) for side in size):
            raise DataError(f"size {size!r} is neither a number nor two")
        return size[0], size[1]
    return parse_size(size)
