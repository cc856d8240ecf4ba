"""`train --model autoencoder`, `--codec` and `--latent`: one command each, or both stages in one, stopped in either."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diff_diffusion.cli.lent import codec_of, eye_of
from diff_diffusion.cli.prepare import DEFAULT_MINUTES, Request, stages
from diff_diffusion.codecs.autoencoded import Autoencoded
from diff_diffusion.data import ImageDataset, load_image_dataset
from diff_diffusion.errors import IncompatibleError
from diff_diffusion.models import Autoencoder, DiffusionModel, Model, NoisyClassifier
from diff_diffusion.sizing import describe_autoencoder

Cli = Callable[..., tuple[int, str, str]]
FEW = ("--steps", "4", "--set", "train.batch_size=16", "--set", "train.warmup_steps=1", "--set", "train.precision=fp32")
SMALL = ("--set", "network.width=8", "--set", "network.multipliers=[1, 2]")
LITTLE = ("--set", "codec.network.width=8")
TENSORS = ("model.safetensors", "train_state.safetensors")


def words(caught: str) -> str:
    return " ".join(caught.split())


def hashes(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in TENSORS]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("bottleneck", ["kl", "vq", "fsq"])
def test_an_autoencoder_then_a_model_in_its_latents(cli: Cli, tmp_path: Path, bottleneck: str) -> None:
    first, second = tmp_path / "自编码器", tmp_path / "潜空间"
    asked = ("--model", "autoencoder", "--bottleneck", bottleneck, "--factor", "2")
    code, out, err = cli("train", "digits", *asked, "--out", first, *FEW, "--set", "network.width=8")
    assert code == 0, err
    assert "latents: " in out
    assert f"--codec {first}" in out
    assert isinstance(Model.load(first), Autoencoder)
    assert (first / "samples" / "step-00000004-ema.png").exists()
    code, out, err = cli("train", "digits", "--codec", first, "--out", second, *FEW, *SMALL)
    assert code == 0, err
    assert "in latents: " in out
    model = Model.load(second)
    assert isinstance(model, DiffusionModel)
    assert isinstance(model.codec, Autoencoded)
    code, out, err = cli("sample", second, "-n", 2, "--steps", 2, "--out", tmp_path / "s")
    assert code == 0, err
    code, out, err = cli("info", first, "--json")
    assert json.loads(out)["facts"]["held-out PSNR"] > 0
    assert cli("info", second)[0] == 0


@pytest.mark.parametrize("bottleneck", ["vq", "fsq"])
def test_masked_tokens_of_an_autoencoders_codes(cli: Cli, tmp_path: Path, bottleneck: str) -> None:
    asked = ("--latent", "--bottleneck", bottleneck, "--factor", "2", "--preset", "masked_tokens")
    small = ("--set", "network.width=16", "--set", "network.depth=1", "--set", "network.heads=2")
    code, out, err = cli("train", "digits", *asked, "--out", tmp_path / "码", *FEW, *LITTLE, *small)
    assert code == 0, err
    assert "process: Absorbing of 512 tokens" in out
    assert cli("sample", tmp_path / "码", "-n", 2, "--steps", 2, "--out", tmp_path / "s")[0] == 0
    assert cli("info", tmp_path / "码")[0] == 0


def test_numbers_are_no_tokens(cli: Cli, tmp_path: Path) -> None:
    asked = ("--latent", "--factor", "2", "--preset", "masked_tokens")
    code, _, err = cli("train", "digits", *asked, "--out", tmp_path / "r", *FEW, *LITTLE)
    assert code == 2
    assert "vq" in words(err)


def test_both_stages_in_one_run(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = ("train", "digits", "--latent", "--factor", "2", "--out", out, *FEW, *SMALL, *LITTLE)
    code, said, err = cli(*asked)
    assert code == 0, err
    assert words(said).index("stage 1 of 2") < words(said).index("stage 2 of 2")
    assert isinstance(Model.load(out / "codec"), Autoencoder)
    model = Model.load(out)
    assert isinstance(model, DiffusionModel)
    assert model.codec.latent.shape[1:] == (4, 4)
    before = hashes(out)
    code, said, err = cli(*asked)
    assert code == 0, err
    assert "stage 1 of 2: an autoencoder, which has learned" in words(said)
    assert "is finished: nothing left to do" in words(said)
    assert hashes(out) == before
    code, _, err = cli(*asked, "--steps", "6")  # the last one counts
    assert code == 0, err
    assert (Model.load(out / "codec").facts["steps"], Model.load(out).facts["steps"]) == (4, 6)
    for other in (("--latent-channels", "3"), ("--set", "codec.reconstruction.rate=1")):
        code, _, err = cli(*asked, *other)
        assert code == 2
        assert "without such an autoencoder as this command asks for" in words(err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--preset", "masked_tokens"), "vq"),
        (("--preset", "nonsense"), "nonsense"),
        (("--set", "sampler=nonsense"), "nonsense"),
        (("--set", "network=nonsense"), "nonsense"),
        (("--set", "reconstruction.rate=1"), "say codec.reconstruction.rate=1"),
        (("--set", "model.bottleneck.channels=8"), "say codec."),
    ],
)
def test_what_is_wrong_with_the_second_stage_is_known_before_the_first(
    cli: Cli, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    code, out, err = cli("train", "digits", "--latent", "--factor", "2", "--out", tmp_path / "r", *FEW, *options)
    assert code == 2
    assert said in words(err)
    assert "stage 1" not in out
    assert not (tmp_path / "r").exists()


def test_a_file_describes_the_second_stages_model(cli: Cli, tmp_path: Path) -> None:
    config, out = tmp_path / "配置.yaml", tmp_path / "run"
    config.write_text("model: {network: {width: 16}}\ntrain: {batch_size: 8}", encoding="utf-8")
    few = ("--steps", "2", "--set", "train.precision=fp32", *LITTLE)
    code, _, err = cli("train", "digits", "--latent", "--factor", "2", "--config", config, "--out", out, *few)
    assert code == 0, err
    coder, model = Model.load(out / "codec"), Model.load(out)
    assert (coder.network.width, model.network.width) == (8, 16)  # type: ignore[union-attr]
    assert coder.facts["images seen"] == model.facts["images seen"] == 16
    config.write_text("model: {type: model/autoencoder}", encoding="utf-8")
    code, _, err = cli("train", "digits", "--latent", "--config", config, "--out", tmp_path / "r", *few)
    assert code == 2
    assert "describes a model of type autoencoder" in words(err)
    pixels = tmp_path / "pixels"
    assert cli("train", "digits", "--out", pixels, *FEW, *SMALL)[0] == 0
    code, _, err = cli("train", "digits", "--latent", "--factor", "2", "--out", pixels, *FEW, *SMALL)
    assert code == 2
    assert "without such an autoencoder" in words(err)


def test_a_run_goes_on_with_the_codec_that_it_holds(cli: Cli, tmp_path: Path) -> None:
    """Another codec of the same description would decode what the model learned to something else, silently."""
    codec, run = tmp_path / "codec", tmp_path / "run"
    coder = ("--model", "autoencoder", "--bottleneck", "fsq", "--factor", "2", "--set", "network.width=8")
    small = ("--set", "network.width=16", "--set", "network.depth=1", "--set", "network.heads=2")
    work = ("train", "digits", "--out", run, "--preset", "masked_tokens", *small)
    assert cli("train", "digits", *coder, "--out", codec, *FEW)[0] == 0
    assert cli(*work, "--codec", codec, *FEW)[0] == 0
    assert cli("train", "digits", *coder, "--out", codec, *FEW, "--steps", "6")[0] == 0  # and it learns on
    code, _, err = cli(*work, "--codec", codec, *FEW, "--steps", "6")
    assert code == 2
    assert f"go on with `--codec {run}`" in words(err)
    before = Model.load(run).codec.state_dict()  # type: ignore[attr-defined]
    code, _, err = cli(*work, "--codec", run, *FEW, "--steps", "6")
    assert code == 0, err
    after = Model.load(run)
    assert after.facts["steps"] == 6
    assert all(torch.equal(value, before[name]) for name, value in after.codec.state_dict().items())  # type: ignore[attr-defined]


def test_what_a_run_takes_from_another_comes_with_its_weights(cli: Cli, tmp_path: Path) -> None:
    codec, config = tmp_path / "codec", tmp_path / "如此.yaml"
    coder = ("--model", "autoencoder", "--bottleneck", "vq", "--factor", "2", "--set", "network.width=8")
    assert cli("train", "digits", *coder, "--out", codec, *FEW)[0] == 0
    code, said, err = cli("train", "digits", "--codec", codec, "--out", tmp_path / "r", *FEW, *SMALL, "--dry-run")
    assert code == 0, err
    config.write_text(said, encoding="utf-8")
    code, _, err = cli("train", "digits", "--config", config, "--out", tmp_path / "r")
    assert code == 2
    assert "has weights, which are in the run that learned them: --codec RUN" in words(err)
    code, _, err = cli("train", "digits", "--config", config, "--codec", codec, "--out", tmp_path / "r")
    assert code == 0, err
    code, _, err = cli("train", "digits", "--codec", codec, "--set", "codec.network.width=16", "--out", tmp_path / "q")
    assert code == 2
    assert "leave model.codec out of the changes" in words(err)
    code, _, err = cli("plan", "digits", "--codec", codec, *FEW, *SMALL)
    assert code == 0, err


@pytest.mark.parametrize("stage", [1, 2])
def test_stopped_in_either_stage_the_same_command_ends_with_the_same_bytes(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    from diff_diffusion.training import loop

    def asked(name: str) -> tuple[Any, ...]:
        return ("train", "digits", "--latent", "--factor", "2", "--out", tmp_path / name, *FEW, *SMALL, *LITTLE,
                "--set", "train.checkpoint_interval=1")  # fmt: skip

    assert cli(*asked("一"))[0] == 0
    step, calls = loop._Run._step, [0]

    def dies(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == (2 if stage == 1 else 4 + 3):
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(loop._Run, "_step", dies)
    assert cli(*asked("二"))[0] != 0
    monkeypatch.setattr(loop._Run, "_step", step)
    code, _, err = cli(*asked("二"))
    assert code == 0, err
    for folder in (".", "codec"):
        assert hashes(tmp_path / "一" / folder) == hashes(tmp_path / "二" / folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "vae"), "one of diffusion, classifier, autoencoder, not 'vae'"),
        (("--factor", "4"), "--factor has nothing to do: no autoencoder is trained here"),
        (("--bottleneck", "vq"), "--bottleneck has nothing to do"),
        (("--latent-channels", "8"), "--latent-channels has nothing to do"),
        (("--eye", "lpips"), "--eye has nothing to do: no autoencoder is trained here"),
        (("--model", "autoencoder", "--codec", "somewhere"), "--codec has nothing to do"),
        (("--classifier", "--latent"), "--latent has nothing to do"),
        (("--model", "autoencoder", "--bottleneck", "fsq", "--latent-channels", "8"), "'fsq' has its own number of"),
        (("--model", "autoencoder", "--eye", "lpips"), "train --classifier"),
        (("--model", "autoencoder", "--preset", "edm"), "--preset has nothing to do"),
        (("--model", "autoencoder", "--unconditional"), "--unconditional has nothing to do"),
        (("--model", "autoencoder", "--latent"), "--latent has nothing to do"),
        (("--latent", "--codec", "somewhere"), "--latent has nothing to do: --codec has an autoencoder already"),
        (("--model", "autoencoder", "--classifier"), "give one"),
        (("--model", "autoencoder", "--factor", "3"), "a factor of 3 does not divide that"),
        (("--model", "autoencoder", "--factor", "16"), "a factor of 16 does not divide that"),
        (("--model", "autoencoder", "--bottleneck", "none"), "unknown bottleneck 'none'"),
    ],
)
def test_options_that_have_nothing_to_do_are_refused(
    cli: Cli, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    code, _, err = cli("train", "digits", "--out", tmp_path / "r", "--steps", 1, *options)
    assert code == 2
    assert said in words(err)
    assert not (tmp_path / "r").exists()


def test_an_autoencoder_that_is_told_how_pictures_look(cli: Cli, tmp_path: Path) -> None:
    """By the very weights of a classifier's run; stopped and gone on with, it needs that run for nothing."""
    judge, out = tmp_path / "评判", tmp_path / "codec"
    assert cli("train", "digits", "--classifier", "--out", judge, *FEW, "--set", "network.width=8")[0] == 0
    asked = ("--model", "autoencoder", "--factor", "2", "--latent-channels", "3", "--eye", judge)
    code, _, err = cli("train", "digits", *asked, "--out", out, *FEW, "--set", "network.width=8")
    assert code == 0, err
    model = Model.load(out)
    assert isinstance(model, Autoencoder)
    assert model.latent_shape == (3, 4, 4)
    known = NoisyClassifier.load(judge).network.state_dict()
    assert model.eye.log_snr == NoisyClassifier.load(judge).levels_known[1]
    assert all(torch.equal(value, known[name]) for name, value in model.eye.network.state_dict().items())
    code, _, err = cli("train", "digits", "--model", "autoencoder", "--eye", out, "--out", tmp_path / "r", *FEW)
    assert code == 2
    assert "is a run of a model Autoencoder: give one of `train --classifier`" in words(err)
    other = ImageDataset.from_arrays(255 - load_image_dataset("digits").batch(range(50)))
    with pytest.raises(IncompatibleError, match="is for data of mean"):
        eye_of(str(judge), describe_autoencoder(other, factor=2))
    code, said, err = cli("train", "digits", *asked, "--out", tmp_path / "r", *FEW, "--dry-run")
    config = tmp_path / "c.yaml"
    config.write_text(said, encoding="utf-8")
    code, _, err = cli("train", "digits", "--config", config, "--out", tmp_path / "r")
    assert code == 2
    assert "which are in the run that learned them: --eye RUN" in words(err)


