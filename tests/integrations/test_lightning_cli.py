"""LightningCLI builds Arturo by its name and by its path, and its help says what every option is."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from limits import HANGS

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import docstring_parser
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from lightning_problem import loader, network, squares

from arturo_core import Arturo

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*does not have many workers.*",
    "ignore:No seed found.*",
    "ignore::DeprecationWarning:lightning.pytorch.cli",
)

ROOT = Path(__file__).parents[2]
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
OPTIONS = [name for name in inspect.signature(Arturo).parameters if name != "params"]

SCRIPT = """
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI

class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, rows, index):
        return self.layer(rows[0]).square().mean()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(6, 4)), batch_size=2)

defaults = dict(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
cli = LightningCLI(Module, trainer_defaults=defaults, save_config_callback=None)
(optimizer,) = cli.trainer.optimizers
print("built", type(optimizer).__name__, optimizer.param_groups[0]["lr"], optimizer.diagnostics()["steps"])
"""


def start(first: str, *arguments: str) -> subprocess.Popen[str]:
    """A program of a user's."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", first + SCRIPT, "fit", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_programs_name_it_in_one_word_after_an_import_and_by_its_path_without():
    programs = [
        start("import arturo_integrations.lightning", "--optimizer=Arturo", "--optimizer.lr=3e-3"),
        start("", "--optimizer=arturo_core.Arturo", "--optimizer.lr=3e-3"),
    ]
    for program in programs:
        out, errors = program.communicate(timeout=HANGS)
        assert program.returncode == 0, errors
        assert out.splitlines()[-1] == "built Arturo 0.003 3"


class Fed(LightningModule):
    """Without a ``configure_optimizers``: the command line's optimizer trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, rows: Any, index: int) -> Any:
        return squares(self.network, rows)

    def train_dataloader(self) -> Any:
        return loader()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LightningCLI]:
    """Runs a command line in this process."""

    def run(*arguments: str) -> LightningCLI:
        monkeypatch.setattr(sys, "argv", ["program", "fit", *arguments])
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, **QUIET}
        return LightningCLI(Fed, trainer_defaults=defaults, save_config_callback=None)

    return run


@pytest.fixture
def printed(command: Callable[..., LightningCLI], capsys: Any) -> Callable[..., str]:
    """What a command line prints that trains nothing."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            command(*arguments)
        assert not ended.value.code
        return str(capsys.readouterr().out)

    return run


def words(text: str) -> str:
    return " ".join(text.split())


def test_help_says_what_every_option_is(printed):
    text = words(printed("--optimizer.help=arturo_core.Arturo"))
    documented = {param.arg_name: words(param.description) for param in docstring_parser.parse(Arturo.__doc__).params}
    for name in OPTIONS:
        (section,) = re.findall(rf" --optimizer\.{name} [A-Z_{{a-z,}}]+ (.*?\(type: .*?\))(?= --optimizer| $|$)", text)
        # The help breaks lines at hyphens too.
        assert documented[name].replace(" ", "") in section.replace(" ", ""), name
        assert "default:" in section, name


def test_every_option_can_be_set_and_a_printed_configuration_is_the_same_run(command, printed, tmp_path):
    options = {
        "weight_decay": 0.1,
        "trust_region": "kl",
        "noise": "fixed",
        "lr": 0.01,
        "kl_rtol": 1e-2,
        "temperature": 0.5,
        "state_dtype": "float64",
        "maximize": "true",
    }
    given = [f"--optimizer.{name}={value}" for name, value in options.items()]
    text = printed("--optimizer=arturo_core.Arturo", *given, "--print_config")
    (tmp_path / "config.yaml").write_text(text)
    for arguments in (["--optimizer=arturo_core.Arturo", *given], [f"--config={tmp_path / 'config.yaml'}"]):
        optimizer = command(*arguments).trainer.optimizers[0]
        assert isinstance(optimizer, Arturo)
        assert optimizer.defaults == {"lr": 0.01, "weight_decay": 0.1, "maximize": True, "momentum": 0.0}
        chosen = optimizer.options
        assert (chosen.trust_region, chosen.noise, chosen.kl_rtol, chosen.temperature) == ("kl", "fixed", 1e-2, 0.5)
        assert chosen.state_dtype == torch.float64
        assert optimizer.diagnostics()["steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizer.noise=laplace"], "laplace"),
        (["--optimizer.learning_rate=1"], "learning_rate"),
        (["--optimizer.lr=fast"], "fast"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(arguments, said, command, capsys):
    with pytest.raises(SystemExit) as ended:
        command("--optimizer=arturo_core.Arturo", *arguments)
    assert ended.value.code
    assert said in capsys.readouterr().err
