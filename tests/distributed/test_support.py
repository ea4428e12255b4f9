"""The support table says what the tests test, and every test it names exists."""

from __future__ import annotations

import importlib

import support
from layouts import MATRIX


def test_the_page_holds_the_table_of_today() -> None:
    text = (support.ROOT / support.PAGE).read_text(encoding="utf-8")
    assert support.BEGIN + support.table() + support.END in text, "run: python tests/distributed/support.py"


def test_every_layout_is_in_the_table() -> None:
    named = [name for prefix, _ in support.LAYOUTS.values() for name in support.ids(prefix)]
    assert sorted(named) == sorted(MATRIX)


def test_every_test_named_exists() -> None:
    for _, *cells in support.FRAMEWORKS.values():
        for name in filter(None, cells):
            file, test = name.split("::")
            assert f"def {test}(" in (support.INTEGRATIONS / file).read_text(encoding="utf-8"), name
    for name in (support.STEP, support.RESUME, support.FSDP1, support.ZERO):
        file, test = name.split("::")
        assert callable(getattr(importlib.import_module(file.removesuffix(".py")), test))
