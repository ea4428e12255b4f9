"""The network of ``tests/distributed`` under ZeRO: DeepSpeed's own, and the stand-in's."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from arturo_core import Arturo
from arturo_integrations.deepspeed import attach

sys.path.append(os.fspath(Path(__file__).parents[1] / "distributed"))

from problem import BATCH, MODES, NUMBERS, batch, groups, network
from zero_stand_in import load

STEPS = 6
#: One gradient of this step is not finite, on the first rank only.
SPOILED = 3
#: Elements of a stage 3 sub-group: several of one parameter, and of several.
SUB_GROUP = 20

Options = dict[str, Any]


@dataclass
class Run:
    """A network, what trains it, and how to read it."""

    model: nn.Module
    optimizer: Arturo
    backward: Callable[[Tensor], None]
    step: Callable[[], None]
    whole: Callable[[], dict[str, Tensor]]
    share: slice


def kept(model: nn.Module, several: bool) -> list[Any]:
    return groups(model) if several else list(model.parameters())


def share() -> slice:
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    return slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)


def single(options: Options, several: bool, dtype: torch.dtype) -> Run:
    """One process; weights that take no part in the loss have a gradient of zero, as under ZeRO."""
    model = network(dtype)
    optimizer = Arturo(kept(model, several), **options)

    def backward(loss: Tensor) -> None:
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        loss.backward()

    return Run(model, optimizer, backward, optimizer.step, lambda: named(model), slice(None))


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def stand_in(stage: int, options: Options, several: bool, dtype: torch.dtype, hook: bool = True) -> Run:
    stages_1_and_2, stage_3 = load()
    model = network(dtype)
    optimizer = Arturo(kept(model, several), **options)
    ranks = distributed.group.WORLD
    zero = stages_1_and_2(optimizer, ranks) if stage < 3 else stage_3(optimizer, ranks, SUB_GROUP if several else 10**9)
    if hook:
        assert attach(zero) is optimizer

    def backward(loss: Tensor) -> None:
        for param in model.parameters():
            param.grad = None
        loss.backward()

    return Run(model, optimizer, backward, zero.step, lambda: named(model), share())


def as_if_launched() -> None:
    """What launchers tell the processes that they start, for frameworks that look there."""
    rank, ranks = str(distributed.get_rank()), str(distributed.get_world_size())
    os.environ.update(DS_ACCELERATOR="cpu", RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, LOCAL_SIZE=ranks)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # the process group is there: nothing listens


def imported() -> Any:
    """DeepSpeed, silent."""
    as_if_launched()
    deepspeed = importlib.import_module("deepspeed")
    importlib.import_module("deepspeed.utils").logger.setLevel(logging.ERROR)
    return deepspeed


def config(stage: int, several: bool = True, **more: Any) -> dict[str, Any]:
    zero = {
        "stage": stage,
        "sub_group_size": SUB_GROUP if several else 10**9,
        "stage3_param_persistence_threshold": 10,  # biases stay whole, but are partitioned for the step all the same
        **more.pop("zero", {}),
    }
    return {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // distributed.get_world_size(),
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        "zero_optimization": zero,
        **more,
    }


def real(stage: int, options: Options, several: bool, hook: bool = True, **more: Any) -> tuple[Run, Any]:
    deepspeed = imported()
    model = network(torch.float32)
    optimizer = Arturo(kept(model, several), **options)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config(stage, several, **more))
    if hook:
        assert attach(engine) is optimizer

    def whole() -> dict[str, Tensor]:
        if stage < 3 and "bf16" not in more:
            return named(model)  # what DeepSpeed reads from partitions in round robin order is of other parameters
        read = importlib.import_module("deepspeed.utils").safe_get_full_fp32_param
        return {name: read(param).detach().clone() for name, param in model.named_parameters()}

    return Run(engine, optimizer, engine.backward, engine.step, whole, share()), engine


def train(run: Run, steps: range, dtype: torch.dtype, spoil: bool) -> dict[str, Any]:
    """Train with a learning rate that starts at zero and falls; the weights and the numbers of every step."""
    numbers = []
    for step in steps:
        for group in run.optimizer.param_groups:
            group.setdefault("first_lr", group["lr"])
            group["lr"] = group["first_lr"] * (step / 2 if step < 2 else 1.0 - (step - 2) / 10)
        inputs, targets = batch(step, dtype)
        run.backward((run.model(inputs[run.share]) - targets[run.share]).square().mean())
        if spoil and step == SPOILED and (run.share.start or 0) == 0:
            next(iter(run.model.parameters())).grad.view(-1)[:1] = torch.inf
        run.step()
        found = run.optimizer.diagnostics()
        numbers.append({key: found[key] for key in NUMBERS if key in found})
    return {"weights": run.whole(), "numbers": numbers}


def stand_in_matrix() -> dict[Any, Any]:
    """On one rank: every stage, one and two groups, every form of the step."""
    return {
        (stage, several, mode): train(
            stand_in(stage, options, several, torch.float64), range(STEPS), torch.float64, spoil=True
        )
        for stage in (2, 3)
        for several in (False, True)
        for mode, options in MODES.items()
    }


def real_matrix() -> dict[Any, Any]:
    found = {}
    for stage in (1, 2, 3):
        for several in (False, True):
            for mode, options in MODES.items():
                run, engine = real(stage, options, several)
                found[stage, several, mode] = train(run, range(STEPS), torch.float32, spoil=False)
                engine.destroy()
    return found


def refusal(attempt: Callable[[], Any]) -> str:
    """The message that an attempt ends with."""
    try:
        attempt()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


def train_briefly(run: Run) -> None:
    train(run, range(2), torch.float32, spoil=False)


def stand_in_refusals() -> dict[str, str]:
    """On one rank: what is said where a step could not be exact."""
    stages_1_and_2, _ = load()
    options = MODES["rms"]

    def zero(**more: Any) -> Any:
        return stages_1_and_2(Arturo(network().parameters(), **options, **more), distributed.group.WORLD)

    def attached(**attributes: Any) -> Arturo:
        wrapper = zero()
        for name, value in attributes.items():
            setattr(wrapper, name, value)
        return attach(wrapper)

    def out_of_order() -> None:
        wrapper = zero()
        attach(wrapper)
        wrapper._optimizer_step(1)

    class Subclass(stages_1_and_2):
        pass

    class Accelerated:
        """As Accelerate's wrapper around what DeepSpeed made of an optimizer it was given instead."""

        optimizer = stages_1_and_2(torch.optim.AdamW(network().parameters()), distributed.group.WORLD)

    some = distributed.new_group([0])
    alone = [distributed.new_group([rank]) for rank in range(distributed.get_world_size())][distributed.get_rank()]

    def partitioned_over_some() -> None:
        attach(stages_1_and_2(Arturo(network().parameters()), alone))

    def older_version() -> None:
        wrapper = zero()
        del wrapper.round_robin_bit16_offsets
        attach(wrapper)

    attempts: dict[str, Callable[[], Any]] = {
        "stage 2 without attach": lambda: train_briefly(stand_in(2, options, False, torch.float32, hook=False)),
        "stage 2, two groups, without attach": lambda: train_briefly(
            stand_in(2, options, True, torch.float32, hook=False)
        ),
        "stage 3 without attach": lambda: train_briefly(stand_in(3, options, False, torch.float32, hook=False)),
        "another optimizer": lambda: attach(Accelerated()),
        "another wrapper": lambda: attach(Subclass(Arturo(network().parameters()), distributed.group.WORLD)),
        "elastic checkpoint": lambda: attached(elastic_checkpoint=True),
        "NVMe": lambda: attached(swap_optimizer=True),
        "ZenFlow": lambda: attached(zenflow=True),
        "experts": lambda: attached(real_dp_process_group=[alone]),
        "model parallel": partitioned_over_some,
        "another process group": lambda: attach(zero(process_group=some if distributed.get_rank() == 0 else alone)),
        "out of order": out_of_order,
        "older version": older_version,
        "the same process group": lambda: attach(zero(process_group=distributed.group.WORLD)),
        "attached twice": lambda: attach([wrapper := zero(), attach(wrapper)][0]),
    }
    return {name: refusal(attempt) for name, attempt in attempts.items()}


