"""All ranks of a mesh decide alike: which step is skipped, and which one is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import MATRIX, Options, sharded
from problem import MODES, SPOILED, Parallel, batch, network, single, train
from ranks import run
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from arturo_core import Arturo
from arturo_core.step import gathering

WORLD, STEPS = 4, 5
KINDS = ("rms", "fixed")

Build = Callable[[Options, torch.dtype], Parallel]


def replicate(model: nn.Module, dims: tuple[int, ...], options: Options) -> Parallel:
    """Every parameter that is no DTensor yet becomes one of replicas; all ranks work on the whole batch."""
    distribute_module(
        model,
        init_device_mesh("cpu", dims),
        input_fn=lambda _, inputs, mesh: DTensor.from_local(inputs[0], mesh, [Replicate()] * mesh.ndim),
        output_fn=lambda _, outputs, mesh: outputs.to_local(),
    )
    return sharded(model, options, slice(None))


def replicas(options: Options, dtype: torch.dtype) -> Parallel:
    return replicate(network(dtype), (WORLD,), options)


def replicas_on_two_dimensions(options: Options, dtype: torch.dtype) -> Parallel:
    return replicate(network(dtype), (2, 2), options)


def tp_beside_replicas(options: Options, dtype: torch.dtype) -> Parallel:
    """Norms and biases are DTensors too, replicated over the ranks that share the matrices."""
    model = network(dtype)
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel(use_local_output=False)}
    parallelize_module(model, init_device_mesh("cpu", (WORLD,)), plan)
    return replicate(model, (WORLD,), options)


#: Layouts of four ranks that hold replicas of something, and the parameter that one of them spoils.
LAYOUTS: dict[str, tuple[Build, str]] = {
    "HSDP": (MATRIX["HSDP-2x2"][0], "up.weight"),
    "replicas": (replicas, "up.weight"),
    "replicas on two dimensions": (replicas_on_two_dimensions, "up.weight"),
    "FSDP2 x TP": (MATRIX["FSDP2xTP-2x2"][0], "norm.weight"),
    "TP, plain norms": (MATRIX["TP-4"][0], "norm.weight"),
    "TP, replicated norms": (tp_beside_replicas, "norm.weight"),
    "several meshes": (MATRIX["several meshes-4"][0], "down.weight"),
    "stages of FSDP2": (MATRIX["stages of FSDP2-2x2"][0], "up.weight"),
}


def params_of(parallel: Parallel) -> list[Any]:
    return [param for group in parallel.optimizer.param_groups for param in group["params"]]


def local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def named(parallel: Parallel, name: str) -> Any:
    """The parameter of this name, or, of stages, the first one of this rank that holds elements."""
    found = dict(parallel.model.named_parameters()).get(name)
    return next(param for param in params_of(parallel) if local(param).numel()) if found is None else found


def spoiled_on_one_rank(layout: str, mode: str) -> dict[str, Any]:
    build, name = LAYOUTS[layout]
    parallel = build(MODES[mode], torch.float64)

    def spoil() -> None:
        if distributed.get_rank() == WORLD - 2:
            local(named(parallel, name).grad).view(-1)[:1] = torch.nan

    parallel.spoil = spoil
    found = train(parallel, range(STEPS), MODES[mode]["lr"])
    found["parted"] = parted(parallel)
    return found


def parted(parallel: Parallel) -> float:
    """By how much this rank's elements differ from its replicas', at most, of weights and statistics."""
    worst = 0.0
    for param in params_of(parallel):
        held = [param.detach(), *(value for value in parallel.optimizer.state[param].values())]
        for value in held:
            here = local(value).double()
            if not isinstance(param, DTensor):
                continue
            for dim, placement in enumerate(param.placements):
                if placement.is_replicate():
                    least, most = here.clone(), here.clone()
                    distributed.all_reduce(least, distributed.ReduceOp.MIN, group=param.device_mesh.get_group(dim))
                    distributed.all_reduce(most, distributed.ReduceOp.MAX, group=param.device_mesh.get_group(dim))
                    worst = max([worst, *(most - least).flatten().tolist()])
    return worst


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gradient_that_one_rank_spoils_skips_the_step_on_all(layout: str, mode: str, results: list[Any]) -> None:
    expected = train(single(MODES[mode]), range(STEPS), MODES[mode]["lr"])
    for found in (result["spoiled"][layout, mode] for result in results):
        assert [one["skipped_steps"] for one in found["numbers"]] == [int(step >= SPOILED) for step in range(STEPS)]
        assert found["parted"] == 0.0
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=1e-8, atol=1e-11)


def last() -> bool:
    return distributed.get_rank() == WORLD - 1


def another_lr(optimizer: Arturo, _: Any) -> None:
    optimizer.param_groups[1]["lr"] *= 1.001


def one_group_at_rest(optimizer: Arturo, _: Any) -> None:
    optimizer.param_groups[0]["lr"] = 0.0


def at_rest(optimizer: Arturo, _: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.0


def lr_of_nan(optimizer: Arturo, _: Any) -> None:
    optimizer.param_groups[0]["lr"] = math.nan


def lr_of_text(optimizer: Arturo, _: Any) -> None:
    optimizer.param_groups[0]["lr"] = "fast"


def negative_decay(optimizer: Arturo, _: Any) -> None:
    optimizer.param_groups[0]["weight_decay"] = -1.0


def sparse_gradient(optimizer: Arturo, plain: Any) -> None:
    plain.grad = torch.ones_like(plain).to_sparse()


def plain_gradient(optimizer: Arturo, split: Any) -> None:
    split.grad = torch.ones(split.shape, dtype=split.dtype)


DIFFER, REFUSED = "differ in their learning rates", "another rank"
#: What the last rank does before a step, with what it is done, and what that rank and the others raise.
MISTAKES: dict[str, tuple[Callable[[Arturo, Any], None], str, str, str]] = {
    "another lr": (another_lr, "", DIFFER, DIFFER),
    "one group at rest": (one_group_at_rest, "", DIFFER, DIFFER),
    "at rest": (at_rest, "", DIFFER, DIFFER),
    "lr of NaN": (lr_of_nan, "", "lr=nan must be finite", DIFFER),
    "lr of text": (lr_of_text, "", "lr='fast' must be a number", DIFFER),
    "negative decay": (negative_decay, "", "Invalid weight_decay value", REFUSED),
    "sparse gradient": (sparse_gradient, "plain", "sparse gradients", REFUSED),
    "plain gradient": (plain_gradient, "DTensor", "differ in layout", REFUSED),
}
UNALIKE = ("HSDP", "replicas", "FSDP2 x TP", "TP, plain norms", "several meshes")


def attempt(action: Callable[[], Any]) -> tuple[str, str]:
    try:
        action()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def gradients(parallel: Parallel) -> None:
    parallel.optimizer.zero_grad()
    inputs, targets = batch(1)
    (parallel.model(inputs[parallel.share]) - targets[parallel.share]).square().mean().backward()


def refused_steps(layout: str) -> dict[str, Any]:
    parallel = LAYOUTS[layout][0](MODES["rms"], torch.float64)
    train(parallel, range(3), 3e-3)
    optimizer = parallel.optimizer
    found: dict[str, Any] = {}
    for name, (mistake, kind, *_) in MISTAKES.items():
        suitable = [param for param in params_of(parallel) if isinstance(param, DTensor) == (kind == "DTensor")]
        if kind and not suitable:
            continue
        gradients(parallel)
        before = copy.deepcopy([group | {"params": ()} for group in optimizer.param_groups])
        weights = [local(param).clone() for param in params_of(parallel)]
        if last():
            mistake(optimizer, suitable[0] if kind else None)
        error = attempt(optimizer.step)
        same = all(torch.equal(local(param), old) for param, old in zip(params_of(parallel), weights, strict=True))
        counted = [(group["calls"], int(group["skipped"]), float(group["level"])) for group in optimizer.param_groups]
        old_counts = [(group["calls"], int(group["skipped"]), float(group["level"])) for group in before]
        found[name] = (*error, same and counted == old_counts)
        for group, old in zip(optimizer.param_groups, before, strict=True):
            group["lr"], group["weight_decay"] = old["lr"], old["weight_decay"]
    gradients(parallel)
    optimizer.step()
    steps = optimizer.diagnostics()
    return {"errors": found, "parted": parted(parallel), "steps": (steps["steps"], steps["skipped_steps"])}


@pytest.mark.parametrize("layout", UNALIKE)
def test_a_step_that_one_rank_refuses_raises_on_all_and_changes_nothing(layout: str, results: list[Any]) -> None:
    *others, mistaken = (result["refused"][layout] for result in results)
    assert len(mistaken["errors"]) >= len(MISTAKES) - 1
    for name in mistaken["errors"]:
        _, _, own, of_others = MISTAKES[name]
        assert own in mistaken["errors"][name][1], name
        for found in others:
            kind, message, unchanged = found["errors"][name]
            assert of_others in message, name
            assert kind == ("ValueError" if of_others is DIFFER else "RuntimeError"), name
            assert unchanged, name
        assert mistaken["errors"][name][2], name
    for found in (*others, mistaken):
        assert found["parted"] == 0.0
        assert found["steps"] == (3, 0)


def first_steps() -> dict[tuple[str, str], tuple[str, str]]:
    """What the optimizers of one layout differ in from the start: compared at the first step."""
    found = {}
    rank = distributed.get_rank()
    for layout in ("HSDP", "replicas", "stages of FSDP2"):
        for name, options in {
            "lr": {"lr": 1e-3 * (2 if rank == 0 else 1)},
            "options": {"kl_rtol": 1e-3 * (2 if rank == 0 else 1)},
            "form": {"noise": "fixed" if rank == 0 else "adaptive"},
            "weight decay": {"weight_decay": 0.1 * (2 if rank == 0 else 1)},
        }.items():
            parallel = LAYOUTS[layout][0](options, torch.float64)
            if layout == "stages of FSDP2":
                for param in params_of(parallel):
                    param.grad = torch.ones_like(param)
            else:
                gradients(parallel)
            found[layout, name] = attempt(parallel.optimizer.step)
    return found


FIRST = {
    "lr": "differ in lr of parameter group 0 (0.001 and 0.002)",
    "options": "differ in kl_rtol (0.00",
    "form": "differ in noise (",
    "weight decay": "differ in weight_decay of parameter group 0 (0.",
}


def test_optimizers_that_differ_from_the_start_are_refused_on_all_ranks(results: list[Any]) -> None:
    for found in (result["first"] for result in results):
        assert len(found) == 3 * len(FIRST)
        for (layout, name), (kind, message) in found.items():
            assert kind == "ValueError", (layout, name)
            assert FIRST[name] in message, (layout, name, message)


def steps_that_nobody_reads() -> list[Any]:
    """As on an accelerator, where scalars cannot be read without waiting: the step is skipped instead of raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "is_readable", lambda scalar: False)
        return unread()


