"""Logs that are none, never end or were made to do harm: one line says so, and nothing hangs."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import no_hang
from report_reading import read_page

from arturo_integrations.report import find, sources
from arturo_integrations.report.__main__ import main
from arturo_integrations.report.errors import ReportError
from arturo_integrations.report.files import write_whole

LOGS = ["trainer_state.json", "metrics.csv", "events.out.tfevents.1.host", "log.jsonl"]
GOOD = '{"step": 1, "loss": 0.5, "arturo/eta": 2.0}\n{"step": 2, "loss": 0.25, "arturo/eta": 3.0}\n'
DIGITS = "9" * 5000


@pytest.fixture(autouse=True)
def _ends():
    with no_hang():
        yield


def said(capsys, *arguments):
    """The one line that the command ends with."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def linked(target):
    return lambda path: path.symlink_to(target)


NO_LOGS = {
    "a broken link": (linked("nowhere"), "is a link to nowhere, which does not exist"),
    "a loop": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    "a pipe": (os.mkfifo, "is a pipe, not a log"),
    "a device without end": (linked("/dev/zero"), "is a device, not a log"),
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("case", NO_LOGS)
def test_what_only_has_the_name_of_a_log_is_named(case, name, tmp_path, capsys):
    make, message = NO_LOGS[case]
    make(tmp_path / name)
    assert said(capsys, tmp_path / name) == f"error: {tmp_path / name} {message}."
    assert f"Left out: {tmp_path / name} {message}." in said(capsys, tmp_path)
    (tmp_path / "good.jsonl").write_text(GOOD)
    found = find.load(tmp_path)
    assert found.numbers["eta"].last == 3.0
    assert found.notes == [f"{tmp_path / name} {message}."]
    assert main([str(tmp_path), "--list"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("good.jsonl")
    assert told.err.strip() == f"note: {tmp_path / name} {message}."


def test_a_pipe_or_a_file_is_no_folder(tmp_path, capsys):
    os.mkfifo(tmp_path / "runs")
    assert said(capsys, tmp_path / "runs", "--list") == f"error: {tmp_path / 'runs'} is a pipe, not a folder."
    assert said(capsys, tmp_path / "runs") == f"error: {tmp_path / 'runs'} is a pipe, not a log."
    assert "does not exist" in said(capsys, tmp_path / "absent")
    assert "cannot be read" in said(capsys, "x" * 5000)
    assert "cannot be read" in said(capsys, "a\0b")


@pytest.mark.parametrize("name", LOGS)
def test_files_of_the_kernel_have_no_size_and_are_not_waited_for(name, tmp_path, capsys):
    (tmp_path / name).symlink_to("/proc/self/pagemap")
    assert str(tmp_path / name) in said(capsys, tmp_path / name)


@pytest.mark.parametrize("name", LOGS)
def test_a_hole_of_a_terabyte_is_not_read(name, tmp_path, capsys):
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 40)
    line = said(capsys, tmp_path / name)
    assert any(reason in line for reason in ("larger than", "longer than", "cannot read any event"))


def test_a_log_that_grows_while_it_is_read_is_read_as_it_was(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(GOOD)
    read = sources.lines(path)
    first = next(read)
    with path.open("a") as more:
        more.write('{"step": 3, "loss": 1.0}\n' * 100_000)
    assert [first, *read] == GOOD.splitlines(keepends=True)


def test_what_may_not_be_read_is_said_to_be_unreadable(tmp_path, capsys, monkeypatch):
    """Permissions do not bind root: the system's answer is played."""
    for name in ("log.jsonl", "metrics.csv"):
        (tmp_path / name).write_text(GOOD)
    locked = tmp_path / "locked"
    locked.mkdir()
    really, scan = os.open, os.scandir

    def denied(path, *arguments, **more):
        if Path(os.fsdecode(path)).name in ("log.jsonl", "locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return really(path, *arguments, **more)

    def closed(path):
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "scandir", closed)
    assert said(capsys, tmp_path / "log.jsonl").endswith("log.jsonl cannot be read: Permission denied.")
    assert find.find(tmp_path).left_out == [
        f"{tmp_path / 'log.jsonl'} cannot be read: Permission denied.",
        f"{locked} cannot be read: Permission denied.",
    ]


def test_nesting_without_end_is_an_error(tmp_path, capsys):
    for name, deep in (("list", "[" * 100_000 + "]" * 100_000), ("object", '{"a":' * 100_000 + "1" + "}" * 100_000)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "log.jsonl").write_text(f'{GOOD}{{"step": 3, "x": {deep}}}\n')
        (folder / "trainer_state.json").write_text(f'{{"log_history": {deep}}}')
        assert "log.jsonl, line 3: lists or objects nested too deep" in said(capsys, folder / "log.jsonl")
        assert "trainer_state.json: lists or objects nested too deep" in said(capsys, folder / "trainer_state.json")
        os.remove(folder / "trainer_state.json")
        (folder / "log.jsonl").write_text(f'{{"step": 3, "x": {deep}}}\n')
        assert "Left out:" in said(capsys, folder)


def test_whole_numbers_of_five_thousand_digits_are_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{GOOD}{{"step": 3, "loss": {DIGITS}, "arturo/eta": 4.0}}\n{{"step": {DIGITS}, "loss": 1.0}}\n')
    found = find.load(path)
    assert found.loss["loss"].values.tolist() == [0.5, 0.25]
    assert found.numbers["eta"].values.tolist() == [2.0, 3.0, 4.0]
    assert found.notes == [
        'log.jsonl: 1 record was left out: a "step" that is too large for a number of 64 bits (line 4).',
        "log.jsonl: 1 value was left out: too large for a number of 64 bits (loss).",
    ]
    state = {"global_step": 7, "log_history": [json.loads(line) for line in GOOD.splitlines()]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state).replace("7", DIGITS))
    assert find.load(tmp_path / "trainer_state.json").loss["loss"].last == 0.25


def test_numbers_of_five_thousand_digits_in_names(tmp_path):
    keys = [f"arturo/{DIGITS}/eta", f"arturo/layer/b{DIGITS}/kl_share", "arturo/layer/b2/kl_share", "loss"]
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, **dict.fromkeys(sorted(keys), 0.5)}) + "\n")
    assert list(find.load(tmp_path).layers) == ["b2", f"b{DIGITS}"]
    assert main([str(tmp_path)]) == 0


