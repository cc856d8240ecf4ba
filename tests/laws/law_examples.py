"""How to build every registered part, so that a new part is tested by being registered.

A part whose arguments all have defaults needs nothing here. Any other needs a row in `EXAMPLES`; a second row is
another setting worth testing. test_registry.py fails for a registered name that cannot be built from here.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

import pytest

import diff_diffusion
from diff_diffusion import registry
from diff_diffusion.core.gaussian import SCALINGS, Gaussian
from diff_diffusion.core.time_maps import LinearLogSnr, TimeMap
from diff_diffusion.errors import ConfigError

Description = dict[str, Any]

FLOW, COSINE = {"type": "time_map/flow"}, {"type": "time_map/cosine"}
TRUNCATED = {"type": "time_map/truncated", "time_map": COSINE, "log_snr_min": -15.0}
RECIPE = {
    "process": {"type": "process/gaussian", "time_map": TRUNCATED},
    "target": {"type": "target/linear", "row": "v"},
    "objective": {"type": "objective/denoising", "weight": {"type": "weight/min_snr", "gamma": 3.0}},
    "sampler": {"type": "sampler/multistep", "order": 3},
    "grid": {"type": "grid/karras", "num_steps": 7},
}
UNET = {"channels": 2, "width": 8, "multipliers": [1, 2], "depth": 1, "attention": [2], "head_width": 8}
DIT = {"channels": 2, "width": 16, "depth": 1, "heads": 2, "mlp_ratio": 2.0}
TOKENS = {"vocab": 5, "width": 16, "depth": 1, "heads": 2, "mlp_ratio": 2.0}
TEXT_ENCODER = {"vocab": 260, "width": 8, "depth": 2, "heads": 2, "length": 16}
ENCODER = {
    "channels": 2,
    "num_classes": 3,
    "width": 8,
    "multipliers": [1, 2],
    "depth": 1,
    "attention": [2],
    "head_width": 8,
}
CONV = {"channels": 2, "codes_out": 6, "codes_in": 3, "width": 8, "multipliers": [1, 2], "depth": 1}
PIXELS = {"type": "codec/affine", "shape": [2, 4, 6], "mean": [3.5, 100.25], "std": [1.0, 64.1]}

EXAMPLES: dict[str, list[Description]] = {
    "autoencoder/conv": [CONV, CONV | {"dims": 1}, CONV | {"dims": 3}, CONV | {"attention": True, "depth": 2}],
    "classifier/unet_encoder": [ENCODER, {**ENCODER, "multipliers": [1, 2, 1], "depth": 2, "attention": []}],
    "codec/affine": [{"shape": [2, 4, 5], "mean": [3.5, 100.25], "std": [1.0, 64.1]}],
    "codec/autoencoded": [
        {
            "network": {"type": "autoencoder/conv", **CONV},
            "bottleneck": {"type": "bottleneck/kl", "channels": 3},
            "pixels": PIXELS,
            "mean": [0.5, -0.25, 0.0],
            "std": [1.5, 0.75, 2.0],
        }
    ],
    "codec/tokens": [
        {
            "network": {"type": "autoencoder/conv", **CONV, "codes_out": 3},
            "bottleneck": bottleneck,
            "pixels": PIXELS,
        }
        for bottleneck in (
            {"type": "bottleneck/vq", "size": 7, "channels": 3},
            {"type": "bottleneck/fsq", "levels": [3, 4, 5]},
        )
    ],
    "condition/class": [{"names": ["chat", "猫"], "width": 6}],
    "condition/frozen_text": [
        {
            "folder": "encoders/文字",
            "hash": "0123456789abcdef" * 4,
            "token_width_in": 5,
            "length": 7,
            "width": 6,
            "token_width": 4,
        }
    ],
    "condition/image": [{"shape": [1, 4, 5]}, {"shape": [3, 4, 5], "noise": 0.3}],
    "condition/number": [{"low": -2.0, "high": 3.5, "width": 6}],
    "condition/text": [
        {
            "tokenizer": {"type": "tokenizer/byte_pairs", "merges": ["c a", "ca t"]},
            "encoder": {"type": "encoder/text", **TEXT_ENCODER},
            "width": 6,
        }
    ],
    "condition/vector": [{"mean": [0.5, -1.0, 3.0], "std": [1.0, 2.0, 0.25], "width": 6}],
    "conditioner/conditions": [
        {"parts": {"label": {"type": "condition/class", "names": ["chat", "猫"], "width": 6}}},
        {
            "parts": {
                "角度": {"type": "condition/number", "low": 0.0, "high": 360.0, "width": 6},
                "low.res": {"type": "condition/image", "shape": [2, 4, 5]},
            }
        },
    ],
    "critic/patch": [{"channels": 2, "width": 8}, {"channels": 1, "width": 8, "layers": 1}],
    "encoder/text": [TEXT_ENCODER],
    "eye/features": [{"network": {"type": "classifier/unet_encoder", **ENCODER}}],
    "eye/lpips": [
        {"codec": {"type": "codec/affine", "shape": [1, 40, 32], "mean": [3.5], "std": [64.1]}, "net": "vgg"},
    ],
    "grid/churn": [{"grid": {"type": "grid/log_snr"}, "s_churn": 5.0, "s_min": 0.0, "s_max": 1000.0}],
    "grid/karras": [{"rho": 3.0, "sigma_min": 0.01, "sigma_max": 30.0}],
    "grid/log_snr": [{"log_snr_max": 8.0, "log_snr_min": -6.5}],
    "grid/normal": [{"mean": 2.0, "std": 1.5}],
    "grid/quantile": [
        {"log_snrs": [-6.0, -1.0, 0.0, 3.5, 9.0], "density": [0.0, 1.0, 0.0, 0.0, 2.0]},
        {"log_snrs": [-0.5, 0.5], "density": [1, 1]},
    ],
    "grid/restart": [{"grid": {"type": "grid/churn"}, "repeats": 1, "inner": 3, "low": 0.05, "high": 0.3}],
    "grid/spacing": [{"timesteps": 4000, "spacing": spacing} for spacing in ("leading", "trailing", "linspace")],
    "grid/truncate": [
        {"start": 0.6},
        {"start": 1.0, "grid": {"type": "grid/leading"}},
        {"start": 0.45, "grid": {"type": "grid/restart"}},
    ],
    "model/autoencoder": [
        {
            "network": {"type": "autoencoder/conv", **CONV, "codes_out": size},
            "codec": PIXELS,
            "bottleneck": bottleneck,
            "reconstruction": {"type": "objective/reconstruction", "shape": "gauss", "rate": 0.5},
        }
        for size, bottleneck in [
            (6, {"type": "bottleneck/kl", "channels": 3}),
            (3, {"type": "bottleneck/vq", "size": 7, "channels": 3}),
            (3, {"type": "bottleneck/fsq", "levels": [3, 4, 5]}),
        ]
    ],
    "model/classifier": [
        {
            "network": {"type": "classifier/unet_encoder", **ENCODER},
            "codec": {"type": "codec/affine", "shape": [2, 4, 5], "mean": [3.5, 100.25], "std": [1.0, 64.1]},
            "process": {"type": "process/gaussian", "time_map": TRUNCATED},
            "conditioner": {
                "type": "conditioner/conditions",
                "parts": {"label": {"type": "condition/class", "names": ["chat", "猫", "犬"], "width": 0}},
            },
            "levels": {"type": "levels/normal", "std": 3.0},
        }
    ],
    "model/diffusion": [
        {
            "network": {"type": "network/unet", **UNET, "cond_width": 6},
            "codec": {"type": "codec/affine", "shape": [2, 4, 5], "mean": [3.5, 100.25], "std": [1.0, 64.1]},
            "recipe": {"type": "recipe/recipe", **RECIPE},
            "conditioner": {
                "type": "conditioner/conditions",
                "parts": {"label": {"type": "condition/class", "names": ["chat", "猫"], "width": 6}},
            },
        }
    ],
    "network/dit": [
        DIT,
        DIT | {"cond_width": 6, "depth": 2, "heads": 1, "drop_tokens": 0.5},
        DIT | {"cond_width": 6, "positions": "sincos", "patch": 3, "channels": 3},
    ],
    # The paper's sizes are for the meta device (tests/networks/test_dit.py); here each has its patch, and tiny blocks.
    **{f"network/dit_{size}_{patch}": [DIT] for size in ("s", "b", "l", "xl") for patch in (2, 4, 8)},
    "network/mmdit": [
        DIT | {"token_width": 5},
        DIT | {"token_width": 5, "cond_width": 6, "depth": 3},
        DIT | {"token_width": 3, "cond_width": 6, "depth": 2, "positions": "sincos", "patch": 3, "channels": 3},
    ],
    "network/token_transformer": [TOKENS, TOKENS | {"cond_width": 6, "depth": 2, "heads": 1}],
    "network/unet": [
        UNET,
        UNET | {"cond_width": 6},
        UNET | {"cond_width": 6, "token_width": 5},
        UNET | {"multipliers": [1, 1, 2], "attention": [1, 4], "token_width": 3},
        UNET | {"multipliers": [1, 1, 2], "attention": [], "channels": 3, "depth": 2},
    ],
    "measure/huber": [{"delta": 0.3}],
    "process/absorbing": [{"vocab": 5}],
    "process/gaussian": [
        {"time_map": {"type": "time_map/linear_log_snr"}, "scaling": scaling}
        for scaling in ("vp", "ve", "flow", "sub_vp")
    ],
    "process/product": [
        {
            "parts": [
                {"type": "process/gaussian", "time_map": FLOW, "scaling": "flow"},
                {"type": "process/absorbing", "vocab": 3, "time_map": FLOW},
            ],
            "sizes": [2, 1],
        }
    ],
    "process/uniform_tokens": [{"vocab": 5, "time_map": {"type": "time_map/linear_log_snr"}}],
    "recipe/recipe": [RECIPE],
    "sampler/corrected": [{"sampler": {"type": "sampler/ddim"}, "snr": 0.1}],
    "target/joint": [{"targets": [{"type": "target/linear", "row": "v"}, {"type": "target/logits"}]}],
    "target/linear": [{"row": "v"}],
    "time_map/cosine": [{"offset": 0.0}],
    "time_map/linear_beta": [{"beta_start": 0.01, "beta_end": 0.01, "timesteps": 500}],
    "time_map/linear_log_snr": [{"log_snr_max": 12.429216, "log_snr_min": -8.764053}],
    "time_map/shifted": [{"time_map": FLOW, "scale": 3.0}, {"time_map": COSINE, "scale": 0.25}],
    "time_map/sigmoid": [{"start": 0.0, "end": 3.0, "tau": 0.3}, {"tau": 0.1}],
    "time_map/sub_vp": [{"time_map": {"type": "time_map/linear_beta"}}, {"time_map": COSINE}],
    "time_map/tabulated": [{"log_snrs": [9.0, 4.0, 1.0, -2.0, -10.0], "times": [0.0, 0.1, 0.3, 0.9, 1.0]}],
    "time_map/tabulated_betas": [
        {"betas": [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]},
        {"betas": [0.5]},
        {"betas": [0.001, 0.9, 0.01, 0.3]},
        {"betas": [0.02, 0.1, 0.4, 1.0]},
    ],
    "time_map/truncated": [TRUNCATED, {"time_map": {"type": "time_map/linear_beta"}, "log_snr_min": -4.0}],
    "tokenizer/byte_pairs": [{"merges": []}, {"merges": ["ç ƌ", "çƌ «", "a t"]}],
}


def import_everything() -> None:
    """Every module of the package, so that everything that registers itself has done so."""
    for module in pkgutil.walk_packages(diff_diffusion.__path__, "diff_diffusion."):
        if not module.name.endswith("__main__"):
            import_module(module.name)


def kinds() -> list[str]:
    """The kinds of parts that this package registers."""
    import_everything()
    own = {name for name, (cls, _) in registry._parts.items() if cls.__module__.startswith("diff_diffusion.")}
    return sorted({name.split("/")[0] for name in own})


def descriptions(kind: str) -> list[Description]:
    """A description of every registered part of one kind, aliases included, by default and in each example."""
    found = []
    for name in registry.names(kind):
        full = f"{kind}/{name}"
        found += [{"type": full}] if buildable({"type": full}) else []
        found += [{"type": full, **example} for example in EXAMPLES.get(full, [])]
    return found


def buildable(description: Description) -> bool:
    """Whether a description needs no more arguments."""
    try:
        registry.build(description)
    except ConfigError as error:
        if "needs" in str(error) and "lacks" in str(error):
            return False
        raise
    return True


def parts(kind: str) -> list[Any]:
    """Every part of one kind, for pytest.mark.parametrize."""
    seen: dict[str, int] = {}
    params = []
    for description in descriptions(kind):
        name = description["type"].split("/")[1]
        seen[name] = seen.get(name, 0) + 1
        params.append(
            pytest.param(registry.build(description), id=name + ("" if seen[name] == 1 else f"-{seen[name]}"))
        )
    return params


def gaussians(finite: bool = False) -> list[Any]:
    """Gaussian processes: every time map in every scaling that allows it; only maps with both ends finite if asked."""
    params = []
    for time_map in parts("time_map"):
        (value,) = time_map.values
        ends = abs(value.log_snr(0.0)), abs(value.log_snr(1.0))
        if finite and max(ends) == float("inf"):
            continue
        params += [
            pytest.param(Gaussian(value, scaling), id=f"{time_map.id}-{scaling}")
            for scaling in SCALINGS
            if scaling != "ve" or ends[1] < float("inf")
        ]
    return params


def scalings(time_map: TimeMap | None = None) -> list[Gaussian]:
    """One process in each of its scalings."""
    return [Gaussian(time_map or LinearLogSnr(12.0, -12.0), scaling) for scaling in SCALINGS]
