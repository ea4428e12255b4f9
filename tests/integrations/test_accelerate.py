"""Through Accelerate every layout takes the steps of one process, and checkpoints go on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

import torch
from accelerated import KINDS, LAYOUTS, REFUSED, RESHARDED, STEPS, everything, single
from many_ranks import assert_same_run, sums
from ranks import run

CHECKPOINTS = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """By number of ranks, what every rank found; the larger world reads the checkpoints of the smaller."""
    folder = Path(tmp_path_factory.mktemp("accelerate"))
    worlds = sorted({layout.world for layout in LAYOUTS.values()})
    return {world: run(everything, world, folder / str(world), world, folder) for world in worlds}


def of_ranks(results: dict[int, list[Any]], name: str, *case: str) -> list[Any]:
    ranks = [found[case] for found in results[LAYOUTS[name].world]]
    assert not any(isinstance(found, str) for found in ranks), ranks[0]
    return ranks


def assert_identical(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert repr(found["numbers"]) == repr(expected["numbers"])
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        assert torch.equal(found["weights"][name], weight), name


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_is_that_of_one_process(name, results):
    ranks = of_ranks(results, name, "trains", name)
    for found in ranks:
        assert_same_run(found, single(name))
        assert [sums(step) for step in found["numbers"]] == [sums(step) for step in ranks[0]["numbers"]]
        assert {"arturo/eta", "arturo/curvature_q50"} <= found["numbers"][-1].keys()


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.itself])
def test_accelerates_own_prepare_is_the_same_run(name, results):
    ours, theirs = (of_ranks(results, name, case, name) for case in ("trains", "trains by itself"))
    for found, expected in zip(theirs, ours, strict=True):
        assert_identical(found, expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_accumulated_gradients_make_the_step_of_the_whole_batch(name, results):
    for found in of_ranks(results, name, "accumulates", name):
        assert_same_run(found, single(name))


@pytest.mark.parametrize(("name", "kind"), CHECKPOINTS)
def test_a_checkpoint_goes_on_bit_for_bit(name, kind, results):
    for found in of_ranks(results, name, "resumes", name, kind):
        assert_identical(found["resumed"], found["whole"])
        assert found["resumed"]["numbers"][-1]["arturo/steps"] == 2 * STEPS


@pytest.mark.parametrize("kind", KINDS["FSDP2"])
@pytest.mark.parametrize(("source", "target"), RESHARDED)
def test_a_checkpoint_goes_on_with_another_number_of_ranks(source, target, kind, results):
    expected = single()
    expected["numbers"] = expected["numbers"][STEPS:]
    for found in of_ranks(results, target, "reshards", source, target, kind):
        assert_same_run(found, expected)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_way_out(name, results):
    for found in results[2]:
        assert REFUSED[name][1] in found["refuses", name]
        assert found["refuses", name].startswith("Arturo: ")


def test_trainer_is_told_of_the_ranks_of_fsdp1(results):
    assert of_ranks(results, "FSDP1", "built by Trainer", "FSDP1") == [True, True]
