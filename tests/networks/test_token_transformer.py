"""The token transformer beside what it must be: a line is a grid of one row, and places count, on both axes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diff_diffusion.errors import ConfigError
from diff_diffusion.networks.token_transformer import TokenTransformer

VOCAB = 6


def network(**options: int) -> TokenTransformer:
    """With weights that say something, in float64."""
    torch.manual_seed(0)
    made = TokenTransformer(VOCAB, **{"width": 16, "depth": 2, "heads": 2, **options}).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB + 1, shape, generator=torch.Generator().manual_seed(1))


LEVEL = torch.tensor([0.5], dtype=torch.float64)


def test_a_line_is_a_grid_of_one_row() -> None:
    line = tokens(1, 9)
    said = network()
    assert torch.equal(said(line, LEVEL), said(line[:, None], LEVEL)[:, 0])


@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_the_same_tokens_elsewhere_are_another_sample(shape: tuple[int, ...]) -> None:
    """Without positions a set of tokens would have one answer in any order."""
    x, said = tokens(1, *shape), network()
    moved = x.flip(-1)
    assert not torch.allclose(said(moved, LEVEL).flip(-2), said(x, LEVEL), atol=1e-3)


def test_rows_and_columns_are_two_axes() -> None:
    """A transposed grid is another sample, and so is a grid read as a line."""
    x, said = tokens(1, 4, 4), network()
    assert not torch.allclose(said(x.transpose(1, 2), LEVEL).transpose(1, 2), said(x, LEVEL), atol=1e-3)
    assert not torch.allclose(said(x.flatten(1), LEVEL).view(1, 4, 4, VOCAB), said(x, LEVEL), atol=1e-3)


def test_a_place_is_told_by_its_row_and_its_column() -> None:
    """Of a grid that is not square: half of the angles are the same all along a row, half all down a column."""
    said = network()
    seen: list[Tensor] = []
    said.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    said(tokens(1, 3, 5), LEVEL)
    [angles] = seen
    by_row, by_column = angles.view(3, 5, -1).chunk(2, dim=-1)
    assert torch.equal(by_row, by_row[:, :1].expand_as(by_row))
    assert torch.equal(by_column, by_column[:1].expand_as(by_column))
    assert (by_row[1:] != by_row[:-1]).all()
    assert (by_column[:, 1:] != by_column[:, :-1]).all()


def test_tokens_on_other_axes_are_refused() -> None:
    for shape in ((4,), (1, 2, 2, 2)):
        with pytest.raises(ConfigError, match=r"a line \[B, L\] or on a grid \[B, H, W\]"):
            network()(tokens(*shape), LEVEL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab": 1}, "a token transformer's vocab must be from 2"),
        ({"heads": 3}, "must be a multiple of 4 × heads = 12, not 16: 12 would do"),
        ({"depth": 0}, "depth must be from 1 to 128, not 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenTransformer(**{"vocab": VOCAB, "width": 16, "depth": 2, "heads": 2} | options)  # type: ignore[arg-type]