def test_a_classifier_in_a_models_latents_guides_it(cli: Cli, tmp_path: Path) -> None:
    run, judge, out = tmp_path / "run", tmp_path / "judge", tmp_path / "s"
    asked = ("--latent", "--factor", "2", "--unconditional")
    assert cli("train", "digits", *asked, "--out", run, *FEW, *SMALL, *LITTLE)[0] == 0
    small = ("--set", "network.width=8")
    code, _, err = cli("train", "digits", "--classifier", "--codec", run, "--out", judge, *FEW, *small)
    assert code == 0, err
    assert isinstance(NoisyClassifier.load(judge).codec, Autoencoded)
    guided = ("--classifier", judge, "--label", "3", "--guidance", "2", "--steps", "2")
    code, _, err = cli("sample", run, "-n", "2", "--out", out, *guided)
    assert code == 0, err
    code, _, err = cli("train", "digits", "--model", "autoencoder", "--eye", judge, "--out", tmp_path / "r", *FEW)
    assert code == 2
    assert "works on an autoencoder's latents and the model on pixels" in words(err)


def test_a_codec_that_is_none_or_of_other_data_is_refused(cli: Cli, tmp_path: Path, photos: Path) -> None:
    pixels, other = tmp_path / "pixels", tmp_path / "other"
    assert cli("train", "digits", "--out", pixels, *FEW, *SMALL)[0] == 0
    code, _, err = cli("train", "digits", "--codec", pixels, "--out", tmp_path / "r", *FEW)
    assert code == 2
    assert "is a DiffusionModel of pixels" in words(err)
    asked = ("--model", "autoencoder", "--factor", "2", "--set", "network.width=8")
    assert cli("train", photos, *asked, "--out", other, *FEW)[0] == 0
    code, _, err = cli("train", "digits", "--codec", other, "--out", tmp_path / "r", *FEW)
    assert code == 2
    assert "digits has" in words(err)
    code, _, err = cli("train", "digits", "--codec", tmp_path / "nowhere", "--out", tmp_path / "r", *FEW)
    assert code != 0
    assert "nowhere" in words(err)


