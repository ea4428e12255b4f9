"""Loading the recorded trajectories, and replaying them with the recorded multiplier."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from arturo_core.algorithm import trust_region

FOLDER = Path(__file__).parent.parent / "data" / "golden"
FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))


@dataclass
class Golden:
    arrays: dict[str, np.ndarray]
    config: dict[str, float]

    @classmethod
    def load(cls, name: str) -> Golden:
        arrays = dict(np.load(FOLDER / f"{name}.npz"))
        return cls(arrays, json.loads(str(arrays.pop("config"))))

    @property
    def steps(self) -> int:
        return len(self.arrays["eta"])

    @property
    def count(self) -> int:
        return sum(key.startswith("param_init_") for key in self.arrays)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.from_numpy(self.arrays[f"param_init_{i}"].copy())) for i in range(self.count)]

    def at(self, key: str, index: int, step: int) -> torch.Tensor:
        return torch.from_numpy(self.arrays[f"{key}_{index}"][step].copy())

    def options(self) -> dict[str, Any]:
        config = self.config
        return {
            "kl_bound": config["kl_bound"],
            "temperature": config["reg_weight"],
            "prior_precision": config["prior_prec"],
            "init_variance": config["var_init"],
            "init_covariance": config["start_filter_cov"],
            "measurement_noise": config["measurement_noise"],
            "process_noise": config["dynamic_model_noise"],
            "precision_momentum": config["nu"],
            "weight_decay": config["weight_decay"],
        }

    def expected(self, index: int, step: int) -> dict[str, torch.Tensor]:
        """The recorded state in centred coordinates."""
        theta, h = self.at("param", index, step), self.at("hessian", index, step)
        p00, p01, p11 = (self.at(f"cov_{key}", index, step) for key in ("00", "01", "11"))
        return {
            "theta": theta,
            "precision": self.at("precision", index, step),
            "gradient": self.at("lin", index, step) + h * theta,
            "hessian": h,
            "cov_gg": p00 + 2 * theta * p01 + theta**2 * p11,
            "cov_gh": p01 + theta * p11,
            "cov_hh": p11,
        }


@contextmanager
def multiplier(value: float) -> Iterator[None]:
    """Put a given η in the place of the dual's solution."""
    honest = trust_region.settle

    def settle(bracket: Any, newton: Any, eta_min: Any, budget: Any, kl_rtol: float) -> trust_region.Multiplier:
        solved = honest(bracket, newton, eta_min, budget, kl_rtol)
        return solved._replace(t=value - eta_min, scale=torch.ones_like(eta_min))

    with mock.patch.object(trust_region, "settle", settle):
        yield
