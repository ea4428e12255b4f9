"""A step is all or nothing, whatever raises in it and wherever."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from limits import HANGS
from problems import EXPECTED, assert_identical, build, every_mode, every_noise, gradients, snapshot, train, trained
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from arturo_core import Arturo
from arturo_core.kernels import eager, select
from arturo_core.step import transaction
from arturo_core.step.transaction import TornStep


class Fault(BaseException):
    """As KeyboardInterrupt: no Exception, so that nothing swallows it."""


class Faulty(TorchDispatchMode):
    """Counts operations, and raises instead of one of them: once, or instead of every later one too."""

    def __init__(self, at: int | None = None, times: int = 1) -> None:
        super().__init__()
        self.count, self.at, self.times = 0, at, times

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.at is not None and self.at < self.count <= self.at + self.times:
            raise Fault(f"at operation {self.at}: {func}")
        return func(*args, **(kwargs or {}))


def problem(options: dict[str, Any]) -> Arturo:
    """Small parameters, which are packed, and one that is cut into slices; weight decay and one step behind it."""
    torch.manual_seed(0)
    params = [Parameter(torch.randn(5, 4)), Parameter(torch.randn(7)), Parameter(torch.randn(40, 50))]
    optimizer = Arturo([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}], **options)
    train(optimizer, params, [0])
    for param, grad in zip(params, gradients(params, 1), strict=True):
        param.grad = grad
    return optimizer


def twin(optimizer: Arturo) -> Arturo:
    """A copy, gradients included."""
    copied = copy.deepcopy(optimizer)
    for param, mirrored in zip(_params(optimizer), _params(copied), strict=True):
        mirrored.grad = param.grad
    return copied


def whole_step(optimizer: Arturo) -> tuple[int, Any]:
    """Operations of a step, and what it leaves; of a copy."""
    copied = twin(optimizer)
    with Faulty() as counter:
        copied.step()
    return counter.count, snapshot(copied)


@pytest.fixture
def _small_chunks(monkeypatch):
    monkeypatch.setitem(select.CHUNK, "eager", 1 << 10)
    monkeypatch.setattr(select, "kernel", lambda options, home: None)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("undoable", [True, False], ids=["undone", "finished"])
@every_mode
def test_a_fault_at_any_operation(options, undoable, monkeypatch):
    monkeypatch.setattr(transaction, "UNDOABLE", (1 << 20) if undoable else 0)
    optimizer = problem(options)
    start = snapshot(optimizer)
    count, end = whole_step(optimizer)
    outcomes = {"nothing": 0, "all": 0, "torn": 0}
    for at in range(0, count - 1, max(23, count // 30)):  # the last is torch's profiler, which closes its record
        victim = twin(optimizer)
        try:
            with Faulty(at):
                victim.step()
        except Fault:
            found = snapshot(victim)
            whole = _same(found, end)
            assert whole or _same(found, start), f"half done at operation {at}"
            outcomes["all" if whole else "nothing"] += 1
        except TornStep as error:
            assert isinstance(error.__cause__, Fault)  # noqa: PT017
            outcomes["torn"] += 1
            with pytest.raises(TornStep, match="checkpoint"):
                victim.step()
        else:
            pytest.fail(f"no fault at operation {at}")
    assert outcomes["nothing"] > 0
    if undoable:
        assert outcomes["all"] == outcomes["torn"] == 0
    else:
        # Only a fault inside of an eager pass over the weights themselves, between two of its operations, is left.
        assert outcomes["all"] > 0


def _params(optimizer: Arturo) -> list[Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _same(found: Any, expected: Any) -> bool:
    try:
        assert_identical(found, expected)
    except AssertionError:
        return False
    return True


@pytest.mark.usefixtures("_small_chunks")
@every_noise
def test_a_fault_that_stops_the_undoing_too_is_not_silent(options):
    """The step was taken or not, or the optimizer says that it is torn and takes no further step."""
    optimizer = problem(options)
    start = snapshot(optimizer)
    count, end = whole_step(optimizer)
    torn = 0
    for at in range(0, count, max(37, count // 20)):
        victim = twin(optimizer)
        # torch's own profiler leaves the step by one more operation, whose fault may hide the TornStep.
        with pytest.raises((Fault, TornStep)), Faulty(at, times=10**9):
            victim.step()
        found = snapshot(victim)
        if not _same(found, start) and not _same(found, end):
            torn += 1
            with pytest.raises(TornStep, match="checkpoint"):
                victim.step()
    assert torn > 0


@every_noise
def test_training_goes_on_after_a_fault_as_without(options):
    params, optimizer = build(options)
    for step in range(5):
        for param, grad in zip(params, gradients(params, step), strict=True):
            param.grad = grad
        with pytest.raises(Fault), Faulty(60):
            optimizer.step()
        optimizer.step()
    assert_identical(snapshot(optimizer), snapshot(trained(options)[1]))


@every_noise
def test_a_torn_step_is_mended_by_loading(options, monkeypatch):
    params, optimizer = build(options)
    train(optimizer, params, range(3))
    saved = copy.deepcopy({"weights": [param.detach() for param in params], "state": optimizer.state_dict()})
    monkeypatch.setattr(optimizer, "_torn", True)
    with pytest.raises(TornStep):
        train(optimizer, params, [3])
    with torch.no_grad():
        for param, weight in zip(params, saved["weights"], strict=True):
            param.copy_(weight)
    optimizer.load_state_dict(saved["state"])
    train(optimizer, params, range(3, 5))
    assert_identical(snapshot(optimizer), snapshot(trained(options)[1]))


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM])
def test_a_signal_waits_until_the_step_is_over(number, monkeypatch):
    """Sent from inside a pass, it raises where the step ends, and the step is whole."""
    params, optimizer = build({"lr": 1e-2, "fused": False})
    through = eager.compact_apply
    seen = []

    def handler(*_: Any) -> None:
        seen.append("handler")
        raise KeyboardInterrupt

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), number)
        seen.append("pass")
        through(*arguments)

    before = signal.signal(number, handler)
    monkeypatch.setattr(eager, "compact_apply", interrupted)
    try:
        for param, grad in zip(params, gradients(params, 0), strict=True):
            param.grad = grad
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert seen[-1] == "handler"
    monkeypatch.undo()
    train(optimizer, params, range(1, 5))
    assert_identical(snapshot(optimizer), snapshot(trained({"lr": 1e-2, "fused": False})[1]))


def test_steps_in_another_thread_touch_no_signal_handler():
    params, optimizer = build({"lr": 1e-2})
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=train, args=(optimizer, params, range(5)))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert_identical(snapshot(optimizer), snapshot(trained({"lr": 1e-2})[1]))


# -- errors that can be foreseen ---------------------------------------------------------------------------------------


_WITHOUT_A_COMPILER = """
import copy, torch
from arturo_core import Arturo