def real_refusals() -> dict[str, str]:
    options = MODES["rms"]
    offload = {"zero": {"offload_optimizer": {"device": "cpu"}}}
    return {
        **{
            f"stage {stage} without attach": refusal(
                functools.partial(train_briefly, real(stage, options, True, hook=False)[0])
            )
            for stage in (1, 2, 3)
        },
        "no ZeRO, bf16": refusal(lambda: real(0, options, True, bf16={"enabled": True})),
        "elastic checkpoint": refusal(lambda: real(2, options, True, zero={"elastic_checkpoint": True})),
        "offload of DeepSpeed's own": refusal(lambda: real(2, options, True, **offload)),
    }


def real_variants() -> dict[str, Any]:
    """On one rank: what else DeepSpeed can be configured to, in bf16 where it says so."""
    options = MODES["rms, long steps"]
    offload = {"zero": {"offload_optimizer": {"device": "cpu"}}, "zero_force_ds_cpu_optimizer": False}
    bf16 = {"bf16": {"enabled": True}}
    variants: dict[str, tuple[int, dict[str, Any]]] = {
        "no ZeRO": (0, {}),
        "round robin": (2, {"zero": {"round_robin_gradients": True}}),
        "overlap": (2, {"zero": {"overlap_comm": True}}),
        **{f"offload, stage {stage}": (stage, offload) for stage in (1, 2, 3)},
        **{f"bf16, stage {stage}": (stage, bf16) for stage in (1, 2, 3)},
        "bf16, float32 gradients": (1, {**bf16, "data_types": {"grad_accum_dtype": "fp32"}}),
    }
    found = {}
    for name, (stage, more) in variants.items():
        run, engine = real(stage, options, True, **more)
        found[name] = train(run, range(STEPS), torch.bfloat16 if "bf16" in more else torch.float32, spoil=False)
        found[name]["wrapper"] = type(engine.optimizer).__name__
        engine.destroy()
    return found