ODD = ["\ud800", "\udfff\udc00", "\0", "\x1b[31m", "\n", "\u2028", "[bold]", "$\\frac{", "</script>", "x" * 100_000]


def test_names_and_values_that_no_page_holds(tmp_path, capsys):
    record: dict = {"step": 1, "loss": 0.5}
    for index, odd in enumerate(ODD):
        record |= {f"eval_{odd}_loss": 2.0, f"lr-{odd}": 1e-3, f"arturo/{odd}": 7.0, odd: odd}
        record |= {f"arturo/layer/{odd}{index}/kl_share": 0.1}
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    assert main([str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    text = (tmp_path / "arturo_report.html").read_text(encoding="utf-8")
    assert not any(letter in text for letter in "\0\x1b")
    assert "</script>" not in text
    assert {"loss", "learning_rate"} <= set(read_page(text).images)
    found = find.load(tmp_path)
    assert [numbers["kl_share"].last for numbers in found.layers.values()] == [0.1] * len(ODD)
    assert "eval_</script>_loss" in found.validation


def test_a_file_name_that_is_no_text(tmp_path, capsys):
    name = os.fsdecode(b"r\xff\n\x1b[31mun.jsonl")
    (tmp_path / name).write_text(GOOD)
    assert main([str(tmp_path)]) == 0
    assert "r\ufffd\ufffd\ufffd[31mun.jsonl (JSON lines), steps 1 to 2" in capsys.readouterr().out
    assert main([str(tmp_path), "--list"]) == 0
    assert capsys.readouterr().out.startswith("r\ufffd\ufffd\ufffd[31mun.jsonl")
    assert find.load(tmp_path, name).loss["loss"].last == 0.25


def test_a_message_is_one_short_line(tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "x\n" * 500_000: 1}) + "\n")
    assert len(said(capsys, tmp_path)) < 1000
    (tmp_path / "metrics.csv").write_text(",".join(["x" * 100_000] * 9) + "\n")
    assert len(said(capsys, tmp_path / "metrics.csv")) < 1000


