"""The assembled model: made for data, asked, saved and loaded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from diff_diffusion.core.gaussian import Gaussian
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import CheckpointError, ConfigError, DiffusionError, IncompatibleError
from diff_diffusion.models import DiffusionModel, sampler_named
from diff_diffusion.presets import RECIPES
from diff_diffusion.registry import build, describe, names
from diff_diffusion.rng import Noise
from diff_diffusion.samplers.grid import Uniform
from diff_diffusion.training import train


def weights(model: DiffusionModel) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def pixels(samples: torch.Tensor) -> torch.Tensor:
    return samples.round().to(torch.int16)


def nearly_the_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Promise D2: at most 0.1 % of values differ, and by no more than one grey level."""
    differ = (pixels(a) - pixels(b)).abs()
    return a.shape == b.shape and bool(differ.max() <= 1) and bool((differ > 0).float().mean() <= 1e-3)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return tiny.images()


@pytest.fixture(scope="module")
def trained(data: ImageDataset) -> DiffusionModel:
    """A fresh network's output is 0 whatever it is asked; this one's is not."""
    model = tiny.fresh(data)
    list(train(model, data, None, tiny.settings(steps=25, lr=0.02, ema_decay=0.0)))
    return model.cpu()


@pytest.fixture(scope="module")
def unconditional(data: ImageDataset) -> DiffusionModel:
    return tiny.fresh(tiny.images(classes=0)).eval()


# ---- made for data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "channels", "classes"), [((8, 8), 1, 3), ((28, 28), 1, 10), ((33, 20), 3, 2), ((9, 7), 3, 0)], ids=str
)
def test_a_model_is_sized_for_its_data(side: tuple[int, int], channels: int, classes: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, channels, *side), np.uint8)
    labels = np.arange(12) % classes if classes else None
    data = ImageDataset.from_arrays(torch.from_numpy(noise), labels)
    model = DiffusionModel.for_data(data)
    assert model.codec.data.shape == (channels, *side)
    assert model.class_names == data.class_names
    assert len(data.class_names) == classes

    samples = model.sample(2, steps=1, cond=0 if classes else None)
    assert samples.shape == (2, channels, *side)
    assert samples.dtype == torch.float32
    assert samples.device.type == "cpu"
    assert samples.min() >= 0
    assert samples.max() <= 255

    encoded = model.codec.encode(data.batch(range(12)))
    assert encoded.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(encoded.std((0, 2, 3), correction=0), torch.ones(channels), rtol=0, atol=1e-5)
    decoded = model.codec.decode(encoded)
    torch.testing.assert_close(decoded, data.batch(range(12)).float(), rtol=0, atol=1e-3)

    loss = model.loss(data.batch(range(12)), data.labels)
    assert 0.5 < loss.mean.item() < 5
    assert loss.per_sample.shape == loss.log_snr.shape == (12,)
    loss.mean.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("preset", [name for name in sorted(RECIPES) if not name.endswith("_tokens")])
def test_every_preset_makes_a_model(preset: str, data: ImageDataset) -> None:
    model = tiny.fresh(data, preset)
    assert torch.isfinite(model.loss(data.batch(range(8)), data.labels[:8]).mean)  # type: ignore[index]
    assert torch.isfinite(model.sample(2, cond=[0, 1])).all()
    assert describe(model.recipe.process) == describe(RECIPES[preset]().process)


@pytest.mark.parametrize("preset", [name for name in sorted(RECIPES) if name.endswith("_tokens")])
def test_a_preset_of_tokens_is_refused_for_images(preset: str, data: ImageDataset) -> None:
    with pytest.raises(IncompatibleError, match=rf"preset '{preset}' is for tokens.*images use one of ddim, ddpm"):
        DiffusionModel.for_data(data, preset)


