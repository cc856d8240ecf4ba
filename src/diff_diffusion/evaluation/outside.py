"""Feature networks that other libraries run: a network in an ONNX file, and the Inception network of torchmetrics."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diff_diffusion.errors import CheckpointError, IncompatibleError, MissingPackageError, listed, require
from diff_diffusion.evaluation.feature_networks import BATCH, ModuleFeatures, weights_hash

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""The file of weights as torch-fidelity calls it; torch.hub's folder of checkpoints is where it looks."""


class _Onnx(nn.Module):
    """A graph that onnxruntime runs on the CPU. The file's bytes are a buffer: what is hashed is what runs."""

    content: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        runtime: Any = require("onnxruntime", extra="onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            content = path.read_bytes()
            self.session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors have no common root
            raise CheckpointError(
                f"{path} is no ONNX file that onnxruntime can run: {str(error).splitlines()[0]}. Weights that are kept "
                "in a second file must be in this one"
            ) from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(outputs) != 1 or len(shape) != 4 or inputs[0].type != "tensor(float)":
            seen = listed(f"{one.name}: {one.type} {one.shape}" for one in inputs) or "nothing"
            raise IncompatibleError(
                f"{path} takes {seen} and gives {listed(one.name for one in outputs)}: a feature network takes one "
                "float32 tensor [N, C, H, W] and gives one. Export it so"
            )
        self.input = inputs[0].name
        # A side that the file leaves open is a name, or None.
        self.batch, self.channels, *sides = (side if isinstance(side, int) and side > 0 else None for side in shape)
        self.size = (sides[0], sides[1]) if sides[0] and sides[1] else None
        self.register_buffer("content", torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._of(part) for part in x.split(self.batch or BATCH)])

    def _of(self, x: Tensor) -> Tensor:
        count = len(x)
        if self.batch is not None and count < self.batch:  # the file is for whole batches only
            x = torch.cat([x, x.new_zeros(self.batch - count, *x.shape[1:])])
        try:
            (found,) = self.session.run(None, {self.input: x.contiguous().numpy()})
        except Exception as error:
            raise IncompatibleError(f"the ONNX network cannot take images {list(x.shape)}: {error}") from error
        return torch.from_numpy(found)[:count]


def onnx_features(
    path: Path,
    *,
    filter: str = "bicubic",
    mean: float | tuple[float, ...] = 127.5,
    std: float | tuple[float, ...] = 127.5,
) -> ModuleFeatures:
    """The network in an ONNX file, named after the file.

    Images are brought to the height and width that the file states, grey ones repeated to its channels.

    Args:
        path: of a file with one input, float32 [N, C, H, W], and one output; a side that it leaves open may be any.
        filter: how images are brought to its size.
        mean, std: what is subtracted from 0..255, and then divided by: as they are, it sees numbers from -1 to 1.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        CheckpointError: no such file, or no ONNX.
        IncompatibleError: it takes or gives something else.
    """
    module = _Onnx(path)
    name = re.sub(r"[@,\s]+", "-", path.stem)
    return ModuleFeatures(module, name, module.size, filter, module.channels, mean, std)


@dataclass(frozen=True)
class Inception:
    """The 2,048 features that a Fréchet inception distance is made of, as torchmetrics has them.

    That is torch-fidelity's port of the network of 2015, on images brought to 299 × 299 by an antialiased bilinear
    filter, where torch-fidelity itself and the first FID use another. So it is named after what it is; a number on it
    is near to an "FID" of another program, and not the same.

    Args:
        module: uint8 [N, 3, H, W] to [N, 2048]; see `inception`.
    """

    module: nn.Module
    size: tuple[int, int] = (299, 299)
    filter: str = "bilinear"

    @cached_property
    def sha256(self) -> str:
        return weights_hash(self.module.state_dict().values())

    @property
    def name(self) -> str:
        return f"inception-torch-fidelity-{self.sha256[:8]}@{self.size[0]}x{self.size[1]}-{self.filter}"

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        pixels = images.round().clamp(0, 255).to(torch.uint8)
        pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
        return torch.cat([self.module(part).double() for part in pixels.split(64)])


def inception() -> Inception:
    """The Inception network, where torchmetrics, torch-fidelity and the weights are on this machine.

    Nothing is downloaded, and the weights, which are a pickle, are read by the part of torch that makes tensors alone.

    Raises:
        MissingPackageError: a package is missing, or torchvision, which torch-fidelity needs, is for another torch.
        CheckpointError: the weights are not where they are looked for, or are something else.
    """
    try:
        require("torch_fidelity", extra="eval")
        module: Any = require("torchmetrics.image.fid", extra="eval")
    except RuntimeError as error:  # what torchvision raises beside a torch that it was not built for
        raise MissingPackageError(
            f"torch-fidelity cannot be imported here: {error}. It needs a torchvision that was built for this torch: "
            "install both from one index. Or export the network on another machine, and give --features FILE.onnx"
        ) from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not path.is_file():
        raise CheckpointError(
            f"the weights of Inception are not at {path}, and are not downloaded unasked: put {INCEPTION} there, from "
            "the releases of toshas/torch-fidelity on GitHub (v0.2.0)"
        )
    with _tensors_only():
        try:
            network = module.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except Exception as error:  # whatever a file that is no weights makes a pickle's reader do
            raise CheckpointError(
                f"{path} does not hold the tensors of Inception and nothing else ({type(error).__name__}): put the "
                "file of torch-fidelity's releases there"
            ) from error
    return Inception(network)


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Inside, torch reads pickles of tensors alone, also for a library that asks it to run whatever is in one."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
