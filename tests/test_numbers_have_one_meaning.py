"""What a diagnostic means is said in a docstring, in the report and on the pages: this holds them together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from arturo_core import Arturo
from arturo_core.reporting.layers import LayerWatch
from arturo_integrations.report.meanings import LAYER_MEANINGS, MEANINGS

ROOT = Path(__file__).parent.parent
PAGES = ["arturo_core/README.md", "arturo_core/TUNING.md", "arturo_integrations/LIGHTNING.md"]
UNITS = ("nats", "weight units", "1/weight²")


def documented() -> dict[str, str]:
    """Keys in the docstring of ``Arturo.diagnostics``, and what is said of each; ``_q50`` continues the name before."""
    found = {}
    text = " ".join((Arturo.diagnostics.__doc__ or "").split())
    for item in text.split("* ``")[1:]:
        head, _, said = ("``" + item).partition(":")
        first = ""
        for key in re.findall(r"``(\w+)``", head):
            first = first or key
            found[first.rpartition("_")[0] + key if key.startswith("_") else key] = said
    return found


def reported(noise: str) -> tuple[set[str], set[str]]:
    """Keys of diagnostics and of layers after a step that was taken and one that was skipped."""
    weights = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = Arturo([weights], noise=noise)
    watch = LayerWatch(optimizer)
    keys = set(optimizer.diagnostics())
    for gradient in (torch.ones(4, 3), torch.full((4, 3), torch.nan)):
        weights.grad = gradient
        watch.arm()
        optimizer.step()
        keys |= set(optimizer.diagnostics())
    return keys, {key for numbers in watch.numbers().values() for key in numbers}


@pytest.mark.parametrize("noise", ["adaptive", "fixed"])
def test_every_number_has_a_meaning_wherever_meanings_are_said_and_no_other_has(noise):
    keys, layers = reported(noise)
    assert keys == set(MEANINGS)
    assert keys == set(documented())
    assert layers == set(LAYER_MEANINGS)


@pytest.mark.parametrize("key", MEANINGS)
def test_docstring_and_report_agree_in_the_unit(key):
    unit, meaning = MEANINGS[key]
    said = documented()[key]
    if unit in UNITS:
        assert unit in said
    elif unit == "":
        assert not any(f"({one})" in said for one in UNITS)
    for word in ("median", "root mean square", "skipped"):
        assert key.endswith(("_q50", "steps", "kl_ratio")) or (word in meaning.lower()) == (word in said.lower()), word


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_numbers_that_there_are(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    layers = re.findall(r"layer/<\w+>/(\w+)", text)
    named = re.findall(r"arturo/(?!layer/|\d|integrations)(\w+)", text)
    assert set(layers) <= set(LAYER_MEANINGS)
    assert {name for name in named if not name.startswith("_")} <= set(MEANINGS)
    assert named or page == "arturo_core/README.md"
    assert page != "arturo_core/TUNING.md" or layers


def test_tuning_looks_at_numbers_that_there_are():
    rows = re.findall(r"^\|(.+)\|$", (ROOT / "arturo_core/TUNING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    looked = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1]) if len(row.split("|")) == 4]
    known = set(MEANINGS) | set(LAYER_MEANINGS)
    known |= {f"_{key.rpartition('_')[2]}" for key in MEANINGS if "_q" in key}
    assert len(looked) > 8
    assert set(looked) <= known
