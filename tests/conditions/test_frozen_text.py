"""A pretrained encoder from a folder: its hidden states, kept by content, never believed when damaged or changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from diff_diffusion.conditions import frozen_text
from diff_diffusion.conditions.frozen_text import FrozenText, describe_frozen_text, folder_hash
from diff_diffusion.data import ImageDataset
from diff_diffusion.errors import ConfigError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.registry import build, describe

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "a", "red", "cat", "dog", "红", "色", "的", "猫"]
CAPTIONS = ["a red cat", "红色的猫", "", "a dog 的猫"]
SIZES = {"vocab_size": len(WORDS), "max_position_embeddings": 24}


def bert() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertModel(transformers.BertConfig(**SIZES, **sizes))


def t5() -> Any:
    sizes = {"d_model": 12, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return transformers.T5Model(transformers.T5Config(vocab_size=len(WORDS), decoder_start_token_id=1, **sizes))


def clip() -> Any:
    sizes = {"hidden_size": 10, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**SIZES, **sizes, "eos_token_id": 3, "pad_token_id": 1, "bos_token_id": 2},
            vision_config={**sizes, "image_size": 8, "patch_size": 4},
        )
    )


def states(whole: Any, ids: Tensor) -> Tensor:
    """Last hidden states by each architecture's own way in."""
    part = {"BertModel": lambda: whole, "T5Model": lambda: whole.encoder, "CLIPModel": lambda: whole.text_model}
    with torch.no_grad():
        found: Tensor = part[type(whole).__name__]()(input_ids=ids).last_hidden_state
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "缓存"))
    forget()
    yield tmp_path / "缓存" / "diff-diffusion" / "text"
    forget()


def forget() -> None:
    """As in a new process."""
    frozen_text._encoder.cache_clear()
    frozen_text._states.cache_clear()


def written(folder: Path, whole: Any) -> Path:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(WORDS, range(99), strict=False)), "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=20
    )
    fast.save_pretrained(folder)
    whole.eval().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return written(tmp_path / "编码器 encoder", bert())


def condition(place: Path, /, **changes: Any) -> FrozenText:
    torch.manual_seed(1)
    made = build(describe_frozen_text(place, CAPTIONS, 6) | {"token_width": 5} | changes)
    assert isinstance(made, FrozenText)
    return made