def unread() -> list[Any]:
    parallel = LAYOUTS["HSDP"][0](MODES["rms"], torch.float64)
    train(parallel, range(3), 3e-3)
    found = []
    for mistake in (None, lr_of_nan, lr_of_text, negative_decay, another_lr, None):
        gradients(parallel)
        before = [(group["lr"], group["weight_decay"]) for group in parallel.optimizer.param_groups]
        if mistake is not None and last():
            mistake(parallel.optimizer, None)
        error, _ = attempt(parallel.optimizer.step)
        for group, (lr, decay) in zip(parallel.optimizer.param_groups, before, strict=True):
            group["lr"], group["weight_decay"] = lr, decay
        counted = parallel.optimizer.diagnostics()
        found.append((error, counted["steps"], counted["skipped_steps"]))
    return [found, parted(parallel)]


def test_where_scalars_cannot_be_read_all_ranks_skip(results: list[Any]) -> None:
    *others, mistaken = (result["unread"] for result in results)
    counts = [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (4, 4)]
    for found, differing in others:
        assert found == [("", *count) for count in counts]
        assert differing == 0.0
    errors = ["", "ValueError", "TypeError", "ValueError", "", ""]
    assert mistaken == [[(error, *count) for error, count in zip(errors, counts, strict=True)], 0.0]


