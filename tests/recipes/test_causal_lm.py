"""`recipes.finetune_causal_lm`: text, order, checkpoints, and whole runs under `accelerate launch`, resumed exactly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from limits import HANGS
from safetensors.torch import load_file

from recipes import finetune_causal_lm
from recipes.causal_lm import checkpoints, data
from recipes.causal_lm.model import Bytes
from recipes.causal_lm.options import parse
from recipes.text.errors import InputError

ROOT = Path(__file__).parents[2]
RUN = ["--steps", "8", "--checkpoint-every", "3", "--keep", "9", "--eval-every", "4", "--batch-size", "8"]
RUN += ["--accumulate", "2", "--block", "32", "--eval-blocks", "15"]


def launch(processes: int, *arguments: Any) -> None:
    """The recipe under `accelerate launch`, on CPUs and without a network."""
    nowhere = "http://127.0.0.1:9"
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
    }
    several = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes), *several]
    command += ["-m", "recipes.finetune_causal_lm", *map(str, (*RUN, *arguments))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-5000:]


def inside(*arguments: Any) -> int:
    """The recipe in this process."""
    from accelerate.state import AcceleratorState, GradientState

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return finetune_causal_lm.main(list(map(str, (*RUN, *arguments))))
    finally:
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def assert_same_run(found: Path, expected: Path) -> None:
    """Logs and weights, bit for bit."""
    assert results(found)["history"] == results(expected)["history"]
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (found, expected))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def interrupted(whole: Path, folder: Path, step: int) -> Path:
    """The folder of a run as it was when a step had been saved, and while the next checkpoint was being written."""
    kept = checkpoints.folder(Path("."), step)
    shutil.copytree(whole / kept, folder / kept)
    later = checkpoints.folder(Path("."), step + 3)
    shutil.copytree(whole / later, folder / later, ignore=shutil.ignore_patterns(checkpoints.MARK))
    return folder


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on one process, on two, and the latter taken up again after its first checkpoint."""
    folder = tmp_path_factory.mktemp("launched")
    launch(1, "--output", folder / "one")
    launch(2, "--output", folder / "two")
    interrupted(folder / "two", folder / "resumed", 3)
    launch(2, "--output", folder / "resumed", "--resume")
    return {name: folder / name for name in ("one", "two", "resumed")}


def test_a_launched_run_writes_everything(launched):
    content = results(launched["one"])
    assert (content["step"], content["processes"], content["settings"]["optimizer"]) == (8, 1, "arturo")
    assert [entry["step"] for entry in content["history"]] == list(range(9))
    assert [entry["step"] for entry in content["history"] if "eval_loss" in entry] == [0, 4, 8]
    assert content["history"][-1]["eval_loss"] < content["history"][0]["eval_loss"]
    assert 0 < content["history"][-1]["arturo/kl_ratio"] <= 1.001
    assert (launched["one"] / "curves.png").stat().st_size > 10_000