def kept(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def x(count: int) -> Tensor:
    return torch.zeros(count, 1, 4, 4)


@pytest.mark.parametrize("model", [bert, t5, clip])
def test_it_gives_the_encoders_last_hidden_states(tmp_path: Path, model: Any) -> None:
    torch.manual_seed(0)
    whole = model()
    text = condition(written(tmp_path / "m", whole))
    encoded = text.encode(["a red cat", "红猫"])
    ids = [[2, 4, 5, 6, 3], [2, 8, 11, 3]]
    assert text.token_width_in == encoded.shape[2] - 1
    for row, numbers in zip(encoded, ids, strict=True):
        assert torch.allclose(row[: len(numbers), :-1], states(whole, torch.tensor([numbers]))[0], atol=1e-6)
        assert row[:, -1].tolist() == [1.0] * len(numbers) + [0.0] * (text.length - len(numbers))
        assert (row[len(numbers) :] == 0).all()


def test_a_description_suits_encoder_and_captions(folder: Path) -> None:
    described = describe_frozen_text(folder, [*CAPTIONS, None], 6)
    assert described == {
        "type": "condition/frozen_text",
        "folder": str(folder),
        "hash": folder_hash(str(folder)),
        "token_width_in": 16,
        "length": 8,
        "width": 6,
        "token_width": 16,
    }
    assert describe(build(described)) == described
    assert describe_frozen_text(folder, ["a cat " * 40], 6)["length"] == 20  # the tokenizer's own most


def test_only_what_follows_the_encoder_learns_and_is_stored(folder: Path) -> None:
    text = condition(folder)
    embedded = text.embed(text.encode([*CAPTIONS, None]), torch.tensor([True] * 4 + [False]), x(5))
    assert embedded.tokens.shape == (5, 8, 5)
    unit = torch.tensor([1.0, -1.0] * 8)  # hidden states of any scale and mean are one to the model
    tokens, _ = text.read(torch.cat([100 * unit + 7, torch.ones(1)])[None, None])
    assert torch.allclose(tokens[0, 0], text.enter(unit), atol=1e-4)
    assert torch.equal(embedded.vector[4], text.null)
    (embedded.vector.square().sum() + embedded.tokens.square().sum()).backward()
    # The nulls start at zero, and so does the gradient of their square.
    assert all((p.grad != 0).any() for name, p in text.named_parameters() if "null" not in name)
    assert sorted(text.state_dict()) == ["enter.bias", "enter.weight", "null", "null_token", "pool.bias", "pool.weight"]
    assert not any(p.requires_grad for p in frozen_text._encoder(text.folder, text.hash).model.parameters())


def test_training_and_sampling_are_the_same_and_padding_is_silent(folder: Path) -> None:
    text, longer = condition(folder), condition(folder, length=16)
    trained = text.embed(text.encode(CAPTIONS), kept(4), x(4))
    sampled = text.eval().embed(text.encode(CAPTIONS), kept(4), x(4))
    padded = longer.embed(longer.encode(CAPTIONS[::-1]), kept(4), x(4))
    assert torch.equal(trained.tokens, sampled.tokens)
    assert torch.allclose(padded.tokens.flip(0)[:, :8], trained.tokens, atol=1e-6)
    assert torch.allclose(padded.vector.flip(0), trained.vector, atol=1e-6)
    assert (trained.tokens[~trained.mask] == 0).all()


def test_a_text_is_read_once_in_a_process_and_once_for_ever(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = condition(folder)
    read = counted(monkeypatch)
    first = text.encode([*CAPTIONS, *CAPTIONS])
    assert sorted(read) == sorted(CAPTIONS)
    shutil.rmtree(cache)
    assert torch.equal(text.encode([*CAPTIONS, *CAPTIONS]), first)
    assert sorted(read) == sorted(CAPTIONS)
    forget()
    text.encode(CAPTIONS)
    del read[:]
    forget()
    assert torch.equal(text.encode([*CAPTIONS, *CAPTIONS]), first)
    text.encode(["a cat"])
    assert read == ["a cat"]
    assert len(list((cache / text.hash).iterdir())) == len(CAPTIONS) + 1


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    plain = frozen_text._Encoder.states

    def states(self: Any, text: str, *rest: Any) -> Tensor:
        read.append(text)
        return plain(self, text, *rest)

    monkeypatch.setattr(frozen_text._Encoder, "states", states)
    return read


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "foreign"])
def test_a_damaged_entry_is_made_anew(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    text = condition(folder)
    first = text.encode(["红猫"])
    (entry,) = (cache / text.hash).iterdir()
    whole = entry.read_bytes()
    damaged = {
        "cut": whole[:-5],
        "emptied": b"",
        "flipped": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        "foreign": safetensors.torch.save({"states": torch.ones(2, 16), "count": torch.tensor(2)}),
    }
    entry.write_bytes(damaged[how])
    forget()
    read = counted(monkeypatch)
    assert torch.equal(text.encode(["红猫"]), first)
    assert read == ["红猫"]
    assert entry.read_bytes() == whole
    assert [file.name for file in entry.parent.iterdir()] == [entry.name]


def test_a_disk_that_refuses_costs_only_time(folder: Path, cache: Path) -> None:
    text = condition(folder)
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where a folder should be")
    assert text.encode(["猫"])[0, :, -1].sum() == 3


@pytest.mark.parametrize("change", ["gone", "weights", "vocabulary"])
def test_an_encoder_that_is_gone_or_changed_is_missed_by_name(folder: Path, change: str, tmp_path: Path) -> None:
    text = condition(folder)
    known = text.encode(["a red cat", None])
    spare = shutil.copytree(folder, tmp_path / "spare")
    if change == "gone":
        shutil.rmtree(folder)
    elif change == "weights":
        torch.manual_seed(5)
        written(folder, bert())
    else:
        (folder / "vocab.txt").write_text("more", encoding="utf-8")
    forget()
    # What was read before is known by content, and no text needs no encoder.
    assert torch.equal(text.encode(["a red cat", None]), known)
    with pytest.raises(ConfigError, match=rf"encoder of sha256 {text.hash[:16]}….*编码器 encoder.*config.json"):
        text.encode(["a dog"])
    text.folder = str(spare)
    assert text.encode(["a dog"])[0, :, -1].sum() == 4


def test_readme_and_pickles_are_no_part_of_an_encoder(folder: Path) -> None:
    before = folder_hash(str(folder))
    (folder / "README.md").write_text("你好")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert folder_hash(str(folder)) == before


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no weights in safetensors"):
        describe_frozen_text(folder, CAPTIONS, 6)


def test_pickled_weights_beside_something_else_are_refused(folder: Path) -> None:
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ConfigError, match="cannot be read as a text encoder"):
        describe_frozen_text(folder, CAPTIONS, 6)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(ConfigError, match="cannot be read as a text encoder"):
        describe_frozen_text(folder, CAPTIONS, 6)


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer.1" in name and name.endswith("query.weight"))
    del weights[name]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"lacks weights of its encoder: {name}"):
        describe_frozen_text(folder, CAPTIONS, 6)


