"""The support table of arturo_core/DISTRIBUTED.md, made of the tests: what is not tested is not in it.

``python tests/distributed/support.py`` writes it there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import test_checkpoints
import test_fsdp1_checkpoints
from layouts import MATRIX

ROOT = Path(__file__).parents[2]
PAGE = "arturo_core/DISTRIBUTED.md"
BEGIN, END = "<!-- support: begin -->\n", "<!-- support: end -->"

#: Layout: the ids of its tests begin with this, and what a user does.
LAYOUTS = {
    "DDP": ("DDP", "nothing"),
    "FSDP2": ("FSDP2", "nothing"),
    "HSDP": ("HSDP", "nothing"),
    "FSDP2 × TP": ("FSDP2xTP", "nothing"),
    "several meshes, plain norms": ("several meshes", "nothing"),
    "TP, plain norms": ("TP", "nothing"),
    "sequence parallel": ("sequence parallel", "nothing"),
    "FSDP1, original parameters": ("FSDP1", "`process_group`"),
    "FSDP1, flat parameters": ("FSDP1 flat", "`process_group`"),
    "FSDP1 with ignored parameters": ("FSDP1 beside others", "`process_group`; average their gradients"),
    "FSDP1 `NO_SHARD`": ("FSDP1 NO_SHARD", "nothing"),
    "`ZeroRedundancyOptimizer`": ("ZeRO", "`process_group`, by `functools.partial`"),
    "pipeline-like stages": ("stages", "`process_group`"),
    "stages × FSDP2": ("stages of FSDP2", "`process_group` of the stages"),
}

INTEGRATIONS = ROOT / "tests" / "integrations"
LIGHTNING, LIGHTNING_ZERO = "test_lightning_distributed.py", "test_lightning_deepspeed.py"
ACCELERATE, TRAINER, DEEPSPEED = "test_accelerate.py", "test_transformers_distributed.py", "test_deepspeed.py"
OF_ACCELERATE = (
    f"{ACCELERATE}::test_training_is_that_of_one_process",
    f"{ACCELERATE}::test_a_checkpoint_goes_on_bit_for_bit",
)
#: Frameworks, which train and save in their own ways: what a user adds, and the tests of the step, of resuming on as
#: many ranks and of reading on others.
FRAMEWORKS = {
    "Accelerate: DDP, FSDP1": ("`prepare` of ours for FSDP1", *OF_ACCELERATE, None),
    "Accelerate: FSDP2, HSDP": (
        "nothing",
        *OF_ACCELERATE,
        f"{ACCELERATE}::test_a_checkpoint_goes_on_with_another_number_of_ranks",
    ),
    "Accelerate: TP": ("nothing", OF_ACCELERATE[0], None, None),
    "Trainer: DDP": (
        "nothing",
        f"{TRAINER}::test_training_is_that_of_one_process",
        f"{TRAINER}::test_a_resumed_ddp_run_continues_bit_for_bit",
        None,
    ),
    "Trainer: FSDP2 by `DistributedConfig`": (
        "nothing",
        f"{TRAINER}::test_training_is_that_of_one_process",
        None,
        None,
    ),
    "DeepSpeed ZeRO 1, 2, 3": (
        "`attach`",
        f"{DEEPSPEED}::test_deepspeed",
        f"{DEEPSPEED}::test_deepspeed_resumes_to_the_bit",
        None,
    ),
    "Lightning: DDP, `ModelParallelStrategy` (FSDP2)": (
        "nothing",
        f"{LIGHTNING}::test_training_is_that_of_one_process",
        f"{LIGHTNING}::test_a_checkpoint_goes_on_bit_for_bit",
        None,
    ),
    "Lightning: `FSDPStrategy` (FSDP1)": (
        "`optimizer_for`",
        f"{LIGHTNING}::test_training_is_that_of_one_process",
        f"{LIGHTNING}::test_a_checkpoint_goes_on_bit_for_bit",
        None,
    ),
    "Lightning: `DeepSpeedStrategy`, ZeRO 1, 2, 3": (
        "`optimizer_for`",
        f"{LIGHTNING_ZERO}::test_training_is_that_of_one_process",
        f"{LIGHTNING_ZERO}::test_a_checkpoint_goes_on_bit_for_bit",
        None,
    ),
    "Fabric: DDP, FSDP2, FSDP1": (
        "`optimizer_for`",
        f"{LIGHTNING}::test_fabric_trains_saves_and_goes_on",
        f"{LIGHTNING}::test_fabric_trains_saves_and_goes_on",
        None,
    ),
    "Fabric: DeepSpeed ZeRO 1, 2, 3": (
        "`attach`",
        f"{LIGHTNING_ZERO}::test_training_is_that_of_one_process",
        None,
        None,
    ),
    "DeepSpeed, where it is not installed": ("", f"{DEEPSPEED}::test_stand_in", None, None),
}

STEP = "test_steps.py::test_step_is_that_of_one_process"
RESUME = "test_checkpoints.py::test_resumes_as_if_never_interrupted"
FSDP1 = "test_fsdp1_checkpoints.py::test_fsdp1_resumes_as_if_never_interrupted"
ZERO = "test_fsdp1_checkpoints.py::test_zero_resumes_as_if_never_interrupted"


def ids(prefix: str) -> list[str]:
    """Ids of a layout's tests: the layout's name, and its ranks."""
    return [name for name in MATRIX if name.rsplit("-", 1)[0] == prefix]


def ranks(names: list[str]) -> str:
    return ", ".join(name.rsplit("-", 1)[1] for name in names)


def resumed(prefix: str) -> tuple[str, str]:
    """On which ranks checkpoints of a layout are read again, and by which other ranks or layouts."""
    if prefix in test_fsdp1_checkpoints.WAYS:
        same, *others = test_fsdp1_checkpoints.RANKS
        return f"{same} ({FSDP1_NOTE})", ", ".join(map(str, others)) + f" ({FSDP1_NOTE})"
    if prefix == "ZeRO":
        same, *others = test_fsdp1_checkpoints.ZERO_RANKS
        return f"{same} ({ZERO_NOTE})", ", ".join(map(str, others)) + f" ({ZERO_NOTE})"
    written = [name for name in ids(prefix) if name in test_checkpoints.READERS]
    same_names = [name for name in written if name in test_checkpoints.READERS[name]]
    other_names = [other for name in written for other in test_checkpoints.READERS[name] if other != name]
    same = f"{ranks(same_names)} ({RESUME_NOTE})" if same_names else "–"
    return same, f"{', '.join(dict.fromkeys(other_names))} ({RESUME_NOTE})" if other_names else "–"


RESUME_NOTE, FSDP1_NOTE, ZERO_NOTE = "b", "c", "d"


def table() -> str:
    """The table in Markdown, with the tests' names below it."""
    lines = ["| layout | you add | step, on ranks (a) | resumed on as many ranks | read by |", "|---|---|---|---|---|"]
    for layout, (prefix, added) in LAYOUTS.items():
        lines.append(f"| {layout} | {added} | {ranks(ids(prefix))} | {' | '.join(resumed(prefix))} |")
    notes = {"a": STEP, RESUME_NOTE: RESUME, FSDP1_NOTE: FSDP1, ZERO_NOTE: ZERO}
    tests = "; ".join(f"({key}) `{name}`" for key, name in notes.items())
    lines += ["", f"Tests, in `tests/distributed`: {tests}.", ""]
    lines += ["| framework | you add | step | resumed on as many ranks | read on others |", "|---|---|---|---|---|"]
    for layout, (added, *cells) in FRAMEWORKS.items():
        names = " | ".join("–" if cell is None else f"`{cell.split('::')[1]}`" for cell in cells)
        lines.append(f"| {layout} | {added} | {names} |")
    files = ", ".join(f"`{file}`" for file in (ACCELERATE, TRAINER, DEEPSPEED, LIGHTNING, LIGHTNING_ZERO))
    lines += ["", f"Tests, in `tests/integrations`: {files}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    readme = ROOT / PAGE
    text = readme.read_text(encoding="utf-8")
    inside = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    assert inside.search(text), f"{PAGE} has no place for the support table"
    readme.write_text(inside.sub(lambda _: BEGIN + table() + END, text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
