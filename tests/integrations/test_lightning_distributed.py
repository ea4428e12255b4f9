"""Through Lightning every layout takes the steps of one process, and checkpoints go on bit for bit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning_ranks import BY_FABRIC, LAYOUTS, REFUSED, THEMSELVES, WORLD, everything, single
from many_ranks import assert_same_run, sums
from problem import Network
from ranks import run

CHECKPOINTS = [(name, kind) for name, (_, kinds) in LAYOUTS.items() for kind in kinds]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tmp_path_factory.mktemp("lightning"))


@pytest.fixture(scope="module")
def results(folder: Path) -> list[Any]:
    """What every rank found."""
    return run(everything, WORLD, folder, folder)


def of_ranks(results: list[Any], *case: str) -> list[Any]:
    ranks = [found[case] for found in results]
    assert not any(isinstance(found, str) for found in ranks), ranks[0]
    return ranks


def assert_went_on(found: dict[str, Any]) -> None:
    ours, theirs = found["resumed"], found["whole"]
    assert not found["states differ"]
    assert repr(ours["numbers"]) == repr(theirs["numbers"][-len(ours["numbers"]) :])
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, weight in theirs["weights"].items():
        assert torch.equal(ours["weights"][name], weight), name


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_training_is_that_of_one_process(name, accumulate, results):
    ranks = of_ranks(results, "trains" if accumulate == 1 else "accumulates", name)
    for found in ranks:
        assert_same_run(found, single(named=name != "FSDP1 flat", accumulate=accumulate))
        assert [sums(step) for step in found["numbers"]] == [sums(step) for step in ranks[0]["numbers"]]
        assert {"arturo/eta", "arturo/curvature_q50"} <= found["numbers"][-1].keys()


@pytest.mark.parametrize("name", THEMSELVES)
def test_an_optimizer_of_ones_own_is_the_same_run(name, results):
    for found in of_ranks(results, "trains by itself", name):
        assert_same_run(found, single())


@pytest.mark.parametrize(("name", "kind"), CHECKPOINTS)
def test_a_checkpoint_goes_on_bit_for_bit(name, kind, results):
    for found in of_ranks(results, "resumes", name, kind):
        assert len(found["resumed"]["numbers"]) == len(found["whole"]["numbers"]) // 3
        assert_went_on(found)


@pytest.mark.parametrize("name", BY_FABRIC)
def test_fabric_trains_saves_and_goes_on(name, results):
    for found in of_ranks(results, "Fabric", name):
        assert_same_run(found["first"], single(named=False, epochs=1))
        assert_went_on(found)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_monitor_logs_once_for_all_ranks(name, results, folder):
    ranks = of_ranks(results, "logs", name)
    assert ranks[0].keys() == ranks[1].keys()
    steps = of_ranks(results, "trains", name)[0]["numbers"]
    (file,) = (folder / f"logs of {name}").rglob("metrics.csv")
    records = [row for row in csv.DictReader(file.open()) if row["loss_step"]]
    # Every third of the steps.
    assert [row["arturo/steps"] for row in records] == ["3.0", "6.0"]
    for row, numbers in zip(records, steps[2::3], strict=True):
        for key, value in numbers.items():
            assert float(row[key]) == pytest.approx(value, rel=1e-6), key
    layers = {key.split("/")[2] for key in ranks[0] if key.startswith("arturo/layer/")}
    if name == "FSDP1 flat":
        assert all("_flat_param" in layer for layer in layers)
    else:
        assert layers == {f"network.{layer}" for layer, _ in Network().named_parameters() if "unused" not in layer}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_way_out(name, results):
    for found in results:
        assert REFUSED[name][1] in found["refuses", name]
        assert found["refuses", name].startswith("Arturo: ")
