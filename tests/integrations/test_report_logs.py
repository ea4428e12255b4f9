"""The logs that the report recognises, and what it says of those it cannot use."""

from __future__ import annotations

import json
import math
import os
import shutil

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from hypothesis import given, settings
from hypothesis import strategies as st
from report_logs import lightning_run, plain_run, write_lines

from arturo_integrations.report import find, run
from arturo_integrations.report.errors import ReportError

RECORDS = [{"step": step, "loss": 1.0 / step, "arturo/eta": 2.0 + step} for step in (1, 2, 3)]


def values(series):
    return dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def logged(records, key):
    return {float(record["step"]): record[key] for record in records if key in record}


def written(path, seconds):
    """Sets when a file was last written, in seconds after an arbitrary moment."""
    os.utime(path, (1e9 + seconds, 1e9 + seconds))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Trainer's output folder with two checkpoints and event files, and its log_history."""
    pytest.importorskip("transformers")
    pytest.importorskip("tensorboard")
    from tiny_trainer import tiny_dataset, tiny_trainer

    from arturo_integrations.transformers import log_layers

    folder = tmp_path_factory.mktemp("trainer") / "out"
    trainer = tiny_trainer(
        folder,
        max_steps=6,
        report_to=["tensorboard"],
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        trainer_kwargs={"eval_dataset": tiny_dataset()},
    )
    log_layers(trainer)
    working = os.getcwd()
    os.chdir(folder.parent)  # where some versions of transformers put the event files
    try:
        trainer.train()
    finally:
        os.chdir(working)
    return folder, trainer.state.log_history


@pytest.fixture(scope="module")
def lightning_folder(tmp_path_factory):
    pytest.importorskip("lightning")
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("lightning")
    lightning_run(folder)
    return folder


def test_a_trainers_newest_checkpoint_is_read(trained):
    folder, history = trained
    found = find.load(folder)
    assert found.kind == "Hugging Face Trainer"
    assert found.origin.endswith("checkpoint-6/trainer_state.json")
    assert values(found.loss["loss"]) == logged(history, "loss")
    assert values(found.validation["eval_loss"]) == logged(history, "eval_loss")
    assert values(found.learning_rate["learning_rate"]) == logged(history, "learning_rate")
    keys = {key for record in history for key in record if key.startswith("arturo/")}
    read = {f"arturo/{name}": series for name, series in found.numbers.items()}
    for layer, numbers in found.layers.items():
        read |= {f"arturo/layer/{layer}/{number}": series for number, series in numbers.items()}
    assert "arturo/layer/bert.encoder.layer.0.attention.self.query.weight/kl_share" in keys
    assert {key: values(series) for key, series in read.items()} == {key: logged(history, key) for key in keys}


def test_a_saved_state_as_far_as_the_checkpoints_comes_first(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "out")
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    own = tmp_path / "out" / "trainer_state.json"
    own.write_text(json.dumps(state))
    assert find.load(tmp_path / "out").origin == str(own)
    own.write_text(json.dumps({**state, "global_step": 5}))
    assert find.load(tmp_path / "out").origin.endswith("checkpoint-6/trainer_state.json")


def test_a_lower_checkpoint_that_is_newer_is_pointed_out(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "out")
    written(tmp_path / "out" / "checkpoint-6" / "trainer_state.json", 0)
    written(tmp_path / "out" / "checkpoint-3" / "trainer_state.json", 1000)
    found = find.load(tmp_path / "out")
    assert found.origin.endswith("checkpoint-6/trainer_state.json")
    assert any("checkpoint-3/trainer_state.json was written later" in note for note in found.notes)


def test_a_trainers_event_files_hold_the_same(trained):
    folder, history = trained
    (events,) = {path.parent for path in folder.parent.rglob("events.out.tfevents.*")}
    found = find.load(events)
    assert found.kind == "TensorBoard"
    assert values(found.loss["train/loss"]) == pytest.approx(logged(history, "loss"), rel=1e-6)
    assert values(found.validation["eval/loss"]) == pytest.approx(logged(history, "eval_loss"), rel=1e-6)
    assert values(found.learning_rate["train/learning_rate"]) == pytest.approx(logged(history, "learning_rate"))
    assert values(found.numbers["eta"]) == pytest.approx(logged(history, "arturo/eta"), rel=1e-6)


def test_lightnings_table_and_event_files_are_one_run(lightning_folder):
    found = find.load(lightning_folder)
    assert (found.name, found.kind) == ("lightning_logs/version_0", "Lightning CSVLogger")
    assert found.unread == [(str(lightning_folder / "lightning_logs" / "version_0"), "TensorBoard")]
    events = find.load(next(lightning_folder.rglob("events.out.tfevents.*")))
    assert events.kind == "TensorBoard"
    for read in (found, events):
        assert list(read.loss) == ["train_loss"]
        assert list(read.validation) == ["val_loss"]
        assert list(read.learning_rate) == ["lr-Arturo"]
        assert {"eta", "kl_ratio", "bound_active", "curvature_q50"} <= set(read.numbers)
    assert values(found.numbers["steps"]) == {1.0: 2.0, 3.0: 4.0, 5.0: 6.0, 7.0: 8.0, 9.0: 10.0, 11.0: 12.0}
    for name in found.numbers:
        assert values(events.numbers[name]) == pytest.approx(values(found.numbers[name]), rel=1e-6)
    assert set(found.layers) == set(events.layers) == {"model.weight", "model.bias"}
    assert sum(numbers["kl_share"].last for numbers in found.layers.values()) == pytest.approx(1.0)


