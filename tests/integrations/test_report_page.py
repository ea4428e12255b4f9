"""The page holds the numbers that were logged: in its tables, in its curves, in the colours of its heat maps."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from limits import HANGS

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import matplotlib
import torch
from report_logs import block_names, layer_records, plain_run, write_lines
from report_reading import SVG, assert_drawn, curve, read_page, ticks

from arturo_core import Arturo
from arturo_core.reporting.layers import LayerWatch
from arturo_integrations.report import find, layers, style
from arturo_integrations.report.__main__ import main
from arturo_integrations.report.build import write_report
from arturo_integrations.report.meanings import LAYER_MEANINGS, MEANINGS
from arturo_integrations.report.panels import Panel

LINK = "{http://www.w3.org/1999/xlink}href"


def report(folder, records):
    write_lines(folder / "log.jsonl", records)
    path, *_ = write_report(find.load(folder), folder / "page.html")
    return read_page(path.read_text(encoding="utf-8"))


def logged(records, key):
    return {record["step"]: record[key] for record in records if key in record}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    records = plain_run(60)
    return report(tmp_path_factory.mktemp("plain"), records), records


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five layers, one with a slash in its name, as a log and its page."""
    names = ["embed/tokens.weight", *block_names(6)[1:]][:5]
    records = layer_records(names, [10, 20, 40, 50])
    return report(tmp_path_factory.mktemp("five"), records), records, names


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    names = block_names(62)
    records = layer_records(names, list(range(5, 55, 5)))
    return report(tmp_path_factory.mktemp("many"), records), records, names


def test_every_last_number_is_tabled_with_a_meaning(plain):
    page, records = plain
    ours = [key for key in records[-2] if key.startswith("arturo/") and not key.startswith("arturo/layer/")]
    for key in ("loss", "val_loss", "lr", *ours):
        assert page.column("numbers", "value")[key] == list(logged(records, key).values())[-1], key
        assert page.column("numbers", "step")[key] == 60
    head, *rows = page.tables["numbers"]
    assert all(len(row[head.index("meaning")]) > 10 for row in rows)


def test_the_layers_of_a_watch_are_tabled(plain):
    page, records = plain
    last = records[-2]
    names = [f"{place}.{part}" for place in (0, 2) for part in ("weight", "bias")]
    expected = {name: last[f"arturo/layer/{name}/kl_share"] for name in names}
    assert page.column("layer-table", "KL share") == expected
    assert math.fsum(expected.values()) == pytest.approx(1.0)
    head, *_ = page.tables["layer-table"]
    assert len(head) == 1 + len(LAYER_MEANINGS)
    assert {"kl_share", "curvature_learned"} <= set(page.images)


def test_every_diagnostic_has_a_meaning():
    weights = torch.nn.Parameter(torch.ones(3))
    optimizer = Arturo([weights])
    weights.grad = torch.ones(3)
    watch = LayerWatch(optimizer)
    watch.arm()
    optimizer.step()
    assert set(optimizer.diagnostics()) == set(MEANINGS)
    assert set(*map(frozenset, watch.numbers().values())) == set(LAYER_MEANINGS)


FIGURES = {
    "loss": ["loss", "val_loss"],
    "learning_rate": ["lr"],
    "eta": ["arturo/eta"],
    "kl_ratio": ["arturo/kl_ratio"],
    "step_rms": ["arturo/step_rms"],
    "step_resolution": ["arturo/step_resolution"],
    "innovation_ratio": ["arturo/innovation_ratio"],
    "curvature": ["arturo/curvature_q05", "arturo/curvature_q50", "arturo/curvature_q95"],
    "precision": ["arturo/precision_q05", "arturo/precision_q50", "arturo/precision_q95"],
}


@pytest.mark.parametrize("figure", FIGURES)
def test_curves_and_tables_show_what_was_logged(plain, figure):
    page, records = plain
    drawn = page.figure(figure)
    for key in FIGURES[figure]:
        values = logged(records, key)
        assert_drawn(curve(drawn, key), list(values), list(values.values()))
        tabled = page.column(figure, key.removeprefix("arturo/"))
        assert tabled == {str(step): values[step] for step in values if str(step) in tabled}
        assert {"1", "60"} <= set(tabled) or figure == "loss"


