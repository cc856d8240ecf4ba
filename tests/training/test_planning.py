"""What a run costs before it starts: memory by a line, time by a clock, and the choice that a run then repeats."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from diff_diffusion.data import Column, ImageDataset
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.models import Model
from diff_diffusion.objectives.denoising import Loss, Objective
from diff_diffusion.sizing import describe_classifier, describe_for_data
from diff_diffusion.training import loop, memory, planning, train, trial
from diff_diffusion.training.memory import Meter, free_memory
from diff_diffusion.training.planning import chosen, plan
from diff_diffusion.training.trial import SHARE, largest_that_fits

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "choose_device", lambda: CPU)
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(trial, "_physical_cores", lambda: 1)


class Clock:
    """Time that passes only when a network is trained: so long a sample, whatever the machine does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, per_sample: float) -> None:
        self.now, self.samples = 0.0, 0
        call = Objective.__call__

        def told(objective: Objective, denoiser: Any, x_0: torch.Tensor, *args: Any, **options: Any) -> Loss:
            self.now += per_sample * len(x_0)
            self.samples += len(x_0)
            return call(objective, denoiser, x_0, *args, **options)

        monkeypatch.setattr(Objective, "__call__", told)
        for module, name in ((trial.time, "perf_counter"), (loop.time, "monotonic")):
            monkeypatch.setattr(module, name, lambda: self.now)


