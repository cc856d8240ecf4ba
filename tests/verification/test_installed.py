"""Every check can fail: one factor changed in a part, and its row misses; nothing changed, and it passes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from diff_diffusion import registry
from diff_diffusion.cli import main
from diff_diffusion.cli import verify as command
from diff_diffusion.core.analytic import GaussianMixture
from diff_diffusion.core.categorical import Absorbing, TokenPosterior, UniformTokens
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.posterior import GaussianPosterior
from diff_diffusion.core.targets import LinearTarget
from diff_diffusion.core.time_maps import Cosine
from diff_diffusion.objectives.levels import Normal
from diff_diffusion.objectives.measures import Huber
from diff_diffusion.objectives.weights import MinSnr, Simple
from diff_diffusion.rng import Noise
from diff_diffusion.samplers import multistep, unipc
from diff_diffusion.samplers.ancestral import Ancestral
from diff_diffusion.samplers.grid import Uniform
from diff_diffusion.verification import Check, Job, installed

torch.set_num_threads(1)


def jobs(kind: str, name: str) -> list[Job]:
    """The jobs of the parts whose title is `name`, or has it among its names."""
    return [job for job in installed() if job.kind == kind and (job.part == name or name in _names_in(job.part))]


def misses(job: Job) -> set[str]:
    """The laws that a job's part misses."""
    return {check.law for check in job.run() if not check.passed}


def scaled(home: Any, name: str, factor: float, place: int | None = None) -> Callable[[pytest.MonkeyPatch], None]:
    """Multiplies what a function returns, or its argument number `place`, by a factor."""
    before = getattr(home, name)

    def after(*args: Any, **options: Any) -> Any:
        if place is None:
            found = before(*args, **options)
            return [factor * one for one in found] if isinstance(found, list) else factor * found
        return before(*args[:place], factor * args[place], *args[place + 1 :], **options)

    return lambda patch: patch.setattr(home, name, after)


