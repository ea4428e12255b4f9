"""What a step would cost on clusters that are not at hand: a calculation, every assumption in one place.

The time of a small all-reduce follows the model by which NCCL itself chooses its algorithm: a constant, plus a latency
for every hop of a tree (up and down again) or for every step of a ring, plus the message over a bandwidth. All of
arTuRO's all-reduces are taken to be waited for: none is hidden behind other work. The pass forwards and backwards takes
6 floating-point operations for each weight and token; the optimizer itself is bound by its memory traffic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

#: What is calculated: parameters, and numbers of GPUs.
SIZES = (1e9, 3e9, 8e9, 30e9, 70e9)
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)

TUNING = "NCCL 2.30.7, src/graph/tuning.cc (github.com/NVIDIA/nccl), LL protocol"
H100 = "H100 SXM5 (glennklockwood.com/garden/processors/h100)"
COUNTED = "counted (results/records.jsonl)"


def assume(value: float, unit: str, source: str) -> Any:
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """Everything the calculation rests on, with units and sources in the fields' metadata."""

    gpus_per_node: int = assume(8, "", "DGX/HGX H100")
    tree_base_us: float = assume(6.8, "µs", f"{TUNING}: baseLatencies, Tree")
    ring_base_us: float = assume(6.6, "µs", f"{TUNING}: baseLatencies, Ring")
    tree_nvlink_us: float = assume(0.6, "µs a hop", f"{TUNING}: hwLatencies, NVLINK, Tree")
    ring_nvlink_us: float = assume(0.6, "µs a step", f"{TUNING}: hwLatencies, NVLINK, Ring")
    tree_network_us: float = assume(5.0, "µs a hop", f"{TUNING}: hwLatencies, NET, Tree")
    ring_network_us: float = assume(2.7, "µs a step", f"{TUNING}: hwLatencies, NET, Ring")
    ring_overhead_us: float = assume(1.0, "µs a step", f"{TUNING}: getNetOverhead, Intel")
    small_bandwidth: float = assume(8.67e9, "bytes/s", "NCCL's own estimates for 64 and 128 bytes: NVIDIA/nccl#1453")
    latency_factor: float = assume(1.0, "", "1 is NCCL's model; published measurements are 0.95 to 2.4 times that")
    peak_flops: float = assume(989.4e12, "1/s", f"{H100}: BF16, dense")
    mfu: float = assume(0.4, "", "0.38 to 0.43 in Llama 3 (arXiv 2407.21783)")
    tokens_per_gpu: int = assume(8192, "a step", "assumed: one sequence; Llama 3 405B has 16 M / 8,192 GPUs = 1,953")
    memory_bandwidth: float = assume(3.35e12, "bytes/s", f"{H100}: HBM3")
    memory_attained: float = assume(0.9, "", "assumed, the same for every optimizer")
    gpu_memory: float = assume(80e9, "bytes", H100)
    held_bytes: int = assume(8, "bytes/param", "float32 weights and gradients, sharded; activations come on top")
    adamw_state_bytes: int = assume(8, "bytes/param", "two float32 tensors")
    arturo_state_bytes: int = assume(16, "bytes/param", "four float32 tensors")
    adamw_traffic_bytes: int = assume(28, "bytes/param", "fused: reads θ, g, m, v; writes θ, m, v; float32")
    arturo_traffic_bytes: int = assume(
        84,
        "bytes/param",
        "each pass fused into one loop, float32: gradient and weight norms read g, θ; observing reads θ, g, ĝ, R, s, D "
        "and writes all but g; applying reads θ, ĝ, R, s, D and writes θ, ĝ, D",
    )
    arturo_eager_bytes: int = assume(508, "bytes/param", f"operation by operation, no cache between them: {COUNTED}")

    def lines(self) -> list[tuple[str, str, str]]:
        """Name, value with unit, and source of every assumption."""
        return [
            (one.name, f"{getattr(self, one.name):g} {one.metadata['unit']}".strip(), one.metadata["source"])
            for one in fields(self)
        ]


