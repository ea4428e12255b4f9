"""metrics.json survives a round trip and resumes; table, Markdown and plot show what it holds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from recipes import finetune_text
from recipes.text import options as command_line
from recipes.text import report
from recipes.text.errors import InputError
from recipes.text.metrics import classification_scores, state_bytes
from recipes.text.plot import plot_curves
from recipes.text.record import Record
from recipes.text.summary import curve, mean_and_error

SETTINGS = {"model": "tiny", "batch_size": 16, "lr": 3e-4, "seeds_are_not_here": True}
DATA = {
    "name": "made up",
    "citation": "nobody",
    "label_names": ["no", "yes"],
    "rows": {"train": 80, "validation": 10, "test": 20},
    "majority": {part: {"accuracy": 0.55, "macro_f1": 0.35} for part in ("validation", "test")},
}


def made_run(optimizer="arturo", seed=0, accuracy=0.8, scale=1.0):
    history = [{"step": 0, "eval_loss": 0.7, "eval_accuracy": 0.5}]
    for step in range(1, 11):
        entry = {"step": step, "loss": scale / step}
        if optimizer == "arturo":
            entry |= {"arturo/eta": 10.0 * step, "arturo/kl_ratio": 1.0 if step > 2 else 0.4}
        history.append(entry)
    history.append({"step": 10, "eval_loss": 0.3, "eval_accuracy": accuracy})
    scores = {"loss": 0.3, "accuracy": accuracy, "macro_f1": accuracy}
    return {
        "optimizer": optimizer,
        "seed": seed,
        "learning_rate": 3e-4,
        "max_grad_norm": 0.0 if optimizer == "arturo" else 1.0,
        "steps": 10,
        "validation": scores,
        "test": scores,
        "train_seconds": 1.5,
        "state_bytes": 2400,
        "trainable_parameters": 100,
        "environment": {"versions": {"torch": "2"}, "device": "cpu", "threads": 1},
        "history": history,
    }


def made_content(tmp_path, runs):
    record = Record(tmp_path, SETTINGS, DATA)
    for run in runs:
        record.add(run)
    return record.content


def test_metrics_round_trip_keeps_every_run_and_leaves_no_other_file(tmp_path):
    record = Record(tmp_path, SETTINGS, DATA)
    assert not (tmp_path / "metrics.json").exists()
    record.add(made_run() | {"diverged": math.nan, "number": np.float32(0.5), "tensor": torch.tensor(3)})
    on_disk = json.loads((tmp_path / "metrics.json").read_text())
    assert on_disk == record.content
    assert on_disk["runs"][0]["diverged"] is None
    assert (on_disk["runs"][0]["number"], on_disk["runs"][0]["tensor"]) == (0.5, 3)
    record.add(made_run("adamw"))
    assert [run["optimizer"] for run in json.loads(record.path.read_text())["runs"]] == ["arturo", "adamw"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    record = Record(tmp_path, SETTINGS, DATA)
    record.add(made_run())
    before = record.path.read_text()

    def fail(self, text, **kwargs):
        with open(self, "w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(KeyboardInterrupt):
        record.add(made_run("adamw"))
    assert record.path.read_text() == before


def test_resume_keeps_runs_and_refuses_other_settings(tmp_path):
    Record(tmp_path, SETTINGS, DATA).add(made_run(seed=1))
    again = Record(tmp_path, SETTINGS, DATA, resume=True)
    assert again.has("arturo", 1)
    assert not again.has("arturo", 0)
    assert not again.has("adamw", 1)
    with pytest.raises(InputError, match=r"lr was 0\.0003, now 0\.001"):
        Record(tmp_path, SETTINGS | {"lr": 1e-3}, DATA, resume=True)
    with pytest.raises(InputError, match="name was 'made up', now 'another'"):
        Record(tmp_path, SETTINGS, DATA | {"name": "another"}, resume=True)


def test_without_resume_an_earlier_file_is_kept_aside(tmp_path):
    Record(tmp_path, SETTINGS, DATA).add(made_run(seed=1))
    record = Record(tmp_path, SETTINGS, DATA)
    assert record.runs == []
    assert record.path.exists(), "nothing may be lost before a new run is finished"
    record.add(made_run(seed=2))
    record.add(made_run(seed=3))
    seeds = {
        name: [run["seed"] for run in json.loads((tmp_path / name).read_text())["runs"]]
        for name in ("metrics.json", "metrics.previous.json")
    }
    assert seeds == {"metrics.json": [2, 3], "metrics.previous.json": [1]}


def test_resume_does_only_what_is_missing(tmp_path, monkeypatch):
    done = []

    def pretend(options, optimizer, seed, data):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((seed, optimizer))
        return made_run(optimizer, seed)

    monkeypatch.setattr(finetune_text, "fine_tune", pretend)
    arguments = ["--data", "sms", "--seeds", "0,1", "--output", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        finetune_text.main(arguments)
    assert done == [(0, "arturo"), (0, "adamw")]
    done[:] = [None]  # room for one more
    with pytest.raises(KeyboardInterrupt):
        finetune_text.main([*arguments, "--resume"])
    assert done == [None, (1, "arturo")]
    done.clear()
    assert finetune_text.main([*arguments, "--resume"]) == 0
    assert done == [(1, "adamw")]
    runs = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert [(run["seed"], run["optimizer"]) for run in runs] == [
        (0, "arturo"),
        (0, "adamw"),
        (1, "arturo"),
        (1, "adamw"),
    ]


def test_means_standard_errors_and_curves():
    mean, error = mean_and_error([1.0, 2.0, 3.0])
    assert (mean, error) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert math.isnan(mean_and_error([1.0])[1])
    assert math.isnan(mean_and_error([1.0, None])[0])
    steps, means, errors = curve([made_run(scale=1.0), made_run(scale=3.0)], "loss")
    np.testing.assert_array_equal(steps, np.arange(1, 11))
    np.testing.assert_allclose(means, 2 / steps)
    np.testing.assert_allclose(errors, 1 / steps)
    assert len(curve([made_run("adamw")], "arturo/eta")[0]) == 0


def test_table_and_markdown_show_each_optimizer_and_the_baseline(tmp_path):
    runs = [made_run(seed=0, accuracy=0.8), made_run(seed=1, accuracy=0.9), made_run("adamw", accuracy=0.7)]
    content = made_content(tmp_path, runs)
    rows = {row[0]: dict(zip(report.titles(), row, strict=True)) for row in report.cells(content)}
    assert list(rows) == ["arturo", "adamw", "majority class"]
    assert rows["arturo"]["test acc."] == "85.0% ± 5.0%"
    assert rows["arturo"]["bytes of state / weight"] == "24.0"
    assert rows["arturo"]["seeds"] == "2"
    assert rows["adamw"]["test acc."] == "70.0%"
    assert rows["majority class"]["test acc."] == "55.0%"
    report.write_markdown(content, tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    for expected in ("85.0% ± 5.0%", "majority class", "80 training rows", "nobody", "torch 2"):
        assert expected in text
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    report.print_table(content, console)
    shown = console.export_text()
    assert "…" not in shown, "the table does not fit an ordinary terminal"
    assert "majority class" in shown


@pytest.mark.parametrize("names", [["arturo", "adamw"], ["adamw"]])
def test_the_plot_is_a_picture_with_curves_in_it(tmp_path, names):
    from matplotlib.image import imread

    runs = [made_run(name, seed, scale=1 + seed) for seed in (0, 1) for name in names]
    plot_curves(made_content(tmp_path, runs), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(tmp_path / "curves.png")[..., :3]
    height, width = pixels.shape[:2]
    assert height >= 900
    assert width >= (1900 if "arturo" in names else 1300)

    def painted(colour, left, right):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        part = pixels[:, int(left * width) : int(right * width)]
        return int((np.abs(part - wanted).max(-1) < 0.02).sum())

    blue, vermilion = "#0072B2", "#D55E00"
    assert painted(blue, 0, 2 / 3) > 1000
    if "arturo" in names:
        assert painted(vermilion, 0, 2 / 3) > 1000
        assert painted(blue, 2 / 3, 1) > 1000, "η and the KL ratio are not drawn"
        assert painted(vermilion, 2 / 3, 1) == 0


def test_scores_and_state_bytes():
    scores = classification_scores([0, 0, 1, 2], [0, 0, 1, 1])
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    weight = torch.nn.Parameter(torch.ones(10))
    optimizer = torch.optim.AdamW([weight])
    assert state_bytes(optimizer) == 0
    weight.sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 10 * 4 + 4  # two moments and the step count


def test_options():
    parsed = command_line.parse(["--lr-for", "arturo=1e-4", "--seeds", "0,2", "--optimizers", "arturo,sgd"])
    assert (parsed.learning_rate("arturo"), parsed.learning_rate("sgd")) == (1e-4, 3e-4)
    assert parsed.runs == [(0, "arturo"), (0, "sgd"), (2, "arturo"), (2, "sgd")]
    assert parsed.offline
    assert parsed.steps(3881) == 100
    epochs = command_line.parse(["--epochs", "2", "--data", "someone/something"])
    assert epochs.steps(33) == 2 * 3
    assert not epochs.offline
    assert "seeds" not in parsed.settings()
    for wrong in (["--lr-for", "lion=1"], ["--optim-args", "a=b", "--optimizers", "adamw"], ["--batch-size", "0"]):
        with pytest.raises(SystemExit):
            command_line.parse(wrong)
