"""Exact steps under DeepSpeed's ZeRO, stages 1 to 3: one call after DeepSpeed has built its engine.

    optimizer = Arturo(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    attach(engine)                                  # raw DeepSpeed

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    attach(model)                                   # Accelerate

Trainer needs no call: ``arturo_integrations.transformers`` makes it. A step without it raises.

Why a call is needed
    ZeRO exchanges the optimizer's parameters for one flat partition of each parameter group (stage 3: of each
    sub-group) on every rank, and asks for a step after every one of them. One multiplier couples all parameters, so
    :func:`attach` keeps the gradients of all parts until the last, takes one step, summed over the data parallel group,
    and passes on what the earlier parts have become. It also tells the optimizer which slice of a partition belongs to
    which parameter: the trust radius depends on the weights' shapes, and padding must not count. Until the last part
    the gradients of the others (4 bytes for each element of the rank's partition) stay in memory.

Configuration
    * ``"zero_allow_untested_optimizer": true`` (Accelerate and Trainer set it), and no ``"optimizer"`` section.
    * ``"gradient_clipping": 0.0``: DeepSpeed clips to 1.0 unless told otherwise. That rescales the gradients of some
      steps and not of others, while the optimizer fits a model to them; the trust region bounds steps anyway.
    * DeepSpeed's schedules move lr. Its ``OneCycle`` would cycle momentum as ``betas``, which an ``Arturo`` has none
      of: DeepSpeed says so and cycles lr alone.
    * Any number of parameter groups and sub-groups; float32 or bf16 weights (fp16 is not refused, but has not been
      run); ``overlap_comm`` and ``round_robin_gradients`` as you like.
    * ``offload_optimizer`` to the CPU with ``"zero_force_ds_cpu_optimizer": false``; without it Accelerate trains with
      another optimizer and DeepSpeed itself refuses. Not to NVMe.
    * Checkpoints of the engine, for as many ranks as saved them; resuming is exact to the bit. Universal and elastic
      checkpoints keep only what they know of Adam.
    * Without ZeRO, in float32, nothing is split and no call is needed.

A weight that takes no part in a loss has a gradient of zero under ZeRO, not none. DeepSpeed skips steps with gradients
that are not finite itself, and Arturo does not count them. Between the steps of stage 3 ``diagnostics()`` lacks the
quantiles, because no group has parameters then.

Written for DeepSpeed 0.19.8; what it reads there is private, and a version that lacks it is refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from arturo_core import Arturo
from arturo_core.distributed import flat

SUPPORTED = (
    "Supported are ZeRO stages 1, 2 and 3 over data (and sequence) parallel ranks alone, with any number of parameter "
    "groups, the optimizer kept in memory"
)


class Part(NamedTuple):
    """What ZeRO steps at once: a rank's partition of a parameter group or sub-group.

    Attributes:
        vector: the partition, flat.
        group: index of its parameter group.
        pieces: what it is made of.
        ranks: the process group it is partitioned over.
    """

    vector: Tensor
    group: int
    pieces: Sequence[flat.Piece]
    ranks: Any


def attach(engine: Any) -> Arturo:
    """Make the steps of an :class:`arturo_core.Arturo` under DeepSpeed those of one process with all parameters.

    Call it on every rank, once, before the first step and before or after a checkpoint is loaded.

    Args:
        engine: what ``deepspeed.initialize`` or ``Accelerator.prepare`` returned: the engine, or its optimizer.

    Returns:
        The optimizer inside, for ``diagnostics()``.

    Raises:
        ValueError: DeepSpeed trains with another optimizer, or in a way whose steps could not be exact; the message
            names what is supported.
        RuntimeError: this version of DeepSpeed is laid out in another way.
    """
    wrapper, optimizer = _unwrap(engine)
    if wrapper is None:
        return optimizer
    _check_configuration(wrapper)
    try:
        parts = _PARTS[_kind(wrapper)](wrapper)
        ranks = wrapper.dp_process_group
    except AttributeError as error:
        raise RuntimeError(
            f"Arturo: this version of DeepSpeed keeps its partitions in another way than 0.19.8 ({error}). Install "
            "deepspeed>=0.19.8,<0.20."
        ) from error
    _check_ranks(optimizer, ranks, parts)
    for part in parts:
        flat.declare(part.vector, part.pieces, distributed.get_rank(part.ranks) * part.vector.numel())
    optimizer.split_over(ranks if ranks is not None else distributed.group.WORLD)
    if _kind(wrapper) in _ALL_AT_ONCE:
        wrapper._optimizer_step = _ALL_AT_ONCE[_kind(wrapper)](wrapper, parts)
    return optimizer


# -- one step of all parts ---------------------------------------------------------------------------------------------


@dataclass
class _StepOfAll(ABC):
    """Called by ZeRO in place of its own step of part ``number``; gathers the parts, and steps all with the last."""

    zero: Any
    parts: Sequence[Part]
    gradients: list[Tensor | None] = field(default_factory=list)

    def __call__(self, number: int) -> None:
        if number == 0:
            self.gradients.clear()  # of a step that an exception has ended
        if number != len(self.gradients):
            raise RuntimeError(
                f"Arturo: DeepSpeed steps part {number} of its partitions after part {len(self.gradients) - 1}; they "
                f"have to come in order, for one step of all {len(self.parts)}. Install deepspeed>=0.19.8,<0.20."
            )
        self.gradients.append(self.parts[number].vector.grad)
        if len(self.gradients) < len(self.parts):
            return
        kept = [part.vector.grad for part in self.parts]
        for part, gradient in zip(self.parts, self.gradients, strict=True):
            part.vector.grad = gradient
        self.gradients.clear()
        self.step()
        # ZeRO has gone on from the earlier parts: it has taken their gradients off and published them as they were.
        for index, (part, gradient) in enumerate(zip(self.parts[:-1], kept[:-1], strict=True)):
            part.vector.grad = gradient
            self.publish(index)

    @abstractmethod
    def step(self) -> None:
        """One step of the optimizer."""

    @abstractmethod
    def publish(self, number: int) -> None:
        """Copy a part's weights to where ZeRO has them for the model, as it does after a step."""


