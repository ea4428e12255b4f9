"""Installed, the package gives every Trainer a monitor; one process sees it all, without an import that helps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from limits import HANGS

pytest.importorskip("lightning")
tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).parents[2]
GROUP = "lightning.pytorch.callbacks_factory"

SCRIPT = """
import json, os, sys
import torch
from lightning.pytorch import LightningModule, Trainer

class Module(LightningModule):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, torch.nn.Linear(4, 1)

    def training_step(self, rows, index):
        return self.layer(rows[0]).square().mean()

    def configure_optimizers(self):
        if self.kind == "AdamW":
            return torch.optim.AdamW(self.parameters())
        from arturo_core import Arturo
        return Arturo(self.parameters())

def fit(kind, callbacks=None):
    rows = torch.utils.data.TensorDataset(torch.ones(6, 4))
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, logger=False)
    trainer = Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=2, callbacks=callbacks, **quiet)
    trainer.fit(Module(kind), torch.utils.data.DataLoader(rows, batch_size=1))
    ours = sorted(key for key in trainer.callback_metrics if key.startswith("arturo/"))
    monitors = [type(one).__name__ for one in trainer.callbacks if "Monitor" in type(one).__name__]
    return {"monitors": monitors, "keys": ours, "arturo_core": "arturo_core" in sys.modules}

found = {"AdamW": fit("AdamW"), "Arturo": fit("Arturo")}
os.environ["ARTURO_MONITOR"] = "0"
found["switched off"] = fit("Arturo")
from arturo_integrations.lightning import ArturoMonitor
found["own, switched off"] = fit("Arturo", [ArturoMonitor(per_layer=True)])
del os.environ["ARTURO_MONITOR"]
found["own"] = fit("Arturo", [ArturoMonitor(per_layer=True)])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Trainers did with the entry points of ``pyproject.toml`` in installed metadata, and nothing else of ours."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / "arturo_optim-99.dist-info"  # before an installation of the same name
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 99\n")
    lines = [f"{name} = {target}" for name, target in project["entry-points"][GROUP].items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    environment = {name: value for name, value in os.environ.items() if name != "ARTURO_MONITOR"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env={**environment, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_other_optimizers_notice_nothing(found):
    assert found["AdamW"] == {"monitors": ["ArturoMonitor"], "keys": [], "arturo_core": False}


def test_an_arturo_is_logged_without_a_line_of_code(found):
    assert found["Arturo"]["monitors"] == ["ArturoMonitor"]
    assert {"arturo/eta", "arturo/kl_ratio", "arturo/steps"} <= set(found["Arturo"]["keys"])
    assert not [key for key in found["Arturo"]["keys"] if "layer" in key]


def test_it_can_be_switched_off(found):
    assert found["switched off"] == {"monitors": [], "keys": [], "arturo_core": True}
    assert found["own, switched off"] == {"monitors": ["ArturoMonitor"], "keys": [], "arturo_core": True}


def test_an_own_monitor_takes_its_place(found):
    assert {"arturo/eta", "arturo/layer/layer.weight/kl"} <= set(found["own"]["keys"])
