"""The calculation of what all-reduces cost: against arithmetic by hand, NCCL's own estimates and measured times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recipes.benchmarks.scaling.model import (
    GPUS,
    PUBLISHED,
    SIZES,
    Assumptions,
    Message,
    all_reduce_us,
    cost,
    fits,
    memory_s,
    passes_s,
    sensitivity,
    sharded_in_nodes,
    sharded_over_all,
    sharded_with_tp,
    waiting_us,
)

GIVEN = Assumptions()


# NCCL printed these for 24 ranks on 3 nodes (NVIDIA/nccl#1453).
@pytest.mark.parametrize(("size", "printed"), [(64, 25.207382), (128, 25.214764)])
def test_all_reduce_is_what_nccl_estimates(size: int, printed: float) -> None:
    assert all_reduce_us(Message(size, 24, 8), GIVEN) == pytest.approx(printed, rel=1e-6)


@pytest.mark.parametrize(
    ("ranks", "per_node", "by_hand"),
    [
        (1, 8, 0.0),
        (8, 8, 6.6 + 14 * 0.6),  # a ring within a node
        (16, 8, 6.8 + 2 * (7 * 0.6 + 1 * 5.0)),
        (1024, 8, 6.8 + 2 * (7 * 0.6 + 7 * 5.0)),  # a tree over 128 nodes
        (2, 1, 6.6 + 2 * 5.0),
        (128, 1, 6.8 + 2 * 7 * 5.0),
    ],
)
def test_latencies_by_hand(ranks: int, per_node: int, by_hand: float) -> None:
    assert all_reduce_us(Message(0, ranks, per_node), GIVEN) == pytest.approx(by_hand)


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: one.what)
def test_measured_times_lie_within_the_band(one) -> None:
    slow = sensitivity(GIVEN)["latency x 4"]
    assert 0.9 * all_reduce_us(one.message, GIVEN) < min(one.measured_us)
    assert max(one.measured_us) < all_reduce_us(one.message, slow)


def test_step_by_hand() -> None:
    # 6 · 1e9 · 8192 / (989.4e12 · 0.4) and 1e9/8 · 28 / (3.35e12 · 0.9)
    assert passes_s(1e9, GIVEN) == pytest.approx(0.124196, rel=1e-5)
    assert memory_s(1e9, 8, 28, GIVEN) == pytest.approx(0.00116086, rel=1e-5)
    found = cost(1e9, 1024, GIVEN)
    waiting = 2 * 85.2 + (80 + 96) / 8.67e3
    assert found.waiting_us == pytest.approx(waiting)
    assert found.step_ms == pytest.approx(124.196 + 1.16086 / 128, rel=1e-5)
    assert found.waiting_share == pytest.approx(1e-3 * waiting / found.step_ms)
    extra_ms = 1e-3 * waiting + found.arturo_memory_ms - found.adamw_memory_ms
    assert found.extra_share == pytest.approx(extra_ms / found.step_ms)
    assert found.arturo_memory_ms == pytest.approx(3 * found.adamw_memory_ms)


def test_waiting_grows_with_gpus_and_its_share_falls_with_size() -> None:
    for params in SIZES:
        waits = [cost(params, gpus, GIVEN).waiting_us for gpus in GPUS]
        assert waits == sorted(set(waits))
    for gpus in GPUS:
        shares = [cost(params, gpus, GIVEN).waiting_share for params in SIZES]
        assert shares == sorted(set(shares), reverse=True)


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"latency_factor": 4.0}, True),
        ({"mfu": 0.5}, True),
        ({"mfu": 0.3}, False),
        ({"tokens_per_gpu": 2048}, True),
        ({"tree_network_us": 10.0}, True),
    ],
)
def test_sensitivity_goes_the_right_way(change: dict[str, float], more: bool) -> None:
    before = cost(8e9, 256, GIVEN).waiting_share
    after = cost(8e9, 256, replace(GIVEN, **change)).waiting_share
    assert (after > before) is more


def test_layouts() -> None:
    # Replicas in 128 nodes: one message of 48 bytes more.
    told = waiting_us(sharded_in_nodes(1024, GIVEN), GIVEN) - waiting_us(sharded_in_nodes(8, GIVEN), GIVEN)
    assert told == pytest.approx(76.8 + 48 / 8.67e3)
    assert len(sharded_with_tp(64, GIVEN)) == 4
    by_hand = 2 * 15.0 + 2 * 76.8 + (80 + 96 + 144 + 288) / 8.67e3
    assert waiting_us(sharded_with_tp(1024, GIVEN), GIVEN) == pytest.approx(by_hand)
    assert len(sharded_over_all(64, GIVEN)) == 2


def test_memory_of_a_gpu() -> None:
    # 70 B over 8: (8 + 8) · 8.75e9 is more than 80e9; 8 B over 8: (8 + 16) · 1e9 is less.
    assert not fits(70e9, 8, GIVEN.adamw_state_bytes, GIVEN)
    assert fits(8e9, 8, GIVEN.arturo_state_bytes, GIVEN)
    assert fits(30e9, 8, GIVEN.adamw_state_bytes, GIVEN)
    assert not fits(30e9, 8, GIVEN.arturo_state_bytes, GIVEN)


def test_every_assumption_has_a_source() -> None:
    assert all(source for _, _, source in GIVEN.lines())
