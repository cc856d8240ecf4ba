"""Super-resolution: small images made large by a model that was trained with their like beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diff_diffusion.codecs.codec import latent_shape
from diff_diffusion.conditions.images import ImageBeside
from diff_diffusion.editing.walks import walked
from diff_diffusion.errors import ConfigError, listed
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise
from diff_diffusion.tensors import enlarged


def upscale(
    model: DiffusionModel,
    images: Tensor,
    factor: int,
    *,
    noise: float = 0.0,
    beside: str | None = None,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
    overlap: float = 0.5,
    **plan: Any,
) -> Tensor:
    """Small images made `factor` times larger, with the detail that the model has seen beside such images.

    The model has an image condition that was trained on its own pictures shrunk by `factor` (data of kind
    "shrunk:factor"). Each image is enlarged as those were and given to it.

    Args:
        images: [B, C, h, w], 0 to 255, the condition's channels; enlarged, the model's size or larger.
        factor: that of the training.
        noise: s of the conditioning augmentation: in units of -1 to 1 the enlarged image becomes √(1 - s²) image + s ε,
            with ε of the sample's seed, and the model is told s. At most what it was trained with. A little forgives
            the faults of images that are not real.
        beside: the condition's name; the only image condition if left out.
        cond: the other conditions, as in `DiffusionModel.sample`.
        seed: of the first image; image i has seed + i.
        overlap: of windows, where images become larger than the model's.
        plan: steps, sampler, grid and guidance, as in `DiffusionModel.sample`.

    Returns:
        [B, C, h × factor, w × factor] float32 on the CPU.

    Raises:
        ConfigError: a model without such a condition, images of the wrong channels or too small, or more noise than
            the model knows.

    Source: Saharia et al., "SR3", arXiv 2104.07636; Ho et al., arXiv 2106.15282, for the noise.
    """
    name, trained_with = _image_condition(model, beside, factor)
    if cond is not None and name in cond:
        raise ConfigError(f"the condition {name!r} is the small image itself, and was given twice")
    if images.ndim != 4:
        raise ConfigError(f"images to enlarge are [B, C, h, w], not {list(images.shape)}")
    if not 0.0 <= noise <= trained_with:
        raise ConfigError(f"the noise on {name!r} can be from 0 to {trained_with:g}, as in training, not {noise}")
    # A stream of its own: a sample of the same seed, which the image may be, begins with other numbers.
    keys = Noise(range(seed, seed + len(images))).fork("upscale")
    large = enlarged(images, factor)
    given: list[Any] = list(large)
    if noise:
        epsilon = keys.fork("beside").normal(large.shape, large)
        noised = (1.0 - noise**2) ** 0.5 * (large / 127.5 - 1.0) + noise * epsilon
        given = [((image + 1.0) * 127.5, noise) for image in noised]
    shape = latent_shape(model.codec, *large.shape[2:])
    return walked(model, keys, plan, cond={**(cond or {}), name: given}, shape=shape, overlap=overlap)


def cascade(
    first: DiffusionModel,
    second: DiffusionModel,
    num: int,
    *,
    noise: float = 0.0,
    beside: str | None = None,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
    **plan: Any,
) -> Tensor:
    """Samples of a model of small images, made large by a second one.

    Args:
        first: draws small images.
        second: enlarges them, as in `upscale`, by the ratio of the two models' sizes.
        num: how many.
        noise: on the small images, so that the second model forgives the first's faults; see `upscale`.
        beside: the second's condition that sees the small image; its only image condition if left out.
        cond: what they should be, by name; each model is asked for what it knows.
        seed: of the first sample.
        plan: steps, sampler, grid and guidance, of both.

    Returns:
        [num, C, H, W] float32 on the CPU, of the second model's size.

    Raises:
        ConfigError: sizes that are not one whole multiple apart, a condition that neither model knows, and what
            `upscale` refuses.

    Source: Ho et al., "Cascaded Diffusion Models", arXiv 2106.15282.
    """
    small, large = first.codec.data.shape, second.codec.data.shape
    factor = large[-1] // small[-1]
    if factor < 2 or tuple(side * factor for side in small[1:]) != tuple(large[1:]):
        raise ConfigError(
            f"the first model draws {small[1]} × {small[2]} and the second {large[1]} × {large[2]}: the second must be "
            "larger, by the same whole factor on both sides"
        )
    asked = dict(cond or {})
    known = {name for model in (first, second) if model.conditioner is not None for name in model.conditioner.parts}
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ConfigError(f"neither model knows the condition {listed(unknown)}; together they know {listed(known)}")
    drawn = first.sample(num, cond=first.known(asked), seed=seed, **plan)
    return upscale(second, drawn, factor, noise=noise, beside=beside, cond=second.known(asked), seed=seed, **plan)


def _image_condition(model: DiffusionModel, name: str | None, factor: int) -> tuple[str, float]:
    """The model's condition of that name, or its only one, that is itself shrunk; and the noise it was trained with."""
    parts = model.conditioner.parts if model.conditioner is not None else {}
    shrunk = {key: part for key, part in parts.items() if isinstance(part, ImageBeside) and part.kind[:6] == "shrunk"}
    images = {key: part.noise for key, part in shrunk.items()}
    other = {key: part.kind for key, part in shrunk.items() if part.kind != f"shrunk:{factor}" and name in (None, key)}
    if other:
        trained = listed(f"{kind[7:]} times" for kind in other.values())
        raise ConfigError(f"the model was trained to enlarge {trained}, and not {factor}")
    if not images:
        raise ConfigError(
            "enlarging needs a model that sees a small image beside its own; this one has "
            f"{'the conditions ' + listed(parts) if parts else 'no conditions'}: train one with a column of kind "
            "shrunk:FACTOR"
        )
    if name is None and len(images) == 1:
        return next(iter(images.items()))
    if name in images:
        return name, images[name]
    what = "several image conditions" if name is None else f"no image condition {name!r}"
    raise ConfigError(f"this model has {what}; say which with beside=: {listed(images)}")
