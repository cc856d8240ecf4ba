"""The training loop: a generator of step records. Data order and noise are functions of (seed, step) alone.

The same call on the same run folder goes on from its newest checkpoint, and ends with the same bytes as a run that was
never interrupted. Several processes that torchrun started do one run: what n of them compute is what one computes with
micro-batches of their parts, but for the order of sums.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from diff_diffusion.data import ImageDataset
from diff_diffusion.data.loader import Batch, Batches
from diff_diffusion.errors import CheckpointError, ConfigError, DiffusionError, TrainingError
from diff_diffusion.models import Model
from diff_diffusion.models.held_out import held_out_loss
from diff_diffusion.registry import describe
from diff_diffusion.rng import Noise, derive
from diff_diffusion.training import checkpoint
from diff_diffusion.training.checkpoint import TrainState
from diff_diffusion.training.ema import Ema
from diff_diffusion.training.journal import Journal, Record
from diff_diffusion.training.latents import Latents
from diff_diffusion.training.monitor import write_sheets
from diff_diffusion.training.runtime import Ranks, autocast, choose_device, choose_precision, joined, seeded
from diff_diffusion.training.settings import FREE_TO_CHANGE, TrainSettings
from diff_diffusion.training.together import add_up, begin_batch, check_alike, check_weights

MAX_SKIPS = 10


def train(
    model: Model,
    data: ImageDataset,
    out: str | Path | None = None,
    settings: TrainSettings | None = None,
    *,
    held_out: ImageDataset | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Trains `model` on `data`, a record a step. The model holds the averaged weights when it ends.

    Among several processes each calls this alike, has the same model and takes every record; only the first
    writes, and has `held_out` in its records.

    Args:
        model: fresh, or what a resumed run started from; its weights are replaced by the run's newest checkpoint.
        data: the train split.
        out: the run folder; None trains in memory and saves nothing.
        settings: how; 1000 steps of the defaults when left out.
        held_out: images whose loss is measured and that are never trained on.
        stop: asked after every step; true in any process ends the run early, saved.

    Raises:
        ConfigError: settings or data that differ from those of the run being resumed, or between processes.
        IncompatibleError: data of another shape or other classes than the model's.
        TrainingError: loss or gradient stayed non-finite; the last good state is saved. Or another process ended.
        CheckpointError: the disk refused, or no checkpoint is whole.
    """
    settings = settings or TrainSettings(steps=1000)
    if settings.steps is None and settings.minutes is None:
        raise ConfigError("say how long to train: steps or minutes")
    with joined() as ranks:
        run = _Run(model, data, Path(out) if out is not None else None, settings, held_out, ranks)
        yield from run.steps(stop)