@dataclass(frozen=True)
class Message:
    """An all-reduce: its bytes, the ranks that take part, and how many of them share a node."""

    bytes: int
    ranks: int
    per_node: int


def all_reduce_us(message: Message, given: Assumptions) -> float:
    """Microseconds of one small all-reduce, by the better of tree and ring; 0 for a single rank."""
    if message.ranks < 2:
        return 0.0
    per_node = min(message.per_node, message.ranks)
    nodes = math.ceil(message.ranks / per_node)
    tree = given.tree_base_us
    tree += 2.0 * ((per_node - 1) * given.tree_nvlink_us + math.floor(math.log2(nodes)) * given.tree_network_us)
    steps, between = 2 * (message.ranks - 1), 2 * (nodes - 1)
    within = given.ring_nvlink_us if nodes == 1 else max(given.ring_nvlink_us, given.ring_overhead_us)
    # With one rank a node nothing hides a step over the network, and NCCL takes the tree's latency for it.
    network = given.tree_network_us if per_node == 1 else given.ring_network_us
    ring = given.ring_base_us + (steps - between) * within + between * network
    return given.latency_factor * min(tree, ring) + 1e6 * message.bytes / given.small_bandwidth


#: Bytes of what all ranks tell each other in the survey of a step, six float64, also replicas of a mesh.
NOTES = 48

#: Bytes of the sums of a default step with two parameter groups, for every layout: in the survey (2 a group) and in
#: the step (6 a group), each float64. The published form has none in the survey, but a minimum, five evaluations of its
#: dual and one more sum.
DEFAULT_SUMS = (32, 96)
PAPER_SUMS = (0, 8, 48, *(24,) * 5, 8)


def all_reduces(sums: tuple[int, ...], layouts: int = 1) -> tuple[int, ...]:
    """Bytes of a step's all-reduces over ranks that share this many layouts."""
    survey, *others = (layouts * size for size in sums)
    return (survey + NOTES, *others)


DEFAULT_STEP, PAPER_STEP = all_reduces(DEFAULT_SUMS), all_reduces(PAPER_SUMS)


def sharded_over_all(gpus: int, given: Assumptions, sizes: tuple[int, ...] = DEFAULT_STEP) -> list[Message]:
    """FSDP over every GPU."""
    return [Message(size, gpus, given.gpus_per_node) for size in sizes]


