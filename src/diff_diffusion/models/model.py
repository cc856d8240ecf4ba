"""Model: what every kind of model is, so that one loop trains it and one folder keeps it."""

from __future__ import annotations

import hashlib
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from PIL.Image import Image
from torch import Tensor, nn

from diff_diffusion import __version__
from diff_diffusion.codecs.codec import Codec, learned
from diff_diffusion.codecs.encoded import Encoded
from diff_diffusion.cond import Cond
from diff_diffusion.conditions.conditions import Conditions
from diff_diffusion.conditions.labels import ClassLabel
from diff_diffusion.conditions.numbers import Number
from diff_diffusion.errors import CheckpointError, ConfigError, IncompatibleError, listed
from diff_diffusion.objectives.denoising import Loss
from diff_diffusion.registry import build, describe
from diff_diffusion.rng import Noise, derive
from diff_diffusion.storage import folder as storage
from diff_diffusion.storage.card import card
from diff_diffusion.tensors import finite

if TYPE_CHECKING:
    from diff_diffusion.data import ImageDataset

WEIGHTS = "model.safetensors"
LABEL = "label"
SAME = 1e-5
"""How far apart two codecs' numbers may lie, as a share of a std: rounding, and no other data."""
LEVELS = 8
"""Noise levels at which held-out samples are asked; sample i at the middle of stratum i mod 8."""


