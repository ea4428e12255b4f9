"""The benchmark of a CUDA device, as far as it runs without one: the same measurements on small sets on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from recipes.benchmarks import gpu, gpu_measures

SHAPES = [(40, 30), (30,), ()]


def test_the_sets_are_as_large_as_they_say() -> None:
    counts = {name: sum(torch.Size(shape).numel() for shape in shapes) for name, shapes in gpu_measures.SETS.items()}
    assert counts["110M"] == pytest.approx(110e6, rel=0.02)
    assert counts["1B"] == pytest.approx(1e9, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: there is no CUDA device here")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_figures_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what can be measured, and of what cannot with its reason; bytes of state are those of the tensors."""
    monkeypatch.setitem(gpu_measures.SETS, "110M", SHAPES)

    def broken(params: gpu_measures.Params, lr: gpu_measures.Rate) -> torch.optim.Optimizer:
        raise ImportError("no module\nat all")

    monkeypatch.setitem(gpu_measures.OPTIMIZERS, "AdamW 8-bit torchao", broken)
    names = ["AdamW fused", "Arturo without kernel", "AdamW 8-bit torchao"]
    rows = gpu.figures(["110M"], ["float32"], names, 3, "cpu", Console(quiet=True))
    assert [row["optimizer"] for row in rows] == names
    adamw, ours, absent = rows
    assert absent["not measured"] == "no module"
    count = 40 * 30 + 30 + 1
    assert (ours["weights_in_all"], ours["tensors"]) == (count, 3)
    assert adamw["state_bytes_per_weight"] == pytest.approx((8 * count + 3 * 4) / count)
    assert ours["state_bytes_per_weight"] == pytest.approx((16 * count + 3 * (4 + 4 + 8 + 8)) / count, abs=0.05)
    low, high = ours["ratio_quartiles"]
    assert 0.0 < low <= ours["ratio"] <= high
    assert 0.0 < ours["host_ms"] <= ours["median_ms"]

    results = {
        "environment": {"device": "none", "torch": "2"},
        "tests": {"passed": 3, "failed": ["a.b"], "skipped": 1},
        "steps": rows,
        "fine_tuning": [{"optimizer": "Arturo", "step_ms": 50.0, "optimizer_ms": 1.0, "share": 0.02}],
    }
    page = gpu.markdown(json.loads(json.dumps(results)))
    assert page.startswith("device none, torch 2\n")
    assert "3 passed, 1 failed, 1 skipped; failed: a.b" in page
    assert "| AdamW 8-bit torchao | not measured: no module |" in page
    assert "| Arturo | 50.0 | 1.00 | 2.0% |" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {10, 5}


def test_outcomes_of_tests_are_counted() -> None:
    report = ElementTree.fromstring(
        '<testsuites><testsuite><testcase classname="m" name="one"/><testcase classname="m" name="two"><failure/>'
        '</testcase><testcase classname="m" name="three"><skipped/></testcase><testcase classname="m" name="four">'
        "<error/></testcase></testsuite></testsuites>"
    )
    assert gpu.counted(report) == {"passed": 1, "failed": ["m.two", "m.four"], "skipped": 1}


def test_the_share_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_measures, "WARM", 1)
    rows = gpu_measures.fine_tuning(["AdamW fused", "Arturo without kernel"], 2, "cpu", 1, 24, (2, 4))
    assert rows[0]["optimizer"] == "AdamW fused"
    assert all(0.0 < row["share"] < 1.0 for row in rows)
    assert all(row["share"] == pytest.approx(row["optimizer_ms"] / row["step_ms"]) for row in rows)