# ---- the micro-batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_the_largest_micro_batch_is_found_exactly_and_nothing_larger_tried(seed: int) -> None:
    """Of a peak that rises along a line: the answer is known, and no size above the limit is ever asked for."""
    draw = random.Random(seed)
    rest, slope, whole = draw.randrange(1 << 40), 1 + draw.randrange(1 << 34), 1 + draw.randrange(300)
    room = slope * (1 + draw.randrange(2 * whole)) + draw.randrange(slope)
    asked: list[int] = []

    def peak(size: int) -> int:
        asked.append(size)
        return rest + slope * size

    fits, line = largest_that_fits(peak, whole, rest + room, rest)
    assert fits == min(whole, room // slope)
    assert max(asked) <= fits
    assert line.at(fits) == rest + slope * fits
    assert len(asked) <= 7


@pytest.mark.parametrize(("constant", "expected"), [(0, 30), (1000, 20), (2000, 10), (2800, 2), (2900, 1), (5000, 1)])
def test_a_part_that_does_not_grow_is_seen(constant: int, expected: int) -> None:
    asked: list[int] = []

    def peak(size: int) -> int:
        asked.append(size)
        return constant + 100 * size

    assert largest_that_fits(peak, 64, 3000, min(constant, 2800))[0] == expected
    assert max(asked) <= expected


@pytest.mark.parametrize(("slow", "sizes"), [(True, [1, 2]), (False, [1, 2, 8, 32])])
def test_where_there_is_room_and_trying_is_slow_two_sizes_are_enough(slow: bool, sizes: list[int]) -> None:
    asked: list[int] = []

    def peak(size: int) -> int:
        asked.append(size)
        return 1000 + size

    assert largest_that_fits(peak, 64, 1 << 40, slow=lambda: slow)[0] == 64
    assert asked == sizes


def test_a_peak_that_bends_up_is_found_out_before_the_limit() -> None:
    """The line of small sizes would be half as steep; it is not followed all the way to the limit."""
    asked: list[int] = []

    def peak(size: int) -> int:
        asked.append(size)
        return max(1000 + 10 * size, 20 * size + 900)

    fits, _ = largest_that_fits(peak, 1000, 9000, 1000, lambda: True)
    assert fits == 405
    assert all(peak(size) <= 9000 for size in list(asked))


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many samples a micro-batch has room for, of 1 MiB each; every micro-batch that ran is checked."""

    def room(samples: int) -> None:
        state = {"largest": 0}
        step = trial.Trial.step

        def watched(made: Any, images: int, micro: int) -> float:
            state["largest"] = min(images, micro)
            assert state["largest"] <= max(1, samples), "a micro-batch ran that memory has no room for"
            return step(made, images, micro)

        class Fake(Meter):
            def watching(self) -> Any:
                outer = super().watching

                @contextmanager
                def watched_meter() -> Any:
                    with outer():
                        yield
                    self.peak = state["largest"] << 20

                return watched_meter()

        monkeypatch.setattr(trial.Trial, "step", watched)
        monkeypatch.setattr(trial.Trial, "_kept", lambda made: 0)
        monkeypatch.setattr(trial, "Meter", Fake)
        monkeypatch.setattr(trial, "free_memory", lambda device: int((samples << 20) / SHARE) + 8)

    return room


@pytest.mark.parametrize(
    ("samples", "micro", "passes"), [(100, 24, 1), (24, 24, 1), (23, 12, 2), (11, 8, 3), (1, 1, 24)]
)
def test_a_batch_is_cut_evenly_into_what_fits(
    linear: Callable[[int], None], samples: int, micro: int, passes: int
) -> None:
    linear(samples)
    data = tiny.images()
    planned = plan(tiny.description(data), data, tiny.settings(batch_size=24))
    assert (planned.settings.micro_batch, planned.accumulation) == (micro, passes)
    assert planned.settings.precision == "fp32"


def test_a_micro_batch_that_is_set_stays_and_is_told(linear: Callable[[int], None]) -> None:
    linear(5)
    data = tiny.images()
    description = tiny.description(data)
    planned = plan(description, data, tiny.settings(batch_size=24, micro_batch=4))
    assert planned.settings.micro_batch == 4
    assert planned.notes == ("micro-batch 4, as set", "precision fp32, as set")
    planned = plan(description, data, tiny.settings(batch_size=24, micro_batch=12))
    assert planned.settings.micro_batch == 12
    assert planned.notes[0] == "micro-batch 12, as set: more than the 5 that fit into 5 MiB, 80% of what is free"
    assert planned.memory is not None
    assert planned.memory >= 12 << 20


def test_a_model_that_cannot_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "free_memory", lambda device: 1 << 20)
    monkeypatch.setattr(Model, "from_description", lambda *args: pytest.fail("the model was made"))
    data = tiny.images()
    with pytest.raises(ConfigError, match=r"weights, gradient.* M parameters need .* MiB, and 1 MiB are free"):
        plan(describe_for_data(data), data, tiny.settings())


# ---- memory ----------------------------------------------------------------------------------------------------------


def machine(root: Path, **files: str) -> Path:
    """A /proc and a /sys that say so."""
    told = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 4000 kB\n", "proc/self/status": "VmSize: 10 kB\n"}
    for name, text in {**told, **{key.replace("__", "/"): text for key, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_free_is_the_least_of_machine_and_groups(tmp_path: Path) -> None:
    assert free_memory(CPU, machine(tmp_path / "a")) == 4000 * 1024
    two = machine(tmp_path / "二", proc__self__cgroup="0::/上/下\n")
    group = two / "sys/fs/cgroup"
    for place, limit, usage in ((group / "上/下", "max", 5), (group / "上", "3000", 1000), (group, "99999999", 7)):
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text(f"{usage}\n")
    assert free_memory(CPU, two) == 2000
    (group / "上/memory.stat").write_text("anon 5\ninactive_file 300\n")
    assert free_memory(CPU, two) == 2300
    (group / "上/memory.current").write_text("9000\n")
    assert free_memory(CPU, two) == 0


def test_free_in_a_group_of_version_one_seen_from_inside(tmp_path: Path) -> None:
    """The group's own path is not there; the top of the tree is the group."""
    root = machine(tmp_path, proc__self__cgroup="9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n")
    home = root / "sys/fs/cgroup/memory"
    home.mkdir(parents=True)
    (home / "memory.limit_in_bytes").write_text("5000\n")
    (home / "memory.usage_in_bytes").write_text("4000\n")
    (home / "memory.stat").write_text("inactive_file 9\ntotal_inactive_file 100\n")
    assert free_memory(CPU, root) == 1100


def test_free_is_within_the_limits_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    root = machine(tmp_path, proc__self__status="VmSize:  100 kB\nVmData:  60 kB\n")
    limits = {resource.RLIMIT_AS: 900 * 1024, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], -1))
    assert free_memory(CPU, root) == 800 * 1024
    limits[resource.RLIMIT_DATA] = 500 * 1024
    assert free_memory(CPU, root) == 440 * 1024


@pytest.mark.skipif(not memory.can_measure(CPU), reason="Linux accounts for a process")
def test_a_meter_sees_what_was_taken_and_given_back() -> None:
    meter = Meter(CPU)
    for mib in (64, 200, 64):  # also less than before
        with meter.watching():
            torch.ones(mib << 18)
        assert meter.peak / 2**20 == pytest.approx(mib, abs=16)  # and what torch itself takes at first


