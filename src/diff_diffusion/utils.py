"""`load_model` and `sample` under the path from which the articles import them."""

from diff_diffusion.models import DiffusionModel
from diff_diffusion.pictures import to_picture

__all__ = ["load_model", "sample"]

load_model = DiffusionModel.load


def sample(model, device="cpu", **options):  # type: ignore[no-untyped-def]
    """One sample as a picture for plt.imshow: uint8, [H, W] when grey, else [H, W, 3]. `options` as in `model.sample`."""
    return to_picture(model.to(device).sample(1, **options)[0])
