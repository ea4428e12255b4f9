"""Under DeepSpeed's ZeRO a step is that of one process; what cannot be is refused, with what is supported.

Against DeepSpeed itself where it is installed (float32, as it trains), and against a stand-in for its order of
partitions and steps everywhere (float64).
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import zero_problem
from zero_problem import MODES, STEPS, single, train

from ranks import run  # isort: skip  (zero_problem has made it known)

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed; its stand-in is tested"
)

STAND_IN_WORLDS = (2, 3)
REAL_WORLDS = (2, 3)


def compare(found: dict[str, Any], expected: dict[str, Any], rtol: float, atol: float) -> None:
    for step, (ours, theirs) in enumerate(zip(found["numbers"], expected["numbers"], strict=True)):
        for key, value in theirs.items():
            same = math.isnan(value) and math.isnan(ours[key])
            assert same or ours[key] == pytest.approx(value, rel=rtol), (step, key)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=rtol, atol=atol)


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    apart = [(weight - other["weights"][name]).square().sum() for name, weight in one["weights"].items()]
    return float(torch.stack(apart).sum().sqrt())


@pytest.fixture(scope="module")
def of_stand_in(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folder = tmp_path_factory.mktemp("stand_in")
    return {world: run(zero_problem.stand_in_matrix, world, folder / str(world)) for world in STAND_IN_WORLDS}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("several", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("world", STAND_IN_WORLDS)
def test_stand_in(world: int, stage: int, several: bool, mode: str, of_stand_in: dict[int, list[Any]]) -> None:
    expected = train(single(MODES[mode], several, torch.float64), range(STEPS), torch.float64, spoil=True)
    assert expected["numbers"][-1]["skipped_steps"] == 1
    for found in of_stand_in[world]:
        compare(found[stage, several, mode], expected, rtol=1e-8, atol=1e-11)


@pytest.fixture(scope="module")
def of_deepspeed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folder = tmp_path_factory.mktemp("deepspeed")
    return {world: run(zero_problem.real_matrix, world, Path(folder) / str(world)) for world in REAL_WORLDS}


@needs_deepspeed
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("several", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("world", REAL_WORLDS)
def test_deepspeed(world: int, stage: int, several: bool, mode: str, of_deepspeed: dict[int, list[Any]]) -> None:
    expected = train(single(MODES[mode], several, torch.float32), range(STEPS), torch.float32, spoil=False)
    for found in of_deepspeed[world]:
        compare(found[stage, several, mode], expected, rtol=1e-4, atol=1e-6)


REFUSED = {
    "stage 2 without attach": "call arturo_integrations.deepspeed.attach(engine)",
    "stage 2, two groups, without attach": "call arturo_integrations.deepspeed.attach(engine)",
    "stage 3 without attach": "call arturo_integrations.deepspeed.attach(engine)",
    "another optimizer": '"zero_force_ds_cpu_optimizer": false',
    "another wrapper": "whose steps cannot be made exact. Supported are ZeRO stages 1, 2 and 3",
    "elastic checkpoint": '"elastic_checkpoint": false',
    "NVMe": "no NVMe for the optimizer",
    "ZenFlow": "no ZenFlow",
    "experts": "model, pipeline or expert parallelism",
    "model parallel": "model, pipeline or expert parallelism",
    "another process group": "Leave it out: attach() sets it",
    "out of order": "after part -1",
    "older version": "Install deepspeed>=0.19.8,<0.20",
    "the same process group": "not refused",
    "attached twice": "not refused",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return run(zero_problem.stand_in_refusals, 2, tmp_path_factory.mktemp("refusals"))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_on_every_rank_with_the_way_out(name: str, refusals: list[dict[str, str]]) -> None:
    for found in refusals:
        assert REFUSED[name] in found[name]
        assert found[name] == "not refused" or "Error: Arturo: " in found[name]


@needs_deepspeed
def test_deepspeed_refusals(tmp_path: Path) -> None:
    for found in run(zero_problem.real_refusals, 2, tmp_path):
        for stage in (1, 2, 3):
            assert "call arturo_integrations.deepspeed.attach(engine)" in found[f"stage {stage} without attach"]
        assert "use ZeRO stage 1 for bf16 and fp16" in found["no ZeRO, bf16"]
        assert '"elastic_checkpoint": false' in found["elastic checkpoint"]
        assert "zero_force_ds_cpu_optimizer" in found["offload of DeepSpeed's own"]


@needs_deepspeed
def test_deepspeed_variants(tmp_path: Path) -> None:
    options = MODES["rms, long steps"]
    expected = train(single(options, True, torch.float32), range(STEPS), torch.float32, spoil=False)
    # Ranks round the gradients of their own rows to bf16: steps agree to a few of its digits.
    expected_bf16 = train(zero_problem.single_bf16(options), range(STEPS), torch.bfloat16, spoil=False)
    start = {"weights": zero_problem.single_bf16(options).whole()}
    for found in run(zero_problem.real_variants, 2, tmp_path):
        assert found["bf16, float32 gradients"]["wrapper"] == "BF16_Optimizer"
        for name, result in found.items():
            if name.startswith("bf16"):
                for ours, theirs in zip(result["numbers"][1:], expected_bf16["numbers"][1:], strict=True):
                    assert ours["kl_bound"] == pytest.approx(theirs["kl_bound"], rel=0.02)
                assert distance(result, expected_bf16) < 0.05 * distance(start, expected_bf16), name
            else:
                compare(result, expected, rtol=1e-4, atol=1e-6)


@needs_deepspeed
def test_deepspeed_resumes_to_the_bit(tmp_path: Path) -> None:
    for found in run(zero_problem.save_and_go_on, 2, tmp_path / "saved", tmp_path):
        for went_on, resumed in found.values():
            assert repr(resumed["numbers"]) == repr(went_on["numbers"])
            for name, weight in went_on["weights"].items():
                assert torch.equal(resumed["weights"][name], weight)
    first, *others = run(zero_problem.load_elsewhere, 3, tmp_path / "elsewhere", tmp_path)
    for message in first.values():
        assert "DP world size of 2 but the current world size is 3" in message
    assert "not refused" not in [message for other in others for message in other.values()]


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_trainer_under_deepspeed(stage: int, tmp_path: Path) -> None:
    plain = run(zero_problem.trainer, 2, tmp_path / "ddp", tmp_path, 0)[0]
    found = run(zero_problem.trainer, 2, tmp_path / "zero", tmp_path, stage)[0]
    assert len(found) == len(plain) == 4
    for ours, theirs in zip(found, plain, strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=1e-3), key


@needs_deepspeed
def test_trainer_refuses_replacement(tmp_path: Path) -> None:
    assert '"zero_force_ds_cpu_optimizer": false' in run(zero_problem.replaced, 1, tmp_path, tmp_path)[0]