class _Stage1And2(_StepOfAll):
    def step(self) -> None:
        self.zero.optimizer.step()
        self.zero._lazy_init_hp_params_optimizer_state()

    def publish(self, number: int) -> None:
        partitions = self.zero.parallel_partitioned_bit16_groups[number]
        partitions[distributed.get_rank(self.parts[number].ranks)].data.copy_(self.parts[number].vector.data)


class _Stage3(_StepOfAll):
    def step(self) -> None:
        groups = self.zero.optimizer.param_groups
        for index, group in enumerate(groups):
            group["params"] = [part.vector for part in self.parts if part.group == index]
        try:
            self.zero.optimizer.step()
        finally:
            for group in groups:
                group["params"] = []  # between steps stage 3 keeps them empty

    def publish(self, number: int) -> None:
        self.zero._reassign_or_swap_out_partitioned_parameters(number)


# -- what partitions are made of ---------------------------------------------------------------------------------------


def _pieces(parameters: Iterable[tuple[int, torch.Size]], start: int, size: int) -> list[flat.Piece]:
    """Of parameters with their offsets in a flat vector, what is in ``size`` elements from ``start``."""
    found = []
    for offset, shape in parameters:
        first, last = max(offset, start), min(offset + shape.numel(), start + size)
        if first < last:
            found.append(flat.Piece(first - start, last - start, shape))
    return found


def _partitions(
    groups: Sequence[Sequence[tuple[int, torch.Size]]], vectors: Sequence[Tensor], ranks: Sequence[Any]
) -> list[Part]:
    """Parameter groups that are flattened whole, and cut into one piece of the same size for each rank."""
    return [
        Part(vector, index, _pieces(group, distributed.get_rank(over) * vector.numel(), vector.numel()), over)
        for index, (group, vector, over) in enumerate(zip(groups, vectors, ranks, strict=True))
    ]


def _stage_1_and_2(zero: Any) -> list[Part]:
    groups = [
        [(offset, like.shape) for offset, like in zip(offsets, likes, strict=True)]
        for offsets, likes in zip(zero.round_robin_bit16_offsets, zero.round_robin_bit16_meta, strict=True)
    ]
    return _partitions(groups, zero.single_partition_of_fp32_groups, zero.real_dp_process_group)


def _bf16(zero: Any) -> list[Part]:
    groups = []
    for params in zero.bf16_groups:
        ends = accumulate(param.numel() for param in params)
        groups.append([(end - param.numel(), param.shape) for end, param in zip(ends, params, strict=True)])
    return _partitions(groups, zero.fp32_groups_flat_partition, zero.real_dp_process_group)


