"""Several optimizers as one, for those that are meant for some of the parameters only."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


class Joined:
    """It has what a training loop uses of an optimizer: ``param_groups``, ``zero_grad``, ``step``, ``state_dict``."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        contents = [part.state_dict() for part in self.parts]
        return {
            "state": [content["state"] for content in contents],
            "param_groups": [content["param_groups"] for content in contents],
        }
