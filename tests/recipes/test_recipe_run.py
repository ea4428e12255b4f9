"""The recipe from end to end, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from limits import HANGS

from recipes import finetune_text

ROOT = Path(__file__).parents[2]


def start(*arguments):
    """Run the recipe in a process of its own, without a network."""
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "http_proxy": nowhere, "https_proxy": nowhere, "COLUMNS": "100"}
    command = [sys.executable, "-m", "recipes.finetune_text", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS)


def inside(*arguments):
    """Run the recipe in this process, which has imported the libraries already, on one thread."""
    threads = torch.get_num_threads()
    try:
        return finetune_text.main([*map(str, arguments), "--threads", "1"])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of a few thousand weights, and the words for a made-up task, in a folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", *map(str, range(60))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **shape)).save_pretrained(folder)
    rows = [f'"{word} {i}",{word}' for i in range(60) for word in ("good", "bad")]
    (folder / "own.csv").write_text("\n".join(["text,label", *rows]))
    records = [json.dumps({"sentence": f"{word} {i}", "class": word}) for i in range(60) for word in ("good", "bad")]
    (folder / "own.jsonl").write_text("\n".join(records))
    return folder


def test_defaults_run_offline_and_write_everything(tmp_path):
    result = start("--max-steps", 3, "--validation-size", 32, "--test-size", 48, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "run 1/2: arturo" in result.stdout
    assert "run 2/2: adamw" in result.stdout
    assert "step     3: training loss" in result.stderr + result.stdout
    assert "majority class" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.json", "results.md"]

    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["data"]["rows"] == {"train": 5381 - 80, "validation": 32, "test": 48}
    arturo, adamw = content["runs"]
    assert (arturo["optimizer"], arturo["trainer_optim"]) == ("arturo", "arturo")
    assert (adamw["optimizer"], adamw["trainer_optim"]) == ("adamw", "adamw_torch_fused")
    for run in (arturo, adamw):
        assert (run["steps"], run["seed"], run["learning_rate"]) == (3, 0, 3e-4)
        assert run["trainable_parameters"] == 22_715_526
        assert [entry["step"] for entry in run["history"] if "eval_loss" in entry] == [0, 1, 2, 3]
        assert 0 <= run["test"]["accuracy"] <= 1
        assert 0 < run["train_seconds"] < run["wall_seconds"]
        assert run["cpu_seconds"] > 0
        assert not any("test" in key for entry in run["history"] for key in entry)
    assert adamw["state_bytes"] == pytest.approx(8 * adamw["trainable_parameters"], rel=1e-4)
    assert arturo["state_bytes"] > 0

    logged = {
        run["optimizer"]: {entry["step"]: entry for entry in run["history"] if "loss" in entry}
        for run in (arturo, adamw)
    }
    for step in (2, 3):
        assert 0 < logged["arturo"][step]["arturo/kl_ratio"] <= 1.01
        assert logged["arturo"][step]["arturo/eta"] >= 2.0 * (1 - 1e-6)  # its least: a third of Newton's step
    assert not any("arturo" in key for entry in logged["adamw"].values() for key in entry)
    # Before the first step: same head, same batch, same dropout; afterwards the optimizers differ.
    assert logged["arturo"][1]["loss"] == logged["adamw"][1]["loss"]
    assert arturo["history"][0]["eval_loss"] == adamw["history"][0]["eval_loss"]
    assert logged["arturo"][3]["loss"] != logged["adamw"][3]["loss"]


def test_own_data_and_model_learn_and_resume(tmp_path, tiny, capsys):
    arguments = ["--model", tiny, "--data", tiny / "own.csv", "--epochs", 5, "--batch-size", 8, "--lr", 1e-2]
    arguments += ["--optimizers", "adamw", "--output", tmp_path]
    assert inside(*arguments) == 0
    (run,) = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert run["steps"] == 5 * 11  # 84 training rows in batches of 8
    assert run["test"]["accuracy"] > 0.9, "the label is a word of the text"
    assert run["validation"]["loss"] < run["history"][0]["eval_loss"]

    capsys.readouterr()
    assert inside(*arguments, "--resume", "--seeds", "0,1") == 0
    assert "run 1/2: adamw, seed 0: done before" in capsys.readouterr().out
    runs = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert runs[0] == run
    assert [run["seed"] for run in runs] == [0, 1]


def test_jsonl_with_guessed_columns_and_optimizer_options(tmp_path, tiny):
    arguments = ["--model", tiny, "--data", tiny / "own.jsonl", "--max-steps", 4, "--optimizers", "arturo,sgd"]
    arguments += ["--optim-args", "kl_rtol=1e-2", "--lr-for", "sgd=0.1"]
    assert inside(*arguments, "--output", tmp_path) == 0
    arturo, sgd = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert (arturo["optim_args"], sgd["optim_args"]) == ("kl_rtol=1e-2", None)
    assert (arturo["learning_rate"], sgd["learning_rate"]) == (3e-4, 0.1)


def test_a_mistake_is_one_line_without_a_traceback(tmp_path):
    result = start("--data", tmp_path / "absent.csv", "--output", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no such file")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
