"""What must make no difference to a training, and that reading makes none."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from problems import (
    assert_identical,
    build,
    every_mode,
    every_noise,
    parameters,
    snapshot,
    train,
    trained,
    weights,
)
from torch.nn import Parameter

from arturo_core import Arturo


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("trust_region", ["rms", "kl"])
def test_the_scale_of_the_loss_does_not_matter(trust_region, scale):
    """Of the adaptive form. With "kl" the bound is in nats of a precision that has the scale: bound × scale."""
    results = []
    for factor in (1.0, scale):
        lr = 1e-2 * (factor if trust_region == "kl" else 1.0)
        params, optimizer = build({"trust_region": trust_region, "lr": lr}, torch.float64)
        train(optimizer, params, range(30), scale=factor)
        results.append((weights(optimizer), optimizer.diagnostics()))
    (plain, numbers), (scaled, scaled_numbers) = results
    for one, other, start in zip(plain, scaled, parameters(torch.float64), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert not torch.equal(one, start)
    assert scaled_numbers["innovation_ratio"] == pytest.approx(numbers["innovation_ratio"], rel=1e-6)


PARTITIONS = {
    "halves": [[12], [12]],
    "elements": [[1] * 24],
    "uneven tensors": [[1, 5, 0, 18]],
    "groups": [[7], [1, 10], [6]],
    "groups and an empty one": [[20], [], [4]],
}


@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS.keys())
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@every_mode
def test_how_weights_are_split_does_not_matter(options, partition, weight_decay):
    options = {**options, "weight_decay": weight_decay}
    torch.manual_seed(0)
    whole = Parameter(torch.randn(24, dtype=torch.float64))
    sizes = list(itertools.chain.from_iterable(partition))
    parts = [Parameter(part.clone()) for part in whole.detach().split(sizes)]
    iterator = iter(parts)
    split = Arturo([{"params": [next(iterator) for _ in sizes]} for sizes in partition], **options)
    joint = Arturo([whole], **options)
    for step in range(12):
        train(joint, [whole], [step])
        for part, grad in zip(parts, whole.grad.split(sizes), strict=True):
            part.grad = grad.clone()
        split.step()
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-12)
        assert split.diagnostics()["eta"] == pytest.approx(joint.diagnostics()["eta"], rel=1e-6)


@every_noise
def test_how_large_weights_are_split_does_not_matter(options):
    torch.manual_seed(0)
    whole = Parameter(torch.randn(100_000, dtype=torch.float64))
    sizes = [70_000, 3, 20_000, 9_997]
    parts = [Parameter(part.clone()) for part in whole.detach().split(sizes)]
    joint, split = Arturo([whole], **options), Arturo(parts, **options)
    for step in range(3):
        train(joint, [whole], [step])
        for part, grad in zip(parts, whole.grad.split(sizes), strict=True):
            part.grad = grad.clone()
        split.step()
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-8, atol=1e-11)


@every_mode
def test_the_same_run_twice_is_bitwise_the_same(options):
    assert_identical(snapshot(trained(options, steps=10)[1]), snapshot(trained(options, steps=10)[1]))


@every_mode
def test_reading_changes_nothing(options):
    params, optimizer = trained(options)
    expected = copy.deepcopy(optimizer)
    before = snapshot(optimizer)
    for _ in range(2):
        optimizer.diagnostics()
        for param in params:
            optimizer.precision(param).zero_()
        optimizer.state_dict()
        repr(optimizer)
    assert_identical(snapshot(optimizer), before)
    train(optimizer, params, [5])
    train(expected, expected.param_groups[0]["params"], [5])
    assert_identical(snapshot(optimizer)["weights"], snapshot(expected)["weights"])


@every_mode
def test_diagnostics_are_plain_numbers(options):
    _, optimizer = trained(options)
    numbers = optimizer.diagnostics()
    for key in ("eta", "kl", "kl_bound", "kl_ratio", "bound_active", "step_rms", "innovation_ratio", "skipped_steps"):
        assert type(numbers[key]) in (float, int, bool), key
    assert all(type(value) in (float, int, bool) for value in numbers.values())
    assert numbers["precision_q05"] <= numbers["precision_q50"] <= numbers["precision_q95"]
    assert numbers["curvature_q05"] <= numbers["curvature_q50"] <= numbers["curvature_q95"]
    precision = torch.cat([optimizer.precision(param).reshape(-1) for param in optimizer.param_groups[0]["params"]])
    assert numbers["precision_q50"] == pytest.approx(precision.median().item(), rel=0.2)


@every_mode
def test_the_default_dtype_of_torch_does_not_matter(options):
    _, expected = trained(options)
    params, optimizer = build(options)
    torch.set_default_dtype(torch.float64)
    try:
        train(optimizer, params, range(5))
        numbers = optimizer.diagnostics()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_identical(snapshot(optimizer), snapshot(expected))
    assert numbers == expected.diagnostics()