def test_axes_are_labelled_right(plain):
    page, records = plain
    figure = page.figure("loss")
    points = curve(figure, "loss")
    for axis, column, values in (
        ("x", 0, list(logged(records, "loss"))),
        ("y", 1, list(logged(records, "loss").values())),
    ):
        places, numbers = zip(*ticks(figure, axis), strict=True)
        assert len(places) >= 3
        slope, offset = np.polyfit(places, numbers, 1)
        np.testing.assert_allclose(slope * points[:, column] + offset, values, atol=1e-4 * max(numbers))


def test_the_strip_of_the_active_bound_ends_where_the_bound_was_inactive(tmp_path):
    active = [1, 1, 0, 0, 1, 0, 1]
    records = [
        {"step": step, "arturo/kl_ratio": 0.5 + 0.5 * on, "arturo/bound_active": on}
        for step, on in enumerate(active, start=1)
    ]
    page = report(tmp_path, records)
    figure = page.figure("kl_ratio")
    (strip,) = (group for group in figure.iter(f"{SVG}g") if group.get("id") == "arturo/bound_active")
    bars = [{float(x) for x, _ in re.findall(r"[ML] (\S+) (\S+)", bar.attrib["d"])} for bar in strip.iter(f"{SVG}path")]
    first, last = curve(figure, "arturo/kl_ratio")[[0, -1], 0]
    drawn = [[1 + 6 * (x - first) / (last - first) for x in sorted(bar)] for bar in bars]
    np.testing.assert_allclose(drawn, [[0.5, 2.5], [4.5, 5.5], [6.5, 7.5]], atol=1e-3)
    assert "active at 57 % of the logged steps" in page.text


def test_layers_are_tabled_with_the_largest_share_first(five):
    page, records, names = five
    last = records[-1]
    shares = page.column("layer-table", "KL share")
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    columns = {"KL share": "kl_share", "KL": "kl", "curvature": "curvature", "learned": "curvature_learned",
               "floored": "curvature_floored", "step RMS": "step_rms", "weight RMS": "weight_rms"}  # fmt: skip
    for title, number in columns.items():
        assert page.column("layer-table", title) == {name: last[f"arturo/layer/{name}/{number}"] for name in names}
    assert "module-table" not in page.tables
    assert f"In 1 of 5 layers curvature is at its floor or not positive: {names[1]} (30 % of its weights)." in page.text


def test_many_layers_are_shown_by_module_too(many):
    page, records, names = many
    last = records[-1]
    assert set(page.column("layer-table", "KL share")) == set(names)
    modules = page.column("module-table", "KL share")
    assert len(modules) == 2 + 24
    block = [name for name in names if name.startswith("model.layers.3.attn.")]
    assert len(block) == 3
    expected = math.fsum(last[f"arturo/layer/{name}/kl_share"] for name in block)
    assert modules["model.layers.3.attn"] == pytest.approx(expected, rel=1e-12)
    assert math.fsum(modules.values()) == pytest.approx(1.0)
    learned = [last[f"arturo/layer/{name}/curvature_learned"] for name in block]
    assert page.column("module-table", "learned")["model.layers.3.attn"] == pytest.approx(sum(learned) / 3)
    assert {"kl_share", "kl_share_modules", "curvature_learned", "curvature_learned_modules"} <= set(page.images)


def colours_at(figure, rows, columns):
    """Colours in the middle of a heat map's rows, at parts of its width, (rows, columns, 3), from its raster image."""
    largest = max(figure.iter(f"{SVG}image"), key=lambda image: float(image.attrib["height"]))
    data = base64.b64decode(largest.attrib[LINK].partition("base64,")[2])
    pixels = matplotlib.image.imread(io.BytesIO(data))
    if largest.attrib["transform"].startswith("scale(1 -1)"):  # it is stored upside down
        pixels = pixels[::-1]
    down = ((np.arange(rows) + 0.5) / rows * pixels.shape[0]).astype(int)
    across = (np.asarray(columns) * pixels.shape[1]).astype(int)
    return pixels[down][:, across, :3]