def everything() -> dict[str, Any]:
    """In one set of processes: starting them takes longer than all they do."""
    return {
        "spoiled": {(layout, mode): spoiled_on_one_rank(layout, mode) for layout in LAYOUTS for mode in KINDS},
        "refused": {layout: refused_steps(layout) for layout in UNALIKE},
        "first": first_steps(),
        "all-reduces": all_reduces(),
        "unread": steps_that_nobody_reads(),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run(everything, WORLD, Path(tmp_path_factory.mktemp("ranks")))


def all_reduces() -> dict[str, int]:
    found = {}
    for layout, (build, _) in LAYOUTS.items():
        parallel = build(MODES["rms"], torch.float64)
        train(parallel, range(3), 3e-3)
        gradients(parallel)
        with CommDebugMode() as sent:
            parallel.optimizer.step()
        found[layout] = sent.get_total_counts()
    return found


def test_replicas_cost_at_most_one_further_all_reduce_for_each_dimension(results: list[Any]) -> None:
    """Two over each dimension along which something is sharded, and where another mesh has the same ranks no more."""
    expected = {
        "HSDP": 3,
        "replicas": 1,
        "replicas on two dimensions": 2,
        "FSDP2 x TP": 4,
        "TP, plain norms": 2,
        "TP, replicated norms": 2,
        "several meshes": 4,
        "stages of FSDP2": 4,
    }
    assert [result["all-reduces"] for result in results] == [expected] * WORLD
