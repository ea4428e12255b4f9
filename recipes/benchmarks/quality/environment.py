"""What a run depends on besides its settings: versions, commit, machine, and digests of code and task."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import torch

import arturo_core
from recipes.benchmarks.quality.optimizers import Build, Entry
from recipes.benchmarks.quality.tasks.base import Task

_DIGITS = 8
_BEHAVIOUR_STEPS = 400  # more than the noise estimate takes to settle to its gain
_ALWAYS = ("torch", "arturo-optim")


def behaviour_digest(entry: Entry) -> str:
    """Digest of what an optimizer of ours does, not of how it is written.

    It is taken of the weights after a short noisy training in float64, to six digits: any change of the algorithm or of
    a default tells its records from the old ones, and a change of wording does not.
    """
    return _behaviour(entry.build, entry.default["from scratch"])


@functools.cache
def _behaviour(build: Build, lr: float) -> str:
    # A matrix and a vector at a moderate rate, and at one beyond the bounds that their size sets; vectors alone at
    # a rate beyond the bound that Newton's step sets.
    # Layers draw their first weights from the generator that the run that asks is about to use.
    with torch.random.fork_rng(devices=[]):
        runs = ((torch.nn.Linear(8, 8), lr), (torch.nn.Linear(8, 8), 300 * lr), (torch.nn.LayerNorm(8), 300 * lr))
        found = [f"{weight:.6g}" for model, rate in runs for weight in _trained(model.double(), build, rate)]
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:_DIGITS]


def _trained(model: torch.nn.Module, build: Build, lr: float) -> list[float]:
    """Weights of a small model after a noisy training."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(normal(*weights.shape))
    optimizer = build(model, lr, 1000)
    for step in range(_BEHAVIOUR_STEPS):
        for group in optimizer.param_groups:  # warm-up, peak, decay: all of them have rules
            group["lr"] = lr * min((step + 1) / 10, 1.0 - step / _BEHAVIOUR_STEPS)
        inputs = normal(16, 8)
        optimizer.zero_grad()
        (model(inputs) - inputs - normal(16, 8)).square().mean().backward()
        optimizer.step()
    return [weight for weights in model.parameters() for weight in weights.detach().flatten().tolist()]


def task_digest(task: Task) -> str:
    """Digest of what a task says of itself: length, schedule, clipping, data and sizes."""
    said = [task.name, task.family, task.steps, task.warmup, task.decay, task.clip, task.description]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:_DIGITS]


def digest(task: Task, entry: Entry) -> str:
    """The part of a run's key that stands for settings: the task's, and what our own code does."""
    return f"{task_digest(task)}-{behaviour_digest(entry) if entry.own_code else 'published'}"


def versions(entry: Entry) -> dict[str, str]:
    """torch, this library, and the package the optimizer comes from."""
    found = {"torch": torch.__version__, "arturo": arturo_core.__version__}
    if entry.package not in _ALWAYS and installed(entry):
        found[entry.package] = importlib.metadata.version(entry.package)
    return found


def installed(entry: Entry) -> bool:
    """Whether the package the optimizer comes from is there."""
    try:
        return entry.package in _ALWAYS or bool(importlib.metadata.version(entry.package))
    except importlib.metadata.PackageNotFoundError:
        return False


@functools.cache
def commit() -> str | None:
    """The checked-out commit, with "+" if files differ from it; None outside of a checkout."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@functools.cache
def cpu() -> str:
    """Model of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