@pytest.mark.parametrize("number", ["kl_share", "curvature_learned"])
def test_heat_maps_have_the_colours_of_the_numbers(five, number):
    page, records, names = five
    # Steps 10, 20, 40, 50: cells from 5 to 15, 30, 45 and 55.
    found = colours_at(page.figure(number), len(names), [(middle - 5) / 50 for middle in (10, 22, 38, 50)])
    values = np.array([[record[f"arturo/layer/{name}/{number}"] for record in records] for name in names])
    if number == "kl_share":
        scaled = (np.log(values) - np.log(values.min())) / (np.log(values.max()) - np.log(values.min()))
        assert values.max() / values.min() > 10
    else:
        scaled = values
    np.testing.assert_allclose(found, matplotlib.colormaps["viridis"](scaled)[..., :3], atol=0.02)


def test_the_page_needs_nothing_else_and_is_built_for_everyone(many):
    page, _, _ = many
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"<script|@import|url\(|https?://(?!www\.w3\.org)", page.text)
    levels = [level for level, _ in page.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.without_scope == 0
    for name, image in page.images.items():
        assert len(image["alt"]) > 30, name
        assert page.figure(name).tag == page.figure(name, dark=True).tag == f"{SVG}svg"
    assert 'lang="en"' in page.text
    assert "width=device-width" in page.text


def contrast(one, other):
    """WCAG's contrast ratio of two colours."""

    def luminance(colour):
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(matplotlib.colors.to_rgb(one)), luminance(matplotlib.colors.to_rgb(other))))
    return (high + 0.05) / (low + 0.05)


def test_texts_and_lines_stand_out_in_light_and_dark(many):
    themes = [dict(re.findall(r"--(\w+): (#\w+)", part)) for part in many[0].text.partition("@media (pref")[::2]]
    for colours in themes:
        for surface in ("page", "card"):
            for text in ("ink", "muted", "link", "warn"):
                assert contrast(colours[text], colours[surface]) >= 4.5, (text, surface)
        assert contrast(colours["ink"], colours["note"]) >= 4.5
    for line in (style.INK, style.MUTED, style.BLUE, style.ORANGE, style.GREEN, style.PINK, style.RED):
        assert contrast(line, themes[0]["card"]) >= 3
        assert contrast(style.DARK[line], themes[1]["card"]) >= 3


def test_numbers_that_are_not_finite_leave_gaps_and_are_said(tmp_path):
    losses = [3.0, math.nan, 1.0, math.inf, -math.inf, 1e308, -1e308, 2.0]
    records = [{"step": step, "loss": loss, "arturo/eta": math.nan} for step, loss in enumerate(losses, start=1)]
    shares = {"a.b": math.nan, "a.c": 0.0, "<script>$x$</script>": 1.0, "\x00\x1b[31m": -1.0}
    records[-1] |= {f"arturo/layer/{name}/kl_share": share for name, share in shares.items()}
    page = report(tmp_path, records)
    points = curve(page.figure("loss"), "loss")
    assert_drawn(points, [1, 3, 8], [3.0, 1.0, 2.0])
    (line,) = (group for group in page.figure("loss").iter(f"{SVG}g") if group.get("id") == "loss")
    assert line[0].attrib["d"].count("M") == 3  # three parts, with gaps between them
    assert "5 values are not finite (red crosses)" in page.text
    tabled = page.column("loss", "loss")
    assert [repr(tabled[str(step)]) for step in range(1, 9)] == [repr(loss) for loss in losses]
    assert math.isnan(page.column("numbers", "value")["arturo/eta"])
    assert len(page.tables["layer-table"]) == 1 + 4
    assert "<script" not in page.text
    assert "<script>$x$</script>" in [row[0] for row in page.tables["layer-table"]]


@pytest.mark.parametrize("record", [{"loss": 1.5}, {"arturo/kl_ratio": 0.5}, {"arturo/layer/a/kl_share": 0.0}])
def test_a_single_number_makes_a_page(tmp_path, record):
    page = report(tmp_path, [{"step": 0, **record}])
    assert "numbers" in page.tables
    assert len(page.images) == 1


