"""Tensors become a safetensors file without a copy of them, and the file is the library's own, byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch

from diff_diffusion.storage import folder as storage

NUMBERS = torch.Generator().manual_seed(0)
TENSORS = {
    "权重/卷积": torch.randn(3, 4, generator=NUMBERS),
    "b/step": torch.tensor(5.0),
    "a": torch.arange(7),
    "narrow": torch.randn(5, generator=NUMBERS).bfloat16(),
    "half": torch.randn(3, generator=NUMBERS).half(),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
    "turned": torch.randn(4, 5, generator=NUMBERS).t(),
}


def test_the_file_is_the_one_that_the_library_writes() -> None:
    content = storage.to_safetensors(TENSORS)
    whole = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert b"".join(content) == safetensors.torch.save(whole)
    assert storage.size_of(content) == len(b"".join(content))


def test_every_type_that_has_a_name_comes_back() -> None:
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in storage.DTYPES}
    back = safetensors.torch.load(b"".join(storage.to_safetensors(tensors)))
    assert {name: tensor.dtype for name, tensor in back.items()} == {str(dtype): dtype for dtype in storage.DTYPES}
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_large_tensors_are_not_copied_and_small_ones_are_one_piece() -> None:
    large = torch.zeros(storage.LARGE // 4)
    content = storage.to_safetensors({"a": torch.zeros(8), "b": torch.zeros(8), "c": large, "d": torch.zeros(8)})
    large[3] = 1.0
    assert safetensors.torch.load(b"".join(content))["c"][3] == 1.0
    assert [len(piece) for piece in content[1:]] == [64, storage.LARGE, 32]


def test_a_folder_states_the_hash_of_what_is_in_it(tmp_path: Path) -> None:
    home = tmp_path / "检查点"
    storage.write_folder(home, {"weights.safetensors": storage.to_safetensors(TENSORS), "facts.json": b"{}\n"}, {})
    stated = json.loads((home / storage.MANIFEST).read_text())["sha256"]
    for name in ("weights.safetensors", "facts.json"):
        assert stated[name] == hashlib.sha256((home / name).read_bytes()).hexdigest()
    assert list(stated) == ["weights.safetensors", "facts.json", storage.MANIFEST]
