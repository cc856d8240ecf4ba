"""Networks that other libraries run: features equal to the torch module's, names that say all, no pickle run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.errors import CheckpointError, IncompatibleError, MissingPackageError
from diff_diffusion.evaluation.feature_networks import FeatureNetwork, ModuleFeatures
from diff_diffusion.evaluation.outside import INCEPTION, Inception, inception, onnx_features


def images(count: int, side: int, channels: int = 1, seed: int = 0) -> Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), np.uint8)
    return torch.from_numpy(pixels)


class Small(nn.Module):
    """A convolution of stride 2, ReLU, means of each channel."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        rng = np.random.default_rng(seed)
        for parameter in self.conv.parameters():
            parameter.data = torch.from_numpy(rng.normal(size=parameter.shape)).float()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x)).mean((2, 3))


def exported(module: Small, shape: tuple[object, ...] = ("n", 3, 12, 10), outputs: int = 1) -> bytes:
    """The same graph in ONNX, from the module's own numbers."""
    names = {"w": module.conv.weight, "b": module.conv.bias}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "r")[:outputs]],
        [numpy_helper.from_array(value.detach().numpy(), name) for name, value in names.items()],
    )
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return content


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_an_onnx_file_gives_the_modules_features(tmp_path: Path, batch: object) -> None:
    """Grey images of another size, in batches that the file may fix; to float32's rounding."""
    path = tmp_path / "小 网络.onnx"
    path.write_bytes(exported(Small(), (batch, 3, 12, 10)))
    found, module = onnx_features(path), ModuleFeatures(Small(), "small", size=(12, 10), channels=3)
    for pixels in (images(7, 16), images(7, 12, 3)):
        got, expected = found.features(pixels), module.features(pixels)
        assert got.shape == (7, 6)
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert isinstance(found, FeatureNetwork)
    assert found.name == f"小-网络-{found.sha256[:8]}@12x10-bicubic"


def test_an_onnx_network_is_named_by_every_byte(tmp_path: Path) -> None:
    names = set()
    for i, module in enumerate((Small(), Small(1))):
        path = tmp_path / str(i) / "n.onnx"
        path.parent.mkdir()
        path.write_bytes(exported(module))
        names |= {onnx_features(path).name, onnx_features(path, mean=0.0).name, onnx_features(path, filter="area").name}
    assert len(names) == 6


def test_sides_that_a_file_leaves_open_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    path.write_bytes(exported(Small(), ("n", 3, "h", None)))
    found = onnx_features(path)
    assert found.size is None
    assert "@" not in found.name
    pixels = images(3, 9, 3)
    expected = ModuleFeatures(Small(), "small").features(pixels)
    torch.testing.assert_close(found.features(pixels), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(IncompatibleError, match=r"cannot take images \[2, 4, 9, 9\]"):
        found.features(images(2, 9, 4))


def test_files_that_are_no_feature_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "n.onnx"
    with pytest.raises(CheckpointError, match=r"n\.onnx is no ONNX file"):
        onnx_features(path)
    path.write_bytes(b"\0" * 50)
    with pytest.raises(CheckpointError, match="is no ONNX file"):
        onnx_features(path)
    flat = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(flat, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(IncompatibleError, match=r"takes x: tensor\(float\) \['n', 64\] and gives y"):
        onnx_features(path)
    path.write_bytes(exported(Small(), outputs=2))
    with pytest.raises(IncompatibleError, match="gives y, r"):
        onnx_features(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"diff-diffusion\[onnx\]"):
        onnx_features(path)


# ---- Inception -------------------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """What torchmetrics' network is called with and gives: uint8 images in colour to features, weights from a file."""

    def __init__(self, name: str, features: list[str], path: str | None = None) -> None:
        super().__init__()
        assert (name, features) == ("inception-v3-compat", ["2048"])
        assert path is not None, "without a path it would download"
        self.linear = nn.Linear(3, 5)
        self.load_state_dict(torch.load(path, weights_only=False))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return self.linear(x.float().mean((2, 3)))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the weights belong; torchmetrics and torch-fidelity are stand-ins."""
    for name in ("torch_fidelity", "torchmetrics", "torchmetrics.image", "torchmetrics.image.fid"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchmetrics.image.fid"].NoTrainInceptionV3 = StandIn  # type: ignore[attr-defined]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / INCEPTION


def test_inception_is_named_after_what_it_is(place: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 5)
    torch.save({f"linear.{name}": value for name, value in linear.state_dict().items()}, place)
    network = inception()
    assert isinstance(network, FeatureNetwork)
    assert network.name == f"inception-torch-fidelity-{network.sha256[:8]}@299x299-bilinear"
    pixels = images(70, 8).float() + 0.3
    expected = linear(pixels.round().mean((2, 3)).expand(-1, 3)).detach().double()
    torch.testing.assert_close(network.features(pixels), expected)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert Inception(nn.Linear(3, 5)).name != network.name


def test_inception_is_never_downloaded_nor_run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=f"not at {place}, and are not downloaded unasked"):
        inception()
    torch.save({"linear.weight": Evil(tmp_path / "owned")}, place)
    with pytest.raises(CheckpointError, match="does not hold the tensors of Inception"):
        inception()
    assert not (tmp_path / "owned").exists()
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    with pytest.raises(CheckpointError, match="does not hold the tensors"):
        inception()
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"


def test_what_inception_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingPackageError, match=r"diff-diffusion\[eval\]"):
        inception()

    def broken(package: str, extra: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("diff_diffusion.evaluation.outside.require", broken)
    with pytest.raises(MissingPackageError, match=r"nms does not exist.*torchvision that was built for this torch"):
        inception()
