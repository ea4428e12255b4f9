"""What no run could use ends a recipe at its start: one line that says what to do, status 2, nothing trained."""

from __future__ import annotations

import os
import socket

import pytest

pytest.importorskip("lightning")

import torch
from limits import no_hang

from recipes import finetune_causal_lm, finetune_text, hub, lightning_image
from recipes.benchmarks import gpu, step_cost
from recipes.benchmarks.quality import __main__ as quality
from recipes.benchmarks.scaling import __main__ as scaling

NOT_NUMBERS = ["nan", "abc", "", "\0", "1e400", "-inf", "-1", "9" * 5000]
NOT_COUNTS = [*NOT_NUMBERS, "0", "0.5", "inf", "99999999999999999999"]
NOT_RATES = [*NOT_NUMBERS, "0", "inf"]
NOT_AMOUNTS = [*NOT_NUMBERS, "inf"]
#: What arTuRO refuses, and with which no other optimizer learns.
NOT_LEARNING_RATES = [*NOT_RATES, "1e-200", "1.1e6", "1e30", "1e300"]
NOT_DECAYS = [*NOT_AMOUNTS, "1.1e6", "1e30", "1e300"]
NOT_SHARES = [*NOT_AMOUNTS, "1", "2"]
NOT_SEEDS = [*NOT_NUMBERS, "0.5", "inf", "4294967296"]

#: Every option that takes a number, by recipe, and what it cannot take.
NUMBERS = {
    finetune_text: {
        "--lr": NOT_LEARNING_RATES,
        "--epochs": NOT_RATES,
        "--max-steps": NOT_COUNTS,
        "--weight-decay": NOT_DECAYS,
        "--max-grad-norm": NOT_AMOUNTS,
        "--warmup": NOT_SHARES,
        "--batch-size": NOT_COUNTS,
        "--max-length": [*NOT_COUNTS, "1"],
        "--validation-size": NOT_COUNTS,
        "--test-size": NOT_COUNTS,
        "--split-seed": NOT_SEEDS,
        "--seeds": NOT_SEEDS,
        "--eval-every": NOT_COUNTS,
        "--threads": NOT_COUNTS,
    },
    finetune_causal_lm: {
        "--lr": NOT_LEARNING_RATES,
        "--steps": NOT_COUNTS,
        "--weight-decay": NOT_DECAYS,
        "--max-grad-norm": NOT_AMOUNTS,
        "--warmup": NOT_SHARES,
        "--batch-size": NOT_COUNTS,
        "--block": [*NOT_COUNTS, "1"],
        "--accumulate": NOT_COUNTS,
        "--seed": NOT_SEEDS,
        "--eval-every": NOT_COUNTS,
        "--eval-blocks": NOT_COUNTS,
        "--checkpoint-every": NOT_COUNTS,
        "--keep": NOT_COUNTS,
        "--stop-after": NOT_COUNTS,
    },
    lightning_image: {
        "--train-rows": NOT_COUNTS,
        "--validation-rows": NOT_COUNTS,
        "--split-seed": NOT_SEEDS,
        "--weight-decay": NOT_DECAYS,
        "--warmup": NOT_SHARES,
        "--epochs": NOT_COUNTS,
        "--batch-size": NOT_COUNTS,
        "--seeds": NOT_SEEDS,
        "--checkpoint-every": NOT_COUNTS,
        "--stop-after": NOT_COUNTS,
        "--threads": NOT_COUNTS,
    },
    step_cost: {"--rounds": NOT_COUNTS, "--threads": NOT_COUNTS},
    gpu: {"--rounds": NOT_COUNTS},
    scaling: {"--ranks": NOT_COUNTS, "--set": ["mfu=nan", "mfu=0", "mfu=-1", "mfu", "gpus_per_node=0.5"]},
    quality: {
        "--jobs": NOT_COUNTS,
        "--budget": NOT_COUNTS,
        "--extension": [*NOT_NUMBERS, "0.5"],
        "--max-minutes": NOT_RATES,
        "--seeds": [*NOT_SEEDS, "0"],
    },
}
RECIPES = [(recipe, option) for recipe, options in NUMBERS.items() for option in options]