def test_the_minutes_and_the_settings_of_both_stages(tmp_path: Path) -> None:
    """A third of the minutes is the autoencoder's; `codec.…` is its own, `train.…` and `data.…` are both's."""
    sets = ("codec.network.width=8", "network.width=16", "train.lr=0.002", "data.held_out=0.2")
    first, second = stages(Request("digits", minutes=9.0, latent=True, bottleneck="vq", factor=2, sets=sets))
    assert (first.minutes, second.minutes) == (pytest.approx(3.0), pytest.approx(6.0))
    assert (first.model, first.bottleneck, first.factor, first.latent) == ("autoencoder", "vq", 2, False)
    assert (second.model, second.bottleneck, second.factor, second.latent) == ("diffusion", None, None, False)
    assert sorted(first.sets) == ["data.held_out=0.2", "model.network.width=8", "train.lr=0.002"]
    assert second.sets == sets[1:]
    assert [stage.minutes for stage in stages(Request("digits", steps=5, latent=True))] == [None, None]
    neither = stages(Request("digits", latent=True))
    assert sum(stage.minutes or 0.0 for stage in neither) == pytest.approx(DEFAULT_MINUTES)
    (tmp_path / "配置.yaml").write_text("train: {minutes: 30}", encoding="utf-8")
    read = stages(Request("digits", latent=True, config=tmp_path / "配置.yaml"))
    assert [stage.minutes for stage in read] == [pytest.approx(10.0), pytest.approx(20.0)]


def test_an_autoencoder_that_gives_these_back_far_worse_is_refused(tmp_path: Path) -> None:
    data = load_image_dataset("digits").split()[0]
    model = Autoencoder.for_data(data, factor=2)
    here = model.held_out_facts(data)["held-out PSNR"]
    for own, refused in ((here + 5.9, False), (here + 6.1, True)):
        model.facts = {"held-out PSNR": own, "data": "别的"}
        model.save(tmp_path / "其他")
        if refused:
            with pytest.raises(IncompatibleError, match=r"it was trained on other data \(别的\)"):
                codec_of(tmp_path / "其他", data)
        else:
            assert codec_of(tmp_path / "其他", data).latent.shape == (4, 4, 4)
