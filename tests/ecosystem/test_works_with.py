"""The table of packages says what is so: its tests exist and are all there are, its versions are those that ran."""

from __future__ import annotations

import ast
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.version import Version

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "arturo_integrations" / "WORKS_WITH.md"


class Row(NamedTuple):
    package: str
    version: str
    how: str
    tested: str
    file: str
    tests: tuple[str, ...]


def table() -> list[Row]:
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = []
    for line in lines[1:]:
        name, release, how, tested, tests = (cell.strip() for cell in line.strip("|").split("|"))
        file = re.match(r"\[`(\w+\.py)`\]\(\.\./tests/ecosystem/\1\): ", tests)
        assert file, f"{name} names no file of tests"
        rows.append(Row(name, release, how, tested, file[1], tuple(re.findall(r"`(\w+)`", tests[file.end() :]))))
    return rows


def pins() -> dict[str, str]:
    lines = [line for file in HERE.glob("requirements*.txt") for line in file.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def names_of_tests(file: Path) -> list[str]:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def is_marked(file: str) -> bool:
    return "pytestmark = pytest.mark.ecosystem" in (HERE / file).read_text(encoding="utf-8")


def test_the_table_names_every_test_that_exists_and_no_other():
    there = {file.name: names_of_tests(file) for file in HERE.glob("test_*.py") if file.name != Path(__file__).name}
    assert {row.file: list(row.tests) for row in table()} == there
    assert len(table()) == len(there)
    assert all(row.how and row.tested for row in table())


def test_the_versions_of_the_table_are_those_that_are_installed_for_its_tests():
    assert {row.package: pins().get(row.package) for row in table()} == {row.package: row.version for row in table()}


@pytest.mark.parametrize("row", table(), ids=lambda row: row.package)
def test_what_is_installed_is_no_older_than_what_was_tested(row):
    """Exactly that release in the environment of ``make test-ecosystem``, which is known by having them all."""
    try:
        assert Version(version(row.package)) >= Version(row.version)
    except PackageNotFoundError:
        assert is_marked(row.file), f"{row.package} is not installed, and its tests are part of the suite"


@pytest.mark.ecosystem
@pytest.mark.parametrize("row", table(), ids=lambda row: row.package)
def test_the_ecosystems_environment_has_the_versions_of_the_table(row):
    assert version(row.package) == row.version
