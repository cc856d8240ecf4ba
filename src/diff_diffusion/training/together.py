"""What several processes of one run must have alike, and what they add up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diff_diffusion.codecs.vector_quantised import VectorQuantised
from diff_diffusion.errors import ConfigError, listed
from diff_diffusion.models import Model
from diff_diffusion.objectives.levels import Levels
from diff_diffusion.objectives.reconstruction import Width
from diff_diffusion.training.runtime import Ranks


def check_alike(ranks: Ranks, contents: Mapping[str, bytes]) -> None:
    """Nothing, or a ConfigError that names what is not the same in every process."""
    differing = ranks.differing(contents)
    if differing:
        raise ConfigError(
            f"{listed(differing, 4)} differ between the {ranks.count} processes of this run: start all with the same "
            "command, data and versions. A part that learns from its own rows alone, as batch normalisation does, "
            "trains in one process only"
        )


def check_weights(ranks: Ranks, model: Model, step: int) -> None:
    """Nothing, or a ConfigError that names what the model of one process has and another's has not."""
    if ranks.count > 1:
        state = {name: value.detach().cpu().contiguous().numpy() for name, value in model.state_dict().items()}
        weights = {name: value.tobytes() for name, value in state.items()}
        check_alike(ranks, {"the step": str(step).encode(), **weights})


def add_up(ranks: Ranks, model: Model, total: Tensor) -> None:
    """Loss, gradient, what levels were taught and averages, of this process's rows, become the whole batch's."""
    if ranks.count == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A part that no row of a process needed has no gradient there, and may have one elsewhere.
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=total.device)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    taught = [part.taught for part in levels_of(model) if part.taught is not None]
    averages = model.averages()
    # Codes that start again do so at one place of the batch, the first process's; a mean of several is nowhere.
    books = [part for part in model.learns.modules() if isinstance(part, VectorQuantised)]
    restarts = [torch.zeros_like(book.sums) if book.restarts is None else book.restarts for book in books]
    for book, restart in zip(books, restarts, strict=True):
        book.sums.sub_(restart)
        if not ranks.first:
            restart.zero_()
    for average in averages:
        average.div_(ranks.count)
    ranks.add([total, used, *gradients, *taught, *averages, *restarts])
    for book, restart in zip(books, restarts, strict=True):
        book.sums.add_(restart)
    for parameter, times in zip(parameters, used.tolist(), strict=True):
        if times == 0:
            parameter.grad = None


def begin_batch(model: Model) -> None:
    """A new batch begins, also where its first sample is another process's: parts that learn may count batches."""
    for part in model.learns.modules():
        if isinstance(part, (Levels, Width, VectorQuantised)):
            part.begin()


def levels_of(model: Model) -> list[Levels]:
    """The densities of levels that learn."""
    return [part for part in model.learns.modules() if isinstance(part, Levels)]
