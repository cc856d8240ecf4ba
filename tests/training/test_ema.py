"""The averaged weights: the recursion, the warm-up, the swap, and who holds which weights when."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
from torch import nn

from diff_diffusion.models import DiffusionModel
from diff_diffusion.training import TrainSettings, train
from diff_diffusion.training.ema import Ema


def stored(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    return {name.removeprefix(f"{kind}/"): value for name, value in tensors.items() if name.startswith(f"{kind}/")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_average_is_the_recursion_in_closed_form() -> None:
    """v_n = Π r_k v_0 + Σ_j (1 - r_j) Π_{k>j} r_k w_j, in float64."""
    module, rates = nn.Linear(3, 2).double(), [0.1, 0.5, 0.9, 0.99, 0.0, 0.7]
    ema, weights = Ema(module), [module.weight.detach().clone()]
    generator = torch.Generator().manual_seed(0)
    for rate in rates:
        with torch.no_grad():
            module.weight.copy_(torch.randn(2, 3, generator=generator, dtype=torch.float64))
        weights.append(module.weight.detach().clone())
        ema.update(rate)
    shares = [1.0, *(1.0 - rate for rate in rates)]
    for j in range(len(shares)):
        for rate in rates[j:]:
            shares[j] *= rate
    assert sum(shares) == pytest.approx(1.0)
    expected = sum(share * weight for share, weight in zip(shares, weights, strict=True))
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(ema.values["weight"], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(ema.values["bias"], module.bias)


def test_the_rate_warms_up_to_its_cap() -> None:
    settings = TrainSettings(steps=1, ema_decay=0.9)
    assert [settings.ema_rate(step) for step in (0, 1, 8, 1000)] == [0.1, 2 / 11, 0.5, 0.9]
    rates = [settings.ema_rate(step) for step in range(200)]
    assert rates == sorted(rates)
    assert rates[79] < 0.9 == rates[80] == rates[-1]


def test_a_run_averages_as_the_recursion_says(tmp_path: Path) -> None:
    """From the raw weights of every step of a real run, in float64."""
    data, settings = tiny.images(), tiny.settings(steps=8, checkpoint_interval=1, keep_checkpoints=9, ema_decay=0.3)
    list(train(tiny.fresh(data), data, tmp_path, settings))
    homes = [tmp_path / "checkpoints" / f"step-{step:08d}" for step in range(9)]
    average = {name: value.double() for name, value in stored(homes[0], "raw").items()}
    for step, home in enumerate(homes[1:]):
        rate = min(0.3, (1 + step) / (10 + step))
        average = {
            name: rate * average[name] + (1 - rate) * value.double() for name, value in stored(home, "raw").items()
        }
        for name, value in stored(home, "ema").items():
            torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-7)
    assert not same(stored(homes[-1], "ema"), stored(homes[-1], "raw"))
    assert not same(stored(homes[-1], "ema"), stored(homes[0], "ema"))


@pytest.mark.parametrize("fails", [False, True])
def test_swapping_back_restores_every_bit(fails: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    ema = Ema(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    raw = {name: value.clone() for name, value in module.state_dict().items()}
    places = [parameter.data_ptr() for parameter in module.parameters()]

    def look() -> None:
        with ema.swapped():
            assert same(dict(module.state_dict()), before)
            if fails:
                raise RuntimeError("the body failed")

    if fails:
        with pytest.raises(RuntimeError, match="the body failed"):
            look()
    else:
        look()
    assert same(dict(module.state_dict()), raw)
    assert same(ema.values, before)
    assert [parameter.data_ptr() for parameter in module.parameters()] == places  # the optimizer's own tensors


def test_after_training_the_model_holds_the_average(tmp_path: Path) -> None:
    data = tiny.images()
    model = tiny.fresh(data)
    list(train(model, data, tmp_path / "run", tiny.settings()))
    now, ema, raw = dict(model.state_dict()), stored(tmp_path / "run", "ema"), stored(tmp_path / "run", "raw")
    assert not model.training
    assert same(now, ema)
    assert not same(now, raw)
    assert same(dict(DiffusionModel.load(tmp_path / "run").state_dict()), ema)
    assert same(dict(DiffusionModel.load(tmp_path / "run", "raw").state_dict()), raw)
    # What it samples with is what it saves, under either name.
    model.save(tmp_path / "model")
    for weights in ("ema", "raw"):
        assert same(dict(DiffusionModel.load(tmp_path / "model", weights).state_dict()), now)


def test_a_model_trained_in_memory_holds_the_average_too(tmp_path: Path) -> None:
    data = tiny.images()
    in_memory, on_disk = tiny.fresh(data), tiny.fresh(data)
    list(train(in_memory, data, None, tiny.settings()))
    list(train(on_disk, data, tmp_path, tiny.settings()))
    assert same(dict(in_memory.state_dict()), dict(on_disk.state_dict()))


def test_weights_changed_by_hand_are_the_weights_saved(tmp_path: Path) -> None:
    """A loaded model trained further in someone's own loop must not come back as it was loaded."""
    data = tiny.images()
    list(train(tiny.fresh(data), data, tmp_path / "run", tiny.settings()))
    model = DiffusionModel.load(tmp_path / "run")
    with torch.no_grad():
        model.network.leave.bias += 1.0  # type: ignore[union-attr,operator]
    model.save(tmp_path / "model")
    for weights in ("ema", "raw"):
        assert same(dict(DiffusionModel.load(tmp_path / "model", weights).state_dict()), dict(model.state_dict()))


def test_leaving_the_loop_early_leaves_the_average(tmp_path: Path) -> None:
    data = tiny.images()
    model = tiny.fresh(data)
    for record in train(model, data, tmp_path, tiny.settings(checkpoint_interval=1)):
        if record.step == 5:
            break
    assert not model.training
    assert same(dict(model.state_dict()), stored(tmp_path, "ema"))
    assert not same(dict(model.state_dict()), stored(tmp_path, "raw"))


def test_buffers_are_stored_with_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with a persistent buffer: it has no average, but the averaged model cannot be loaded without it."""
    from diff_diffusion.networks.unet import UNet

    make = UNet.__init__

    def with_a_buffer(self: UNet, *args: object, **options: object) -> None:
        make(self, *args, **options)  # type: ignore[arg-type]
        self.register_buffer("scale", torch.ones(()))

    monkeypatch.setattr(UNet, "__init__", with_a_buffer)
    monkeypatch.setattr(UNet.__init__, "__wrapped__", make, raising=False)  # the registry reads the signature
    tiny.run(tmp_path, steps=2)
    assert "denoiser.network.scale" in DiffusionModel.load(tmp_path).state_dict()
    assert tiny.run(tmp_path, steps=3)[0].step == 3
