"""DiffusionModel: a network, its meaning, a codec and its facts; trained, sampled, saved and loaded as one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diff_diffusion import __version__
from diff_diffusion.codecs.affine import Affine
from diff_diffusion.cond import Cond
from diff_diffusion.core.denoiser import Denoiser, NetworkDenoiser
from diff_diffusion.errors import CheckpointError, ConfigError, DiffusionError, listed
from diff_diffusion.guidance.bounds import Clipped
from diff_diffusion.guidance.scale import ClassifierFree
from diff_diffusion.networks.conditioning import ClassLabels
from diff_diffusion.objectives.denoising import Loss
from diff_diffusion.presets import Recipe
from diff_diffusion.registry import build, describe, find, register
from diff_diffusion.rng import Noise, derive
from diff_diffusion.samplers.grid import Grid
from diff_diffusion.samplers.sampler import Sampler, Step, check_fits, trajectory
from diff_diffusion.sizing import describe_for_data
from diff_diffusion.storage import folder as storage
from diff_diffusion.storage.card import card

if TYPE_CHECKING:
    from diff_diffusion.data import ImageDataset

Labels = Sequence[Any] | Tensor | np.ndarray
"""Class names or numbers, one per sample."""

WEIGHTS = "model.safetensors"


@register("model/diffusion")
class DiffusionModel(nn.Module):
    """A diffusion model of one kind of data.

    Args:
        network: what denoises.
        codec: from data units to what the network works on.
        recipe: process, target, objective, and the defaults of sampling.
        conditioner: what it can be asked for; None for an unconditional model.

    Raises:
        IncompatibleError: parts that do not fit, named, with what does.

    >>> from diff_diffusion.data import load_image_dataset
    >>> model = DiffusionModel.for_data(load_image_dataset("digits"))  # doctest: +SKIP
    """

    def __init__(
        self, network: nn.Module, codec: Affine, recipe: Recipe, conditioner: ClassLabels | None = None
    ) -> None:
        super().__init__()
        check_fits(recipe.sampler, recipe.process)
        self.denoiser = NetworkDenoiser(network, recipe.process, recipe.target, conditioner)
        self.codec = codec
        self.recipe = recipe
        # Parts of a recipe that learn while training (levels, weights, a time map) are saved with the weights.
        learns: dict[str, object] = {"levels": recipe.objective.levels, "weight": recipe.objective.weight}
        learns["time_map"] = recipe.process.time_map
        self.learns = nn.ModuleDict({name: part for name, part in learns.items() if isinstance(part, nn.Module)})
        self.facts: dict[str, Any] = {}
        self.ema: dict[str, Tensor] | None = None
        self.requires_grad_(True)
        self._losses = 0

    @property
    def network(self) -> nn.Module:
        return self.denoiser.network

    @property
    def conditioner(self) -> ClassLabels | None:
        conditioner = self.denoiser.conditioner
        assert conditioner is None or isinstance(conditioner, ClassLabels)
        return conditioner

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    # ---- made for data ------------------------------------------------------------------------------------------

    @classmethod
    def for_data(
        cls, data: ImageDataset, preset: str | None = None, seed: int = 0, network: str = "unet", **options: Any
    ) -> DiffusionModel:
        """A model sized for `data`: channels, classes and statistics from it, the network's size from its resolution.

        Args:
            data: the train split (the codec is fitted to it).
            preset: a name in `diff_diffusion.presets`; "rectified_flow" unless betas are given, then "ddim".
            seed: of the initial weights.
            network: "unet", "dit" or any other registered network's name.
            options: arguments of the preset: `timesteps`, `beta_start`, `beta_end`, `beta_schedule`,
                `num_inference_steps`.

        Raises:
            ConfigError: an unknown preset, network or option.
        """
        description = describe_for_data(data, preset, network, **options)
        return cls.from_description(description, seed)

    @classmethod
    def from_description(cls, description: Mapping[str, Any], seed: int = 0) -> DiffusionModel:
        """The model that a description says, with fresh weights that depend on `seed` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(seed, "weights") % (1 << 63))  # and no accelerator's
            model = build(description)
        if not isinstance(model, DiffusionModel):
            raise ConfigError(f"this describes a {type(model).__name__}, not a model")
        return model

    # ---- asked ----------------------------------------------------------------------------------------------------

    def loss(self, data: Tensor, labels: Labels | None = None, noise: Noise | None = None) -> Loss:
        """The training loss of a batch in data units.

        Args:
            data: [B, *shape], uint8 or float.
            labels: class names or numbers, one per sample; None to train without.
            noise: one key per sample. Left out, every call draws fresh noise, counted from the model's making.
        """
        if noise is None:
            noise = Noise([derive(0, "loss", self._losses, row) for row in range(len(data))], "train")
            self._losses += 1
        cond = self.encode(labels, len(data))
        return self.recipe.objective(self.denoiser, self.codec.encode(data.to(self.device)), cond, noise)

    def encode(self, labels: Labels | None, count: int) -> Cond | None:
        """Labels as a condition on the model's device; None when there are none.

        Raises:
            ConfigError: labels for a model that takes none, another number of them, or an unknown one.
        """
        if labels is None:
            return None
        values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
        if self.conditioner is None:
            raise ConfigError("this model is unconditional: it was trained without labels, so it takes none")
        if len(values) != count:
            raise ConfigError(f"{count} samples need {count} labels, not {len(values)}")
        return self.conditioner.encode(values).to(self.device)

    def plan(
        self,
        *,
        steps: int | None = None,
        sampler: Sampler | str | None = None,
        grid: Grid | str | None = None,
        guidance: float | None = None,
        conditional: bool = True,
        clip: bool | None = None,
    ) -> tuple[Denoiser, Sampler, list[float]]:
        """What a walk needs: the (guided) denoiser, the sampler and the times; the model's defaults where None.

        Raises:
            ConfigError: an unknown sampler or grid; guidance where the model or the request has no condition, or where
                the model was trained without dropping its condition.
        """
        chosen = self.recipe.sampler if sampler is None else sampler_named(sampler)
        check_fits(chosen, self.recipe.process)
        times = self.chosen_grid(grid, steps).times(self.recipe.process)
        scale = self.recipe.guidance if guidance is None else guidance
        denoiser: Denoiser = self.denoiser
        if scale != 1.0 and (conditional or guidance is not None):
            if self.conditioner is None:
                raise ConfigError(
                    f"guidance {scale:g} needs a conditional model, and this one was trained without labels"
                )
            if self.recipe.objective.cond_drop == 0.0:
                raise ConfigError(
                    f"guidance {scale:g} needs a model trained with its condition dropped some of the time, and this "
                    "one was trained with cond_drop = 0: use guidance 1, or train with objective.cond_drop = 0.1"
                )
            denoiser = ClassifierFree(self.denoiser, scale)
        if self.recipe.clip if clip is None else clip:
            denoiser = Clipped(denoiser, *self.codec.bounds)
        return denoiser, chosen, times

    def chosen_grid(self, grid: Grid | str | None = None, steps: int | None = None) -> Grid:
        """The grid of a request: the model's own where None; a name alone keeps the model's number of steps.

        Raises:
            ConfigError: an unknown grid, one that needs more than its name, or a number of steps that it cannot have.
        """
        own = self.recipe.grid
        chosen = own if grid is None else grid_named(grid)
        if steps is None and isinstance(grid, str):
            steps = own.num_steps
        return chosen if steps is None else chosen.with_steps(steps)

    def walk(
        self, seeds: Sequence[int], labels: Sequence[Any] | None = None, **plan: Any
    ) -> tuple[Tensor, Iterator[Step]]:
        """The start x and the steps of one batch's sampling, in the codec's units. `plan` as in `sample`."""
        denoiser, sampler, times = self.plan(**plan, conditional=labels is not None)
        noise = Noise(seeds)
        x = self.recipe.process.prior((len(seeds), *self.codec.latent.shape), noise.at(0), times[0]).to(self.device)
        cond = self.encode(labels, len(seeds))
        return x, trajectory(denoiser, sampler, times, x, cond=cond, noise=noise)

    def sample(
        self,
        num: int = 1,
        *,
        labels: Sequence[Any] | str | int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        steps: int | None = None,
        sampler: Sampler | str | None = None,
        grid: Grid | str | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Samples in data units, float32 [num, *shape] on the CPU.

        Sample i has seed `seed + i` and is the same whatever `num` and `batch_size` are.

        Args:
            num: how many.
            labels: one label for all, or one per sample; None for unconditional samples.
            seed: of the first sample.
            batch_size: how many at once.
            steps, sampler, grid, guidance: the model's defaults where None. Samplers and grids may be named: "heun" on
                "churn" is EDM's stochastic sampler.

        Raises:
            ConfigError: a bad number, label, sampler, grid or scale.
            DiffusionError: samples that are not finite; they are never turned into black pictures.
        """
        if num < 1 or batch_size < 1:
            raise ConfigError(
                f"the number of samples and the batch size must be at least 1, not {num} and {batch_size}"
            )
        every = [labels] * num if np.ndim(labels) == 0 else list(labels)  # type: ignore[arg-type]
        if len(every) != num:
            raise ConfigError(f"{num} samples need one label or {num} of them, not {len(every)}")
        pieces = []
        for first in range(0, num, batch_size):
            part = slice(first, min(first + batch_size, num))
            seeds = range(seed + part.start, seed + part.stop)
            some = None if labels is None else every[part]
            x, steps_of = self.walk(seeds, some, steps=steps, sampler=sampler, grid=grid, guidance=guidance)
            with self.evaluating():
                for step in steps_of:
                    x = step.x
            pieces.append(self.decode(x).cpu())
        return torch.cat(pieces)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents in data units.

        Raises:
            DiffusionError: values that are not finite.
        """
        if not bool(torch.isfinite(latent).all()):
            bad = (~torch.isfinite(latent)).flatten(1).any(1).sum().item()
            raise DiffusionError(
                f"{bad} of {len(latent)} samples hold values that are not finite: the weights are damaged or training "
                "diverged; try an earlier checkpoint, or --weights raw"
            )
        return self.codec.decode(latent)

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

    def files(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """What a model folder holds: its files and the manifest's entries."""
        raw = self.state_dict()
        # Copies, because safetensors refuses tensors that share memory; buffers have no average.
        tensors = {f"ema/{name}": value.clone() for name, value in (raw | (self.ema or {})).items()}
        tensors |= {f"raw/{name}": value for name, value in raw.items()}
        bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise CheckpointError(f"refusing to write weights that are not finite: {listed(bad, 4)}")
        description = describe(self)
        facts = self.facts | {"parameters": self.num_parameters}
        files = {
            WEIGHTS: storage.to_safetensors(tensors),
            "facts.json": storage.to_json(facts),
            "README.md": card(str(facts.get("name", "model")), description, facts).encode(errors="replace"),
        }
        return files, {"version": __version__, "model": description}

    def save(self, folder: str | Path) -> None:
        """A model folder at `folder`, whole or not at all: config.json, model.safetensors, facts.json, README.md.

        Raises:
            CheckpointError: weights that are not finite, or a disk that refused.
        """
        files, config = self.files()
        storage.write_folder(Path(folder), files, config)

    @classmethod
    def load(cls, folder: str | Path, weights: str = "ema") -> DiffusionModel:
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
    def restore(cls, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], weights: str) -> DiffusionModel:
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
        if not isinstance(shape_of, DiffusionModel):
            raise CheckpointError("the manifest describes no model")
        chosen = {name.removeprefix(f"{weights}/"): t for name, t in tensors.items() if name.startswith(f"{weights}/")}
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


for _argument in ("network", "conditioner"):
    assert isinstance(getattr(DiffusionModel, _argument), property)  # describe() reads constructor arguments by name


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


def sampler_named(sampler: Sampler | str) -> Sampler:
    """The sampler that a name ("ddim", "heun", "dpmpp_2m") stands for; a sampler as it is."""
    if isinstance(sampler, Sampler):
        return sampler
    found = build(find("sampler", sampler))
    assert isinstance(found, Sampler)
    return found


def grid_named(grid: Grid | str) -> Grid:
    """The grid that a name ("karras", "trailing", "churn") stands for; a grid as it is."""
    if isinstance(grid, Grid):
        return grid
    found = build(find("grid", grid))
    assert isinstance(found, Grid)
    return found
