"""Every Python block of the READMEs runs as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from limits import HANGS

from recipes.benchmarks.quality import readme
from recipes.benchmarks.quality import records as store
from recipes.benchmarks.quality.analysis import Results
from recipes.benchmarks.quality.report import markdown
from recipes.benchmarks.quality.tasks import TASKS

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "arturo_core/README.md",
    "arturo_core/TUNING.md",
    "arturo_core/DISTRIBUTED.md",
    "arturo_integrations/TRANSFORMERS.md",
    "arturo_integrations/ACCELERATE.md",
    "arturo_integrations/LIGHTNING.md",
    "arturo_integrations/DEEPSPEED.md",
    "arturo_integrations/WORKS_WITH.md",
    "arturo_integrations/report/README.md",
    "recipes/README.md",
    "recipes/benchmarks/README.md",
    "recipes/benchmarks/quality/NOTEBOOK.md",
]


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


EXAMPLES = [(page, index) for page in PAGES for index in range(len(blocks(page)))]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    requests = [
        {"code": blocks(page)[index], "folder": os.fspath(tmp_path_factory.mktemp("example"))}
        for page, index in EXAMPLES
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tests" / "examples.py")],
        input=json.dumps(requests),
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(EXAMPLES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("page", "index"), EXAMPLES)
def test_example_runs(page: str, index: int, outcomes: dict[tuple[str, int], dict[str, Any]]) -> None:
    outcome = outcomes[page, index]
    assert outcome["code"] == 0, outcome["output"]


def test_readme_has_examples_and_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(blocks("README.md")) >= 2
    assert "make demo" in text
    assert "make test" in text


def test_the_readme_is_read_in_three_minutes() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 140
    assert len(" ".join(lines).split()) <= 900
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_every_file_the_readme_links_to_exists() -> None:
    for page in PAGES:
        folder = (ROOT / page).parent
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
            assert (folder / target).exists(), f"{page} links to {target}"


def test_benchmark_figures_are_those_of_the_records() -> None:
    """The pages' summaries and the report, as `make bench-quality-report` would write them now."""
    folder = ROOT / "recipes/benchmarks/quality/results"
    results = Results(store.read([folder / "records.jsonl"]), list(TASKS))
    for page, (begin, end), made in (
        ("recipes/benchmarks/README.md", readme.WHOLE, readme.summary(results)),
        ("README.md", readme.SHORT, readme.short(results)),
    ):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text.split(begin)[1].split(end)[0].strip() == made.strip(), page
    assert (folder / "report.md").read_text(encoding="utf-8") == markdown(results)