def test_modules_are_as_deep_as_the_page_has_room():
    blocks = [f"model.layers.{block}.{part}" for block in range(80) for part in ("q.weight", "k.weight")]
    assert set(layers.modules(blocks).values()) == {f"model.layers.{block}" for block in range(80)}
    assert layers.modules(["a.b.c", "a.b.d"]) == {"a.b.c": "a.b.c", "a.b.d": "a.b.d"}
    slashes = layers.modules([f"net/{block % 20}/{block}" for block in range(100)])
    assert set(slashes.values()) == {f"net/{block}" for block in range(20)}


def test_the_command_writes_page_figures_and_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    records = layer_records([*block_names(8), "x[bold].weight"], [1, 2])
    write_lines(tmp_path / "log.jsonl", records)
    assert main([str(tmp_path), "--figures", "--rows", "4", "--output", str(tmp_path / "out" / "my.html")]) == 0
    written = sorted(path.name for path in (tmp_path / "out" / "my_figures").iterdir())
    assert written == sorted(
        f"{name}.{form}" for name in ("curvature_learned", "kl_ratio", "kl_share") for form in ("png", "svg")
    )
    assert all((tmp_path / "out" / "my_figures" / name).stat().st_size > 2000 for name in written)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["my.html", "my_figures"]
    out, _ = capsys.readouterr()
    last = records[-1]
    shares = {key.split("/")[2]: last[key] for key in last if key.endswith("/kl_share")}
    top = sorted(shares, key=lambda name: -shares[name])
    rows = [line.split() for line in out.splitlines() if "%" in line and "█" in line]
    assert [row[0] for row in rows] == top[:4]
    assert [f"{row[1]} %" for row in rows] == [layers.percent(shares[name]) for name in top[:4]]
    assert "5 more layers" in out
    assert f"Page: {tmp_path / 'out' / 'my.html'}" in out


def test_an_error_writes_nothing_and_keeps_what_there_was(tmp_path, capsys, monkeypatch):
    write_lines(tmp_path / "log.jsonl", [{"step": 1, "loss": 1.0}])
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "arturo_report.html").read_bytes()
    (tmp_path / "log.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    assert main([str(tmp_path)]) == 2
    assert (tmp_path / "arturo_report.html").read_bytes() == page
    assert capsys.readouterr().err.startswith("note: No key of this log")

    write_lines(tmp_path / "log.jsonl", [{"step": 1, "loss": 2.0}])
    monkeypatch.setattr(Panel, "__post_init__", lambda self: 1 / 0)  # drawing fails, whatever the reason
    with pytest.raises(ZeroDivisionError):
        main([str(tmp_path)])
    assert (tmp_path / "arturo_report.html").read_bytes() == page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arturo_report.html", "log.jsonl"]


def test_a_page_that_cannot_be_written_is_an_error_that_names_the_way_out(tmp_path, capsys):
    write_lines(tmp_path / "log.jsonl", [{"step": 1, "loss": 1.0}])
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "taken.html" / "arturo_report.html").mkdir()
    for output, message in (
        ("taken.html", "cannot be written"),
        ("log.jsonl/page.html", "cannot be written"),
        ("page.txt", "give a name that ends in .html"),
    ):
        assert main([str(tmp_path), "--output", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "--output" in error
    assert not list(tmp_path.rglob(".*"))


def test_the_runs_are_listed(tmp_path, capsys):
    for name in ("a", "b"):
        write_lines(tmp_path / name / "log.jsonl", [{"step": 1, "loss": 1.0}])
    assert main([str(tmp_path), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == ["a/log.jsonl", "b/log.jsonl"]
    assert not list(tmp_path.rglob("*.html"))


def test_without_its_packages_the_command_names_them(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from arturo_integrations.report.__main__ import main\n"
        f"sys.exit(main([{str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 2
    assert 'pip install "arturo-optim[report]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_log_makes_the_same_page(tmp_path):
    write_lines(tmp_path / "log.jsonl", layer_records(block_names(5), [1, 2]))
    found = find.load(tmp_path)
    pages = [write_report(found, tmp_path / name)[0].read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]
    assert json.dumps(found.notes) == "[]"