def _stage_3(zero: Any) -> list[Part]:
    """Here every parameter is cut up for itself, and the last rank's share of it filled up."""
    found = []
    for number, vector in enumerate(zero.fp32_partitioned_groups_flat):
        over = zero.sub_group_process_groups[number]
        pieces: list[flat.Piece] = []
        begin = 0
        for param in zero.fp16_groups[number]:
            size = param.partition_numel()
            here = _pieces([(0, param.ds_shape)], distributed.get_rank(over) * size, size)
            pieces += [flat.Piece(begin + start, begin + stop, shape) for start, stop, shape in here]
            begin += size
        found.append(Part(vector, zero.sub_group_to_group_id[number], pieces, over))
    return found


_ZERO_1_AND_2 = "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer"
_ZERO_3 = "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"
_BF16 = "deepspeed.runtime.bf16_optimizer.BF16_Optimizer"

_PARTS: dict[str, Callable[[Any], list[Part]]] = {_ZERO_1_AND_2: _stage_1_and_2, _ZERO_3: _stage_3, _BF16: _bf16}
#: The wrappers that step part by part; BF16_Optimizer (stage 1, bf16, gradients added up in float32) steps all at once.
_ALL_AT_ONCE: dict[str, type[_StepOfAll]] = {_ZERO_1_AND_2: _Stage1And2, _ZERO_3: _Stage3}


def _kind(wrapper: Any) -> str:
    # Its subclasses (MiCS, ZenFlow, SuperOffload) step in other ways, so that isinstance would say too much.
    return f"{type(wrapper).__module__}.{type(wrapper).__qualname__}"


# -- what is refused ---------------------------------------------------------------------------------------------------


def _unwrap(engine: Any) -> tuple[Any, Arturo]:
    """DeepSpeed's wrapper (None where the engine steps the optimizer itself: no ZeRO, float32) and what is in it."""
    chain = [engine]
    while not isinstance(chain[-1], Arturo) and getattr(chain[-1], "optimizer", None) is not None:
        chain.append(chain[-1].optimizer)
    *outside, last = chain
    if not isinstance(last, Arturo):
        raise ValueError(
            f"Arturo: DeepSpeed trains with {type(last).__name__} instead of Arturo. Under offload_optimizer, "
            "Accelerate puts DeepSpeedCPUAdam in the place of any optimizer unless the DeepSpeed config says "
            '"zero_force_ds_cpu_optimizer": false; an "optimizer" section in the config does the same. Give the Arturo '
            f"as optimizer=. {SUPPORTED}."
        )
    wrapper = outside[-1] if outside else None
    if wrapper is None or isinstance(wrapper, torch.nn.Module):
        return None, last
    if _kind(wrapper) not in _PARTS:
        raise ValueError(
            f"Arturo: DeepSpeed wraps the optimizer in {type(wrapper).__name__}, whose steps cannot be made exact. "
            f"{SUPPORTED}, without MiCS, ZenFlow and SuperOffload; without ZeRO, float32 weights."
        )
    return wrapper, last


def _check_configuration(zero: Any) -> None:
    said = {
        '"elastic_checkpoint": false (resuming would lose the learning rates\' peaks)': "elastic_checkpoint",
        "no NVMe for the optimizer": "swap_optimizer",
        "no NVMe for the parameters": "params_in_nvme_and_cpu",
        "no ZenFlow": "zenflow",
        "bf16 or fp16 sections instead of torch_autocast in fp16": "torch_autocast_gradscaler",
    }
    for instead, attribute in said.items():
        if getattr(zero, attribute, None):
            raise ValueError(f"Arturo: DeepSpeed's config has {attribute}. {SUPPORTED}; set {instead}.")


def _check_ranks(optimizer: Arturo, ranks: Any, parts: Sequence[Part]) -> None:
    everyone = list(range(distributed.get_world_size()))
    over = [_members(group) for group in [ranks, *(part.ranks for part in parts)]]
    if any(found != everyone for found in over):
        raise ValueError(
            f"Arturo: DeepSpeed partitions parameters over ranks {min(over, key=len)} of {len(everyone)}: there is "
            f"model, pipeline or expert parallelism, and the other ranks hold other parameters. {SUPPORTED}."
        )
    given = optimizer.process_group
    if given is not None and (not isinstance(given, distributed.ProcessGroup) or _members(given) != everyone):
        raise ValueError(
            f"Arturo: process_group is another than the {len(everyone)} ranks that DeepSpeed partitions over. Leave it "
            "out: attach() sets it."
        )


def _members(group: Any) -> list[int]:
    return sorted(distributed.get_process_group_ranks(group if group is not None else distributed.group.WORLD))
