"""Every registered part, whoever registered it, with its names."""

from __future__ import annotations

from typing import Any

from diff_diffusion.registry import build, describe, names

# What stands in for arguments without a default; the first row that a part takes is used.
STAND_INS: tuple[dict[str, Any], ...] = (
    {},
    {"vocab": 3},  # as many as tokens.JOINT has
    {"time_map": {"type": "time_map/cosine"}},
    {"betas": [1e-4 + 0.0199 * i / 99 for i in range(100)]},
    {"log_snrs": [12.0, 2.0, -1.0, -12.0], "times": [0.0, 0.2, 0.7, 1.0]},
    {"row": "v"},
    {"sampler": {"type": "sampler/heun"}},
    {"log_snrs": [-10.0, 0.0, 10.0], "density": [1.0, 3.0, 1.0]},
    {"start": 0.6},
    {"grid": {"type": "grid/log_snr", "num_steps": 16}},
)


def parts(kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(name to part, name to why it could not be made). Names of one and the same part are one: "adams (deis)"."""
    aliases: dict[str, list[str]] = {}
    made: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name in sorted(names(kind), key=lambda name: (name not in names(kind, aliases=False), name)):
        try:
            part = _made(f"{kind}/{name}")
            key = str(describe(part))
        except Exception as error:  # whatever a stranger's constructor raises
            refused[name] = str(error)
            continue
        aliases.setdefault(key, []).append(name)
        made[key] = part
    return {_title(found): made[key] for key, found in aliases.items()}, refused


def _title(found: list[str]) -> str:
    first, *others = found
    return f"{first} ({', '.join(others)})" if others else first


def _made(full: str) -> Any:
    problem: Exception | None = None
    for stand_in in STAND_INS:
        try:
            return build({"type": full, **stand_in})
        except Exception as error:
            problem = problem or error  # the first says what it needs; the others only what it does not take
    assert problem is not None
    raise problem