def test_what_an_encoder_does_not_need_may_be_missing(tmp_path: Path) -> None:
    """A pooler, as of models trained to fill masks; a decoder, as where only T5's encoder was saved."""
    torch.manual_seed(0)
    for name, whole, drop in (("b", bert(), "pooler"), ("t", t5(), "decoder")):
        place = written(tmp_path / name, whole)
        weights = safetensors.torch.load_file(place / "model.safetensors")
        weights = {key: value for key, value in weights.items() if drop not in key}
        safetensors.torch.save_file(weights, place / "model.safetensors", {"format": "pt"})
        text = condition(place)
        forget()
        before = torch.get_rng_state()
        encoded = text.encode(["a red cat"])
        assert torch.equal(torch.get_rng_state(), before)  # what stands in for the missing ones is drawn elsewhere
        assert torch.allclose(encoded[0, :5, :-1], states(whole, torch.tensor([[2, 4, 5, 6, 3]]))[0], atol=1e-6)


def test_what_is_too_long_is_cut_and_said_once(folder: Path) -> None:
    text = condition(folder)
    with pytest.warns(UserWarning, match="the last 4 of the 12 of 'a a") as told:
        encoded = text.encode(["a " * 10, "cat " * 10])
    assert len(told) == 1
    assert (encoded[..., -1] == 1).all()
    longer = condition(folder, length=12).encode(["a " * 10])
    assert longer[0, :, -1].sum() == 12


def test_another_width_than_the_encoders_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="gives 16 numbers for a token, where the model has token_width_in = 9"):
        condition(folder, token_width_in=9).encode(["a cat"])


@pytest.mark.parametrize(("changes", "seen"), [
    ({"hash": "abc"}, "sha256 of what it holds"), ({"folder": 3}, "not 3"), ({"token_width_in": 0}, "token_width_in"),
    ({"length": 0}, "length must be"), ({"token_width": 10**9}, "token_width must be"),
])  # fmt: skip
def test_bad_descriptions_are_refused(folder: Path, changes: dict[str, Any], seen: str) -> None:
    with pytest.raises(ConfigError, match=seen):
        condition(folder, **changes)


@pytest.mark.parametrize("value", [5, "\ud800"])
def test_what_is_no_text_is_refused(folder: Path, value: Any) -> None:
    with pytest.raises(ConfigError):
        condition(folder).encode([value])


def test_a_model_of_captioned_data_is_made_around_it(folder: Path) -> None:
    pixels = np.zeros((4, 8, 8), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None] * 60
    data = ImageDataset.from_arrays(pixels, columns={"caption": ["红心", "a cat", "红心", "cat"]})
    model = DiffusionModel.for_data(data, text_encoder=str(folder)).eval()
    assert model.conditioner is not None
    part = model.conditioner.parts["caption"]
    assert isinstance(part, FrozenText)
    assert not any("bert" in name for name in model.state_dict())  # what is frozen is not stored again
    assert model.sample(2, cond=["红心", "a cat"], steps=1).shape == (2, 1, 8, 8)
