"""DiffusionModel: a network that denoises, with its process, target, codec and conditions; trained and sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from diff_diffusion.codecs.codec import Codec, latent_shape, learned
from diff_diffusion.cond import Cond
from diff_diffusion.conditions.conditions import Conditions
from diff_diffusion.conditions.images import ImageBeside
from diff_diffusion.conditions.labels import ClassLabel
from diff_diffusion.core.denoiser import Denoiser, NetworkDenoiser
from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError, DiffusionError, IncompatibleError, listed
from diff_diffusion.guidance.bounds import Clipped, DynamicallyClipped
from diff_diffusion.models.guiding import Guidance
from diff_diffusion.models.model import LEVELS, Model
from diff_diffusion.objectives.denoising import Loss
from diff_diffusion.pictures import sheet
from diff_diffusion.presets import Recipe, check_latent
from diff_diffusion.registry import build, find, register
from diff_diffusion.rng import Noise, derive
from diff_diffusion.samplers.grid import Grid
from diff_diffusion.samplers.sampler import Sampler, Step, check_fits, trajectory
from diff_diffusion.sizing import describe_for_data

if TYPE_CHECKING:
    from diff_diffusion.data import ImageDataset

SHEET_COLUMNS, SHEET_STEPS = 10, 50


@register("model/diffusion")
class DiffusionModel(Model):
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

    def __init__(self, network: nn.Module, codec: Codec, recipe: Recipe, conditioner: Conditions | None = None) -> None:
        super().__init__()
        check_fits(recipe.sampler, recipe.process)
        self.denoiser = NetworkDenoiser(network, recipe.process, recipe.target, conditioner)
        self._check_codec(codec, recipe.process)
        unknown = [name for name in recipe.objective.drops if conditioner is None or name not in conditioner.parts]
        if unknown:
            raise ConfigError(f"drops names {listed(unknown)}, which is no condition of this model")
        self.codec = codec
        self.recipe = recipe
        # Parts of a recipe that learn while training (levels, weights, a time map) are saved with the weights.
        learns: dict[str, object] = {"levels": recipe.objective.levels, "weight": recipe.objective.weight}
        learns["time_map"] = recipe.process.time_map
        self.learns = nn.ModuleDict({name: part for name, part in learns.items() if isinstance(part, nn.Module)})
        self.facts: dict[str, Any] = {}
        self.ema: dict[str, Tensor] | None = None
        self.requires_grad_(True)
        if (weights := learned(codec)) is not None:
            weights.requires_grad_(False)
        self._losses = 0

    def _check_codec(self, codec: Codec, process: Process) -> None:
        """Nothing, or an IncompatibleError where the process or the network is not for what the codec gives."""
        latent = codec.latent
        check_latent(latent, process)
        planes = self.conditioner.planes if self.conditioner is not None else 0
        if latent.whole:
            vocab, wanted = getattr(self.network, "vocab", None), int(latent.high) + 1
            if vocab not in (None, wanted):
                raise IncompatibleError(
                    f"the network knows {vocab} tokens, and the codec gives {wanted}: make them equal"
                )
            if planes:
                raise IncompatibleError(
                    f"tokens have no channels that {planes} of images could stand beside: ask for no images, or work "
                    "on an autoencoder's latents as numbers"
                )
            return
        for name, part in self.conditioner.parts.items() if self.conditioner is not None else ():
            if isinstance(part, ImageBeside) and part.places != latent.shape[1:]:
                fold = part.shape[-1] // latent.shape[-1]
                raise IncompatibleError(
                    f"the images {name!r} would stand beside {_by(part.places)} places, and the network works on "
                    f"{_by(latent.shape[1:])}: make them {_by(codec.data.shape[1:])} with fold={fold}"
                )
        takes = getattr(self.network, "channels", None)
        if planes and takes is not None and takes != latent.shape[0] + planes:
            raise IncompatibleError(
                f"the network takes {takes} channels, and the samples have {latent.shape[0]}, with {planes} of images "
                f"beside them: it needs channels {latent.shape[0] + planes} and out_channels {latent.shape[0]}"
            )

    @property
    def network(self) -> nn.Module:
        return self.denoiser.network

    @property
    def conditioner(self) -> Conditions | None:
        conditioner = self.denoiser.conditioner
        assert conditioner is None or isinstance(conditioner, Conditions)
        return conditioner

    # ---- made for data ------------------------------------------------------------------------------------------

    @classmethod
    def for_data(
        cls,
        data: ImageDataset,
        preset: str | None = None,
        seed: int = 0,
        network: str | None = None,
        codec: Codec | None = None,
        **options: Any,
    ) -> DiffusionModel:
        """A model sized for `data`: channels, classes and statistics from it, the network's size from its resolution.

        Args:
            data: the train split (the codec is fitted to it).
            preset: a name in `diff_diffusion.presets`; "rectified_flow" unless betas are given, then "ddim", or the
                codec gives tokens, then "masked_tokens".
            seed: of the initial weights.
            network: "unet", "dit" or any other registered network's name; for tokens "token_transformer".
            codec: what the data are worked on as, such as an autoencoder's latents or tokens; pixels when left out.
            options: `conditional=False` for a model that learns nothing of the data's columns; and arguments of the
                preset: `timesteps`, `beta_start`, `beta_end`, `beta_schedule`, `num_inference_steps`.

        Raises:
            ConfigError: an unknown preset, network or option.
        """
        description = describe_for_data(data, preset, network, codec=codec, **options)
        model = cls.from_description(description, seed)
        model.take_weights(codec)
        return model

    # ---- asked ----------------------------------------------------------------------------------------------------

    def loss(self, data: Tensor, cond: Any = None, noise: Noise | None = None) -> Loss:
        """The training loss of a batch in data units.

        Args:
            data: [B, *shape], uint8 or float.
            cond: what the samples are, as in `sample`; None to train without.
            noise: one key per sample. Left out, every call draws fresh noise, counted from the model's making.
        """
        if noise is None:
            noise = Noise([derive(0, "loss", self._losses, row) for row in range(len(data))], "train")
            self._losses += 1
        return self.objective(self.codec.encode(data.to(self.device)), self.encode(cond, len(data)), noise)

    def objective(
        self, latents: Tensor, cond: Cond | None, noise: Noise, first: int = 0, whole: int | None = None
    ) -> Loss:
        if cond and self.conditioner is not None:
            cond = self.conditioner.noised(cond, noise.fork("condition"))
        return self.recipe.objective(self.denoiser, latents, cond, noise, first, whole)

    def held_out_levels(self, count: int) -> Tensor:
        strata = torch.arange(count, dtype=torch.float64) % LEVELS
        return self.recipe.objective.levels.draw((strata + 0.5) / LEVELS, self.recipe.process)

    def loss_at(self, latents: Tensor, t: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        return self.recipe.objective.at(self.denoiser, latents, t, cond, noise)

    def plan(
        self,
        *,
        steps: int | None = None,
        sampler: Sampler | str | None = None,
        grid: Grid | str | None = None,
        guidance: float | Guidance | None = None,
        conditional: bool = True,
        clip: bool | None = None,
    ) -> tuple[Denoiser, Sampler, list[float]]:
        """What a walk needs: the (guided) denoiser, the sampler and the times; the model's defaults where None.

        Raises:
            ConfigError: an unknown sampler or grid; guidance where the model or the request has no condition, or where
                the model was trained without dropping its condition; clipping of latents.
        """
        chosen = self.recipe.sampler if sampler is None else sampler_named(sampler)
        check_fits(chosen, self.recipe.process)
        times = self.chosen_grid(grid, steps).times(self.recipe.process)
        asked = self.guiding(guidance)
        denoiser: Denoiser = self.denoiser
        if not asked.idle and (conditional or guidance is not None):
            denoiser = asked.around(self, chosen, times)
        bounds = self.codec.bounds
        if not all(bool(torch.isfinite(end).all()) for end in bounds):
            if clip or asked.dynamic is not None:
                what = "clipping" if asked.dynamic is None else "dynamic thresholding"
                raise ConfigError(
                    f"{what} keeps guesses in the range of the data, and latents have none: leave it out; guidance "
                    "'rescale' or 'apg' holds back what a large scale spoils"
                )
        elif asked.dynamic is not None:
            denoiser = DynamicallyClipped(denoiser, *bounds, asked.dynamic)
        elif self.recipe.clip if clip is None else clip:
            denoiser = Clipped(denoiser, *bounds)
        return denoiser, chosen, times

    def guiding(self, guidance: float | Guidance | None) -> Guidance:
        """The guidance of a request: a scale, and the model's own where None."""
        if isinstance(guidance, Guidance):
            return guidance
        return Guidance(self.recipe.guidance if guidance is None else guidance)

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
        self, seeds: Sequence[int], cond: Any = None, size: tuple[int, int] | None = None, **plan: Any
    ) -> tuple[Tensor, Iterator[Step]]:
        """The start x and the steps of one batch's sampling, in the codec's units. `size` and `plan` as in `sample`."""
        denoiser, sampler, times = self.plan(**plan, conditional=cond is not None)
        noise = Noise(seeds)
        shape = self.codec.latent.shape if size is None else latent_shape(self.codec, *size)
        x = self.recipe.process.prior((len(seeds), *shape), noise.at(0), times[0]).to(self.device)
        ready = self.guiding(plan.get("guidance")).ready(self, cond, len(seeds))
        return x, trajectory(denoiser, sampler, times, x, cond=ready, noise=noise)

    def sample(
        self,
        num: int = 1,
        *,
        cond: Any = None,
        seed: int = 0,
        batch_size: int = 64,
        steps: int | None = None,
        sampler: Sampler | str | None = None,
        grid: Grid | str | None = None,
        guidance: float | Guidance | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Samples in data units, float32 [num, *shape] on the CPU.

        Sample i has seed `seed + i` and is the same whatever `num` and `batch_size` are.

        Args:
            num: how many.
            cond: what they should be, one for all or one per sample: {"label": "cat"} or
                {"caption": ["a cat", "一只猫"]}; of a model with one condition just its values; None for unconditional
                samples.
            seed: of the first sample.
            batch_size: how many at once.
            steps, sampler, grid, guidance: the model's defaults where None. Samplers and grids may be named: "heun" on
                "churn" is EDM's stochastic sampler. Guidance is a scale, or a `Guidance` that says more.
            size: height and width in pixels where they are not those it was trained on: the network is asked about the
                whole, which U-Nets and transformers allow and have not learned. See also `editing.draw_large`.

        Raises:
            ConfigError: a bad number, label, sampler, grid, scale or size.
            DiffusionError: samples that are not finite; they are never turned into black pictures.
        """
        if num < 1 or batch_size < 1:
            raise ConfigError(
                f"the number of samples and the batch size must be at least 1, not {num} and {batch_size}"
            )
        every = self.guiding(guidance).knows(self).asked(cond, num)
        pieces = []
        for first in range(0, num, batch_size):
            part = slice(first, min(first + batch_size, num))
            seeds = range(seed + part.start, seed + part.stop)
            some = None if every is None else {name: values[part] for name, values in every.items()}
            x, steps_of = self.walk(seeds, some, size, steps=steps, sampler=sampler, grid=grid, guidance=guidance)
            with self.evaluating():
                for step in steps_of:
                    x = step.x
            pieces.append(self.decode(x).cpu())
        return torch.cat(pieces)

    def sheet(self, examples: Mapping[str, Any] | None = None, images: Tensor | None = None) -> Image:
        """Every class in turn, or what the examples are, a column each.

        In at most 50 steps: a chain of a thousand would take longer to look at than the training between.
        """
        parts = self.conditioner.parts if self.conditioner is not None else {}
        only = next(iter(parts.values())) if len(parts) == 1 else None
        if isinstance(only, ClassLabel):
            heads = list(only.names[:SHEET_COLUMNS])
            asked: dict[str, list[Any]] = {next(iter(parts)): heads}
        else:
            asked = {name: list(values)[:SHEET_COLUMNS] for name, values in (examples or {}).items()}
            said = (values for values in asked.values() if any(isinstance(value, str) for value in values))
            heads = [value or "" for value in next(said, [])]
        columns = min((len(values) for values in asked.values()), default=SHEET_COLUMNS)
        rows = max(2, SHEET_COLUMNS // columns)
        cond = {name: values * rows for name, values in asked.items()} or None
        samples = self.sample(columns * rows, cond=cond, steps=min(self.recipe.grid.num_steps, SHEET_STEPS))
        return sheet(samples, columns, heads=heads)

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


for _argument in ("network", "conditioner"):
    assert isinstance(getattr(DiffusionModel, _argument), property)  # describe() reads constructor arguments by name


def _by(sides: Sequence[int]) -> str:
    return " × ".join(map(str, sides))


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