def test_json_lines_are_read_with_their_notes(tmp_path):
    records = plain_run(20)
    path = write_lines(tmp_path / "log.jsonl", [{"event": "start"}, *records])
    found = find.load(tmp_path)
    assert values(found.loss["loss"]) == logged(records, "loss")
    assert values(found.numbers["eta"]) == logged(records, "arturo/eta")
    assert len(values(found.numbers["eta"])) == 19  # the skipped step has none
    assert found.notes == ['log.jsonl: 1 record was left out: no "step" (line 1).']
    assert values(find.load(path).loss["loss"]) == logged(records, "loss")


def test_a_half_written_last_line_is_left_out_and_said(tmp_path):
    path = write_lines(tmp_path / "log.jsonl", RECORDS)
    path.write_text(path.read_text()[:-20])
    found = find.load(tmp_path)
    assert list(values(found.loss["loss"])) == [1.0, 2.0]
    assert found.notes == [
        "log.jsonl: the last line (3) is half written and was left out: the run goes on, or stopped."
    ]


def test_a_step_that_is_logged_again_has_the_later_value(tmp_path):
    write_lines(tmp_path / "log.jsonl", [*RECORDS, {"step": 2, "loss": 7.0}, {"step": 4, "loss": 0.25}])
    assert values(find.load(tmp_path).loss["loss"]) == {1.0: 1.0, 2.0: 7.0, 3.0: 1.0 / 3, 4.0: 0.25}


def test_the_newest_of_several_runs_is_chosen_and_the_others_are_named(tmp_path):
    for age, name in enumerate(("a", "b", "sub/c")):
        written(write_lines(tmp_path / name / "log.jsonl", [{"step": 1, "loss": float(age)}]), -age)
    write_lines(tmp_path / "data.jsonl", [{"text": "no log"}])
    found = find.load(tmp_path)
    assert found.name == "a/log.jsonl"
    assert "Choose with --run: b/log.jsonl, sub/c/log.jsonl." in found.notes[0]
    assert find.load(tmp_path, "c/log.jsonl").loss["loss"].last == 2.0
    with pytest.raises(ReportError, match=r"no run is called 'd'. Choose with --run: a/log.jsonl, b/"):
        find.load(tmp_path, "d")
    with pytest.raises(ReportError, match=r"several runs end in 'log.jsonl'"):
        find.load(tmp_path, "log.jsonl")


def test_a_newest_run_without_numbers_gives_way_and_is_named(tmp_path):
    written(write_lines(tmp_path / "old.jsonl", RECORDS), 0)
    written(write_lines(tmp_path / "new.jsonl", [{"step": 1, "samples": 12}]), 10)
    found = find.load(tmp_path)
    assert found.name == "old.jsonl"
    assert found.notes[0].startswith("new.jsonl was written to later and holds nothing to show.")
    with pytest.raises(ReportError, match=r"nothing to show.*'arturo/'.*found: samples"):
        find.load(tmp_path, "new.jsonl")


