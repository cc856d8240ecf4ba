"""A caption, read by a pretrained encoder in a folder on disk, which stays as it is."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from diff_diffusion.conditions.text import MAX_LENGTH, Words, different, length_for
from diff_diffusion.conditions.tokenizer import checked_text
from diff_diffusion.errors import ConfigError, require
from diff_diffusion.registry import register

SUFFIXES = (".json", ".model", ".safetensors", ".txt")
"""Of the files that an encoder is read from: its configuration, its weights and its vocabulary."""

MAX_TOKEN_WIDTH = 512
DIGEST = 32


@register("condition/frozen_text")
class FrozenText(Words):
    """A caption, read by a pretrained encoder, of which only what follows its last layer is learned here.

    Last hidden states, each normed to mean 0 and variance 1, go through a linear map. They are kept on disk, in
    $XDG_CACHE_HOME/diff-diffusion/text, so that each text is read once for all trainings. The encoder is no part of
    the model's weights: whoever samples with a new text needs the same folder.

    Args:
        folder: of any text encoder that `transformers` reads, with weights in safetensors. Set it anew where the folder
            lies elsewhere: what it holds is what counts.
        hash: sha256 of what it holds, as `folder_hash` says it.
        token_width_in: of the encoder's hidden states.
        length: the most tokens of a text; what is longer is cut.
        width: of the vector.
        token_width: of a token that networks see.

    Raises:
        ConfigError: a size out of range, no hash; at `encode`, something that is no text, or a text not read before
            where the folder is gone, changed or no encoder.
        MissingPackageError: at `encode`, the package `transformers` is not installed.
    """

    def __init__(self, folder: str, hash: str, token_width_in: int, length: int, width: int, token_width: int) -> None:
        super().__init__(length, token_width, width)
        if not isinstance(folder, str) or not isinstance(hash, str) or not re.fullmatch("[0-9a-f]{64}", hash):
            raise ConfigError(f"a frozen encoder is a folder and the sha256 of what it holds, not {folder!r}, {hash!r}")
        if not 1 <= token_width_in <= 16384:
            raise ConfigError(f"a text's token_width_in must be from 1 to 16,384, not {token_width_in}")
        self.folder, self.hash, self.token_width_in = folder, hash, token_width_in
        self.enter = nn.Linear(token_width_in, token_width)

    def encode(self, values: Sequence[Any]) -> Tensor:
        """Texts to float [B, length, token_width_in + 1], the mask last, on the CPU."""
        encoded = torch.zeros(len(values), self.length, self.token_width_in + 1)
        for row, value in zip(encoded, values, strict=True):
            states = torch.zeros(1, self.token_width_in) if value is None else self._states(checked_text(value))
            row[: len(states), :-1], row[: len(states), -1] = states, 1.0
        return encoded

    def _states(self, text: str) -> Tensor:
        states, count = _states(self.folder, self.hash, self.length, str(self.null.device), text)
        self.tell_cut(text, count)
        if states.shape[1] != self.token_width_in:
            raise ConfigError(
                f"{self.folder} gives {states.shape[1]} numbers for a token, where the model has "
                f"token_width_in = {self.token_width_in}"
            )
        return states

    def read(self, values: Tensor) -> tuple[Tensor, Tensor]:
        states, mask = values[..., :-1].to(self.null.dtype), values[..., -1] > 0.5
        tokens = self.enter(functional.layer_norm(states, states.shape[-1:]))
        return torch.where(mask[..., None], tokens, 0.0), mask


def describe_frozen_text(folder: str | Path, captions: Iterable[str | None], width: int) -> dict[str, Any]:
    """The description of a `FrozenText` on the encoder in a folder, with a length that suits the captions.

    Raises:
        ConfigError: not one caption, or a folder that holds no encoder.
        MissingPackageError: the package `transformers` is not installed.
    """
    folder = str(folder)
    found = folder_hash(folder)
    encoder = _encoder(folder, found)
    token_width_in = encoder.states("", 1).shape[1]
    return {
        "type": "condition/frozen_text",
        "folder": folder,
        "hash": found,
        "token_width_in": token_width_in,
        "length": length_for(map(encoder.count, different(captions)), min(MAX_LENGTH, encoder.most)),
        "width": width,
        "token_width": min(token_width_in, MAX_TOKEN_WIDTH),
    }


def folder_hash(folder: str) -> str:
    """The sha256 of the names and contents of what an encoder is read from in a folder.

    Raises:
        ConfigError: it is not there, or holds no weights in safetensors.
    """
    place = Path(folder).expanduser()
    files = sorted(file for file in place.glob("*") if file.suffix in SUFFIXES and file.is_file())
    if not any(file.suffix == ".safetensors" for file in files):
        what = "holds no weights in safetensors (other formats can run code)" if place.is_dir() else "is no folder"
        raise ConfigError(f"{folder} {what}: a frozen encoder is a folder as transformers' save_pretrained writes it")
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as content:
            digest.update(f"{file.name}\n{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


class _Encoder:
    """A tokenizer and an encoder as `transformers` reads them from a folder; no file in it is run, nothing fetched."""

    def __init__(self, folder: str) -> None:
        transformers = require("transformers", extra="text")
        place, closed = str(Path(folder).expanduser()), {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(place, **closed)
            # It draws numbers for weights that are missing, which must not change what a training draws next.
            with torch.random.fork_rng(devices=[]):
                whole, report = transformers.AutoModel.from_pretrained(
                    place, use_safetensors=True, output_loading_info=True, **closed
                )
        except Exception as error:  # a stranger's folder and a large library: whatever it says
            raise ConfigError(f"{folder} cannot be read as a text encoder: {error}") from error
        part = whole.get_encoder() if whole.config.is_encoder_decoder else getattr(whole, "text_model", whole)
        mine = {id(parameter) for parameter in part.parameters()}
        names = {name for name, parameter in whole.named_parameters() if id(parameter) in mine}
        # A pooler follows the last hidden states; weights of anything else that are missing would be random.
        missing = sorted(name for name in names & set(report["missing_keys"]) if "pooler" not in name)
        if missing:
            raise ConfigError(f"{folder} lacks weights of its encoder: {missing[0]} and {len(missing) - 1} more")
        self.model = part.float().eval().requires_grad_(False)
        self.most = int(self.tokenizer.model_max_length)

    def count(self, text: str) -> int:
        """How many tokens a text has, before it is cut."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def states(self, text: str, length: int, device: str = "cpu") -> Tensor:
        """The last hidden states of a text's first `length` tokens: float32 [tokens, width]."""
        ids = self.tokenizer(text, truncation=True, max_length=length)["input_ids"] or [0]
        tokens = torch.tensor([ids], device=device)
        # One text at a time, so that what is kept does not depend on the batch it came in.
        with torch.no_grad():
            states = self.model.to(device)(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        kept: Tensor = states[0].float().cpu()
        return kept


@cache
def _encoder(folder: str, expected: str) -> _Encoder:
    """One for the process: a model and its averaged copy read with the same."""
    needed = f"the model reads texts with the encoder of sha256 {expected[:16]}…, which it looks for in {folder}"
    mend = "bring that folder back, or set `folder` in the model's config.json to where it is"
    try:
        found = folder_hash(folder)
    except ConfigError as error:
        raise ConfigError(f"{needed}: {error}; {mend}") from error
    if found != expected:
        raise ConfigError(f"{needed}: what is there now has {found[:16]}…; {mend}")
    return _Encoder(folder)


@lru_cache(maxsize=1024)
def _states(folder: str, expected: str, length: int, device: str, text: str) -> tuple[Tensor, int]:
    """Hidden states of a text and how many tokens it has uncut: from the disk where they are whole there."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diff-diffusion" / "text" / expected
    path = home / hashlib.sha256(f"{length}\n{text}".encode()).hexdigest()
    with suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST]:
            kept = safetensors.torch.load(content[DIGEST:])
            return kept["states"], int(kept["count"])
    encoder = _encoder(folder, expected)
    states, count = encoder.states(text, length, device), encoder.count(text)
    body = safetensors.torch.save({"states": states.contiguous(), "count": torch.tensor(count)})
    with suppress(OSError):  # a full or read-only disk costs time, not the training
        home.mkdir(parents=True, exist_ok=True)
        temporary = home / f".{uuid.uuid4().hex}"
        try:
            temporary.write_bytes(hashlib.sha256(body).digest() + body)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return states, count