@pytest.mark.skipif(not memory.can_measure(CPU), reason="Linux accounts for a process")
def test_what_the_allocator_keeps_is_not_of_the_work_that_comes_after() -> None:
    """Small pieces that are freed below one that is not stay with the process until they are asked back."""
    meter, pieces = Meter(CPU), list[torch.Tensor | None]()
    with meter.watching():
        pieces.extend(torch.ones(1 << 14) for _ in range(1024))
    assert meter.peak > 60 << 20
    pieces[:-1] = [None] * 1023
    with meter.watching():
        pass
    assert meter.peak < 20 << 20


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_the_time_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both by the same clock, 0.01 s a sample: 100 images/s, before and after."""
    clock = Clock(monkeypatch, per_sample=0.01)
    data = tiny.images()
    planned = plan(tiny.description(data), data, tiny.settings(steps=20))
    assert planned.images_per_second == pytest.approx(100.0)
    times = (planned.fastest_step, planned.seconds_per_step, planned.slowest_step)
    assert times == pytest.approx((0.08, 0.08, 0.08))
    assert planned.seconds == pytest.approx(20 * 0.08)
    assert planned.epoch_seconds == pytest.approx(20 * 0.01)
    assert (planned.steps, planned.timed_images, planned.repeats) == (20, 8, 3)
    before = clock.samples
    last = list(train(tiny.fresh(data), data, tmp_path / "跑", planned.settings))[-1]
    assert clock.samples - before == 20 * 8
    assert last.images_per_second == pytest.approx(planned.images_per_second)


def test_slow_steps_are_timed_on_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what does not grow with them, 0.2 s here, counts once."""
    clock = Clock(monkeypatch, per_sample=0.3)
    step = trial.Trial.step
    monkeypatch.setattr(trial.Trial, "step", lambda made, images, micro: 0.2 + step(made, images, micro))
    data = tiny.images()
    planned = plan(tiny.description(data), data, tiny.settings(batch_size=64))
    assert planned.timed_images == 2
    assert planned.seconds_per_step == pytest.approx(0.2 + 64 * 0.3)
    assert clock.samples < 64  # less than one step of the run


def test_minutes_are_turned_into_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, per_sample=0.01)
    data = tiny.images()
    planned = plan(tiny.description(data), data, tiny.settings(steps=None, minutes=2.0))
    assert planned.steps == pytest.approx(120 / 0.08, abs=1)
    assert planned.seconds == 120.0


def test_checkpoints_take_what_was_said(tmp_path: Path) -> None:
    data = tiny.images()
    settings = tiny.settings(steps=3, checkpoint_interval=1, keep_checkpoints=2)
    planned = plan(tiny.description(data), data, settings)
    assert planned.disk == 3 * planned.checkpoint
    list(train(tiny.fresh(data), data, tmp_path, settings))
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert len(kept) == 2
    written = sum(file.stat().st_size for file in kept[-1].iterdir())
    described = sum((kept[-1] / name).stat().st_size for name in ("config.json", "train_state.json"))
    assert written - described == pytest.approx(planned.checkpoint, abs=600)  # the card and the facts say more by then


def test_threads_are_measured_and_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than one cost ten times as much by this clock, as where a core is taken."""
    monkeypatch.setattr(trial, "_physical_cores", lambda: 4)
    now = {"threads": 1}
    monkeypatch.setattr(torch, "get_num_threads", lambda: now["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: now.update(threads=count))
    step, tried = trial.Trial.step, list[int]()

    def slower(made: Any, images: int, micro: int) -> float:
        if not tried:  # so that there are moments
            step(made, images, micro)
        tried.append(now["threads"])
        return 0.01 * images * {1: 1.0, 2: 10.0, 4: 15.0}[tried[-1]]

    monkeypatch.setattr(trial.Trial, "step", slower)
    data = tiny.images()
    planned = plan(tiny.description(data), data, tiny.settings())
    assert now["threads"] == planned.threads == 1
    assert planned.images_per_second == pytest.approx(100.0)
    assert planned.images_per_second_by_threads == {}  # four were not worth a second try, so fewer were not tried
    assert set(tried) == {1, 4}
    now["threads"] = 4
    planned = plan(tiny.description(data), data, tiny.settings())
    assert now["threads"] == planned.threads == 4
    assert planned.images_per_second_by_threads == pytest.approx({4: 100 / 15, 2: 10.0, 1: 100.0})
    assert planned.images_per_second == pytest.approx(100 / 15)


def test_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tiny.images()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    description = tiny.description(data)
    kept = repr(description)
    plan(description, data, tiny.settings(precision="auto"))
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(description) == kept
    assert os.listdir(tmp_path) == []


def test_every_kind_of_run_can_be_planned() -> None:
    """A classifier, no classes, captions in two languages, and data of another shape than the model's."""
    words = Column("text", [("一只猫", "a cat")] * 10 + [("狗",)] * 10)
    captioned = ImageDataset.from_arrays(tiny.images().batch(range(20)), columns={"caption": words})
    described = describe_for_data(captioned)
    described["network"] |= {"width": 8, "multipliers": [1, 2], "depth": 1}
    plain, data = tiny.images(classes=0), tiny.images()
    judge = describe_classifier(data)
    for description, images in ((described, captioned), (tiny.description(plain), plain), (judge, data)):
        planned = plan(description, images, tiny.settings())
        assert planned.images_per_second > 0
        assert planned.parameters == Model.from_description(description).num_parameters
        assert planned.memory is None or planned.memory >= 16 * planned.parameters
    with pytest.raises(IncompatibleError, match="samples"):
        plan(tiny.description(data), tiny.images(side=16), tiny.settings())


