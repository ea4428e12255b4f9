"""`recipes.lightning_image`: real Lightning runs on small data, alike for all optimizers, and resumed to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from limits import HANGS

pytest.importorskip("lightning")

import lightning
import torch
from image_data import write_cifar, write_fashion
from isolation import one_thread  # noqa: F401  (a fixture of every test here)

from recipes import lightning_image
from recipes.image import data, fashion_mnist, optimizers, published
from recipes.image.datamodule import ImageData
from recipes.image.module import ImageClassifier
from recipes.text.errors import InputError

ROOT = Path(__file__).parents[2]
SMALL = ["--train-rows", "120", "--validation-rows", "40", "--batch-size", "24", "--threads", "1"]
SMALL += ["--accelerator", "cpu"]


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fashion(tmp_path_factory.mktemp("fashion"))


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture
def folders(fashion: Path, cifar10: Path) -> dict[str, Path]:
    return {"fashion-mnist": fashion, "cifar10": cifar10}


def recipe(*arguments: Any) -> int:
    return lightning_image.main(list(map(str, (*SMALL, *arguments))))


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def weights(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content


def assert_same_runs(found: Path, expected: Path) -> None:
    """Everything logged and all weights, bit for bit."""
    for ours, theirs in zip(results(found)["runs"], results(expected)["runs"], strict=True):
        assert ours["history"] == theirs["history"]
        assert ours["test"] == theirs["test"]
        name = f"{ours['optimizer']}-seed{ours['seed']}.ckpt"
        mine, other = weights(found / name), weights(expected / name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, fashion: Path) -> Path:
    """Four epochs of all optimizers, never interrupted."""
    output = tmp_path_factory.mktemp("whole")
    names = ",".join(optimizers.NAMES)
    assert recipe("--data", fashion, "--optimizer", names, "--epochs", 4, "--seeds", 3, "--output", output) == 0
    return output


def test_a_comparison_writes_everything(whole, fashion):
    content = results(whole)
    runs = {run["optimizer"]: run for run in content["runs"]}
    assert list(runs) == list(optimizers.NAMES)
    assert content["data"]["rows"] == {"train": 120, "validation": 40, "test": 60}
    assert content["settings"]["batch_size"] == 24
    for run in runs.values():
        assert (run["seed"], run["steps"]) == (3, 20)
        assert run["environment"]["versions"]["lightning"] == lightning.__version__
        assert [entry["epoch"] for entry in run["history"] if "val_loss" in entry] == [1, 2, 3, 4]
        assert len(run["history"]) == 20
        assert 0 <= run["test"]["calibration_error"] <= 1
    last = runs["arturo"]["history"][-1]
    assert last["arturo/steps"] == 20
    assert 0 < last["arturo/kl_ratio"] <= 1.001
    assert "arturo/eta" not in runs["adamw"]["history"][-1]
    assert (whole / "curves.png").stat().st_size > 10_000
    assert (whole / "curves.svg").read_text().count("arturo, lr 0.001") >= 1
    assert (whole / "logs/arturo-seed3/version_0/metrics.csv").read_text().count("\n") > 20
    assert not list((whole / "checkpoints").glob("*"))


def test_every_optimizer_learns(whole):
    for run in results(whole)["runs"]:
        losses = [entry["loss"] for entry in run["history"]]
        assert losses[-1] < 0.9 * losses[0], run["optimizer"]


def test_the_saved_model_has_the_recorded_scores(whole, fashion):
    run = results(whole)["runs"][0]
    model = ImageClassifier.load_from_checkpoint(whole / "arturo-seed3.ckpt", weights_only=True).eval()
    images = load(fashion)
    pixels, classes = images.parts["test"]
    with torch.no_grad():
        answers = model(ImageData(images, 24, 0).standardised(pixels)).argmax(dim=1)
    assert float((answers == classes).float().mean()) == pytest.approx(run["test"]["accuracy"])


def load(folder: Path, name: str = "fashion-mnist", **more: Any) -> data.Images:
    return data.load(name, folder, **({"train_rows": 120, "validation_rows": 40, "split_seed": 0} | more))


class Recorder(lightning.Callback):
    """What training sees: first weights, batches, losses, learning rates."""

    def on_train_start(self, trainer, pl_module):
        self.weights = [param.detach().clone() for param in pl_module.parameters()]
        self.batches, self.losses, self.rates = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(tuple(part.clone() for part in batch))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def recorded(images: data.Images, folder: Path, epochs: int, batch_size: int, seed: int = 0, **given: Any) -> Recorder:
    recorder = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[recorder],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=1,
    )
    model = ImageClassifier(dataset=images.name, seed=seed, **given)
    trainer.fit(model, ImageData(images, batch_size, seed))
    return recorder


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_all_optimizers_see_the_same(name, folders, tmp_path):
    images = load(folders[name], name)
    runs = {
        optimizer: recorded(images, tmp_path, 2, 24, optimizer=optimizer, setting="default")
        for optimizer in optimizers.NAMES
    }
    first = runs["arturo"]
    for run in runs.values():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(run.weights, first.weights, strict=True))
        assert len(run.batches) == 10
        for ours, theirs in zip(run.batches, first.batches, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
        assert run.losses[0] == first.losses[0]  # the same dropout as well
    assert len({run.losses[-1] for run in runs.values()}) == len(runs)
    assert not torch.equal(first.batches[0][0], first.batches[5][0])  # another order in the second epoch
    other = recorded(images, tmp_path, 1, 24, seed=1, optimizer="sgd", setting="default")
    assert not torch.equal(other.weights[0], first.weights[0])
    assert not torch.equal(other.batches[0][0], first.batches[0][0])


#: ε, κ, R, d and weight decay, as published.
TABLE = {
    ("fashion-mnist", "cnn"): (0.0856746, 0.0586567, 2.81679, 0.0173930, 1.54034e-6),
    ("fashion-mnist", "resnet18"): (0.0856746, 0.0586567, 2.81679, 0.0173930, 1.54034e-6),
    ("cifar10", "cnn"): (0.00278750, 0.296786, 1.21975, 0.00245526, 0.0),
    ("cifar100", "cnn"): (0.00278750, 0.296786, 1.21975, 0.00245526, 0.0),
    ("cifar10", "resnet34"): (0.00713292, 1.59735, 9.32844, 0.0893810, 7.02910e-4),
    ("cifar100", "resnet34"): (0.00723373, 1.67677, 4.82203, 0.00977875, 0.0),
}


@pytest.mark.parametrize(("dataset", "network"), TABLE)
def test_arturo_gets_the_published_values(dataset, network):
    lr = optimizers.starting_rate("arturo", "published", dataset, network)
    built = optimizers.build(
        [torch.nn.Parameter(torch.ones(2))],
        "arturo",
        setting="published",
        dataset=dataset,
        network=network,
        lr=lr,
        weight_decay=None,
    )
    options, group = built.options, built.param_groups[0]
    found = (group["lr"], options.temperature, options.measurement_noise, options.process_noise, group["weight_decay"])
    assert found == TABLE[dataset, network]
    assert (options.init_variance, options.prior_precision, options.init_covariance) == (0.01, 0.0015, 5e-5)
    assert (options.precision_momentum, options.trust_region, options.noise) == (1.3, "kl", "fixed")


def test_the_published_schedule_under_lightning(fashion, tmp_path):
    images = load(fashion, train_rows=4)
    run = recorded(images, tmp_path, 120, 4, optimizer="arturo", setting="published")
    bound = 0.0856746
    assert run.rates[:60] == [bound] * 60
    assert run.rates[60:90] == pytest.approx([bound * 0.006] * 30, rel=1e-12)
    assert run.rates[90:] == pytest.approx([bound * 0.006**2] * 30, rel=1e-12)


def test_schedules_at_their_ends():
    def rates(setting: str, optimizer: Any, steps: int) -> list[float]:
        schedule = optimizers.schedule(optimizer, setting, steps=steps, warmup=0.1)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    def sgd() -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)

    epochs = published.EPOCHS["cifar10"]
    step_wise = rates("published", sgd(), epochs)
    assert step_wise == pytest.approx([1.0] * 80 + [0.1] * 40 + [0.01] * 40)
    smooth = rates("default", sgd(), 40)
    assert smooth[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert smooth[4:] == sorted(smooth[4:], reverse=True)
    assert 0 < smooth[-1] < 0.01


def stop_and_resume(arguments: list[Any], output: Path, step: int, capsys: Any) -> None:
    assert recipe(*arguments, "--output", output, "--stop-after", 1) == 0
    assert "stopped after epoch 1" in capsys.readouterr().out
    assert not (output / "metrics.json").exists()
    assert recipe(*arguments, "--output", output, "--resume") == 0
    assert f"from step-{step:07d}" in capsys.readouterr().out


def test_a_comparison_stopped_after_an_epoch_resumes_to_the_bit(whole, tmp_path, fashion, capsys):
    names = ",".join(optimizers.NAMES)
    arguments = ["--data", fashion, "--optimizer", names, "--epochs", 4, "--seeds", 3]
    stop_and_resume(arguments, tmp_path, 5, capsys)
    assert_same_runs(tmp_path, whole)


def test_crops_flips_and_the_published_form_resume_to_the_bit(tmp_path, cifar10, capsys):
    arguments = ["--dataset", "cifar10", "--data", cifar10, "--optimizer", "arturo", "--setting", "published"]
    arguments += ["--epochs", 2, "--batch-size", 9]  # 13 steps an epoch, of which every second is logged
    assert recipe(*arguments, "--output", tmp_path / "whole") == 0
    stop_and_resume(arguments, tmp_path / "parts", 13, capsys)
    assert_same_runs(tmp_path / "parts", tmp_path / "whole")
    history = results(tmp_path / "parts")["runs"][0]["history"]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(2, 27, 2))
    assert [entry["step"] for entry in history if "val_loss" in entry] == [13, 26]


def test_a_killed_comparison_goes_on_where_it_was(whole, tmp_path, fashion):
    arguments = ["--data", fashion, "--optimizer", ",".join(optimizers.NAMES), "--epochs", 4, "--seeds", 3]
    arguments += ["--output", tmp_path / "killed"]
    command = [sys.executable, "-m", "recipes.lightning_image", *map(str, (*SMALL, *arguments))]
    saved = tmp_path / "killed/checkpoints/adamw-seed3"
    with (tmp_path / "said").open("w") as said:
        running = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=said, stderr=said
        )
    deadline = time.monotonic() + HANGS
    while not list(saved.glob("step-*.ckpt")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait(HANGS) == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert [run["optimizer"] for run in results(tmp_path / "killed")["runs"]] == ["arturo"]
    assert recipe(*arguments, "--resume") == 0
    assert_same_runs(tmp_path / "killed", whole)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, tmp_path, fashion, capsys):
    arguments = ["--data", fashion, "--optimizer", "arturo", "--epochs", 4, "--seeds", 3, "--output", tmp_path]
    assert recipe(*arguments, "--stop-after", 3) == 0
    older, newest = sorted((tmp_path / "checkpoints/arturo-seed3").glob("*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:100_000])
    assert recipe(*arguments) == 2
    assert "holds an unfinished run: go on with it by --resume" in capsys.readouterr().err
    assert recipe(*arguments, "--resume", "--weight-decay", "0.1") == 2
    assert "weight_decay was None, now 0.1" in " ".join(capsys.readouterr().err.split())
    assert older.exists()
    assert recipe(*arguments, "--resume") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"from {older.stem}" in said
    assert "cannot be read" in said
    name = "arturo-seed3.ckpt"
    ours, theirs = weights(tmp_path / name), weights(whole / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert recipe(*arguments, "--resume") == 0
    assert "done before" in capsys.readouterr().out


def test_an_earlier_comparison_is_not_taken_for_the_one_resumed(tmp_path, fashion, capsys):
    arguments = ["--data", fashion, "--optimizer", "sgd", "--epochs", 2, "--output", tmp_path]
    assert recipe(*arguments) == 0
    earlier = results(tmp_path)
    assert recipe(*arguments, "--stop-after", 1) == 0
    assert recipe(*arguments, "--resume") == 0
    said = capsys.readouterr().out
    assert "from step-0000005" in said
    assert "done before" not in said
    assert json.loads((tmp_path / "metrics.previous.json").read_text()) == earlier
    assert results(tmp_path)["runs"][0]["history"] == earlier["runs"][0]["history"]


def test_real_images_are_learned(tmp_path, monkeypatch):
    try:
        fashion_mnist.folder()
    except InputError as error:
        pytest.skip(f"needs the data: {error}")
    arguments = ["--optimizer", "arturo", "--train-rows", 1500, "--validation-rows", 200, "--epochs", 2]
    assert recipe(*arguments, "--batch-size", 30, "--output", tmp_path) == 0
    (run,) = results(tmp_path)["runs"]
    assert run["test"]["accuracy"] > 0.6  # chance: 0.1
    assert run["history"][-1]["val_loss"] < 1.0