def powered(home: Any, name: str, place: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Squares argument number `place`."""
    before = getattr(home, name)
    return lambda patch: patch.setattr(
        home, name, lambda *args: before(*args[:place], args[place] ** 2, *args[place + 1 :])
    )


def with_option(home: Any, name: str, option: str, factor: float) -> Callable[[pytest.MonkeyPatch], None]:
    """Multiplies a keyword argument by a factor."""
    before = getattr(home, name)
    return lambda patch: patch.setattr(
        home, name, lambda *args, **options: before(*args, **(options | {option: factor * options.get(option, 0.0)}))
    )


def posterior_scaled(home: Any, name: str, factor: float) -> Callable[[pytest.MonkeyPatch], None]:
    before = getattr(home, name)

    def after(*args: Any, **options: Any) -> Any:
        found = before(*args, **options)
        return replace(found, mean=factor * found.mean)

    return lambda patch: patch.setattr(home, name, after)


BROKEN = [
    ("sampler", "heun", {"order"}, scaled(GaussianPosterior, "extrapolate", 0.9, 2)),
    ("sampler", "dpm2", {"order"}, scaled(GaussianPosterior, "extrapolate", 0.9, 2)),
    ("sampler", "ddpm", {"eta"}, with_option(Gaussian, "reverse", "eta", 0.9)),
    ("sampler", "consistency", {"variance"}, with_option(torch, "add", "alpha", 0.99)),
    ("sampler", "ddim", {"mean", "end"}, scaled(Gaussian, "reverse", 0.999)),
    ("sampler", "dpmpp_3m", {"mean", "order"}, scaled(multistep, "data_weights", 0.999)),
    ("sampler", "unipc", {"mean", "order"}, scaled(unipc, "data_weights", 0.999)),
    ("sampler", "lms", {"order", "variance"}, scaled(multistep, "weights", 0.99)),
    ("token sampler", "tau_leaping", {"uniform_tokens"}, scaled(UniformTokens, "rates", 0.7)),
    ("token process", "uniform_tokens", {"entropy"}, scaled(UniformTokens, "rates", 0.99)),
    ("token sampler", "ddim", {"absorbing, λ = 0"}, scaled(Absorbing, "keep", 0.9)),
    ("token sampler", "remasking", {"absorbing, λ = 0"}, scaled(Absorbing, "keep", 0.9)),
    ("token process", "absorbing", {"marginal"}, scaled(Absorbing, "keep", 0.95)),
    ("process", "gaussian, flow", {"reverse", "end"}, scaled(Gaussian, "reverse", 1.0 + 1e-6)),
    ("process", "gaussian, vp", {"Chapman-Kolmogorov"}, scaled(Gaussian, "renoise", 1.0 + 1e-6)),
    ("process", "gaussian, ve", {"prior"}, scaled(Gaussian, "prior", 1.0 + 1e-6)),
    ("target", "eps", {"decode(encode)"}, posterior_scaled(LinearTarget, "decode", 1.0 + 1e-6)),
    ("weight", "min_snr", {"formula"}, scaled(MinSnr, "of", 1.01)),
    ("weight", "simple", {"formula"}, scaled(Simple, "of", 0.5)),
    ("measure", "huber", {"gain"}, powered(Huber, "of", 2)),
    ("levels", "normal", {"share(quantile)"}, scaled(Normal, "share", 0.99)),
    ("levels", "log_normal", {"density"}, scaled(Normal, "density", 0.99)),
    ("time_map", "cosine", {"inverse", "levels back"}, scaled(Cosine, "time", 1.0 - 1e-6)),
    ("time_map", "shifted", {"inverse"}, scaled(Cosine, "time", 1.0 - 1e-6)),
    ("noise", "philox", {"normal", "moments"}, scaled(Noise, "normal", 1.2)),
    ("denoiser", "mixture", {"mean"}, posterior_scaled(GaussianMixture, "__call__", 1.0 + 1e-6)),
]


@pytest.mark.parametrize(("kind", "name", "laws", "breaks"), BROKEN, ids=[f"{b[0]}-{b[1]}" for b in BROKEN])
def test_one_factor_off_is_a_miss(
    kind: str, name: str, laws: set[str], breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, *_) = jobs(kind, name)
    breaks(monkeypatch)
    assert laws <= misses(job)


def test_a_grid_that_skips_a_step_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Uniform, "times", lambda grid, process: [1.0 - i / 70 for i in range(grid.num_steps - 1)] + [0])
    assert "invalid" in misses(*jobs("grid", "uniform"))


# ---- parts that others register --------------------------------------------------------------------------------------


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered inside a test is gone after it."""
    registry.names("sampler")
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    monkeypatch.setattr(registry, "_names", dict(registry._names))


@pytest.mark.usefixtures("plugin")
def test_a_registered_sampler_is_checked_without_being_named() -> None:
    @registry.register("sampler/sloppy")
    @dataclass(frozen=True)
    class Sloppy(Ancestral):
        order: int = 2

    assert misses(*jobs("sampler", "sloppy")) == {"order", "variance"}


@pytest.mark.usefixtures("plugin")
def test_a_part_that_raises_has_missed_and_says_why() -> None:
    @registry.register("sampler/broken")
    @dataclass(frozen=True)
    class Broken(Ancestral):
        def step(self, *args: Any) -> Any:
            raise ZeroDivisionError("no step")

    (job,) = jobs("sampler", "broken")
    (check,) = job.run()
    assert not check.passed
    assert "ZeroDivisionError: no step" in check.note
    assert check.to_json()["measured"] == "nan"


@pytest.mark.usefixtures("plugin")
def test_a_part_that_cannot_be_made_is_listed_as_not_checked() -> None:
    @registry.register("sampler/secret")
    @dataclass(frozen=True)
    class Secret(Ancestral):
        password: str = None  # type: ignore[assignment]

        def __post_init__(self) -> None:
            raise ValueError("which password?")

    (job,) = jobs("sampler", "secret")
    (check,) = job.run()
    assert check.measured is None
    assert check.passed
    assert "which password?" in check.note


def test_every_part_of_this_package_is_checked() -> None:
    """No registered part of a kind that has laws is passed over."""
    named = {(job.kind.removeprefix("token "), part) for job in installed() for part in _names_in(job.part)}
    for kind in ("sampler", "target", "weight", "measure", "levels", "time_map", "grid"):
        for name in registry.names(kind):
            assert (kind, name) in named, f"{kind}/{name} has no job"
    # Mixed data have no closed form of their own here: a product is its parts (tests/laws/test_products.py).
    unchecked = [job.part for job in installed() if any(c.law == "checked" for c in _quick(job))]
    assert unchecked == ["product", "joint"]


def _names_in(part: str) -> list[str]:
    return part.replace("(", "").replace(")", "").replace(",", "").split()


def _quick(job: Job) -> list[Check]:
    """What a job says without working: only jobs of parts that cannot be checked are lambdas."""
    return job.run() if getattr(job.work, "__name__", "") == "<lambda>" else []


# ---- the command -----------------------------------------------------------------------------------------------------


def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["diff-diffusion", "verify", *map(str, words)])
    capfd.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capfd.readouterr()
    return code, out, err