class Model(nn.Module, ABC):
    """A network with its meaning: what it learns, from data of which shape, asked for by which conditions.

    Attributes:
        codec: from data units to what the network works on.
        conditioner: what it can be asked for; None for nothing.
        learns: other parts that learn while training, saved with the weights.
        facts: what is known of it, plain JSON data.
        ema: the averaged weights by name while it is in training, else None.
    """

    codec: Codec
    learns: nn.ModuleDict
    facts: dict[str, Any]
    ema: dict[str, Tensor] | None

    @property
    @abstractmethod
    def conditioner(self) -> Conditions | None: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes it can be asked for by "label", the condition that class folders make; () where there is none."""
        label = self.conditioner.parts.get(LABEL) if self.conditioner is not None else None
        return label.names if isinstance(label, ClassLabel) else ()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    # ---- what training asks ---------------------------------------------------------------------------------------

    @abstractmethod
    def objective(
        self, latents: Tensor, cond: Cond | None, noise: Noise, first: int = 0, whole: int | None = None
    ) -> Loss:
        """The training loss of samples first, first + 1, … of a batch of `whole`, with one key of noise each."""

    @abstractmethod
    def held_out_levels(self, count: int) -> Tensor:
        """The times, float64 [count], at which `count` held-out samples are asked."""

    @abstractmethod
    def loss_at(self, latents: Tensor, t: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        """The loss at given times t, float64 [B], nothing dropped: what held-out evaluation asks for."""

    def averages(self) -> list[Tensor]:
        """Buffers that are moving averages of what was seen, which several processes of a run average among them."""
        return []

    def held_out_facts(self, data: ImageDataset) -> dict[str, Any]:
        """What else is cheap to know of held-out data at the end of a run, by the name of the fact."""
        return {}

    @abstractmethod
    def sheet(self, examples: Mapping[str, Any] | None = None, images: Tensor | None = None) -> Image | None:
        """A picture of what it makes, with the same seeds every time; None if it makes nothing.

        Args:
            examples: what samples may be asked to be, a list for each condition's name.
            images: in data units, for a model that makes something of images.
        """

    def encode(self, asked: Any, count: int) -> Cond | None:
        """What `count` samples are asked to be, on the model's device; None when nothing is asked.

        Args:
            asked: a mapping from the names of conditions to values, or the values of the only one; see
                `Conditions.named`.

        Raises:
            ConfigError: a condition, a value or a number of them that the model does not know, or any where it has no
                conditions.
        """
        named = self.asked(asked, count)
        if named is None:
            return None
        assert self.conditioner is not None
        return self.conditioner.encode(named).to(self.device)

    def ready(self, asked: Any, count: int) -> Cond | None:
        """What samples are asked to be, for a walk: encoded, and with all done that no step changes."""
        cond = self.encode(asked, count)
        if cond is None or self.conditioner is None:
            return None
        with self.evaluating(), torch.no_grad():
            return self.conditioner.once(cond)

    def asked(self, cond: Any, count: int) -> dict[str, list[Any]] | None:
        """What is asked, as a list of `count` values for each condition's name; errors as for `encode`."""
        if cond is None:
            return None
        if self.conditioner is None:
            raise ConfigError("this model is unconditional: it was trained without conditions, so it takes none")
        return self.conditioner.named(cond, count)

    def take_weights(self, codec: Codec | None) -> None:
        """Gives the model's codec, which is described alike, the weights of `codec`, if they have any."""
        mine, other = learned(self.codec), learned(codec)
        if mine is not None and other is not None:
            mine.load_state_dict(other.state_dict())

    def check_units(self, model: Model, who: str) -> None:
        """Nothing, or an IncompatibleError that says how this model, called `who`, has other data than `model`."""
        mine, other = self.codec, model.codec
        what_to_do = "train both on the same data, since the two are asked about the same numbers"
        if mine.shape != other.shape:
            raise IncompatibleError(
                f"{who} is for samples {list(mine.shape)} and the model for {list(other.shape)}: {what_to_do}"
            )
        if isinstance(mine, Encoded) or isinstance(other, Encoded):
            if not (isinstance(mine, Encoded) and isinstance(other, Encoded) and mine.identity() == other.identity()):
                theirs, ours = (_works_on(each) for each in (mine, other))
                raise IncompatibleError(
                    f"{who} works on {theirs} and the model on {ours}{' of another' if theirs == ours else ''}: make "
                    "both with one codec, since the two are asked about the same numbers"
                )
            return
        for name in ("mean", "std"):
            pairs = zip(getattr(mine, name), getattr(other, name), mine.std, strict=True)
            if not all(math.isclose(a, b, rel_tol=SAME, abs_tol=SAME * std) for a, b, std in pairs):
                raise IncompatibleError(
                    f"{who} is for data of {name} {_few(getattr(mine, name))} and the model for "
                    f"{_few(getattr(other, name))}: {what_to_do}"
                )

    def check_data(self, data: ImageDataset) -> None:
        """Nothing, or an error where `data` are not what the model is for.

        Raises:
            IncompatibleError: another shape, conditions that are not there, or other classes: labels are numbers, which
                mean something else then.
            ConfigError: numbers outside of the model's range.
        """
        shape, parts = self.codec.data.shape, self.conditioner.parts if self.conditioner is not None else {}
        if data.shape != shape:
            raise IncompatibleError(f"the model is for samples {list(shape)}; {data.name} has {list(data.shape)}")
        missing = [name for name in parts if name not in data.columns]
        if missing:
            has = listed(data.columns) or "none"
            raise IncompatibleError(f"the model is for the conditions {listed(parts)}; {data.name} has {has}")
        for name, part in parts.items():
            if isinstance(part, ClassLabel) and tuple(data.columns[name].names) != part.names:
                has = listed(data.columns[name].names) or "none"
                raise IncompatibleError(f"the model is for the classes {listed(part.names)}; {data.name} has {has}")
            if isinstance(part, Number) and self.conditioner is not None:
                self.conditioner.encode({name: data.known(name)})

    def known(self, cond: Mapping[str, Any]) -> dict[str, Any] | None:
        """Of all that is known of some data, what the model can be asked for; None if nothing."""
        mine = self.conditioner.parts if self.conditioner is not None else ()
        return {name: cond[name] for name in mine if name in cond} or None

    def even(self, num: int, *names: str) -> dict[str, list[str]]:
        """What to ask of `num` samples so that classes come equally often, in whatever shares they were trained on.

        All combinations of the classes of these conditions in turn: of a number of samples that they divide, each is
        asked for exactly as often. `model.sample(100, cond=model.even(100, "label"))`.

        Args:
            names: of conditions that are classes; all of them when left out.

        Raises:
            ConfigError: the model is asked for no such class.
        """
        parts = self.conditioner.parts if self.conditioner is not None else {}
        classes = {name: part.names for name, part in parts.items() if isinstance(part, ClassLabel)}
        unknown = [name for name in names if name not in classes]
        if unknown or not classes:
            knows = f"its classes are {listed(classes)}" if classes else "it is asked for none"
            raise ConfigError(f"{listed(unknown) or 'classes'} cannot be evened out: {knows}")
        chosen = list(dict.fromkeys(names or classes))
        combinations = list(product(*(classes[name] for name in chosen)))
        rows = (combinations[i % len(combinations)] for i in range(num))
        return {name: list(values) for name, values in zip(chosen, zip(*rows, strict=True), strict=True)}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode (no dropout) inside, what it was outside."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    # ---- stored ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_description(cls, description: Mapping[str, Any], seed: int = 0) -> Self:
        """The model that a description says, with fresh weights that depend on `seed` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(seed, "weights") % (1 << 63))  # and no accelerator's
            model = build(description)
        if not isinstance(model, cls):
            raise ConfigError(f"this describes a {type(model).__name__}, and a {cls.__name__} is needed here")
        return model

    def files(self) -> tuple[dict[str, storage.Content], dict[str, Any]]:
        """What a model folder holds: its files, of which the weights' are views of the model, and the manifest's
        entries."""
        raw = self.state_dict()
        once = self.fixed()
        averaged = {name: value for name, value in (raw | (self.ema or {})).items() if name not in once}
        tensors = {f"ema/{name}": value for name, value in averaged.items()}  # buffers have no average
        tensors |= {f"raw/{name}": value for name, value in raw.items()}
        bad = [name for name, value in tensors.items() if not finite(value)]
        if bad:
            raise CheckpointError(f"refusing to write weights that are not finite: {listed(bad, 4)}")
        description = describe(self)
        facts = self.facts | {"parameters": self.num_parameters}
        asked = self.conditioner.summary() if self.conditioner is not None else []
        files: dict[str, storage.Content] = {
            WEIGHTS: storage.to_safetensors(tensors),
            "facts.json": storage.to_json(facts),
            "README.md": card(str(facts.get("name", "model")), description, facts, asked).encode(errors="replace"),
        }
        return files, {"version": __version__, "model": description}

    def fixed(self) -> set[str]:
        """The weights that do not learn, such as a codec's: they have no average, and are stored once."""
        fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        codec = learned(self.codec)
        return fixed | {f"codec.{name}" for name, _ in codec.named_buffers()} if codec is not None else fixed

    def save(self, folder: str | Path) -> None:
        """A model folder at `folder`, whole or not at all: config.json, model.safetensors, facts.json, README.md.

        Raises:
            CheckpointError: weights that are not finite, or a disk that refused.
        """
        files, config = self.files()
        storage.write_folder(Path(folder), files, config)

    @classmethod
    def load(cls, folder: str | Path, weights: str = "ema") -> Self:
        """The model in a folder (a run, a checkpoint of one, or a saved model), on the CPU, in evaluation mode.

        Args:
            folder: where.
            weights: "ema", the averaged weights, or "raw", the optimizer's own.

        Raises:
            CheckpointError: missing, damaged, of another format, or a pickle; nothing in it was run.

        Warns:
            UserWarning: it is damaged, and the newest whole checkpoint in it was loaded instead.
        """
        problem: CheckpointError | None = None
        for place in (Path(folder), *_spares(Path(folder))):
            try:
                manifest = storage.read_manifest(place)
                model = cls.restore(manifest, storage.read_safetensors(place, WEIGHTS, manifest), weights)
                model.facts = storage.read_json(place, "facts.json", manifest)
            except CheckpointError as error:
                problem = problem or error
                continue
            if problem is not None:
                warnings.warn(f"{problem}; {place} was loaded instead", stacklevel=2)
            model.ema = None  # it holds one set of weights: what it samples with is what it saves
            return model
        assert problem is not None
        raise problem

    @classmethod
    def restore(cls, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], weights: str) -> Self:
        """The model that a manifest describes, with the given weights; its `ema` holds the averaged ones."""
        if weights not in ("ema", "raw"):
            raise ConfigError(f"weights are 'ema' or 'raw', not {weights!r}")
        description = manifest.get("model", {})
        try:
            # On the meta device nothing is allocated, so a description that claims a huge network costs nothing.
            with torch.device("meta"):
                shape_of = build(description)
        except Exception as error:  # whatever hostile numbers make a part's arithmetic do
            raise CheckpointError(f"the stored description cannot be built: {error}") from error
        if not isinstance(shape_of, cls):
            raise CheckpointError(f"it describes a {type(shape_of).__name__}, and a {cls.__name__} is needed here")
        chosen = {name.removeprefix(f"{weights}/"): t for name, t in tensors.items() if name.startswith(f"{weights}/")}
        chosen |= {name: tensors[f"raw/{name}"] for name in shape_of.fixed() if f"raw/{name}" in tensors}
        _same_keys(shape_of.state_dict(), chosen)
        model = cls.from_description(description)
        model.load_state_dict(chosen)
        model.ema = {name.removeprefix("ema/"): t.clone() for name, t in tensors.items() if name.startswith("ema/")}
        return model.eval()

    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 of description and weights in use: what a sample's recipe names."""
        digest = hashlib.sha256(storage.to_json(describe(self)))
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _same_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    rows = [f"missing {name}" for name in expected if name not in found]
    rows += [f"unknown {name}" for name in found if name not in expected]
    rows += [
        f"{name} is {list(found[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and (found[name].shape != tensor.shape or found[name].dtype != tensor.dtype)
    ]
    if rows:
        raise CheckpointError(f"the weights do not fit the described network: {listed(rows, 8)}")


def _spares(folder: Path) -> list[Path]:
    """Where a model may be whole when `folder` is not: what a save that was cut short put aside, and checkpoints."""
    aside = [] if folder.exists() else storage.leftovers(folder.parent, storage.REPLACED, folder.name)
    return [*aside, *sorted((folder / "checkpoints").glob("step-*"), reverse=True)]


def _works_on(codec: Codec) -> str:
    if not isinstance(codec, Encoded):
        return "pixels"
    return f"an autoencoder's {'tokens' if codec.latent.whole else 'latents'}"


def _few(values: Sequence[float]) -> str:
    return listed([f"{value:.5g}" for value in values], 4)