for noise in ("adaptive", "fixed"):
    weight = torch.nn.Parameter(torch.randn(300, 300))
    optimizer = Arturo([weight], lr=1e-2, noise=noise, weight_decay=0.1, compile=True)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()  # allocates
    optimizer.param_groups[0]["lr"] = 1e-2
    weight.grad = torch.randn(300, 300)
    before = copy.deepcopy((weight.detach(), optimizer.state[weight], optimizer.state_dict()["param_groups"]))
    try:
        optimizer.step()
    except RuntimeError as error:
        print(error)
    assert torch.equal(weight, before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in optimizer.state[weight].items())
    assert optimizer.state_dict()["param_groups"] == before[2]
"""


def test_a_missing_compiler_changes_nothing_and_names_the_way_out(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "CC")}
    environment |= {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_A_COMPILER], capture_output=True, text=True, env=environment, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compile=False") == 2


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (lambda p: p.data.t().contiguous(), ["'matrix'", "(4, 5)", "(5, 4)", "del optimizer.state[param]"]),
        (lambda p: torch.cat([p.data, p.data]), ["'matrix'", "(10, 4)", "(5, 4)", "del optimizer.state[param]"]),
    ],
    ids=["transposed", "resized"],
)
@every_noise
def test_exchanged_data_are_refused_before_anything_changes(options, change, mentions):
    matrix, vector = Parameter(torch.randn(5, 4)), Parameter(torch.randn(7))
    optimizer = Arturo([("vector", vector), ("matrix", matrix)], weight_decay=0.1, **options)
    train(optimizer, [vector, matrix], range(3))
    matrix.grad = None
    matrix.data = change(matrix)
    for param, grad in zip((vector, matrix), gradients([vector, matrix], 3), strict=True):
        param.grad = grad
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="matrix") as caught:
        optimizer.step()
    assert all(mention in str(caught.value) for mention in mentions), caught.value
    assert_identical(snapshot(optimizer), before)
    del optimizer.state[matrix]
    optimizer.step()
    assert optimizer.state[matrix][EXPECTED[options["noise"]]].shape == matrix.shape
    assert [float(optimizer.state[param]["step"]) for param in (vector, matrix)] == [4.0, 1.0]


def test_a_resized_embedding_of_a_real_transformer():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=70, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertForSequenceClassification(config)
    optimizer = Arturo(model.named_parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([1])).loss.backward()
        optimizer.step()

    step()
    model.resize_token_embeddings(80)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"'bert.embeddings.word_embeddings.weight' has shape \(80, 16\)"):
        step()
    assert_identical(snapshot(optimizer), before)
    del optimizer.state[model.bert.embeddings.word_embeddings.weight]
    step()
    assert optimizer.diagnostics()["kl_ratio"] == pytest.approx(1.0, abs=1e-3)


@every_noise
def test_a_gradient_of_another_shape_is_refused_before_anything_changes(options):
    params, optimizer = trained({**options, "weight_decay": 0.1})
    params[0].data = torch.randn(6, 4)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"\(6, 4\), and"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)


@every_noise
def test_a_missing_statistic_is_named(options):
    params, optimizer = trained(options)
    name = EXPECTED[options["noise"]]
    del optimizer.state[params[1]][name]
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=f"'{name}' in the state of parameter number 1 of group 0"):
        train(optimizer, params, [5])
    assert_identical(snapshot(optimizer), before)
    del optimizer.state[params[1]]
    train(optimizer, params, [5])
