"""The page in a real browser: pictures load, nothing is wider than the screen, light and dark."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from browser import NAMES, dump, find_browser, visit
from report_logs import block_names, layer_records, plain_run, write_lines
from report_reading import read_page

from arturo_integrations.report import find
from arturo_integrations.report.build import write_report

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser on the PATH ({', '.join(NAMES)})")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A run with every figure, 60 layers, one with a name that cannot be broken, and a second run to be named."""
    folder = tmp_path_factory.mktemp("a_folder_with_quite_a_long_name_that_stands_in_the_header_of_the_page")
    names = [*block_names(60), "x" * 120]
    write_lines(folder / "other.jsonl", [{"step": 1, "loss": 1.0}])
    write_lines(folder / "log.jsonl", [*plain_run(40), *layer_records(names, [10, 20, 45])])
    return write_report(find.load(folder, "log.jsonl"), folder / "page.html")[0]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_pictures_load_and_nothing_is_wider_than_the_screen(page, tmp_path, width, dark):
    seen = visit(BROWSER, page, tmp_path, width, dark)
    found = seen.findings
    assert found["errors"] == []
    assert seen.console == []
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    assert found["beyond"] == []
    figures = read_page(page.read_text(encoding="utf-8")).images
    assert [image["figure"] for image in found["images"]] == list(figures)
    assert len(figures) == 14
    for image in found["images"]:
        assert image["complete"]
        assert min(image["width"], image["height"]) > 100, image
        assert image["shown"] > 250, image
        assert image["dark"] == dark
    shades = [int(part) for part in found["background"].removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(shades) < 64) == dark
    assert found["fontSize"] >= 16
    assert dict(found["tables"])["layer-table"] == 1 + 61


def test_the_page_as_it_is_breaks_none_of_its_own_rules(page):
    """Its policy allows no network, no script: whatever were refused would stand in the console."""
    dom, console = dump(BROWSER, page, 800, dark=False)
    assert console == []
    assert "Last numbers" in dom


def test_the_checks_would_notice_a_fault(page, tmp_path):
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    wide = '<p style="width: 2000px">wide</p><img src="data:image/png;base64,AAAA" alt=""><script>nothing()</script>'
    broken.write_text(text.replace("</main>", wide + "</main>"), encoding="utf-8")
    seen = visit(BROWSER, broken, tmp_path, 400, dark=False)
    assert any("wide" in element for element in seen.findings["beyond"])
    assert seen.findings["scrollWidth"] > 400
    assert seen.findings["images"][-1]["width"] == 0
    assert any("nothing is not defined" in error for error in seen.findings["errors"])
    assert any("nothing is not defined" in line for line in seen.console)