def test_all_that_is_installed_passes_and_a_run_does(capfd: Any, monkeypatch: Any, run: Any) -> None:
    """The one whole run of the command: everything, in less than a minute."""
    code, out, _ = call(capfd, monkeypatch, run, "--json")
    about = json.loads(out)
    assert code == 0, [check for check in about["checks"] if not check["passed"]]
    assert about["passed"]
    assert about["seconds"] < 60
    kinds = {check["kind"] for check in about["checks"]}
    assert kinds >= {
        "sampler",
        "token sampler",
        "process",
        "token process",
        "target",
        "weight",
        "time_map",
        "grid",
        "run",
    }
    assert len(about["checks"]) > 200


def test_a_sabotaged_sampler_is_named_and_the_exit_code_says_so(capfd: Any, monkeypatch: Any) -> None:
    both = jobs("sampler", "heun") + jobs("sampler", "ddim")
    monkeypatch.setattr(command, "installed", lambda: both)
    scaled(GaussianPosterior, "extrapolate", 0.9, 2)(monkeypatch)
    code, out, _ = call(capfd, monkeypatch)
    assert code == command.MISSED == 7
    assert "MISS heun" in out
    assert "MISS: sampler heun, order:" in out
    assert "MISS ancestral" not in out
    code, out, _ = call(capfd, monkeypatch, "--json")
    assert code == 7
    failed = [check for check in json.loads(out)["checks"] if not check["passed"]]
    assert {check["part"] for check in failed} == {"heun"}


def test_the_table_on_a_terminal_marks_what_missed(monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(command.Console, "is_terminal", property(lambda console: True))
    command.tell([Check("sampler", "good", "order", 2.01, 2.3, 1.7), Check("sampler", "bad", "order", 1.02, 2.3, 1.7)])
    out = capfd.readouterr().out
    assert "MISS bad" in out
    assert "1.02 MISS" in out
    assert "from 1.7 to 2.3" in out
    assert "MISS good" not in out


def test_a_number_is_in_its_bounds_or_not() -> None:
    assert Check("a", "b", "c", 1.0, 1.0, 1.0).passed
    assert not Check("a", "b", "c", 1.1, 1.0).passed
    assert not Check("a", "b", "c", -0.1, 1.0).passed
    assert not Check("a", "b", "c", float("nan"), 1.0).passed
    assert Check("a", "b", "c", None, 1.0).passed


def test_help_teaches(capfd: Any, monkeypatch: Any) -> None:
    code, out, _ = call(capfd, monkeypatch, "--help")
    assert code == 0
    assert "Exit code 7" in out
    assert "verify runs/digits --json" in out


def test_a_posterior_of_tokens_is_what_counting_says() -> None:
    """Pairs by Bayes' rule over all pairs, at one x_t."""
    from diff_diffusion.verification.tokens import JOINT, Pairs

    for process in (Absorbing(3), UniformTokens(3)):
        alpha, x_t = process.keep(0.5), torch.tensor([[2, 0]])
        pi = 0.0 if isinstance(process, Absorbing) else 1.0 / 3.0
        likely = [
            [alpha * (a == 2) + (1 - alpha) * pi for a in range(3)],
            [alpha * (b == 0) + (1 - alpha) * pi for b in range(3)],
        ]
        joint = JOINT * torch.tensor(likely[0]).double()[:, None] * torch.tensor(likely[1]).double()[None, :]
        found = Pairs(process)(x_t, 0.5)
        assert isinstance(found, TokenPosterior)
        assert torch.allclose(found.mean[0, 0], joint.sum(1) / joint.sum())
        assert torch.allclose(found.mean[0, 1], joint.sum(0) / joint.sum())