def test_options_choose_the_preset_that_has_them(data: ImageDataset) -> None:
    model = DiffusionModel.for_data(data, timesteps=500, beta_end=0.04, num_inference_steps=7)
    time_map = describe(model.recipe.process)["time_map"]
    assert (time_map["timesteps"], time_map["beta_end"], model.recipe.grid.num_steps) == (500, 0.04, 7)
    assert describe(DiffusionModel.for_data(data).recipe.process)["time_map"] == {"type": "time_map/flow"}
    with pytest.raises(ConfigError, match="unknown preset 'sd'"):
        DiffusionModel.for_data(data, "sd")
    with pytest.raises(ConfigError, match="preset 'edm' takes no timesteps"):
        DiffusionModel.for_data(data, "edm", timesteps=5)
    with pytest.raises(ConfigError, match="takes no colour"):
        DiffusionModel.for_data(data, colour="red")


def test_weights_depend_on_the_seed_alone(data: ImageDataset) -> None:
    torch.manual_seed(1)
    first = weights(tiny.fresh(data, seed=5))
    torch.manual_seed(2)
    assert weights(tiny.fresh(data, seed=5)) == first
    assert weights(tiny.fresh(data, seed=6)) != first


def test_global_random_numbers_are_neither_read_nor_written(data: ImageDataset, tmp_path: Path) -> None:
    def use() -> list[Any]:
        model = tiny.fresh(data)
        model.save(tmp_path / "model")
        loaded = DiffusionModel.load(tmp_path / "model")
        samples = loaded.sample(3, cond=[0, 1, 2], sampler="ddpm")
        return [samples.tolist(), model.loss(data.batch(range(8))).mean.item(), weights(loaded)]

    told = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
        told.append(use())
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert told[0] == told[1]