def test_how_long_must_be_said() -> None:
    data = tiny.images()
    with pytest.raises(ConfigError, match="steps or minutes"):
        plan(tiny.description(data), data, tiny.settings(steps=None))


def test_where_memory_cannot_be_measured_the_batch_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "can_measure", lambda device: False)
    data = tiny.images()
    planned = plan(tiny.description(data), data, tiny.settings())
    assert (planned.settings.micro_batch, planned.memory, planned.free) == (8, None, None)
    assert planned.notes[0] == "micro-batch 8, the whole batch: memory cannot be measured here"


# ---- --auto ----------------------------------------------------------------------------------------------------------


def test_what_is_chosen_trains_like_what_is_set(linear: Callable[[int], None], tmp_path: Path) -> None:
    """The same bytes, and a run that goes on measures nothing."""
    linear(3)
    data = tiny.images()
    out = tmp_path / "跑"
    settings, said = chosen(tiny.description(data), data, tiny.settings(), out)
    assert settings == tiny.settings(micro_batch=3)
    assert said == [
        "micro-batch 3, 3 to a step: 3 MiB at the peak, of 3 MiB, 80% of what is free",
        "precision fp32, as set",
    ]
    done: list[int] = []
    done.extend(r.step for r in train(tiny.fresh(data), data, out, settings, stop=lambda: len(done) == 4))
    tiny.run(tmp_path / "set", micro_batch=3)
    linear(1)  # less memory now
    again, said = chosen(tiny.description(data), data, tiny.settings(), out)
    assert again == settings
    assert said == [f"micro-batch 3, precision fp32: as the run in {out} has them"]
    list(train(tiny.fresh(data), data, out, again))
    assert tiny.ends(out) == tiny.ends(tmp_path / "set")
    assert tiny.ends(out) != tiny.ends(tiny_whole(tmp_path / "whole"))


def tiny_whole(out: Path) -> Path:
    tiny.run(out)
    return out


@pytest.mark.parametrize("found", ["bf16", "fp32"])
def test_the_precision_is_measured_and_kept(found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loop, "choose_precision", lambda device, step: (step("bf16"), (found, 1.75))[1])
    data = tiny.images()
    settings, said = chosen(tiny.description(data), data, tiny.settings(precision="auto"), tmp_path)
    assert settings.precision == found
    assert said[1] == f"precision {found} (bf16 measured 1.75 × the speed of fp32)"
    list(train(tiny.fresh(data), data, tmp_path, settings.model_copy(update={"steps": 1})))
    monkeypatch.setattr(planning, "Trial", lambda *args: pytest.fail("it was measured again"))
    again, _ = chosen(tiny.description(data), data, tiny.settings(precision="auto"), tmp_path)
    assert again == settings
    other = {"bf16": "fp32", "fp32": "bf16"}[found]
    refused, _ = chosen(tiny.description(data), data, tiny.settings(precision=other), tmp_path)
    with pytest.raises(ConfigError, match="precision was"):
        list(train(tiny.fresh(data), data, tmp_path, refused))


def test_what_is_set_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(planning, "Trial", lambda *args: pytest.fail("it was measured"))
    settings = tiny.settings(micro_batch=5)
    data = tiny.images()
    for out in (None, tmp_path / "new"):
        assert chosen(tiny.description(data), data, settings, out) == (
            settings,
            ["micro-batch 5, as set", "precision fp32, as set"],
        )


def test_bf16_is_weighed_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The micro-batch is one of the precision that the run will have."""
    monkeypatch.setattr(loop, "choose_precision", lambda device, step: ("bf16", 2.0))
    seen: list[str] = []
    peak = trial.Trial.peak

    def watched(made: Any, micro: int, images: int) -> int:
        seen.append(made.precision)
        assert images in (2 * micro, 8)  # the second micro-batch finds the gradient of the first
        return peak(made, micro, images)

    monkeypatch.setattr(trial.Trial, "peak", watched)
    data = tiny.images()
    chosen(tiny.description(data), data, tiny.settings(precision="auto"))
    assert seen[0] == "fp32"
    assert seen[-1] == "bf16"
