"""What hooks for frameworks use of an optimizer, and what they tell the core: no private name is needed."""

from __future__ import annotations

import ast
import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import arturo_core
from arturo_core import Arturo, surroundings
from arturo_core.persistence import Persistent

CORE = Path(arturo_core.__file__).parent


def model_and_optimizer(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    return model, Arturo(model.parameters(), **{"lr": 1e-2, **options})


def train(model, optimizer, steps=2):
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def test_options_are_those_that_count_and_cannot_be_changed():
    _, optimizer = model_and_optimizer(noise="fixed", temperature=0.5)
    assert (optimizer.options.noise, optimizer.options.temperature) == ("fixed", 0.5)
    assert optimizer.options.init_variance == 0.01  # filled in
    with pytest.raises(AttributeError):
        optimizer.options.temperature = 1.0
    for name in ("options", "process_group", "last_report"):
        with pytest.raises(AttributeError):
            setattr(optimizer, name, None)


def test_the_last_report_is_what_diagnostics_say_as_tensors():
    model, optimizer = model_and_optimizer()
    assert optimizer.last_report is None
    train(model, optimizer)
    report, numbers = optimizer.last_report, optimizer.diagnostics()
    assert report.multiplier.bound.item() == numbers["kl_bound"] > 0
    assert report.multiplier.kl.item() == numbers["kl"]
    assert report.count.item() == sum(param.numel() for param in model.parameters())
    assert copy.deepcopy(optimizer).last_report is None


@pytest.mark.parametrize("noise", ["adaptive", "fixed"])
def test_allocated_state_is_that_before_the_first_gradient(noise):
    model, optimizer = model_and_optimizer(noise=noise)
    weights = copy.deepcopy(model.state_dict())
    groups = copy.deepcopy(optimizer.state_dict()["param_groups"])
    optimizer.allocate_state()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert optimizer.state_dict()["param_groups"] == groups
    assert optimizer.last_report is None
    _, at_rest = model_and_optimizer(noise=noise, lr=0.0)
    at_rest.step()
    for held, other in zip(optimizer.state.values(), at_rest.state.values(), strict=True):
        assert list(held) == list(other)
        assert all(torch.equal(value, other[name]) for name, value in held.items())
    other, twin = model_and_optimizer(noise=noise)
    train(model, optimizer)
    train(other, twin)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_allocating_leaves_what_is_there_and_what_is_frozen():
    model, optimizer = model_and_optimizer()
    model[1].requires_grad_(False)
    train(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.allocate_state()
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys() == {0, 1}
    for index, held in before["state"].items():
        assert all(torch.equal(value, after["state"][index][name]) for name, value in held.items())
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    optimizer.allocate_state()
    assert optimizer.state_dict()["state"].keys() == {0, 1, 4}


def test_nothing_is_allocated_where_something_is_wrong():
    model, optimizer = model_and_optimizer()
    model[1].weight.grad = torch.zeros(1, 3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.allocate_state()
    assert not optimizer.state


class Posing:
    """A wrapper of nobody's that passes for the class of what it holds, under a name of its own."""

    def __init__(self, optimizer):
        self.inside = optimizer
        self.__class__ = type("Posing", (Posing, Arturo), {})

    def __getattr__(self, name):
        return getattr(self.__dict__["inside"], name)


def test_a_wrapper_is_known_by_what_it_is_not_by_a_name():
    model, optimizer = model_and_optimizer()
    train(model, optimizer)
    wrapper = Posing(Posing(optimizer))
    assert isinstance(wrapper, Arturo)
    wrapper.restart_schedule()
    assert optimizer.param_groups[0]["peak_lr"] == 0.0
    wrapper.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    wrapper.allocate_state()
    assert len(optimizer.param_groups) == 2
    assert len(optimizer.state) == 5
    assert wrapper.options is optimizer.options
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.25
    wrapper.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert set(vars(wrapper)) == {"inside"}
    assert type(copy.deepcopy(wrapper)) is Arturo


class WithTwin(Arturo):
    """An optimizer of its own that holds another."""

    def __init__(self, params, twin):
        self.twin = twin
        super().__init__(params, lr=1e-2)


def test_an_optimizer_that_holds_another_is_no_wrapper():
    _, twin = model_and_optimizer()
    model, _ = model_and_optimizer()
    optimizer = WithTwin(model.parameters(), twin)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    train(model, optimizer)
    assert len(twin.param_groups) == 1
    assert not twin.state
    assert len(optimizer.state_dict()["state"]) == 5


def test_whoever_knows_a_framework_can_refuse_optimizers_and_steps(monkeypatch):
    monkeypatch.setattr(surroundings, "_caller_checks", [])
    monkeypatch.setattr(surroundings, "_step_checks", [])
    model, optimizer = model_and_optimizer()
    seen = []

    def refuse_caller(params, process_group):
        seen.append((len(params), process_group))
        raise ValueError("not here")

    def refuse_step(groups):
        if any(group["lr"] == 0.5 for group in groups):
            raise RuntimeError(f"not now, {next(name for name in surroundings.callers() if name == __name__)}")

    surroundings.add_caller_check(refuse_caller)
    surroundings.add_step_check(refuse_step)
    with pytest.raises(ValueError, match="not here"):
        Arturo(model.parameters())
    assert seen == [(4, None)]
    train(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(RuntimeError, match=f"not now, {__name__}"):
        train(model, optimizer)
    assert optimizer.diagnostics()["steps"] == 2
    assert torch.equal(optimizer.state_dict()["state"][0]["deviation"], before["state"][0]["deviation"])


ALONE = """
import pickle, sys, types
import torch
from torch import distributed
from torch.distributed.optim import ZeroRedundancyOptimizer

optimizer = pickle.loads(sys.stdin.buffer.read())  # no optimizer has been built here

def refused(act):
    try:
        act()
    except (RuntimeError, ValueError) as error:
        return str(error).split(":")[0] + ":" + str(error).split(":")[1].split(",")[0]

deepspeed, bf16 = types.ModuleType("deepspeed"), types.ModuleType("deepspeed.runtime.bf16_optimizer")
exec("def take(optimizer): optimizer.step()", bf16.__dict__)
sys.modules["deepspeed"] = deepspeed
print(refused(lambda: bf16.take(optimizer)))
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
from arturo_core import Arturo
print(refused(lambda: ZeroRedundancyOptimizer([torch.nn.Parameter(torch.ones(2))], Arturo)))
print([name for name in sys.modules if name.startswith("arturo_integrations")])
"""


def test_a_program_that_imports_the_core_alone_has_it_told_of_frameworks():
    _, optimizer = model_and_optimizer()
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, input=pickle.dumps(optimizer), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines() == [
        "Arturo: a step was asked for by deepspeed.runtime.bf16_optimizer",
        "Arturo: ZeroRedundancyOptimizer gives every rank a part of the parameters",
        "['arturo_integrations', 'arturo_integrations.surroundings']",
    ]


@pytest.mark.parametrize("known", ["arturo_integrations.of_another_version", "of_another_package.surroundings"])
def test_the_core_trains_without_anybody_who_knows_frameworks(monkeypatch, known):
    monkeypatch.setattr(surroundings, "_KNOWN", known)
    model, optimizer = model_and_optimizer()
    train(model, optimizer)
    assert optimizer.diagnostics()["steps"] == 2


def test_what_is_broken_in_there_is_said(monkeypatch, tmp_path):
    (tmp_path / "broken_knowledge.py").write_text("import not_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(surroundings, "_KNOWN", "broken_knowledge")
    with pytest.raises(ModuleNotFoundError, match="not_to_be_found"):
        model_and_optimizer()


FRAMEWORKS = re.compile(r"lightning|fabric|deepspeed|zero_redundancy|accelerat(e|or)\.|transformers|_optimizer$", re.I)


def test_the_core_names_no_framework():
    """In code and messages; docstrings may say who needs what."""
    found = []
    for path in CORE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            said = node.value if isinstance(node, ast.Constant) and id(node) not in docstrings else None
            if isinstance(said, str) and FRAMEWORKS.search(said):
                found.append((path.name, node.lineno, said))
    assert found == []


def test_nobody_outside_reads_what_is_private():
    """Not the integrations, not the recipes: of an optimizer they know what users know."""
    root = CORE.parent
    private = {name for name in Persistent.__annotations__ if name.startswith("_")} | {"_home", "_wrapped"}
    assert {"_options", "_process_group", "_report"} <= private
    found = []
    for path in [*(root / "arturo_integrations").rglob("*.py"), *(root / "recipes").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        tree = ast.walk(ast.parse(text)) if any(f".{name}" in text for name in private) else ()
        for node in tree:
            if not isinstance(node, ast.Attribute) or node.attr not in private:
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append((path.name, node.lineno, node.attr))
    assert found == []


def test_the_map_of_the_core_names_every_file_and_none_that_is_not_there():
    text = (CORE / "README.md").read_text(encoding="utf-8")
    linked = {link.partition("#")[0].rstrip("/") for link in re.findall(r"\]\(([^)]+)\)", text) if ":" not in link}
    assert [link for link in linked if not (CORE / link).exists()] == []
    folders = {folder.parent for folder in CORE.rglob("__init__.py")}
    # A folder in a folder is named as a whole: what is in it is its own business.
    there = [
        path for path in CORE.rglob("*.py") if path.name != "__init__.py" and path.parent.parent in (CORE, CORE.parent)
    ]
    there += [folder for folder in folders if folder.parent.parent in (CORE, CORE.parent)]
    assert [name for path in there if (name := path.relative_to(CORE).as_posix()) not in linked | {"."}] == []
