"""What the registry refuses: a stored file names parts from a list, never something to import."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest

from diff_diffusion import registry
from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.core.time_maps import Cosine, Flow
from diff_diffusion.errors import ConfigError, IncompatibleError
from diff_diffusion.registry import build, describe, find, names, register


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({"type": "time_map/cosin"}, r"unknown part 'time_map/cosin'.*cosine.*flow"),
        ({"type": "nothing/at_all"}, r"unknown part 'nothing/at_all'.*known here:.*sampler.*time_map"),
        ({"type": 3}, "unknown part 3"),
        ({"type": None}, "unknown part None"),
        ({"type": ["time_map/flow"]}, "unknown part"),
        ({"type": "process/gaussian", "time_map": {"type": "time_map/x"}}, "'time_map/x' at time_map"),
        (
            {"type": "time_map/cosine", "offest": 0.1},
            "takes no 'offest': did you mean 'offset'. it takes offset",
        ),
        ({"type": "time_map/flow", "scale": 1}, "it takes nothing"),
        ({"type": "process/gaussian"}, "process/gaussian needs time_map"),
        ({"type": "time_map/linear_beta", "beta_end": "big"}, "cannot be built"),
        ({"type": "time_map/linear_beta", "beta_end": None}, "cannot be built"),
        ({"type": "time_map/tabulated_betas", "betas": ["big"]}, "cannot be built"),
        ({"type": "time_map/linear_beta", "beta_end": 2.0}, "beta_end=2.0"),
        ({"type": "grid/uniform", "num_steps": 0}, "not 0"),
    ],
)
def test_bad_descriptions_are_refused_with_what_is_known(description: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(description)


@pytest.mark.parametrize("name", ["os/system", "os.system", "antigravity", "this/this", "diff_diffusion.core/Gaussian"])
def test_a_description_never_imports(name: str) -> None:
    names("time_map")  # the built-in parts themselves may load now
    before = set(sys.modules)
    for description in (
        {"type": name},
        {"type": name, "command": "true"},
        {"type": "time_map/shifted", "time_map": {"type": name}},
    ):
        with pytest.raises(ConfigError):
            build(description)
    assert set(sys.modules) == before


def test_an_incompatible_pair_says_so_through_build_too() -> None:
    """The parts' own errors pass through as they are."""
    with pytest.raises(IncompatibleError, match="Truncated"):
        build({"type": "process/gaussian", "time_map": {"type": "time_map/flow"}, "scaling": "ve"})


def test_nesting_too_deep_is_refused() -> None:
    description: Any = {"type": "time_map/flow"}
    for _ in range(16):
        description = {"type": "time_map/shifted", "time_map": description}
    build(description)
    with pytest.raises(ConfigError, match="deeper than 16"):
        build({"type": "time_map/shifted", "time_map": description})
    nested: Any = []
    for _ in range(500):
        nested = [nested]
    with pytest.raises(ConfigError, match="deeper than 16"):
        build(nested)


def test_what_is_not_registered_cannot_be_described() -> None:
    with pytest.raises(ConfigError, match="object is not a registered part"):
        describe(object())
    with pytest.raises(ConfigError, match="set is not"):
        describe({"a": {1, 2}})

    @dataclass(frozen=True)
    class Warped(Flow):
        """A subclass of a registered class is another class."""

    with pytest.raises(ConfigError, match="Warped is not"):
        describe(Gaussian(Warped(), "flow"))


def test_plain_data_pass_through() -> None:
    plain = {"a": [1, 2.5, "x", None, True], "b": {"c": []}}
    assert describe(plain) == plain
    assert build(plain) == {"a": (1, 2.5, "x", None, True), "b": {"c": ()}}


def test_find_suggests() -> None:
    assert find("sampler", "ddim") == {"type": "sampler/ddim"}
    with pytest.raises(ConfigError, match=r"unknown time map 'cosin': did you mean 'cosine'\? available: cosine"):
        find("time_map", "cosin")


def test_aliases_fix_arguments_and_are_described_by_their_own_name() -> None:
    assert describe(build({"type": "sampler/dpmpp_3m"})) == {"type": "sampler/multistep", "order": 3, "eta": 0.0}
    assert build({"type": "sampler/ddpm", "eta": 0.5}) == build({"type": "sampler/ancestral", "eta": 0.5})
    assert "ddim" in names("sampler")
    assert "ddim" not in names("sampler", aliases=False)


def test_a_part_registers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    monkeypatch.setattr(registry, "_names", dict(registry._names))

    @register("time_map/test_only", test_fast={"speed": 3.0})
    @dataclass(frozen=True)
    class Mine(Flow):
        speed: float = 1.0

    assert describe(Mine(2.0)) == {"type": "time_map/test_only", "speed": 2.0}
    assert build({"type": "time_map/test_fast"}) == Mine(3.0)
    assert "test_only" in names("time_map")
    with pytest.raises(ConfigError, match="'time_map/cosine' is taken by Cosine"):
        register("time_map/cosine")(Mine)
    assert describe(Mine(2.0))["type"] == "time_map/test_only"
    assert build({"type": "time_map/cosine"}) == Cosine()