def test_damaged_event_files_are_read_up_to_there_and_named(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 11):
            writer.add_scalar("loss", 1.0 / step, step)
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    middle = len(content) // 2
    for harm in (content[:middle], content[:middle] + b"\xff" * 9 + content[middle + 9 :]):
        events.write_bytes(harm)
        found = find.load(tmp_path)
        steps = found.loss["loss"].steps.tolist()
        assert steps == list(range(1, len(steps) + 1))
        assert 2 < len(steps) < 8
        assert any(f"{events.name}: read up to byte" in note for note in found.notes)
    (tmp_path / "events.out.tfevents.0.garbage").write_bytes(b"\0\1 no events" * 50)
    os.mkfifo(tmp_path / "events.out.tfevents.2.pipe")
    events.write_bytes(content)
    found = find.load(tmp_path)
    assert found.loss["loss"].values.tolist() == pytest.approx([1 / step for step in range(1, 11)])
    told = " ".join(found.notes)
    assert "events.out.tfevents.0.garbage: TensorBoard cannot read any event of it" in told
    assert "events.out.tfevents.2.pipe is a pipe" in told
    os.remove(events)
    assert "cannot read any event" in said(capsys, tmp_path)


def test_a_resumed_run_takes_back_the_steps_it_repeats(tmp_path):
    """As TensorBoard shows it: what the first run logged after the step of resumption is gone."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for begin, end, purge in ((1, 9, None), (5, 7, 5)):
        with SummaryWriter(str(tmp_path), purge_step=purge, filename_suffix=f".{begin}") as writer:
            for step in range(begin, end):
                writer.add_scalar("loss", begin + step, step)
    first, second = sorted(tmp_path.iterdir(), key=lambda path: path.suffix)
    first.rename(tmp_path / "events.out.tfevents.1")
    second.rename(tmp_path / "events.out.tfevents.2")
    series = find.load(tmp_path).loss["loss"]
    assert dict(zip(series.steps, series.values, strict=True)) == {1: 2, 2: 3, 3: 4, 4: 5, 5: 10, 6: 11}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(LOGS),
    st.one_of(
        st.binary(max_size=300),
        st.text(st.characters(exclude_categories=()), max_size=100).map(lambda text: text.encode(errors="replace")),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4),
                st.dictionaries(st.sampled_from(["step", "loss", "log_history", "arturo/eta", "x"]), inner),
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_any_content_is_a_run_or_an_error(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    told = None
    try:
        found = find.load(path)
    except ReportError as error:
        told = str(error)
    assert str(path) in told if told else found.all_series()


def test_an_unfinished_file_has_a_name_that_nobody_guesses(tmp_path, monkeypatch):
    seen, really = [], os.open

    def watched(path, flags, *arguments, **more):
        seen.append((Path(path), flags))
        return really(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", watched)
    for content in (b"one", b"two"):
        write_whole(tmp_path / "page.html", content)
        assert (tmp_path / "page.html").read_bytes() == content
    names = [path.name for path, _ in seen]
    assert len(set(names)) == 2
    for (path, flags), name in zip(seen, names, strict=True):
        assert path.parent == tmp_path
        assert flags & os.O_EXCL
        assert len(name) >= 32
        assert str(os.getpid()) not in name.split(".")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_page_has_the_mode_of_any_new_file_and_keeps_that_of_the_old(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "page.html", b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o640
    (tmp_path / "page.html").chmod(0o604)
    write_whole(tmp_path / "page.html", b"two")
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o604
