"""Samples for an evaluation: drawn in parts, each kept as a file, so that one that was interrupted goes on."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from diff_diffusion.data.survey import Progress
from diff_diffusion.errors import ConfigError
from diff_diffusion.models import DiffusionModel
from diff_diffusion.registry import describe
from diff_diffusion.samplers.grid import Grid
from diff_diffusion.samplers.sampler import Sampler
from diff_diffusion.storage.folder import refusals, to_json, to_safetensors, write_file

PART = 64
KEPT = 2
"""Sets of samples that stay in a folder: the newest, and one to go back to."""


@dataclass
class Samples:
    """What a model draws when asked for one thing after another, as uint8 images in parts of 64.

    Sample i has seed `seed + i` and is asked for row i of `asked`, from its start again after its end. It does not
    depend on how many are drawn, so that a larger evaluation goes on with the files of a smaller one.

    Args:
        model: what draws.
        asked: a list for each condition's name, all of one length; None for unconditional samples.
        seed: of the first.
        sampler, grid, guidance: of the walk.
        folder: where parts are kept; in memory where None.
    """

    model: DiffusionModel
    asked: Mapping[str, Sequence[Any]] | None
    seed: int
    sampler: Sampler
    grid: Grid
    guidance: float
    folder: Path | None = None
    _memory: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def _key(self) -> str:
        """A hash of all that a sample depends on."""
        about = [self.model.fingerprint(), describe(self.sampler), describe(self.grid), self.guidance, self.seed]
        digest = hashlib.sha256(to_json(about))
        for name, values in sorted((self.asked or {}).items()):
            digest.update(name.encode())
            for value in values:
                image = isinstance(value, Tensor)
                digest.update(value.contiguous().numpy().tobytes() if image else repr(value).encode() + b"\0")
        return digest.hexdigest()[:16]

    def parts(self, num: int, progress: Progress | None = None) -> Iterator[Tensor]:
        """The first `num` samples, uint8 [≤ 64, C, H, W] each; those there already are read, not drawn."""
        for first in range(0, num, PART):
            yield self._part(first, num)
            if progress is not None:
                progress(min(first + PART, num), num)

    def share(self, num: int, rank: int, ranks: int, progress: Progress | None = None) -> None:
        """Draws what of the first `num` samples is this process's among `ranks`: each part `rank` + k · `ranks`.

        Rank 0 then draws whatever is still missing, the last first, so that it waits for nobody and no sample is lost
        with a process that died; at worst a part is drawn twice.

        Raises:
            ConfigError: no folder, which is where the processes find each other's samples.
        """
        if self.folder is None:
            raise ConfigError("processes share what they draw through a folder, and these samples have none: name one")
        firsts = range(0, num, PART)
        for first in (*firsts[rank::ranks], *(reversed(firsts) if rank == 0 else ())):
            self._part(first, num)
            if progress is not None:
                progress(min(num, PART * sum((self._home / _name(at, num)).exists() for at in firsts)), num)

    def forget_others(self) -> None:
        """Removes the samples that other models or settings left in the folder, all but those drawn last."""
        assert self.folder is not None
        others = [home for home in self.folder.glob("samples-*") if home != self._home]
        with suppress(OSError):  # another evaluation may be doing the same
            for old in sorted(others, key=lambda home: home.stat().st_mtime_ns)[: 1 - KEPT]:
                shutil.rmtree(old, ignore_errors=True)

    @property
    def _home(self) -> Path:
        assert self.folder is not None
        return self.folder / f"samples-{self._key}"

    def _part(self, first: int, num: int) -> Tensor:
        last, name = min(first + PART, num), _name(first, num)
        home = None if self.folder is None else self._home
        images = self._memory.get(name) if home is None else _read(home / name, last - first)
        if images is None:
            images = self._draw(first, last)
            if home is None:
                self._memory[name] = images
            else:
                with refusals(home):
                    home.mkdir(parents=True, exist_ok=True)
                write_file(home / name, to_safetensors({"images": images}))
        return images

    def image(self, index: int, num: int) -> Tensor:
        """Sample `index` of the first `num`, uint8 [C, H, W]."""
        return self._part(index // PART * PART, num)[index % PART]

    def _draw(self, first: int, last: int) -> Tensor:
        cond = {
            name: [values[i % len(values)] for i in range(first, last)] for name, values in (self.asked or {}).items()
        }
        drawn = self.model.sample(
            last - first,
            cond=cond or None,
            seed=self.seed + first,
            batch_size=PART,
            sampler=self.sampler,
            grid=self.grid,
            # A model asked for nothing has nothing to be guided to, whatever its own scale is.
            guidance=self.guidance if cond else None,
        )
        # As a picture file holds them: a difference that no file can show must not be measured.
        return drawn.round().clamp(0, 255).to(torch.uint8)


def _name(first: int, num: int) -> str:
    return f"{first:07d}-{min(first + PART, num):07d}.safetensors"


def _read(path: Path, count: int) -> Tensor | None:
    """The images of a part; None where there is none, or a damaged one, which is drawn again."""
    try:
        images = safetensors.torch.load(path.read_bytes())["images"]
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
        return None
    return images if len(images) == count and images.dtype == torch.uint8 else None
