"""Sample sheets during training are quick, whatever the recipe's own chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import Tensor

from diff_diffusion.models import DiffusionModel
from diff_diffusion.models.diffusion import SHEET_STEPS
from diff_diffusion.training.ema import Ema
from diff_diffusion.training.monitor import write_sheets


def test_a_chain_of_a_thousand_is_walked_in_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = tiny.description(tiny.images(), "ddpm", multipliers=[1])
    description["recipe"]["grid"]["num_steps"] = 1000
    model, walked = DiffusionModel.from_description(description), list[int]()
    sample = DiffusionModel.sample

    def watched(self: DiffusionModel, num: int, **options: Any) -> Tensor:
        walked.append(options["steps"])
        return sample(self, num, **options | {"steps": 2})

    monkeypatch.setattr(DiffusionModel, "sample", watched)
    write_sheets(model, Ema(model), tiny.images(), tmp_path, 7)
    assert walked == [SHEET_STEPS, SHEET_STEPS]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007-ema.png", "step-00000007-raw.png"]
