"""Parts of a recipe that learn while the network does: levels, weights and time maps, saved and resumed with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tiny
import torch
from tiny import LEARNING, learning

from diff_diffusion.codecs.vector_quantised import VectorQuantised
from diff_diffusion.errors import IncompatibleError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.rng import Noise
from diff_diffusion.training import loop, train
from diff_diffusion.training.runtime import Ranks
from diff_diffusion.training.together import add_up, begin_batch


def run(name: str, out: Path, stop_at: int | None = None) -> DiffusionModel:
    model, data, done = learning(name), tiny.images(), list[int]()
    for record in train(
        model, data, out, tiny.settings(steps=14), stop=lambda: stop_at is not None and len(done) + 1 >= stop_at
    ):
        done.append(record.step)
    return model


@pytest.mark.parametrize("name", LEARNING)
def test_it_learns_and_a_resumed_run_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in learning(name).learns.state_dict().items()}
    assert before
    run(name, tmp_path / "whole")
    run(name, tmp_path / "parts", stop_at=6)
    run(name, tmp_path / "parts")
    assert tiny.ends(tmp_path / "parts") == tiny.ends(tmp_path / "whole")
    stored = DiffusionModel.load(tmp_path / "whole", weights="raw").learns.state_dict()
    assert stored.keys() == before.keys()
    assert any(not torch.equal(stored[key], before[key]) for key in before)
    assert DiffusionModel.load(tmp_path / "whole").sample(2, cond=0).isfinite().all()


def test_a_learned_map_is_refused_where_it_would_change_the_loss() -> None:
    description = tiny.description(tiny.images(), multipliers=[1])
    for objective in ({}, {"weight": {"type": "weight/vlb"}, "levels": {"type": "levels/normal"}}):
        description["recipe"] |= LEARNING["learned_map"] | {"objective": {"type": "objective/denoising", **objective}}
        with pytest.raises(IncompatibleError, match="'vlb' or 'sigmoid'"):
            DiffusionModel.from_description(description)


def test_timing_the_precision_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often it is tried depends on the clock; what the levels know at step 1 must not."""
    model, data = learning("loss_aware"), tiny.images()

    def tried(device: torch.device, step: Callable[[str], None]) -> tuple[str, float]:
        step("fp32")
        assert model.learns.levels.fresh.any()
        return "fp32", 1.0

    monkeypatch.setattr(loop, "choose_precision", tried)
    steps = train(model, data, None, tiny.settings(steps=1, precision="auto"))
    next(iter(steps))
    assert model.learns.levels.fresh[1].sum() + model.learns.levels.counts.sum() == 8  # the first batch's, no more


def test_micro_batches_change_no_level(tmp_path: Path) -> None:
    """Loss-aware levels are those of the whole batch, however it is cut: the loss is the same to rounding."""
    losses = []
    for micro in (8, 4):
        data = tiny.images()
        records = list(train(learning("loss_aware"), data, None, tiny.settings(steps=12, micro_batch=micro)))
        losses.append([record.loss for record in records])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_codes_that_start_again_take_one_processs_places() -> None:
    """A mean of places of several processes would lie at the middle of the data, whatever is there."""

    given: list[torch.Tensor] = []

    class Company(Ranks):
        """The second of two processes is asked when it is known what the first gave."""

        def add(self, tensors: Sequence[torch.Tensor]) -> None:
            if self.first:
                given.extend(tensor.clone() for tensor in tensors)
            else:
                for tensor, other in zip(tensors, given, strict=True):
                    tensor.add_(other)

    data = tiny.images(16)
    models = [tiny.autoencoder(data, "vq").train() for _ in range(2)]
    books = [model.bottleneck for model in models]
    brought = []
    for rank, (model, rows) in enumerate(zip(models, (range(8), range(8, 16)), strict=True)):
        begin_batch(model)
        model.objective(model.codec.encode(data.batch(rows)), None, Noise(rows)).mean.backward()
        book = books[rank]
        assert isinstance(book, VectorQuantised)
        assert book.restarts is not None, "the first batch starts all codes"
        brought.append((book.restarts.clone(), book.sums.clone()))
        add_up(Company(rank, 2), model, torch.zeros(()))
    learned = sum(sums - restarts for restarts, sums in brought) / 2
    torch.testing.assert_close(books[1].sums, learned + brought[0][0], rtol=1e-5, atol=1e-6)
