"""Time limits of tests guard against hanging and measure nothing: ten minutes, from one place."""

from __future__ import annotations

import ast
from pathlib import Path

from hypothesis import settings
from limits import HANGS, PATIENCE

TESTS = Path(__file__).parent
WAITING = ("timeout", "deadline", "timeout_seconds", "time_limit")
WAITS = ("wait", "join", "communicate", "sleep_until", "timedelta", "alarm", "setitimer")


def limits(tree: ast.AST) -> list[tuple[int, float]]:
    """Lines and values of numbers that are given as a time limit: by keyword, by default, or to what waits."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found += [word.value for word in node.keywords if word.arg in WAITING]
            if name in WAITS:
                found += [*node.args, *(word.value for word in node.keywords if word.arg != "skip")]
        if isinstance(node, ast.FunctionDef):
            named = [*node.args.args[len(node.args.args) - len(node.args.defaults) :], *node.args.kwonlyargs]
            values = [*node.args.defaults, *node.args.kw_defaults]
            found += [value for one, value in zip(named, values, strict=True) if one.arg in WAITING and value]
        if isinstance(node, ast.BinOp) and "monotonic" in ast.unparse(node):
            found += [node.right]
    constants = [(one.lineno, one.value) for one in found if isinstance(one, ast.Constant)]
    return [(line, value) for line, value in constants if isinstance(value, (int, float))]


def test_no_test_has_a_time_limit_of_its_own():
    own = {}
    for path in TESTS.rglob("*.py"):
        if path.name != "limits.py" and (found := limits(ast.parse(path.read_text(encoding="utf-8")))):
            own[str(path.relative_to(TESTS))] = found
    assert own == {}, "take HANGS or PATIENCE of tests/distributed/limits.py"
    assert PATIENCE.total_seconds() == HANGS == 600


def test_the_search_finds_what_it_looks_for():
    text = """
run(command, timeout=90)
program.communicate(timeout=300)
program.wait(5)
patience = datetime.timedelta(seconds=60)
until = time.monotonic() + 300
def python(*arguments, cwd, timeout=90): ...
run(command, timeout=HANGS)
time.sleep(0.01)
"""
    assert sorted(set(limits(ast.parse(text)))) == [(2, 90), (3, 300), (4, 5), (5, 60), (6, 300), (7, 90)]


def test_no_example_of_hypothesis_has_a_deadline():
    assert settings().deadline is None
    for path in TESTS.rglob("*.py"):
        if path.name != Path(__file__).name:
            given = path.read_text(encoding="utf-8").count("deadline=")
            assert given == path.read_text(encoding="utf-8").count("deadline=None"), path
