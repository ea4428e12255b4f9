"""What a log holds and the report leaves out: every time it says how much, and why."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from arturo_integrations.report import find
from arturo_integrations.report.__main__ import main
from arturo_integrations.report.errors import ReportError

DIGITS = "9" * 5000


def said(capsys, path):
    """The one line that the command ends with."""
    capsys.readouterr()
    assert main([str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


GOOD_RECORDS: list[dict] = [{"step": 1, "loss": 0.5, "arturo/eta": 2.0}, {"step": 2, "loss": 0.25, "arturo/eta": 3.0}]
NO_VALUES = {
    DIGITS: "too large for a number of 64 bits",
    f"-{DIGITS}": "too large for a number of 64 bits",
    "1e999": "too large for a number of 64 bits",
    "9" * 309: "too large for a number of 64 bits",
    f'"{DIGITS}"': "too large for a number of 64 bits",
    "null": "null",
    "[1]": "a list or an object",
    "{}": "a list or an object",
    '"high"': "a text that is no number",
}


@pytest.mark.parametrize("value", NO_VALUES, ids=lambda value: value[:8])
def test_a_value_that_is_left_out_is_said_with_its_reason(value, tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [f'{{"step": {step}, "loss": 0.5, "arturo/eta": {value}, "x/arturo/kl": {value}}}' for step in (1, 2)]
    path.write_text("\n".join(lines))
    assert find.load(path).notes == [
        f"log.jsonl: 4 values were left out: {NO_VALUES[value]} (arturo/eta, x/arturo/kl).",
        "No value of arturo/eta, x/arturo/kl is a number that can be shown: there are losses and learning rate only.",
    ]
    path.write_text(f'{{"step": 1, "loss": {value}}}\n')
    with pytest.raises(ReportError, match=f"1 value was left out: {NO_VALUES[value]} ") as told:
        find.load(path)
    assert len(str(told.value)) < 1000


def test_values_at_the_edge_of_floats_are_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    values = ["1e308", "-Infinity", "Infinity", '"inf"', "-1e308", "1" + "0" * 308]
    path.write_text("".join(f'{{"step": {step}, "arturo/eta": {value}}}\n' for step, value in enumerate(values)))
    found = find.load(path)
    assert found.numbers["eta"].values.tolist() == [1e308, -math.inf, math.inf, math.inf, -1e308, 1e308]
    assert found.notes == []


NO_STEPS = {
    "1e999": "too large for a number of 64 bits",
    DIGITS: "too large for a number of 64 bits",
    "1e300": "beyond 9,007,199,254,740,992",
    "Infinity": "not finite",
    "NaN": "not finite",
    "0.5": "no whole number",
    "true": "true or false",
    '"x"': "a text that is no number",
    "[1]": "a list or an object",
}


@pytest.mark.parametrize("name", ["trainer_state.json", "metrics.csv", "log.jsonl"])
@pytest.mark.parametrize("step", NO_STEPS, ids=lambda step: step[:8])
def test_a_record_without_a_usable_step_is_said_with_its_reason(name, step, tmp_path, capsys):
    reason = "a text that is no number" if name == "metrics.csv" and step in ("true", "[1]") else NO_STEPS[step]
    path = tmp_path / name
    record = f'{{"step": {step}, "loss": 9.0}}'

    def write(good):
        if name == "metrics.csv":
            rows = [f"{one['step']},{one['loss']}\n" for one in good] + [f"{step.strip(chr(34))},9.0\n"] * 2
            path.write_text("step,loss\n" + "".join(rows))
        elif name == "log.jsonl":
            path.write_text("\n".join([*map(json.dumps, good), record, record]))
        else:
            path.write_text(f'{{"log_history": [{", ".join([*map(json.dumps, good), record, record])}]}}')

    write(GOOD_RECORDS)
    place = {"metrics.csv": "line 4", "log.jsonl": "line 3"}.get(name, "number 3 of log_history")
    found = find.load(path)
    assert found.loss["loss"].values.tolist() == [0.5, 0.25]
    assert f'{name}: 2 records were left out: a "step" that is {reason} (the first: {place}).' in found.notes
    write([])
    assert f'2 records were left out: a "step" that is {reason}' in said(capsys, path)


def test_one_bad_entry_does_not_make_a_history_none(tmp_path, capsys):
    path = tmp_path / "trainer_state.json"
    history = [None, GOOD_RECORDS[0], "x", None, GOOD_RECORDS[1], {"loss": 7.0}]
    path.write_text(json.dumps({"log_history": history}))
    found = find.load(path)
    assert found.loss["loss"].values.tolist() == [0.5, 0.25]
    assert found.notes == [
        "trainer_state.json: 2 records were left out: null (the first: number 1 of log_history).",
        "trainer_state.json: 1 record was left out: no object of names and numbers (number 3 of log_history).",
        'trainer_state.json: 1 record was left out: no "step" (number 6 of log_history).',
    ]
    path.write_text(json.dumps({"log_history": [None, None]}))
    line = said(capsys, path)
    assert 'none of its 2 records has a whole number under "step"' in line
    assert "2 records were left out: null" in line
    for content in ({}, {"log_history": None}, {"log_history": {"step": 1}}):
        path.write_text(json.dumps(content))
        assert 'has no list "log_history"' in said(capsys, path)


def test_a_diagnostic_without_a_name_is_said(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5, "arturo/": 1, "arturo/layer/a": 2}\n')
    assert find.load(tmp_path).notes == ["Left out, since the name of a number is missing: arturo/, arturo/layer/a."]


def test_a_scalar_of_tensorboards_that_is_several_is_said(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.util.tensor_util import make_tensor_proto
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 0.5, 1)
        several = Summary.Value(tag="arturo/eta", tensor=make_tensor_proto([1.0, 2.0]))
        several.metadata.plugin_data.plugin_name = "scalars"
        writer._get_file_writer().add_summary(Summary(value=[several]), 1)
    assert find.load(tmp_path).notes == [
        f"{tmp_path.name}: 1 value was left out: not one number (arturo/eta).",
        "No value of arturo/eta is a number that can be shown: there are losses and learning rate only.",
    ]
