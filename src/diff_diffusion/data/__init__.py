"""Images from a folder to uint8 tensors: verified, one shape, in an order that a resumed training repeats.

`folder` finds the files, `images` decodes one, `plan` chooses the shape, `survey` verifies them all, `report` says what
came of it; `metadata` finds what is said of them, in the rows that `tables` reads, and `kinds` makes typed `columns` of
that; `load` puts these together into the `ImageDataset` of `dataset`, and `loader` cuts it into batches.
"""

from diff_diffusion.data.columns import Column
from diff_diffusion.data.dataset import ImageDataset
from diff_diffusion.data.load import load_image_dataset
from diff_diffusion.data.report import DataReport

__all__ = ["Column", "DataReport", "ImageDataset", "load_image_dataset"]
