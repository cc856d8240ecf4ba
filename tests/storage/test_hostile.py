"""Folders made to do harm: refused quickly, nothing allocated, nothing run."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import hostile
import pytest
import tiny
import torch

from diff_diffusion.errors import CheckpointError
from diff_diffusion.models import DiffusionModel

# Stored arguments that nothing checks until they are used: a wrong one is found when the model samples or trains.
UNCHECKED = {"codec", "codec.low", "recipe.grid", "recipe.guidance", "recipe.objective", "recipe.objective.levels"}
FITTING = {("network.attention", "[]")}  # says the same
UNUSED = {
    ("network.head_width", "2.5"),
    ("recipe.grid.num_steps", "2.5"),
    ("recipe.sampler", "{'type': 'sampler/heun'}"),
}


def test_absurd_descriptions_are_refused_quickly_and_allocate_nothing(tmp_path: Path) -> None:
    assert tiny.finish(tiny.child(hostile.open_all, tmp_path / "report.json"), 120) == 0
    rows = json.loads((tmp_path / "report.json").read_text())
    assert len(rows) == len(hostile.CASES) > 380
    for place, value, what, seconds, grown in rows:
        case = f"{place} = {value}: {what[:300]}, {seconds:.1f} s, {grown:.0f} MiB"
        if what in ("the same", "loaded"):
            assert place in UNCHECKED or (place, value) in FITTING | UNUSED, case
        else:
            assert what.startswith("CheckpointError: "), case
        assert seconds < 5, case
        assert grown < 64, case
    print(f"{len(rows)} descriptions, the slowest {max(row[3] for row in rows):.1f} s")


def test_a_forged_folder_is_refused_from_disk(tmp_path: Path) -> None:
    model = tiny.fresh(tiny.images())
    model.save(tmp_path / "fine")
    for place, value, said in [
        (
            "network",
            {"type": "os/system"},
            "unknown part 'os/system' at model.network|unknown part 'os/system' at network",
        ),
        ("network.width", 16, "weights do not fit the described network: .* is "),
        ("network", {"type": "network/unet", **hostile.HUGE, "cond_width": 8}, "weights do not fit"),
        ("conditioner", None, "unknown denoiser.conditioner.each.0.table.weight|takes an embedded condition"),
        ("recipe.process.time_map", hostile.nested(100, hostile.FLOW), "nested deeper than 16"),
        ("", {"type": "time_map/flow"}, "describes a Flow, and a DiffusionModel is needed"),
    ]:
        hostile.forge(model, tmp_path / "forged", place, value)
        with pytest.raises(CheckpointError, match=said):
            DiffusionModel.load(tmp_path / "forged")


@pytest.mark.parametrize(
    "name", ["model.pth", "model.pt", "model.ckpt", "model.bin", "model.pkl", "no such.ckpt", "archive.pth"]
)
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "archive.pth":
        torch.save({"a": torch.ones(1)}, path)
        assert zipfile.is_zipfile(path)
    elif not name.startswith("no such"):
        path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError) as caught:
        DiffusionModel.load(path)
    for part in (f"{path} is a pickle", "can run code", "weights_only=True", "save_file"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_may_be_named_like_a_pickle(tmp_path: Path) -> None:
    model = tiny.fresh(tiny.images())
    model.save(tmp_path / "model.bin")
    assert DiffusionModel.load(tmp_path / "model.bin").fingerprint() == model.fingerprint()


def test_opening_a_folder_runs_nothing(tmp_path: Path) -> None:
    """An audit hook sees every exec, compile, import, process, socket and unpickling of a whole process."""
    places = tmp_path / "places"
    model = tiny.fresh(tiny.images())
    model.save(places / "model")
    tiny.run(places / "run", steps=2)
    hostile.forge(model, places / "forged", "network", {"type": "os/system", "command": "touch hacked"})
    hostile.forge(model, places / "imported", "network", {"type": "torch.nn/Linear", "_target_": "os.system"})
    (places / "empty").mkdir()
    (places / "not.json").mkdir()
    (places / "not.json" / "config.json").write_text("__import__('os').system('touch hacked')")
    (places / "pickled").mkdir()
    (places / "pickled" / "config.json").write_bytes(pickle.dumps({"format": 1}))
    (places / "weights.pth").write_bytes(pickle.dumps([1]))
    model.save(places / "swapped")
    torch.save({"a": 1}, places / "swapped" / "model.safetensors")
    report = tmp_path / "report.json"
    assert tiny.finish(tiny.child(hostile.watch, places, report)) == 0
    told = json.loads(report.read_text())
    assert told == {"opened": 2, "events": [], "works": True}