class _Run:
    """One run: the model, what its next step needs, and where it is written."""

    def __init__(
        self,
        model: Model,
        data: ImageDataset,
        out: Path | None,
        settings: TrainSettings,
        held_out: ImageDataset | None,
        ranks: Ranks | None = None,
        keep_latents: bool = True,
    ) -> None:
        self.model, self.data, self.out, self.held_out = model, data, out, held_out
        settings = settings.sized(data.shape)
        self.ranks = ranks or Ranks()
        for known in (data, held_out):
            if known is not None:
                model.check_data(known)
        self.notes: list[str] = []
        self.seconds, self.step, self._first_bad = 0.0, 0, ""
        moments: dict[str, Tensor] | None = None
        ema: dict[str, Tensor] | None = None
        fingerprint = data.fingerprint()
        self.about_data = {"name": data.name, "images": len(data), "fingerprint": fingerprint}
        if self.ranks.count > 1:  # alone, a model need not have a description
            check_alike(
                self.ranks,
                {
                    "the settings": settings.model_dump_json().encode(),
                    "the data": fingerprint.encode(),
                    "the model": json.dumps(describe(model)).encode(),
                },
            )
        with self.ranks.first_then_others():  # the first mends what a crash left behind
            newest = checkpoint.latest(out, mend=self.ranks.first) if out is not None else None
        self.resumed = newest is not None
        if newest is not None:
            stored, state, problems = newest
            self._check_same(stored, state, settings)
            model.load_state_dict(stored.state_dict())
            model.facts, ema, moments = stored.facts, stored.ema, state.moments
            self.step, self.seconds = state.step, state.seconds
            settings = settings.model_copy(update={"precision": state.settings["precision"]})
            self.notes += [f"resumed at step {self.step}", *(f"passed over: {problem}" for problem in problems)]
        self.device = choose_device()
        model.to(self.device)
        if self.device.type == "cpu":  # a convolution gives the layout of its weights on, and is faster in this one
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        check_weights(self.ranks, model, self.step)
        self.latents = Latents(model, data, self.device, self.ranks, keep=keep_latents)
        self.notes += self.latents.notes
        self.ema = Ema(model, ema)
        self.settings = settings
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        if moments is not None:
            self._load_moments(moments)
        if settings.precision == "auto":
            measured = self._measured_precision() if self.ranks.first else ""
            self.settings = settings.model_copy(update={"precision": self.ranks.told(measured)})
        model.facts |= {"name": out.name if out else data.name, "data": Path(data.name).name, "train images": len(data)}
        model.facts |= {"precision": self.settings.precision, "seed": self.settings.seed}

    # ---- among others ---------------------------------------------------------------------------------------------

    # ---- resuming -------------------------------------------------------------------------------------------------

    def _check_same(self, stored: Model, state: TrainState, settings: TrainSettings) -> None:
        """Nothing, or a ConfigError that lists what differs from the run on disk."""
        now = settings.model_dump(mode="json")
        if now["precision"] == "auto":
            now["precision"] = state.settings["precision"]
        fixed = {key: value for key, value in state.settings.items() if key not in FREE_TO_CHANGE}
        if settings.lr_schedule == "cosine":
            fixed["steps"] = state.settings["steps"]
        rows = [f"{key} was {value!r}, now {now.get(key)!r}" for key, value in fixed.items() if now.get(key) != value]
        if describe(stored) != describe(self.model):
            rows.append("the model's description changed")
        else:
            disk, here = stored.state_dict(), self.model.state_dict()
            others = {name.split(".")[0] for name in stored.fixed() if not torch.equal(disk[name], here[name].cpu())}
            rows += [f"the {part} has other weights" for part in sorted(others)]
        if state.data["fingerprint"] != self.about_data["fingerprint"]:
            was = f"{state.data['name']}, {state.data['images']} images"
            rows.append(f"the data changed (was {was}; now {self.about_data['name']}, {len(self.data)} images)")
        if rows:
            raise ConfigError(
                f"{self.out} holds a run that this command would not continue: {'; '.join(rows)}. "
                "Give another --out, or the run's own settings"
            )

    def _moments(self) -> dict[str, Tensor]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        return {
            f"{names[parameter]}/{key}": torch.as_tensor(value)
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }

    def _load_moments(self, moments: dict[str, Tensor]) -> None:
        by_name: dict[str, dict[str, Tensor]] = {}
        for full, value in moments.items():
            name, key = full.rsplit("/", 1)
            by_name.setdefault(name, {})[key] = value
        for name, parameter in self.model.named_parameters():
            if name in by_name:
                # On the parameter's device and in its layout: the fused update reads both as they lie in memory.
                self.optimizer.state[parameter] = {
                    key: torch.empty_like(parameter).copy_(value) if value.ndim else value.to(parameter.device)
                    for key, value in by_name[name].items()
                }

    def _measured_precision(self) -> str:
        rows = self.ranks.share(self.settings.batch_size)
        count = min(self.settings.micro_batch or rows.stop - rows.start, len(self.data))
        images = self.data.batch(range(count))
        cond = self.model.encode(self.model.known(self.data.cond(range(count))), count)
        noise = Noise([derive(0, "precision", i) for i in range(count)])

        def step(precision: str) -> None:
            with autocast(self.device, precision):
                loss = self.model.objective(self.model.codec.encode(images.to(self.device)), cond, noise)
            loss.mean.backward()
            self.optimizer.zero_grad(set_to_none=True)

        # What parts that learn were taught by the timing must not stay: how often it is tried depends on the clock.
        before = {name: value.clone() for name, value in self.model.learns.state_dict().items()}
        with seeded(self.device, 0):
            precision, ratio = choose_precision(self.device, step)
        self.model.learns.load_state_dict(before)
        self.notes.append(f"precision {precision} (bf16 measured {ratio:.2f} × the speed of fp32)")
        return precision

    # ---- stepping -------------------------------------------------------------------------------------------------

    def steps(self, stop: Callable[[], bool]) -> Iterator[Record]:
        settings, began, before = self.settings, time.monotonic(), self.seconds
        journal = Journal(self.out / "metrics.jsonl", self.step) if self.out is not None and self.ranks.first else None
        if self.out is not None and not self.resumed:
            self._save()
        recent: deque[tuple[float, float]] = deque(maxlen=50)
        skips = 0
        rows = self.ranks.share(settings.batch_size)
        pixels = self.latents.kept is None
        batches = iter(Batches(self.data, settings.batch_size, settings.seed, self.step, rows=rows, pixels=pixels))
        with closing(batches), self._averaged_after():
            while not self._done():
                start = time.monotonic()
                batch = next(batches)
                waited = time.monotonic() - start
                loss, norm = self._step(batch)
                skipped = not (_finite(loss) and _finite(norm))
                skips = skips + 1 if skipped else 0
                self.step += 1
                self.seconds = before + time.monotonic() - began
                recent.append((time.monotonic() - start, waited))
                if skips >= MAX_SKIPS:
                    self._give_up()
                # All stop at the same step, when any of them was asked to or the first has no time left.
                asked, self.seconds = self.ranks.sums(stop(), self.seconds if self.ranks.first else 0.0)
                stopping = asked > 0 or self._done()
                record = self._record(loss, norm, skipped, recent, stopping)
                # The line before the checkpoint: a crash between the two repeats the step, and the line with it.
                if journal is not None and (
                    record.step % settings.log_interval == 0
                    or record.step == 1
                    or record.held_out
                    or stopping
                    or skipped
                ):
                    journal.write(record, self.seconds)
                if record.saved is not None:
                    self._save()
                yield self._with_sheets(record, stopping)
                if stopping:
                    break
        self.ranks.told(None)  # what the first is still writing is there when any process goes on

    @contextmanager
    def _averaged_after(self) -> Iterator[None]:
        """Inside, the model trains; after, however that ended, it is the averaged one, ready to sample."""
        self.model.train()
        try:
            yield
        finally:
            self.ema.swap()
            self.model.ema = None
            self.model.eval()

    def _done(self) -> bool:
        steps, minutes = self.settings.steps, self.settings.minutes
        return (steps is not None and self.step >= steps) or (minutes is not None and self.seconds >= 60 * minutes)

    def _step(self, batch: Batch) -> tuple[float, float]:
        """One optimizer step; nothing is changed when its loss or gradient is not finite."""
        settings, model = self.settings, self.model
        whole, count = settings.batch_size, len(batch.indices)
        micro, begin = settings.micro_batch or count, self.ranks.share(whole).start
        cond = model.encode(model.known(batch.cond), count)
        of_step = self.step * whole + begin
        noise = Noise([derive(settings.seed, "train", of_step + i) for i in range(count)], "train")
        latents = self.latents.of(batch, noise)
        begin_batch(model)
        total = torch.zeros((), device=self.device)
        for first in range(0, count, micro):
            rows = slice(first, min(first + micro, count))
            seed = derive(settings.seed, "dropout", self.step, begin + first) % (1 << 63)
            with seeded(self.device, seed), autocast(self.device, settings.precision):
                loss = model.objective(latents[rows], cond[rows] if cond else None, noise[rows], begin + first, whole)
            share = (rows.stop - rows.start) / whole
            (loss.mean * share).backward()
            total += loss.mean.detach() * share
        add_up(self.ranks, model, total)
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if _finite(total.item()) and _finite(norm.item()):
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), settings.grad_clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = settings.lr_at(self.step)
            self.optimizer.step()
            self.ema.update(settings.ema_rate(self.step))
        else:
            self._first_bad = _first_not_finite(model)
        self.optimizer.zero_grad(set_to_none=True)
        return total.item(), norm.item()

    def _give_up(self) -> None:
        where = f"; the first module with a gradient that is not finite is {self._first_bad}" if self._first_bad else ""
        saved = ""
        if self.out is not None:
            home = checkpoint.checkpoints(self.out)[0]
            with suppress(CheckpointError):  # a step whose loss was finite can still have broken the weights
                home = self._save()
            saved = self.ranks.told(f" The last good weights are in {home}.")
        raise TrainingError(
            f"the loss or its gradient was not finite in {MAX_SKIPS} steps in a row, up to step {self.step}{where}. "
            f"None of those steps changed the weights.{saved} Try a smaller lr, or precision fp32"
        )

    def _record(
        self, loss: float, norm: float, skipped: bool, recent: deque[tuple[float, float]], stopping: bool
    ) -> Record:
        settings, step = self.settings, self.step
        spent, waited = (sum(column) for column in zip(*recent, strict=True))
        per_step = spent / len(recent)
        remaining = (settings.steps - step) * per_step if settings.steps is not None else None
        if settings.minutes is not None:
            remaining = 60 * settings.minutes - self.seconds
        held_out = None
        if self.ranks.first and self.held_out is not None and (step % settings.eval_interval == 0 or stopping):
            with self.ema.swapped():
                held_out = held_out_loss(self.model, self.held_out)
                if stopping:
                    self.model.facts |= self.model.held_out_facts(self.held_out)
            if _finite(held_out["mean"]):
                self.model.facts |= {"held-out loss": held_out["mean"]}
        rate = settings.batch_size / per_step
        self.model.facts |= {
            "steps": step,
            "images seen": step * settings.batch_size,
            "images per second": round(rate, 1),
        }
        saved = None
        if self.out is not None and (step % settings.checkpoint_interval == 0 or stopping):
            saved = str(checkpoint.home_of(self.out, step))
        notes, self.notes = tuple(self.notes), []
        lr = settings.lr_at(step - 1)
        return Record(step, loss, norm, lr, rate, remaining, held_out, saved, waited / spent, skipped, notes)

    def _with_sheets(self, record: Record, stopping: bool) -> Record:
        """The record, and sample sheets on disk when it is time. A run is not lost for want of a picture."""
        due = record.step % self.settings.sample_interval == 0 or stopping
        if self.out is None or not due or not self.ranks.first:
            return record
        try:
            write_sheets(self.model, self.ema, self.held_out or self.data, self.out / "samples", record.step)
        except DiffusionError as error:
            return replace(record, notes=(*record.notes, f"step {record.step} has no sample sheets: {error}"))
        return record

    # ---- writing --------------------------------------------------------------------------------------------------

    def _save(self) -> Path:
        assert self.out is not None
        check_weights(self.ranks, self.model, self.step)
        if not self.ranks.first:
            return checkpoint.home_of(self.out, self.step)
        self.model.ema = self.ema.values
        about = self.settings.model_dump(mode="json")
        state = TrainState(self.step, self.seconds, about, self.about_data, self._moments())
        return checkpoint.save(self.out, self.model, state, self.settings.keep_checkpoints)


def _finite(value: float) -> bool:
    return value - value == 0.0


def _first_not_finite(model: Model) -> str:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return name.rsplit(".", 1)[0]
    return ""