def single_bf16(options: Options) -> Run:
    """One process with bf16 weights, whose steps are taken of a float32 copy of them."""
    model, copies = network(torch.bfloat16), network(torch.bfloat16).float()
    optimizer = Arturo(kept(copies, True), **options)

    def backward(loss: Tensor) -> None:
        model.zero_grad()
        loss.backward()
        for copy, param in zip(copies.parameters(), model.parameters(), strict=True):
            copy.grad = torch.zeros_like(copy) if param.grad is None else param.grad.float()

    def step() -> None:
        optimizer.step()
        for copy, param in zip(copies.parameters(), model.parameters(), strict=True):
            param.data.copy_(copy.detach())

    return Run(model, optimizer, backward, step, lambda: named(copies), slice(None))


def save_and_go_on(folder: Path) -> dict[int, Any]:
    """On one rank: what an engine does after it is saved, and what a new one that loads it does."""
    found = {}
    for stage in (1, 2, 3):
        run, engine = real(stage, MODES["rms"], True)
        train(run, range(4), torch.float32, spoil=False)
        engine.save_checkpoint(os.fspath(folder / str(stage)))
        went_on = train(run, range(4, STEPS), torch.float32, spoil=False)
        engine.destroy()
        run, engine = real(stage, MODES["rms"], True, hook=stage != 2)
        engine.load_checkpoint(os.fspath(folder / str(stage)))
        attach(engine)  # after it is loaded, or again
        found[stage] = went_on, train(run, range(4, STEPS), torch.float32, spoil=False)
        engine.destroy()
    return found


def load_elsewhere(folder: Path) -> dict[int, str]:
    """On one rank of another number: what DeepSpeed says to the same checkpoints."""
    found = {}
    for stage in (1, 2, 3):
        _, engine = real(stage, MODES["rms"], True)
        found[stage] = refusal(functools.partial(engine.load_checkpoint, os.fspath(folder / str(stage))))
    return found


def trainer(folder: Path, stage: int) -> list[dict[str, float]]:
    """On one rank: the Trainer's log, under DDP (stage 0) or ZeRO."""
    deepspeed = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage},
    }
    made = _tiny_trainer(folder, per_device_train_batch_size=2, **({"deepspeed": deepspeed} if stage else {}))
    made.train()
    kinds = ("loss", "arturo/eta", "arturo/kl_bound", "arturo/steps")
    return [{key: record[key] for key in kinds} for record in made.state.log_history if "loss" in record]


def replaced(folder: Path) -> str:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    deepspeed = {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": zero}
    return refusal(lambda: _tiny_trainer(folder, deepspeed=deepspeed).train())


def _tiny_trainer(folder: Path, **overrides: Any) -> Any:
    as_if_launched()
    importlib.import_module("arturo_integrations.transformers")
    return importlib.import_module("tiny_trainer").tiny_trainer(folder, **overrides)