BROKEN = {
    "an empty folder": ({}, "", r"no log of a training run.*trainer_state\.json.*metrics\.csv.*tfevents.*jsonl"),
    "no such folder": ({}, "missing", r"missing does not exist"),
    "an empty file": ({"a.jsonl": ""}, "a.jsonl", r"a\.jsonl: nothing to show.*found: no numbers at all"),
    "an unknown file": ({"a.bin": "x"}, "a.bin", r"a\.bin: its name is not that of a log"),
    "a broken line": ({"a.jsonl": '{"step": 1}\n{"st\n{"step": 2}\n'}, "", r"a\.jsonl, line 2: not JSON"),
    "half a line": ({"a.jsonl": '{"step": 1, "lo'}, "a.jsonl", r"line 1: not JSON.*no record before it"),
    "not records": ({"a.jsonl": "[1, 2]\n"}, "a.jsonl", r"line 1: not a record"),
    "no steps": ({"a.jsonl": '{"loss": 1}\n{"step": true}\n'}, "a.jsonl", r"none of its 2 records has a whole number"),
    "half a state": ({"trainer_state.json": '{"log_history": [{'}, "", r"trainer_state\.json is not whole JSON.*older"),
    "another state": ({"trainer_state.json": "{}"}, "", r'no list "log_history"'),
    "a young state": ({"trainer_state.json": '{"log_history": []}'}, "", r"nothing to show"),
    "another table": ({"metrics.csv": "a,b\n1,2\n"}, "", r'metrics\.csv has no column "step".*a, b'),
    "an empty table": ({"metrics.csv": ""}, "", r'metrics\.csv has no column "step".*empty'),
    "too many cells": ({"metrics.csv": "step,loss\n1,2,3\n"}, "", r"metrics\.csv, line 2: more cells"),
    "not text": ({"metrics.csv": b"\xff\xfe\x00"}, "", r"metrics\.csv is not text"),
    "no events": ({"events.out.tfevents.1.host": b"\x00\x01 no events"}, "", r"tfevents|nothing to show"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_gets_a_clear_error(case, tmp_path):
    files, at, message = BROKEN[case]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if any("tfevents" in name for name in files):
        pytest.importorskip("tensorboard")
    with pytest.raises(ReportError, match=message) as caught:
        find.load(tmp_path / at if at else tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_table_cut_off_in_its_last_row_is_read_up_to_there(tmp_path):
    (tmp_path / "metrics.csv").write_text("loss,step,val_loss\n0.5,1,\n,1,0.75\n0.25,2")
    found = find.load(tmp_path)
    assert values(found.loss["loss"]) == {1.0: 0.5, 2.0: 0.25}
    assert values(found.validation["val_loss"]) == {1.0: 0.75}


def test_event_files_cut_off_are_read_up_to_there(trained, tmp_path):
    folder, history = trained
    (events,) = folder.parent.rglob("events.out.tfevents.*")
    content = events.read_bytes()
    (tmp_path / events.name).write_bytes(content[: len(content) // 2])
    read = values(find.load(tmp_path).loss["train/loss"])
    assert 0 < len(read) < 6
    assert read == pytest.approx({step: value for step, value in logged(history, "loss").items() if step in read})


def test_values_that_are_not_finite_or_not_numbers(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"step": 1, "loss": NaN, "lr": "fast"}\n{"step": 2, "loss": -Infinity, "note": null, "lr": "0.5"}\n'
    )
    found = find.load(path)
    assert math.isnan(found.loss["loss"].values[0])
    assert found.loss["loss"].values[1] == -math.inf
    assert values(found.learning_rate["lr"]) == {2.0: 0.5}


def test_a_log_of_another_optimizer_is_shown_with_a_hint(tmp_path):
    write_lines(tmp_path / "log.jsonl", [{"step": 1, "loss": 1.0}])
    assert "arturo_metrics(optimizer)" in find.load(tmp_path).notes[0]


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1), st.sampled_from(["kl", "step_rms"]), st.sampled_from(["", "train/", "my-", "a/b_"]))
def test_layers_may_have_any_name(layer, number, prefix):
    key = f"{prefix}arturo/layer/{layer}/{number}"
    found = run.sort("", "", "", {key: {1: 0.5}}, [])
    assert {name: list(numbers) for name, numbers in found.layers.items()} == {layer: [number]}


def test_of_several_optimizers_the_first_or_the_one_asked_for_is_shown():
    columns = {f"arturo/{index}/{name}": {1: float(index)} for index in (1, 0, 10) for name in ("eta", "layer/a.0/kl")}
    for wanted, expected in ((None, 0.0), (0, 0.0), (10, 10.0)):
        found = run.sort("", "", "", columns, [], wanted)
        assert list(found.numbers) == ["eta"]
        assert found.numbers["eta"].last == found.layers["a.0"]["kl"].last == expected
        assert "--optimizer shows another" in found.notes[0]
    with pytest.raises(ReportError, match=r"no optimizer 2 was logged; found: 0, 1, 10"):
        run.sort("", "", "", columns, [], 2)


def test_the_layers_of_a_sorted_table_are_in_natural_order():
    names = [f"layers.{block}.weight" for block in range(12)]
    columns = {f"arturo/layer/{name}/kl": {1: 1.0} for name in names}
    assert list(run.sort("", "", "", columns, []).layers) == names
    alphabetical = dict(sorted(columns.items()))
    assert list(alphabetical) != list(columns)
    assert list(run.sort("", "", "", alphabetical, []).layers) == names


@pytest.mark.parametrize(
    ("keys", "loss", "validation", "lr"),
    [
        ("loss train_loss eval_loss", "loss", "eval_loss", ""),
        ("train/loss train/train_loss eval/loss", "train/loss", "eval/loss", ""),
        ("train_loss_epoch train_loss_step", "train_loss_step", "", ""),
        ("val_loss/dataloader_idx_0 val_loss_step", "", "val_loss/dataloader_idx_0", ""),
        ("val_loss_epoch eval_squad_loss eval_runtime", "", "val_loss_epoch eval_squad_loss", ""),
        ("lr-Arturo/pg1 lr-Arturo-momentum lr-Arturo-weight_decay lr", "", "", "lr-Arturo/pg1 lr"),
    ],
)
def test_losses_and_learning_rates_by_their_names(keys, loss, validation, lr):
    columns = {key: {1: 0.5} for key in keys.split()}
    found = run.sort("", "", "", columns, [])
    assert list(found.loss) == loss.split()
    assert list(found.validation) == validation.split()
    assert list(found.learning_rate) == lr.split()
