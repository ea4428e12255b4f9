"""The table of the state says what a parameter costs, and its rows are what the optimizer holds."""

from __future__ import annotations

import pytest
import torch

from arturo_core import Arturo, state


@pytest.mark.parametrize(("noise", "expected"), [("adaptive", 16), ("fixed", 24)])
def test_bytes_of_state_are_those_of_the_table(noise: str, expected: int) -> None:
    param = torch.nn.Parameter(torch.randn(50, 4))
    optimizer = Arturo([param], noise=noise)
    param.grad = torch.randn(50, 4)
    optimizer.step()
    held = optimizer.state[param]
    assert [row.name for row in state.table(optimizer.options)] == list(held)
    per_element = sum(value.nbytes for value in held.values() if value.dim()) / param.numel()
    assert per_element == state.bytes_per_parameter(optimizer.options) == expected