def name(recipe):
    return recipe.__name__.removesuffix(".__main__").rpartition(".")[2]


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch):
    """Were anything trained or measured, the test would fail."""

    def trains(*arguments, **options):
        raise AssertionError("training has begun")

    monkeypatch.setattr(torch.optim.Optimizer, "step", trains)
    monkeypatch.setattr(torch.Tensor, "backward", trains)
    monkeypatch.setattr("recipes.benchmarks.scaling.measure.measure", trains)
    with no_hang():
        yield


@pytest.fixture(autouse=True)
def _no_hub_is_asked(monkeypatch):
    """Hugging Face's libraries may be imported already, and ready to ask for half a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("local", "found", "proxy", "expected"),
    [
        (True, True, None, "1"),
        (False, True, None, None),
        (False, False, None, "1"),
        (False, False, "http://proxy:3128", None),
    ],
)
def test_a_hub_that_cannot_be_reached_is_not_asked(local, found, proxy, expected, monkeypatch):
    asked = []

    def look_up(host, port):
        asked.append(host)
        if not found:
            raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": proxy} if proxy else {})
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:8000/a")
    monkeypatch.setenv(hub.OFFLINE, "")  # whatever it was comes back
    monkeypatch.delenv(hub.OFFLINE)
    hub.choose(local)
    assert os.environ.get(hub.OFFLINE) == expected
    assert asked == ([] if local or proxy else ["hub.example"])
    monkeypatch.setenv(hub.OFFLINE, "0")
    hub.choose(True)
    assert os.environ[hub.OFFLINE] == "0"


@pytest.fixture
def said(capsys):
    """The one line that a recipe ends with; its status is 2."""

    def run(recipe, *arguments):
        capsys.readouterr()
        given = ["run", "--short", "--dry-run"] if recipe is quality else []
        try:
            status = recipe.main([*given, *map(str, arguments)])
        except SystemExit as ended:
            status = ended.code
        (line,) = capsys.readouterr().err.splitlines()
        assert status == 2
        assert line.startswith("error: ")
        assert len(line) < 1200
        return line

    return run


def test_every_option_with_a_number_is_listed_above():
    """A new option has to be tried too."""
    from recipes.causal_lm import options as causal
    from recipes.image import options as image
    from recipes.text import options as text

    for recipe, module in ((finetune_text, text), (finetune_causal_lm, causal), (lightning_image, image)):
        parser_of: list = []

        class Seen(module.Parser):
            def __init__(self, seen=parser_of, **settings):
                super().__init__(**settings)
                seen.append(self)

        patch = pytest.MonkeyPatch()
        with patch.context() as patched:
            patched.setattr(module, "Parser", Seen)
            module.parse([])
        named = ("listing", "rate_for", "path", None)
        numbers = {
            action.option_strings[-1]
            for action in parser_of[0]._actions
            if action.nargs != 0 and getattr(action.type, "__name__", None) not in named
        }
        assert numbers == set(NUMBERS[recipe])


@pytest.mark.parametrize(("recipe", "option"), RECIPES, ids=[f"{name(recipe)} {option}" for recipe, option in RECIPES])
def test_numbers_that_no_run_can_use(recipe, option, said):
    for value in NUMBERS[recipe][option]:
        line = said(recipe, f"{option}={value}")
        assert value[:20].replace("\0", "\\x00") in line
        assert option in line or option == "--set"


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        (finetune_text, ["--learning_rate", "1"], "unknown option --learning_rate"),
        (finetune_text, ["--epoch", "0"], "unknown option --epoch; did you mean --epochs?"),
        (finetune_text, ["--epochs", "1e300"], "--epochs 1e+300 are"),
        (finetune_text, ["--lr-for", "arturo"], "give OPTIMIZER=LR"),
        (finetune_text, ["--lr-for", "arturo=nan"], "--lr-for arturo=nan: give a positive learning rate"),
        (finetune_text, ["--lr-for", "arturo=inf"], "give a positive learning rate"),
        (
            finetune_text,
            ["--lr-for", "adamw=1e300"],
            "adamw=1e+300: give a positive learning rate from",
        ),
        (finetune_text, ["--text-column", "label"], "--text-column label says nothing about --data trec6"),
        (finetune_text, ["--label-column", "x"], "--label-column x says nothing about --data trec6"),
        (finetune_text, ["--data", "a.csv", "--data-config", "x"], "--data-config x says nothing about --data a.csv"),
        (finetune_causal_lm, ["--text-column", "label"], "--text-column label says nothing about --data python"),
        (finetune_causal_lm, ["--data", "a.TXT", "--text-column", "x"], "says nothing about --data a.TXT"),
        (finetune_text, ["--lr-for", "arturro=1"], "not among --optimizers; did you mean arturo?"),
        (finetune_text, ["--optimizers", ","], "need at least one entry"),
        (finetune_text, ["--output", ""], "an empty name"),
        (finetune_causal_lm, ["--step", "3"], "did you mean --steps?"),
        (finetune_causal_lm, ["--optimizer", "lion"], "invalid choice: 'lion'"),
        (finetune_causal_lm, ["--schedule", "cosin"], "--schedule cosin: choose of"),
        (finetune_causal_lm, ["--schedule", "reduce_lr_on_plateau"], "needs more than this recipe gives it"),
        (finetune_causal_lm, ["--schedule", "reduce_lr_on_plateau"], "): choose of linear, cosine, "),
        (finetune_causal_lm, ["--log-with", "tensorbord"], "did you mean tensorboard?"),
        (lightning_image, ["--optimizer", "adamww"], "choose of arturo, adamw, adam, sgd; did you mean adamw?"),
        (lightning_image, ["--lr", "1"], "unknown option --lr"),
        (lightning_image, ["--lr-for", "arturo=inf"], "give a positive learning rate"),
        (lightning_image, ["--lr-for", "arturo=1e30"], "give a positive learning rate from 1e-100 to 1e+06"),
        (lightning_image, ["--optimizer", "sgd", "--lr-for", "sgd=1e30"], "give a positive learning rate"),
        (step_cost, ["--optimizers", "Artur"], "did you mean Arturo?"),
        (step_cost, ["--optimizers", ","], "at least one entry"),
        (step_cost, ["--json", "/dev/null/a.json", "--rounds", "2"], "--json /dev/null cannot be written to"),
        (gpu, ["--sets", "110m"], "did you mean 110M?"),
        (gpu, ["--optimizers", ","], "at least one entry"),
        (gpu, ["--rounds", "1"], "--rounds must be at least 2"),
        (step_cost, ["--rounds", "1"], "--rounds must be at least 2"),
        (scaling, ["--set", "mffu=1"], "mffu is none of the assumptions"),
        (scaling, ["--records", "/dev/zero"], "/dev/zero is no file to read"),
        (scaling, ["--records", "/dev/null"], "/dev/null is no file to read"),
        (scaling, ["--records", "absent"], "absent cannot be read"),
        (scaling, ["--out", "/dev/null/a"], "--out /dev/null/a cannot be written to"),
        (quality, ["--optimizers", "artur"], "did you mean arturo?"),
        (quality, ["--tasks", "trek"], "did you mean trec?"),
        (quality, ["--results", "/dev/full"], "--results /dev/full is no file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else getattr(value, "__name__", ""),
)
def test_names_that_no_run_knows(recipe, arguments, message, said):
    assert message in said(recipe, *arguments)


def test_a_report_without_records_or_place(tmp_path, capsys):
    (tmp_path / "records.jsonl").write_text("nonsense\n")
    for arguments, message in (
        (["--results", tmp_path / "absent.jsonl"], "there is no such file of records"),
        (["--results", tmp_path / "records.jsonl"], "no record of this benchmark"),
        (["--readme", tmp_path / "records.jsonl"], "to write between"),
        (["--out", "/dev/null/a"], "--out /dev/null/a cannot be written to"),
    ):
        assert quality.main(["report", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of a few thousand weights in a folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **shape)).save_pretrained(folder)
    (folder / "own.csv").write_text("text,label\n" + ROWS)
    (folder / "own.txt").write_text("some words " * 2000)
    return folder


ROWS = "".join(f"good {number},good\nbad {number},bad\n" for number in range(60))
DATA = {
    "no bytes": (b"", "is empty: its first line has to name the columns"),
    "no rows": (b"text,label\n", "has no row with a text and a label"),
    "Latin-1": (f"text,label\n{ROWS}schön,good\n".encode("latin-1"), "is not UTF-8 (invalid start byte"),
    "UTF-16 cut off": (f"text,label\n{ROWS}".encode("utf-16")[:-1], "begins with the mark of UTF-16 and is not"),
    "UTF-16 without a mark": (
        f"text,label\n{ROWS}".encode("utf-16-le"),
        "without a mark by iconv -f utf-16le",
    ),
    "one class": (
        b"text,label\n" + b"".join(b"a %d,x\n" % number for number in range(60)),
        "one class, 'x', in all of its 60 rows; classification needs at least two: choose the column of classes with",
    ),
    "one text": (
        b"text,label\n" + b"same,x\nsame,y\n" * 60,
        "has 1 different text(s) in 120 rows, and each counts once, with its most frequent label: that leaves",
    ),
    "one text and label": (b"text,label\n" + b"same,x\n" * 60, "one class, 'x', in all of its 60 rows"),
    "blank texts": (b"text,label\n" + b" ,x\n\t,y\n" * 60, "no row with a text and a label, blank ones aside: choose"),
    "a class a row": (
        b"text,label\n" + b"".join(b"a %d,%d\n" % (number, number) for number in range(60)),
        "has 60 classes ('0', '1', '10', …) in 60 rows, fewer than two rows a class: choose a column of classes",
    ),
    "two rows": (b"text,label\na,x\nb,y\n", "fewer than two rows a class"),
    "four rows": (b"text,label\na,x\nb,y\nc,x\nd,y\n", "leaves no rows for the test part: it has 4 rows"),
    "other columns": (b"txet,lable\na,x\n", "choose one of these with --text-column: txet, lable"),
    "NULs": (b"\0" * 100, "holds bytes of 0, which no text does"),
    "more cells": (b"text,label\na,b,c,d\n,,,,,\n", "cannot be read as csv"),
    "a longer row": (f"text,label\n{ROWS}a,b,c\n".encode(), "saw 3): put double quotes around a field with commas"),
    "longer rows": (b"text,label\n" + b"1,a,x\n2,b,y\n" * 60, "line 2: 3 cell(s) where the first line names 2: put"),
    "a shorter row": (f"text,label\n{ROWS}good\n".encode(), "line 122: 1 cell(s) where the first line names 2: put"),
    "an open quote": (b'text,label\n"a,b\n', "quotes or line breaks, and close them"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_learned(case, tmp_path, tiny, said):
    content, message = DATA[case]
    (tmp_path / "own.csv").write_bytes(content)
    given = ["--model", tiny, "--data", tmp_path / "own.csv", "--output", tmp_path / "out"]
    line = said(finetune_text, *given)
    assert message in line
    assert str(tmp_path / "own.csv") in line or "column" in line
    assert not (tmp_path / "out").exists()


def test_what_only_has_the_name_of_data(tmp_path, tiny, said):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    for name, message in {
        "pipe.csv": "is no file to read",
        "endless.csv": "is no file to read",
        "loop.jsonl": "is no file to read",
        "folder.json": "is no file to read",
        "absent.csv": "no such file",
        "deep.json": "cannot be read as json",
    }.items():
        for recipe in (finetune_text, finetune_causal_lm):
            assert message in said(recipe, "--data", tmp_path / name, "--output", tmp_path / "out")
    assert "did you mean trec6?" in said(finetune_text, "--data", "trec", "--output", tmp_path / "out")


def test_models_optimizers_and_schedules_are_tried_first(tmp_path, tiny, said):
    (tmp_path / "file").write_text("x")
    given = ["--model", tiny, "--data", tiny / "own.csv", "--output", tmp_path / "out"]
    for arguments, message in {
        ("--optimizers", "arturo,adamww"): "--optimizers adamww: choose of adamw, ",
        ("--optimizers", "arturo,adamw_bnb_8bit"): "--optimizers adamw_bnb_8bit: ",
        ("--schedule", "cosin"): "did you mean cosine?",
        ("--schedule", "cosine_with_min_lr"): "lr_scheduler_kwargs`): choose of linear, cosine, ",
        ("--optim-args", "kl_rtol=5"): "kl_rtol=5.0 must lie between 0 and 1",
        ("--optim-args", "kl_rtoll=1"): "Did you mean 'kl_rtol'?",
        ("--optim-args", "kl_rtol=1e-9"): "error: --optim-args: kl_rtol=1e-09 is finer than the sums",
        ("--optim-args", "init_covariance=1e300"): "init_covariance=1e+300 must be positive and lie in [1e-12, 1e+06]",
        ("--optim-args", "kl_bound=1e300"): "lr=1e+300 must be at most 1e+12: it is the KL bound in nats",
        ("--optim-args", "betas=(0.9,0.999)"): "error: --optim-args: betas=(0.9 is the decay rate",
        (
            "--optim-args",
            "lr=1",
        ): "error: --optim-args: lr=1: 'lr' cannot be set here; the Trainer schedules it, so set --lr",
        ("--optim-args", "learning_rate=1"): "'learning_rate' is another name of 'lr', which cannot be set here",
        ("--optim-args", "wd=1"): "it, so set --weight-decay.",
        ("--optim-args", "maximize=true"): "--optim-args: maximize=True makes the loss larger",
        ("--optim-args", "minimize=false"): "is the reverse of arTuRO's maximize. Recipes minimise: leave it out.",
        ("--max-length", "2"): "the model puts 2 tokens around it; give at least 3",
        ("--optim-args", "x" * 1_000_000): "write for example",
        ("--model", "all-MiniLM-L6"): "did you mean all-MiniLM-L6-v2?",
        ("--model", tmp_path): "give all-MiniLM-L6-v2, a folder with a model, or a hub name",
        ("--model", tmp_path / "file"): "cannot be loaded",
        ("--text-column", "label"): "are both 'label': choose two columns",
        ("--label-column", "lable"): "did you mean label?",
    }.items():
        assert message in said(finetune_text, *given, *arguments)
        assert not (tmp_path / "out").exists()
    text = ["--data", tiny / "own.txt", "--output", tmp_path / "out"]
    assert "cannot be loaded" in said(finetune_causal_lm, *text, "--model", tmp_path)
    assert "the model has 16 positions" in said(finetune_causal_lm, *text, "--model", tiny)


PLACES = ["/dev/full", "/dev/null/a", "/proc/a", "{file}", "{file}/a", "a\0b", "x" * 5000]
IN_THE_WAY = {
    finetune_text: (["metrics.json", "results.md", "curves.png"], []),
    finetune_causal_lm: (["metrics.json", "curves.png"], ["model", "checkpoints"]),
    lightning_image: (["metrics.json", "curves.png", "curves.svg", "arturo-seed0.ckpt"], ["logs", "checkpoints"]),
}


@pytest.mark.parametrize("recipe", IN_THE_WAY, ids=name)
def test_folders_are_tried_before_training(recipe, tmp_path, tiny, said):
    from image_data import write_fashion

    given = {
        finetune_text: ["--model", tiny, "--data", tiny / "own.csv"],
        finetune_causal_lm: ["--data", tiny / "own.txt", "--block", 16],
        lightning_image: ["--data", write_fashion(tmp_path), "--validation-rows", 40, "--train-rows", 50],
    }[recipe]
    given += ["--batch-size", 10]
    (tmp_path / "file").write_text("kept")
    for place in PLACES:
        line = said(recipe, *given, "--output", place.format(file=tmp_path / "file"))
        assert "--output" in line
        assert "cannot be written to" in line
        assert "choose another" in line
    files, folders = IN_THE_WAY[recipe]
    for index, way in enumerate([*files, *folders]):
        taken = tmp_path / f"taken{index}" / way
        taken.parent.mkdir()
        if way in files:
            taken.mkdir()
        else:
            taken.write_text("kept")
        assert f"{way} is " in said(recipe, *given, "--output", taken.parent)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("content", ["[]", "{", "1", '{"settings": 1}', "[" * 100_000, "\xff", '{"runs": [1]}'])
def test_records_that_are_none(content, tmp_path, tiny, said):
    (tmp_path / "metrics.json").write_bytes(content.encode("latin-1"))
    given = ["--model", tiny, "--data", tiny / "own.csv", "--output", tmp_path, "--resume"]
    assert "move it away or omit --resume" in said(finetune_text, *given)
    text = ["--data", tiny / "own.txt", "--output", tmp_path / "out"]
    assert "give --against the --output of a finished run" in said(finetune_causal_lm, *text, "--against", tmp_path)
    mark = tmp_path / "out" / "checkpoints" / "step-0000001" / "complete.json"
    mark.parent.mkdir(parents=True)
    mark.write_bytes(content.encode("latin-1"))
    assert "delete this checkpoint" in said(finetune_causal_lm, *text, "--resume")
