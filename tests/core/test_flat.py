"""A flat parameter steps as the parameters it was cut from, whatever is in its padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from arturo_core import Arturo
from arturo_core.distributed import flat

SHAPES = [(6, 4), (5,), (3, 2, 2)]
#: Where the parameters are in the vector: padding before, between and after them, none between the last two.
STARTS = [3, 31, 36]
SIZE = 50

MODES: list[dict[str, Any]] = [
    {"lr": 1e-2, "weight_decay": 0.1},
    {"lr": 1.0},
    {"lr": 1e-2, "prior_precision": 0.1},
    {"lr": 1e-1, "trust_region": "kl"},
    {"lr": 1e-2, "noise": "fixed"},
    {"lr": 1e-2, "noise": "fixed", "trust_region": "kl"},
]


def pieces() -> list[flat.Piece]:
    sizes = [torch.Size(shape) for shape in SHAPES]
    return [flat.Piece(start, start + size.numel(), size) for start, size in zip(STARTS, sizes, strict=True)]


def laid_out(tensors: list[Tensor], padding: float) -> Tensor:
    vector = torch.full((SIZE,), padding, dtype=torch.float64)
    for piece, tensor in zip(pieces(), tensors, strict=True):
        vector[piece.start : piece.stop] = tensor.reshape(-1)
    return vector


@pytest.mark.parametrize("padding", [0.0, 7.0, torch.nan])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_steps_as_what_it_was_cut_from(mode: dict[str, Any], padding: float) -> None:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]
    vector = torch.nn.Parameter(laid_out([param.detach() for param in params], padding))
    flat.declare(vector, pieces())
    apart, together = Arturo(params, **mode), Arturo([vector], **mode)
    for _ in range(6):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        vector.grad = laid_out([param.grad for param in params], padding)
        apart.step()
        together.step()
        expected, found = apart.diagnostics(), together.diagnostics()
        for key in ("eta", "kl", "kl_bound", "innovation_ratio", "step_rms", "steps", "skipped_steps"):
            assert found[key] == pytest.approx(expected[key], rel=1e-9), key
        assert found["precision_q50"] > 0.0
    expected_vector = laid_out([param.detach() for param in params], padding)
    torch.testing.assert_close(vector.detach(), expected_vector, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert int(together.state[vector]["step"]) == 6


@pytest.mark.parametrize(
    ("spans", "shape"), [([(0, 5), (4, 8)], (8,)), ([(0, 9)], (8,)), ([(-1, 3)], (8,)), ([(0, 8)], (2, 4))], ids=str
)
def test_pieces_must_be_disjoint_slices(spans: list[tuple[int, int]], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no disjoint slices"):
        flat.declare(torch.zeros(shape), [flat.Piece(start, stop, torch.Size([9])) for start, stop in spans])


def test_a_vector_of_padding_alone() -> None:
    weight, vector = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    flat.declare(vector, [flat.Piece(2, 2, torch.Size([3, 3]))])
    optimizer = Arturo([weight, vector], lr=0.1)
    weight.grad, vector.grad = torch.ones(4), torch.full((4,), torch.inf)
    optimizer.step()
    assert optimizer.diagnostics()["steps"] == 1
    assert torch.equal(vector.detach(), torch.ones(4))
    assert not torch.equal(weight.detach(), torch.ones(4))