def test_two_processes_train_on_the_same_batches_as_one(launched):
    one, two = (results(launched[name]) for name in ("one", "two"))
    assert two["processes"] == 2
    for ours, theirs in zip(two["history"], one["history"], strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs.keys() & {"loss", "eval_loss", "lr", "arturo/kl_bound"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4)


def test_a_run_on_two_processes_resumes_bit_for_bit(launched):
    assert_same_run(launched["resumed"], launched["two"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of a few thousand weights, with dropout, its tokenizer, and a text, in a folder."""
    from transformers import BertTokenizerFast, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(40))]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=45, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    (folder / "text.txt").write_text(" ".join(str(number * number % 40) for number in range(12_000)))
    return folder


@pytest.mark.parametrize("optimizer", ["arturo", "adamw"])
def test_a_pretrained_model_with_dropout_stops_and_resumes_bit_for_bit(optimizer, tmp_path, tiny, capsys):
    arguments = ["--model", tiny, "--data", tiny / "text.txt", "--optimizer", optimizer, "--lr", "1e-2"]
    arguments += ["--weight-decay", "0.1"]
    assert inside(*arguments, "--output", tmp_path / "whole") == 0
    assert inside(*arguments, "--output", tmp_path / "parts", "--stop-after", 4) == 0
    assert "stopped after step 4" in capsys.readouterr().out
    assert not (tmp_path / "parts" / "metrics.json").exists()
    more = ["--resume", "--against", tmp_path / "whole"]
    assert inside(*arguments, "--output", tmp_path / "parts", *more) == 0
    said = capsys.readouterr().out
    assert "resumed from step 3" in said
    assert said.count(f"{optimizer}, lr 0.01") == 2
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert any("arturo/eta" in entry for entry in results(tmp_path / "whole")["history"]) == (optimizer == "arturo")
    settings = results(tmp_path / "whole")["settings"]
    assert settings["max_grad_norm"] == (0.0 if optimizer == "arturo" else 1.0)


def test_mistakes_are_one_line(tmp_path, tiny, capsys):
    def error(*arguments: Any) -> str:
        assert inside("--output", tmp_path / "none", *arguments) == 2
        return capsys.readouterr().err

    assert "no such file" in error("--data", tmp_path / "absent.txt")
    assert "give a multiple of 3" in error("--accumulate", 3)
    assert "has no complete checkpoint; start without --resume" in error("--resume")
    assert "give the --output of a finished run" in error("--against", tmp_path)
    (tmp_path / "short.txt").write_text("short")
    assert "lower --block" in error("--data", tmp_path / "short.txt")


def test_other_settings_cannot_be_resumed(tmp_path):
    path = checkpoints.folder(tmp_path, 3)
    path.mkdir(parents=True)
    settings = parse([]).settings()
    (path / checkpoints.MARK).write_text(json.dumps({"format": checkpoints.FORMAT, "settings": settings}))
    checkpoints.folder(tmp_path, 6).mkdir()  # interrupted while it was written
    assert checkpoints.find(tmp_path, settings) == path
    with pytest.raises(InputError, match=r"cannot be resumed: lr was 0\.001, now 0\.1"):
        checkpoints.find(tmp_path, parse(["--lr", "0.1"]).settings())


def test_the_order_is_one_permutation_an_epoch_in_whole_steps():
    order = data.Order(rows=22, batch_size=4, seed=0)
    epochs = []
    for order.epoch in (0, 1, 0):
        epochs.append(list(order))
    assert epochs[0] == epochs[2] != epochs[1]
    assert all(len(set(epoch)) == len(epoch) == len(order) == 20 for epoch in epochs)
    assert list(data.Order(rows=22, batch_size=4, seed=1)) != epochs[0]


def test_texts_become_disjoint_blocks_with_an_end_after_each():
    texts = {"train": [f"text {number}" for number in range(100)]}
    parts = data.split(texts["train"])
    assert sorted(parts["train"] + parts["validation"]) == sorted(texts["train"])
    assert 4 <= len(parts["validation"]) <= 6
    blocks = data.blocks(texts, Bytes(), size=10, held_out=2)
    assert blocks.parts["validation"].shape == (2, 10)
    first = bytes(token for token in blocks.parts["train"].flatten().tolist() if token < 256)
    assert first.startswith("".join(parts["train"][:3]).encode())
    assert int((blocks.parts["train"] == Bytes.eos_token_id).sum()) in (len(parts["train"]) - 1, len(parts["train"]))


def test_one_long_text_is_held_out_in_pieces():
    text = "".join(chr(ord("a") + number % 26) for number in range(1000))
    parts = data.split([text])
    assert sum(map(len, parts["train"])) + sum(map(len, parts["validation"])) == len(text)
    assert len(parts["validation"]) > 1


def test_packaged_texts_and_tables(tmp_path):
    assert sum(map(len, data.read("python")["train"])) > 1_000_000
    assert sum(map(len, data.read("dialogue")["train"])) > 1_000_000
    (tmp_path / "own.jsonl").write_text('{"body": "one"}\n{"body": "two"}')
    assert data.read(str(tmp_path / "own.jsonl"), "body") == {"train": ["one", "two"]}
    with pytest.raises(InputError, match=r"no column 'text'; choose one of these with --text-column: body"):
        data.read(str(tmp_path / "own.jsonl"))
