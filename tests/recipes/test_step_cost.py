"""`make bench` on a small set: what it measures of each optimizer is that optimizer's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from arturo_core.kernels import cpu
from recipes.benchmarks import step_cost
from recipes.benchmarks.memory import peak_of_a_step


def test_the_bench_measures_every_optimizer_beside_adamw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cost, "SETS", {"small": [(256, 256), (64, 128), (128,)]})
    names = ["AdamW foreach", "Arturo", "Arturo bfloat16 state", "Arturo 8-bit state", "Arturo fixed noise"]
    threads = torch.get_num_threads()
    try:
        arguments = ["--rounds", "3", "--threads", "1", "--optimizers", ",".join(names)]
        assert step_cost.main([*arguments, "--json", str(tmp_path / "cost.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "cost.json").read_text())["sets"]["small"]
    assert list(rows) == [step_cost.BASELINE, *names]
    assert rows[step_cost.BASELINE]["ratio"] == 1.0
    held = {name: row["state_bytes_per_parameter"] for name, row in rows.items()}
    expected = {"AdamW foreach": 8.0, "Arturo": 16.0, "Arturo bfloat16 state": 8.0, "Arturo 8-bit state": 5.13}
    assert {name: held[name] for name in expected} == pytest.approx(expected, abs=0.02)
    for row in rows.values():
        low, high = row["ratio_quartiles"]
        assert 0.0 < low <= row["ratio"] <= high
        assert row["median_ms"] > 0.0
    # foreach makes temporaries of all parameters' size; the kernel none.
    assert rows["AdamW foreach"]["step_bytes_per_parameter"] >= 4.0
    if cpu.available():
        assert rows["Arturo"]["step_bytes_per_parameter"] < 0.1


def test_memory_of_a_step_is_the_most_that_is_held_at_once() -> None:
    class Wasteful(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for _ in range(3):
                torch.empty(1000, dtype=torch.float32)  # one at a time
            kept = [torch.empty(500, dtype=torch.float32) for _ in range(4)]
            assert len(kept) == 4

    optimizer = Wasteful([torch.nn.Parameter(torch.ones(2))])
    assert peak_of_a_step(optimizer, "cpu") == pytest.approx(8000, abs=600)