# ---- saved and loaded ------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_bit_for_bit(trained: DiffusionModel, tmp_path: Path) -> None:
    trained.facts = {"name": "名前", "metric": 0.1 + 0.2, "nested": {"list": [1, None, "é"]}}
    trained.save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "facts.json",
        "model.safetensors",
    ]
    for kind in ("ema", "raw"):
        loaded = DiffusionModel.load(tmp_path / "model", kind)
        assert weights(loaded) == weights(trained)
        assert describe(loaded) == describe(trained)
        assert loaded.fingerprint() == trained.fingerprint()
        assert loaded.facts == trained.facts | {"parameters": trained.num_parameters}
        assert not loaded.training
        assert torch.equal(loaded.sample(2, cond=1), trained.sample(2, cond=1))
    loaded.save(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "facts.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_averaged_and_raw_weights_come_back_each_under_its_name(data: ImageDataset, tmp_path: Path) -> None:
    model, other = tiny.fresh(data, seed=0), tiny.fresh(data, seed=1)
    model.ema = {name: value.clone() for name, value in other.state_dict().items()}
    model.save(tmp_path / "model")
    assert weights(DiffusionModel.load(tmp_path / "model", "raw")) == weights(model)
    assert weights(DiffusionModel.load(tmp_path / "model")) == weights(other)
    with pytest.raises(ConfigError, match="'ema' or 'raw', not 'best'"):
        DiffusionModel.load(tmp_path / "model", "best")


def test_saving_over_a_model_replaces_it(data: ImageDataset, unconditional: DiffusionModel, tmp_path: Path) -> None:
    tiny.fresh(data).save(tmp_path / "model")
    unconditional.save(tmp_path / "model")
    assert DiffusionModel.load(tmp_path / "model").fingerprint() == unconditional.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_saving_makes_the_folders_above(unconditional: DiffusionModel, tmp_path: Path) -> None:
    unconditional.save(str(tmp_path / "a" / "b" / "model"))
    DiffusionModel.load(str(tmp_path / "a" / "b" / "model"))


def test_what_cannot_be_stored_is_said(unconditional: DiffusionModel, tmp_path: Path) -> None:
    for value in (float("nan"), object(), np.float32(1)):
        unconditional.facts = {"bad": value}
        with pytest.raises(ConfigError, match="cannot be stored as JSON"):
            unconditional.save(tmp_path / "model")
    unconditional.facts = {}
    assert list(tmp_path.iterdir()) == []


def test_names_in_any_script_come_back(tmp_path: Path) -> None:
    names_ = ("猫", "собака", "naïve | pipe", 'quote"\\', "line\nend")
    data = ImageDataset.from_arrays(
        np.zeros((5, 8, 8), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None] * 40, range(5), names_
    )
    tiny.fresh(data).save(tmp_path / "模型")
    loaded = DiffusionModel.load(tmp_path / "模型")
    assert loaded.conditioner is not None
    assert loaded.class_names == names_
    assert loaded.sample(1, cond="猫").shape == (1, 1, 8, 8)


def test_a_name_that_is_no_unicode_is_refused_before_any_work(tmp_path: Path) -> None:
    """A folder's name in another encoding, as Python reads it."""
    shades = np.arange(2, dtype=np.uint8)[:, None, None] + np.zeros((2, 8, 8), np.uint8)
    data = ImageDataset.from_arrays(shades, [0, 1], ("fine", "caf\udce9"))
    with pytest.raises(ConfigError, match="cannot be stored as JSON"):
        next(train(tiny.fresh(data), data, tmp_path, tiny.settings()))


def test_the_fingerprint_changes_with_every_weight_and_with_the_description(data: ImageDataset) -> None:
    model = tiny.fresh(data)
    seen = {model.fingerprint()}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-6
        seen.add(model.fingerprint())
    assert len(seen) == 1 + len(list(model.parameters()))
    described = describe(model) | {"recipe": describe(model.recipe) | {"guidance": 2.0}}
    other = DiffusionModel.from_description(described)
    other.load_state_dict(model.state_dict())
    assert other.fingerprint() not in seen
    assert len(other.fingerprint()) == 16


def test_the_weights_of_another_network_are_a_table(data: ImageDataset, tmp_path: Path) -> None:
    model = tiny.fresh(data)
    files, config = model.files()
    from diff_diffusion.storage import folder as storage

    changed = json.loads(json.dumps(config))
    changed["model"]["network"]["depth"] = 2
    storage.write_folder(tmp_path / "model", files, changed)
    with pytest.raises(CheckpointError, match=r"missing denoiser.network.down.0.1.*\(\d+ in all\)"):
        DiffusionModel.load(tmp_path / "model")


# ---- sampled ---------------------------------------------------------------------------------------------------------

SAMPLERS = [name for name in names("sampler") if issubclass(Gaussian, sampler_named(name).needs)]


def test_the_samplers_of_the_papers_are_there() -> None:
    assert {"ddim", "ddpm", "heun", "dpmpp_2m", "euler"} <= set(SAMPLERS)


@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_sample_i_is_the_same_in_any_batch(
    sampler: str | None, guidance: float | None, trained: DiffusionModel
) -> None:
    # Three giant steps of the slope rule extrapolate so far that they blow float32's rounding up to grey values.
    steps = 8 if sampler in ("dpm2", "dpm2_ancestral") else 3
    labels, options = [0, 1, 2, 1, 0, 2, 2, 1], {"sampler": sampler, "guidance": guidance, "steps": steps}
    whole = trained.sample(8, cond=labels, seed=40, batch_size=8, **options)
    assert torch.equal(trained.sample(8, cond=labels, seed=40, batch_size=8, **options), whole)
    assert nearly_the_same(trained.sample(8, cond=labels, seed=40, batch_size=3, **options), whole)
    assert nearly_the_same(trained.sample(8, cond=labels, seed=40, batch_size=1, **options), whole)
    assert nearly_the_same(trained.sample(1, cond=labels[5], seed=45, **options), whole[5:6])
    assert len({tuple(sample.flatten().tolist()) for sample in pixels(whole)}) == 8
    assert not torch.equal(trained.sample(8, cond=labels, seed=41, **options), whole)
    assert torch.isfinite(whole).all()


def test_another_process_draws_the_same_bytes(trained: DiffusionModel, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    here = tiny.sample_hashes(tmp_path / "model", tmp_path / "here.json", SAMPLERS)
    assert tiny.finish(tiny.child(tiny.sample_hashes, tmp_path / "model", tmp_path / "there.json", SAMPLERS)) == 0
    assert json.loads((tmp_path / "there.json").read_text()) == here
    assert len(here) == len(SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_is_enough_to_sample(sampler: str, trained: DiffusionModel) -> None:
    samples = trained.sample(2, cond=0, steps=1, sampler=sampler)
    assert torch.isfinite(samples).all()
    assert samples.std() > 1


def test_labels_can_be_said_in_many_ways(trained: DiffusionModel) -> None:
    expected = trained.sample(3, cond=[1, 1, 1])
    for labels in (
        1,
        "class 1",
        np.int64(1),
        torch.tensor(1),
        ["class 1", 1, np.int8(1)],
        np.ones(3, int),
        torch.ones(3).long(),
    ):
        assert torch.equal(trained.sample(3, cond=labels), expected)
    assert not torch.equal(trained.sample(3, cond=2), expected)
    mixed = trained.sample(3, cond=["class 1", None, 1])
    assert nearly_the_same(mixed[[0, 2]], expected[[0, 2]])
    assert nearly_the_same(mixed[1:2], trained.sample(3)[1:2])


def test_guidance_1_is_none_and_0_is_unconditional(trained: DiffusionModel) -> None:
    given = trained.sample(4, cond=2)
    assert torch.equal(trained.sample(4, cond=2, guidance=1.0), given)
    assert nearly_the_same(trained.sample(4, cond=2, guidance=0.0), trained.sample(4))
    assert not torch.equal(trained.sample(4, cond=2, guidance=3.0), given)


def test_a_grid_and_a_sampler_can_be_given_as_parts(trained: DiffusionModel) -> None:
    heun = build({"type": "sampler/heun"})
    expected = trained.sample(2, cond=0, sampler="heun", grid=Uniform(5))
    assert torch.equal(trained.sample(2, cond=0, sampler=heun, grid=Uniform(50), steps=5), expected)
    assert not torch.equal(trained.sample(2, cond=0, sampler=heun), expected)


def test_a_grid_can_be_named(trained: DiffusionModel) -> None:
    """A name says where the steps are; how many stays the model's own number, or what was asked for."""
    own = trained.recipe.grid.num_steps
    for name in names("grid"):
        if name in ("quantile", "truncate"):  # these say more than a name
            with pytest.raises(ConfigError, match=f"grid/{name} needs"):
                trained.sample(1, cond=0, grid=name)
            continue
        if name == "restart":  # the tiny model's own 2 steps are too few for it
            with pytest.raises(ConfigError, match=f"at least 3 steps.*not {own}"):
                trained.sample(1, cond=0, grid=name)
        else:
            assert trained.chosen_grid(name).num_steps == own
        chosen = trained.chosen_grid(name, 6)
        assert chosen == build({"type": f"grid/{name}"}).with_steps(6)
        samples = trained.sample(2, cond=0, sampler="heun", grid=name, steps=6)
        assert torch.equal(samples, trained.sample(2, cond=0, sampler="heun", grid=chosen))
        assert torch.isfinite(samples).all()


def test_steps_of_a_grid_made_from_a_grid_are_its_own(trained: DiffusionModel) -> None:
    """EDM's stochastic sampler with 7 steps: 7 down, and up between."""
    seen = {}
    for grid in ("karras", "churn", "restart"):
        _, walk = trained.walk([0], [0], sampler="heun", grid=grid, steps=7)
        with trained.evaluating():
            seen[grid] = list(walk)
        assert sum(step.s < step.t for step in seen[grid]) == 7
        assert seen[grid][-1].nfe == 12  # two a step, but one from no signal and one to the data
    assert len(seen["karras"]) == 7 < len(seen["restart"]) < len(seen["churn"])


def test_a_model_whose_own_grid_is_made_from_a_grid(data: ImageDataset, tmp_path: Path) -> None:
    described = tiny.description(data)
    described["recipe"]["grid"] = {"type": "grid/churn", "grid": {"type": "grid/log_snr", "num_steps": 5}}
    model = DiffusionModel.from_description(described)
    model.save(tmp_path / "model")
    assert "grid/churn, 5 steps" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert DiffusionModel.load(tmp_path / "model").recipe.grid == model.recipe.grid
    assert model.sample(1, cond=0, steps=3).shape == (1, 1, 8, 8)
    assert model.chosen_grid(steps=3).num_steps == 3


def test_sampling_leaves_the_model_as_it_was(trained: DiffusionModel, data: ImageDataset) -> None:
    model = tiny.fresh(data, dropout=0.5).train()
    model.load_state_dict(trained.state_dict())
    before = weights(model)
    assert torch.equal(model.sample(2, cond=0), trained.sample(2, cond=0))  # no dropout
    assert model.training
    assert weights(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cond": "dog"}, "unknown label 'dog': this model knows class 0, class 1, class 2"),
        ({"cond": 3}, "unknown label 3: this model knows class 0"),
        ({"cond": -1}, "unknown label -1"),
        ({"cond": [0]}, "2 samples need one label or 2 of them, not 1"),
        ({"cond": []}, "2 samples need one label or 2 of them, not 0"),
        ({"guidance": 2.0}, "without a condition|needs a condition|without labels"),
        ({"cond": 0, "guidance": float("nan")}, "finite number, not nan"),
        ({"cond": 0, "guidance": float("inf")}, "finite number, not inf"),
        ({"sampler": "rk45"}, "unknown sampler 'rk45'|rk45.*(heun|ddim)"),
        ({"grid": "karas"}, "unknown grid 'karas': did you mean 'karras'.*log_snr"),
        ({"grid": "trailing", "steps": 1001}, "trailing spacing takes its 1001 steps from a chain at least as long"),
        ({"steps": 0}, "number of steps must be from 1 to 1,000,000, not 0"),
        ({"steps": 10**7}, "number of steps must be from 1"),
        ({"num": 0}, "must be at least 1, not 0 and 64"),
        ({"batch_size": 0}, "must be at least 1, not 2 and 0"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": (1 << 64) - 1}, "seed 18446744073709551616 is out of range"),
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_one_line(options: dict[str, Any], said: str, trained: DiffusionModel) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        trained.sample(**{"num": 2, **options})
    assert "\n" not in str(caught.value)


def test_a_model_without_labels_takes_none(unconditional: DiffusionModel) -> None:
    with pytest.raises(ConfigError, match="this model is unconditional"):
        unconditional.sample(2, cond=0)
    with pytest.raises(ConfigError, match="this model is unconditional"):
        unconditional.loss(torch.zeros(2, 1, 8, 8), [0, 1])
    with pytest.raises(ConfigError, match="guidance 2 needs a conditional model"):
        unconditional.sample(2, guidance=2.0)
    assert unconditional.sample(2, guidance=1.0).shape == (2, 1, 8, 8)


def test_guidance_needs_a_model_trained_with_dropped_conditions(data: ImageDataset) -> None:
    described = tiny.description(data)
    described["recipe"]["objective"]["cond_drop"] = 0.0
    model = DiffusionModel.from_description(described)
    with pytest.raises(ConfigError, match=r"cond_drop = 0: use guidance 1, or train with objective.cond_drop = 0.1"):
        model.sample(2, cond=0, guidance=2.0)
    assert model.sample(2, cond=0, guidance=1.0).shape == (2, 1, 8, 8)


def test_drops_name_conditions_of_the_model(data: ImageDataset) -> None:
    described = tiny.description(data)
    described["recipe"]["objective"]["drops"] = {"ghost": 0.5}
    with pytest.raises(ConfigError, match="drops names ghost, which is no condition of this model"):
        DiffusionModel.from_description(described)


def test_the_network_sees_the_planes_beside_the_data(data: ImageDataset) -> None:
    described = tiny.description(data)
    described["conditioner"]["parts"]["low"] = {"type": "condition/image", "shape": [1, 8, 8]}
    with pytest.raises(IncompatibleError, match=r"takes 1 channels, .* have 1, with 2 of images .* needs channels 3"):
        DiffusionModel.from_description(described)


def test_a_network_attends_to_tokens_of_its_width(data: ImageDataset) -> None:
    described = tiny.description(data, attention=[2], token_width=12)
    with pytest.raises(IncompatibleError, match="attends to tokens of width 12, and the conditioner's have width 0"):
        DiffusionModel.from_description(described)


def test_text_is_read_once_in_a_walk_and_in_each_step_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    model = DiffusionModel.for_data(ImageDataset.from_arrays(pixels, columns={"caption": ["红", "blue", "红", "b"]}))
    assert model.conditioner is not None
    encoder, read = model.conditioner.parts["caption"].encoder, list[int]()
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda ids, mask: read.append(len(ids)) or forward(ids, mask))
    for mode in (model.eval(), model.train()):  # sheets are drawn while it trains
        read.clear()
        mode.sample(2, cond=["红", "blue"], steps=4)
        assert read == [2]
    for mode in (model.eval(), model.train()):
        read.clear()
        model.zero_grad()
        mode.loss(pixels, ["红", "blue", "红", None]).mean.backward()
        assert read == [4]


# ---- asked for its loss ----------------------------------------------------------------------------------------------


def test_the_loss_depends_on_the_noise_and_the_labels(trained: DiffusionModel, data: ImageDataset) -> None:
    batch, noise = data.batch(range(8)), Noise(range(8), "train")
    first = trained.loss(batch, noise=noise).mean.item()
    assert trained.loss(batch, noise=noise).mean.item() == first
    assert trained.loss(batch, noise=Noise(range(1, 9), "train")).mean.item() != first
    by_number = trained.loss(batch, data.labels[:8], noise).mean.item()  # type: ignore[index]
    assert by_number != first
    names_ = [data.class_names[i] for i in data.labels[:8]]  # type: ignore[index]
    assert trained.loss(batch, names_, noise).mean.item() == by_number
    assert trained.loss(batch.float(), names_, noise).mean.item() == by_number


def test_the_loss_draws_fresh_noise_of_its_own(data: ImageDataset) -> None:
    batch = data.batch(range(8))
    once, again = tiny.fresh(data), tiny.fresh(data)
    losses = [once.loss(batch).mean.item() for _ in range(3)]
    assert len(set(losses)) == 3
    assert [again.loss(batch).mean.item() for _ in range(3)] == losses


def test_a_batch_that_does_not_fit_is_said(trained: DiffusionModel) -> None:
    with pytest.raises(IncompatibleError, match=r"samples are \[1, 8, 8\], not \[3, 8, 8\]"):
        trained.loss(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="2 samples need one label or 2 of them, not 3"):
        trained.loss(torch.zeros(2, 1, 8, 8), [0, 1, 2])
    with pytest.raises(ConfigError, match="unknown label 7"):
        trained.loss(torch.zeros(2, 1, 8, 8), [0, 7])


def test_what_is_decoded_is_finite(trained: DiffusionModel) -> None:
    latent = torch.zeros(3, 1, 8, 8)
    latent[1, 0, 0, 0] = float("inf")
    with pytest.raises(DiffusionError, match="1 of 3 samples hold values that are not finite"):
        trained.decode(latent)
