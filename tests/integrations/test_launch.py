"""python -m arturo_integrations.launch: scripts run as under python, with the name registered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest
from limits import HANGS

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch

from arturo_integrations import launch

# What a script can see of how it was started. `marker` proves that its own folder comes first.
PROBE = """
import json, os, pickle, sys
import marker

class Local:
    pass

print(json.dumps({
    "name": __name__,
    "file": __file__,
    "argv": sys.argv,
    "first_path": sys.path[0],
    "marker": marker.__file__,
    "is_main": sys.modules["__main__"].__dict__ is globals(),
    "pickles": isinstance(pickle.loads(pickle.dumps(Local())), Local),
    "package": __package__,
    "directory": os.getcwd(),
}))
"""

# An ordinary training script: nothing in it names this project.
TRAINING_SCRIPT = """
import hashlib, json, os, sys, time
import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification
from transformers import HfArgumentParser, Trainer, TrainingArguments


class Sentences(Dataset):
    def __init__(self, args):
        self.args = args  # travels to the data loader's workers

    def __len__(self):
        return 16

    def __getitem__(self, index):
        assert self.args.optim.value == "arturo"
        return {"input_ids": [(index + shift) % 32 for shift in range(6)], "labels": index % 2}


def main():
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=8)
    trainer = Trainer(BertForSequenceClassification(config), args, train_dataset=Sentences(args))
    trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    report = {
        "optimizer": type(optimizer).__name__,
        "world_size": args.world_size,
        "weights": hashlib.sha256(weights).hexdigest(),
        "logged": "arturo/eta" in trainer.state.log_history[0],
    }
    with open(os.path.join(args.output_dir, f"report-{args.process_index}.json"), "w") as file:
        json.dump(report, file)
    if torch.distributed.is_initialized():
        # Gloo's threads need the interpreter to let go of the last gathered tensor. If the model goes first, its
        # reducer waits for them and they for it, with any optimizer. Left to the interpreter's end, they abort the
        # process now and then (pytorch issue 190489).
        torch.distributed.barrier()
        time.sleep(0.5)
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def script_folder(tmp_path):
    folder = tmp_path / "project"
    package = folder / "package"
    package.mkdir(parents=True)
    (folder / "probe.py").write_text(PROBE)
    (folder / "marker.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "probe.py").write_text(PROBE)
    (package / "__main__.py").write_text(PROBE)
    (package / "marker.py").write_text("")
    return folder


@pytest.fixture
def in_process(monkeypatch):
    """Runs the launcher inside the test process, for tests of what needs no process of its own."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["launch"])
        monkeypatch.setattr(sys, "path", [os.getcwd(), *sys.path])
        monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        for name in [name for name in sys.modules if name.split(".")[0] in ("marker", "package")]:
            monkeypatch.delitem(sys.modules, name)
        launch.main([str(argument) for argument in arguments])

    return run


def python(*arguments, cwd, env=None):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


@pytest.mark.parametrize(
    "command",
    [
        ["probe.py"],
        ["probe.py", "--optim", "arturo", "-m", "--help"],
        ["package/probe.py", "one"],
        ["package", "two"],
        ["archive.zip", "three"],
        ["link.py"],
        ["-m", "probe", "--flag"],
        ["-m", "package.probe", "-m"],
        ["-m", "package"],
    ],
    ids=" ".join,
)
def test_a_script_sees_what_it_sees_under_python(script_folder, in_process, monkeypatch, capsys, command):
    with zipfile.ZipFile(script_folder / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", PROBE)
        archive.writestr("marker.py", "")
    elsewhere = script_folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "marker.py").write_text("")
    (elsewhere / "real.py").write_text(PROBE)
    (script_folder / "link.py").symlink_to(elsewhere / "real.py")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)

    reference = python(*command, cwd=script_folder)
    assert reference.returncode == 0, reference.stderr
    monkeypatch.chdir(script_folder)
    in_process(*command)
    seen, expected = json.loads(capsys.readouterr().out), json.loads(reference.stdout)
    if command[0] in ("package", "archive.zip"):  # runpy and python disagree on which paths are absolute
        for view in (seen, expected):
            view["argv"][0] = os.path.abspath(view["argv"][0])
            view.update({key: os.path.abspath(view[key]) for key in ("file", "first_path", "marker")})
    assert seen == expected


def test_main_stays_the_script_after_its_last_line(script_folder, in_process):
    in_process(script_folder / "probe.py")
    assert sys.modules["__main__"].__file__ == str(script_folder / "probe.py")


@pytest.mark.parametrize("code", [0, 3, "a message", None])
def test_exit_codes_and_exceptions_are_the_scripts_own(tmp_path, in_process, code):
    (tmp_path / "leave.py").write_text(f"import sys\nsys.exit({code!r})\n")
    with pytest.raises(SystemExit) as leave:
        in_process(tmp_path / "leave.py")
    assert leave.value.code == code
    (tmp_path / "fail.py").write_text("raise KeyError('lost')\n")
    with pytest.raises(KeyError, match="lost"):
        in_process(tmp_path / "fail.py")


def test_the_name_is_registered_before_the_first_line_of_the_script(tmp_path, in_process):
    (tmp_path / "script.py").write_text(
        "import pathlib\nfrom transformers.training_args import OptimizerNames\n"
        "pathlib.Path(__file__).with_name('seen').write_text(OptimizerNames('arturo').value)\n"
    )
    in_process(tmp_path / "script.py")
    assert (tmp_path / "seen").read_text() == "arturo"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "no script was given"),
        (["-m"], "-m needs the name of a module"),
        (["--optim", "arturo"], "unknown option '--optim'"),
        (["missing.py"], "there is no file 'missing.py'"),
    ],
)
def test_a_command_line_that_names_nothing_to_run_is_explained(capsys, arguments, problem):
    with pytest.raises(SystemExit) as leave:
        launch.main(arguments)
    assert leave.value.code == 2
    message = capsys.readouterr().err
    assert problem in message
    assert "usage: python -m arturo_integrations.launch script.py" in message


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as leave:
        launch.main(["--help"])
    assert leave.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_the_module_itself_can_be_run(tmp_path):
    run = python("-m", "arturo_integrations.launch", cwd=tmp_path)
    assert run.returncode == 2
    assert "no script was given" in run.stderr


def training_command(output_dir):
    output_dir.mkdir()
    arguments = "--optim arturo --optim_args kl_rtol=1e-2 --use_cpu true --max_steps 2 --logging_steps 1"
    arguments += " --per_device_train_batch_size 2 --save_strategy no --report_to none --disable_tqdm true"
    return ["train.py", "--output_dir", str(output_dir), *arguments.split()]


def reports(output_dir):
    return [json.loads(path.read_text()) for path in sorted(output_dir.glob("report-*.json"))]


@pytest.fixture
def training_folder(tmp_path):
    (tmp_path / "train.py").write_text(TRAINING_SCRIPT)
    return tmp_path


def test_an_unmodified_script_trains_with_spawned_data_loader_workers(training_folder):
    output = training_folder / "out"
    # The start method is the interpreter's, so the script is still unmodified.
    (training_folder / "spawning.py").write_text(
        "import multiprocessing, runpy\n"
        "if __name__ == '__main__':\n    multiprocessing.set_start_method('spawn')\n"
        "from train import *\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    _, *arguments = training_command(output)
    command = ["-m", "arturo_integrations.launch", "spawning.py", *arguments, "--dataloader_num_workers", "1"]
    run = python(*command, cwd=training_folder)
    assert run.returncode == 0, run.stderr
    (report,) = reports(output)
    assert report["optimizer"] == "Arturo"
    assert report["logged"]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_torchrun_trains_two_replicas_that_agree(training_folder):
    output = training_folder / "out"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = python(*command, "-m", "arturo_integrations.launch", *training_command(output), cwd=training_folder)
    assert run.returncode == 0, run.stderr
    first, second = reports(output)
    assert first == second
    assert first["world_size"] == 2
    assert first["optimizer"] == "Arturo"
    assert first["logged"]


def test_accelerate_launch_runs_it(training_folder):
    output = training_folder / "out"
    command = "-m accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no"
    command += " --dynamo_backend no -m arturo_integrations.launch"
    run = python(*command.split(), *training_command(output), cwd=training_folder)
    assert run.returncode == 0, run.stderr
    (report,) = reports(output)
    assert report["optimizer"] == "Arturo"
    assert report["logged"]
