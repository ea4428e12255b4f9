"""Under Lightning's DeepSpeed strategies, ZeRO's steps are those of one process, and checkpoints go on bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)

import torch
from lightning_zero import OF_THE_LOSS, STAGES, everything, single

from ranks import run  # isort: skip  (lightning_zero has made it known)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = Path(tmp_path_factory.mktemp("lightning_deepspeed"))
    return run(everything, 2, folder, folder)


def assert_same_run(found: dict[str, Any], expected: dict[str, Any], left_out: tuple[str, ...] = ()) -> None:
    for ours, theirs in zip(found["numbers"], expected["numbers"], strict=True):
        of_a_sample = {key for key in ours if "_q" in key or "resolution" in key}  # of the rank's own part
        for key in ours.keys() - of_a_sample - set(left_out):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["trains", "Fabric", "accumulates"])
@pytest.mark.parametrize("stage", STAGES)
def test_training_is_that_of_one_process(stage, case, results):
    expected = single(2 if case == "accumulates" else 1)
    for found in results:
        assert_same_run(found[case, stage], expected, OF_THE_LOSS if case == "accumulates" else ())


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_goes_on_bit_for_bit(stage, results):
    for found in results:
        whole, resumed = (found["resumes", stage][one] for one in ("whole", "resumed"))
        assert repr(resumed["numbers"]) == repr(whole["numbers"][-len(resumed["numbers"]) :])
        assert len(resumed["numbers"]) == len(whole["numbers"]) // 2
        for name, weight in whole["weights"].items():
            assert torch.equal(resumed["weights"][name], weight), name


@pytest.mark.parametrize("stage", STAGES)
def test_the_monitor_has_the_numbers_of_the_last_step(stage, results):
    for found in results:
        logged, numbers = found["trains", stage]["logged"], found["trains", stage]["numbers"][-1]
        assert {"arturo/eta", "arturo/kl_ratio", "arturo/steps"} <= numbers.keys()
        for key, value in numbers.items():
            assert logged[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("stage", STAGES)
def test_refused_with_the_way_out(stage, results):
    for found in results:
        assert "arturo_integrations.deepspeed.attach(engine)" in found["by itself", stage]
        assert "Leave per_layer out" in found["layers", stage]
