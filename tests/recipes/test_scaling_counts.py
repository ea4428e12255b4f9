"""The counts of collectives: what the layouts say that a step has to send, and no more."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed import _functional_collectives as functional

from recipes.benchmarks.scaling import __main__ as command
from recipes.benchmarks.scaling.counting import count
from recipes.benchmarks.scaling.measure import measure
from recipes.benchmarks.scaling.model import (
    DEFAULT_STEP,
    DEFAULT_SUMS,
    NOTES,
    PAPER_STEP,
    PAPER_SUMS,
    Assumptions,
    all_reduces,
)
from recipes.benchmarks.scaling.traffic import bytes_per_parameter

LAYOUTS_OF_2 = ("DDP", "FSDP2", "TP", "FSDP1")
LAYOUTS_OF_4 = ("HSDP 2x2", "FSDP2 x TP 2x2")
OURS = ("arturo", "arturo paper")


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, str], dict[str, Any]]:
    records = measure([2], LAYOUTS_OF_2, ["adamw", *OURS]) + measure([4], LAYOUTS_OF_4, ["adamw", *OURS])
    return {(record["layout"], record["optimizer"]): record for record in records}


def sizes(record: dict[str, Any]) -> Counter[tuple[int, int]]:
    """Bytes and ranks of every all-reduce of a step."""
    found: Counter[tuple[int, int]] = Counter()
    for sent in record["step"]["collectives"]:
        assert sent["name"] == "c10d.allreduce_"
        found[sent["bytes"], sent["ranks"]] += sent["calls"]
    return found


def expected(messages: tuple[int, ...], times: int = 1) -> Counter[tuple[int, int]]:
    """These messages, over two ranks each time."""
    return Counter({(size, 2): times * calls for size, calls in Counter(messages).items()})


@pytest.mark.parametrize("layout", [*LAYOUTS_OF_2, *LAYOUTS_OF_4])
def test_adamw_sends_nothing(layout: str, counts: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert counts[layout, "adamw"]["step"]["calls"] == 0
    assert counts[layout, "adamw"]["forward_backward"]["calls"] > 0


@pytest.mark.parametrize("optimizer", OURS)
def test_replicas_send_nothing(optimizer: str, counts: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert counts["DDP", optimizer]["step"] == {"calls": 0, "bytes": 0, "backend_calls": 0, "collectives": []}


@pytest.mark.parametrize("layout", ["FSDP2", "TP", "FSDP1"])
def test_one_sharded_dimension(layout: str, counts: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert sizes(counts[layout, "arturo"]) == expected(DEFAULT_STEP)
    assert sizes(counts[layout, "arturo paper"]) == expected(PAPER_STEP)


def test_replicas_of_a_mesh_send_one_message_more(counts: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Along the shards as without replicas; along the replicas what all ranks tell each other, and no sums."""
    for optimizer, step in (("arturo", DEFAULT_STEP), ("arturo paper", PAPER_STEP)):
        assert sizes(counts["HSDP 2x2", optimizer]) == expected(step) + expected((NOTES,))


def test_two_dimensions_and_three_layouts(counts: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Matrices over both dimensions; biases and what TP leaves alone over FSDP's, in one message with the matrices."""
    for optimizer, sums in (("arturo", DEFAULT_SUMS), ("arturo paper", PAPER_SUMS)):
        both = expected(all_reduces(sums)) + expected(all_reduces(sums, 3))
        assert sizes(counts["FSDP2 x TP 2x2", optimizer]) == both


def test_backend_carried_out_what_was_dispatched(counts: dict[tuple[str, str], dict[str, Any]]) -> None:
    for name, record in counts.items():
        if "step" in record and name[1] in OURS:
            # float64, so eight bytes an element
            assert 8 * record["step_backend_elements"] == record["step"]["bytes"], name
            assert record["step"]["backend_calls"] == record["step"]["calls"]


def test_bytes_of_the_passes(counts: dict[tuple[str, str], dict[str, Any]]) -> None:
    """DDP reduces every gradient once; FSDP gathers twice (the root once) and scatters once."""
    record = counts["DDP", "adamw"]
    assert record["forward_backward"]["bytes"] == 4 * record["params"]
    whole, root = 4 * record["params"], 4 * (16 * 64 + 64 + 64 * 16 + 16)
    assert counts["FSDP2", "adamw"]["forward_backward"]["bytes"] == 3 * whole - root


def test_counter_on_known_messages(tmp_path) -> None:
    """One rank is enough: what it sends to itself is sent."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)

    def work() -> None:
        distributed.all_reduce(torch.ones(5, dtype=torch.float64))
        distributed.all_gather([torch.empty(3)], torch.ones(3))
        functional.all_reduce(torch.ones(7), "sum", distributed.group.WORLD).sum().item()

    try:
        found = count(work)
    finally:
        distributed.destroy_process_group()
    assert [(sent.name, sent.bytes, sent.ranks) for sent in found.collectives] == [
        ("c10d.allreduce_", 40, 1),
        ("c10d.allgather_", 12, 1),
        ("c10d_functional.all_reduce", 28, 1),
    ]
    assert (found.backend_calls, found.backend_elements) == (3, 5 + 3 + 7)


def test_traffic_of_fused_adamw_is_seven_tensors_and_of_eager_arturo_what_the_model_takes() -> None:
    assert bytes_per_parameter("adamw") == pytest.approx(Assumptions().adamw_traffic_bytes, rel=1e-3)
    assert bytes_per_parameter("arturo") == pytest.approx(Assumptions().arturo_eager_bytes, rel=1e-3)


def test_report_from_records(counts: dict[tuple[str, str], dict[str, Any]], tmp_path) -> None:
    records = tmp_path / "before.jsonl"
    records.write_text("".join(json.dumps(record) + "\n" for record in counts.values()))
    assert command.main(["--records", str(records), "--out", str(tmp_path), "--set", "mfu=0.5"]) == 0
    text = (tmp_path / "scaling.md").read_text()
    assert "| FSDP2, 2 ranks | 0 | 2 (176 B) | 9 (232 B)" in text
    assert "| mfu | 0.5 |" in text
    assert {path.name for path in tmp_path.iterdir()} >= {"scaling.png", "scaling.svg", "calculated.jsonl"}
    with pytest.raises(SystemExit):
        command.main(["--set", "hope=1"])