def sharded_in_nodes(gpus: int, given: Assumptions) -> list[Message]:
    """HSDP: shards within a node; replicas between nodes, that only tell each other."""
    within = min(gpus, given.gpus_per_node)
    told = Message(NOTES, gpus // within, 1)
    return [told, *(Message(size, within, given.gpus_per_node) for size in DEFAULT_STEP)]


def sharded_with_tp(gpus: int, given: Assumptions) -> list[Message]:
    """FSDP between nodes and tensor parallelism within: matrices on both dimensions, vectors and the rest on one.

    Three layouts, as counted: one is summed over both dimensions, two over FSDP's alone, all three in one message.
    """
    within = min(gpus, given.gpus_per_node)
    found = []
    for three, one in zip(all_reduces(DEFAULT_SUMS, 3), DEFAULT_STEP, strict=True):
        found += [Message(three, gpus // within, 1), Message(one, within, within)]
    return found


def waiting_us(messages: list[Message], given: Assumptions) -> float:
    """Microseconds a step spends on its all-reduces, one after another."""
    return sum(all_reduce_us(message, given) for message in messages)


def passes_s(params: float, given: Assumptions) -> float:
    """Seconds forwards and backwards, every GPU on its own tokens."""
    return 6.0 * params * given.tokens_per_gpu / (given.peak_flops * given.mfu)


def memory_s(params: float, gpus: int, bytes_per_param: float, given: Assumptions) -> float:
    """Seconds in which a GPU's memory moves an optimizer's share of the bytes."""
    return params / gpus * bytes_per_param / (given.memory_bandwidth * given.memory_attained)


def fits(params: float, gpus: int, state_bytes: float, given: Assumptions) -> bool:
    """Whether weights, gradients and state alone leave room on a GPU."""
    return params / gpus * (given.held_bytes + state_bytes) < given.gpu_memory


@dataclass(frozen=True)
class Cost:
    """Of one model on one cluster under FSDP; shares are of the time of the passes plus AdamW's step."""

    params: float
    gpus: int
    step_ms: float
    all_reduce_us: float
    waiting_us: float
    waiting_share: float
    adamw_memory_ms: float
    arturo_memory_ms: float
    eager_memory_ms: float
    extra_share: float  # what arTuRO's fused step takes longer than AdamW's, memory and waiting
    eager_extra_share: float  # the same for its eager step
    adamw_fits: bool
    arturo_fits: bool


def cost(params: float, gpus: int, given: Assumptions) -> Cost:
    messages = sharded_over_all(gpus, given)
    adamw = memory_s(params, gpus, given.adamw_traffic_bytes, given)
    arturo = memory_s(params, gpus, given.arturo_traffic_bytes, given)
    eager = memory_s(params, gpus, given.arturo_eager_bytes, given)
    step = passes_s(params, given) + adamw
    waiting = waiting_us(messages, given)
    return Cost(
        params=params,
        gpus=gpus,
        step_ms=1e3 * step,
        all_reduce_us=waiting / len(messages),
        waiting_us=waiting,
        waiting_share=1e-6 * waiting / step,
        adamw_memory_ms=1e3 * adamw,
        arturo_memory_ms=1e3 * arturo,
        eager_memory_ms=1e3 * eager,
        extra_share=(1e-6 * waiting + arturo - adamw) / step,
        eager_extra_share=(1e-6 * waiting + eager - adamw) / step,
        adamw_fits=fits(params, gpus, given.adamw_state_bytes, given),
        arturo_fits=fits(params, gpus, given.arturo_state_bytes, given),
    )


def sensitivity(given: Assumptions) -> dict[str, Assumptions]:
    """One assumption changed at a time, and those that speak against arTuRO together."""
    slow = 4.0 * given.latency_factor
    return {
        "as assumed": given,
        "latency x 4": replace(given, latency_factor=slow),
        "MFU 0.3": replace(given, mfu=0.3),
        "MFU 0.5": replace(given, mfu=0.5),
        "2,048 tokens a GPU": replace(given, tokens_per_gpu=2048),
        "latency x 4, MFU 0.5, 2,048 tokens": replace(given, latency_factor=slow, mfu=0.5, tokens_per_gpu=2048),
    }


@dataclass(frozen=True)
class Published:
    """A time that somebody measured, to hold the model against."""

    what: str
    message: Message
    measured_us: tuple[float, float]
    source: str


PUBLISHED = (
    Published(
        "32 nodes of 8 A100, InfiniBand HDR, 8 to 128 bytes",
        Message(128, 256, 8),
        (62.0, 65.6),
        "https://github.com/NVIDIA/nccl/issues/652",
    ),
    Published(
        "2 nodes of 8 H20, InfiniBand NDR, NVLS tree, 4 to 512 bytes",
        Message(128, 16, 8),
        (46.3, 49.4),
        "https://github.com/NVIDIA/nccl/issues/1244",
    ),
    Published(
        "3 nodes of 8 H100, reported as slow, 128 bytes",
        Message(128, 24, 8),
        (61.6, 61.6),
        "https://github.com/NVIDIA/nccl/issues/1453",
    ),
    Published(
        "1 node of 8 A100, ring on one channel, 8 to 128 bytes",
        Message(128, 8, 8),
        (33.7, 33.7),
        "https://github.com/NVIDIA/nccl-tests/issues/123",
    ),
)
