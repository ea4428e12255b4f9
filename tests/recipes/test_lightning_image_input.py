"""`recipes.lightning_image`: networks, the reading of data sets, and what is said of wrong input."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from image_data import images as drawn
from image_data import write_cifar, write_fashion

pytest.importorskip("lightning")

from recipes import lightning_image
from recipes.image import cifar, data, datamodule, fashion_mnist, networks
from recipes.image.networks import Shape
from recipes.text.errors import InputError


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fashion(tmp_path_factory.mktemp("fashion"))


def parameters(network: torch.nn.Module) -> int:
    return sum(param.numel() for param in network.parameters())


@pytest.mark.parametrize(
    ("shape", "convolutions", "linear", "count"),
    [
        (Shape(1, 28, 10), [(1, 32, 0), (32, 64, 0), (64, 128, 0)], [(1152, 256), (256, 10)], 390_410),
        (
            Shape(3, 32, 100),
            [(3, 32, 1), (32, 64, 1), (64, 128, 1), (128, 256, 1)],
            [(1024, 256), (256, 100)],
            676_516,
        ),
    ],
)
def test_the_convolutional_networks(shape, convolutions, linear, count):
    network = networks.build("cnn", shape)
    layers = list(network.modules())
    found = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels, layer.padding[0]) for layer in found] == convolutions
    assert {layer.kernel_size for layer in found} == {(3, 3)}
    found = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in found] == linear
    assert [layer.p for layer in layers if isinstance(layer, torch.nn.Dropout)] == [0.2, 0.5]
    assert parameters(network) == count
    assert network(torch.zeros(3, shape.channels, shape.side, shape.side)).shape == (3, shape.classes)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_689_512), ("resnet34", 21_797_672)])
def test_resnets_are_torchvision_s_in_size_and_take_small_images(name, count):
    pytest.importorskip("transformers")
    assert parameters(networks.build(name, Shape(3, 224, 1000))) == count
    network = networks.build(name, Shape(1, 28, 10)).eval()
    stem = next(layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d))
    assert (stem.in_channels, stem.kernel_size, stem.stride) == (1, (7, 7), (2, 2))
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("name", "rows"), [("cifar10", 200), ("cifar100", 40)])
def test_cifar_is_read_as_python_2_wrote_it(name, rows, tmp_path):
    place = write_cifar(tmp_path, name)
    assert cifar.folder(name, place) == cifar.folder(name, place / cifar.LAYOUTS[name].folder)
    parts, _ = cifar.read(name, cifar.folder(name, place))
    assert {part: len(classes) for part, (_, classes) in parts.items()} == {"train": rows, "test": 40}
    pixels, classes = drawn(40, 3, 32, 0)
    assert torch.equal(parts["train"][0][:40], torch.from_numpy(pixels))
    assert parts["train"][1][:40].tolist() == classes.tolist()


def test_parts_are_disjoint_and_follow_from_the_seed(fashion):
    def rows(seed: int) -> dict[str, list[bytes]]:
        images = data.load("fashion-mnist", fashion, train_rows=100, validation_rows=50, split_seed=seed)
        return {part: [image.numpy().tobytes() for image in pixels] for part, (pixels, _) in images.parts.items()}

    first, again, other = rows(0), rows(0), rows(1)
    assert first == again
    assert first["train"] != other["train"]
    assert first["test"] == other["test"]
    assert {part: len(found) for part, found in first.items()} == {"train": 100, "validation": 50, "test": 60}
    assert len({row for found in first.values() for row in found}) == 210
    everything = data.load("fashion-mnist", fashion, train_rows=None, validation_rows=50, split_seed=0)
    assert len(everything.parts["train"][1]) == 150


def test_training_images_have_mean_0_and_variance_1_in_every_channel(tmp_path):
    images = data.load("cifar10", write_cifar(tmp_path), train_rows=None, validation_rows=10, split_seed=0)
    pixels = datamodule.ImageData(images, 8, 0).standardised(images.parts["train"][0]).double()
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert pixels.var((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_crops_and_flips_are_shifts_and_mirror_images():
    pixels = torch.arange(1, 2 * 3 * 10 * 10 + 1).view(2, 3, 10, 10).repeat(30, 1, 1, 1)
    found = datamodule.crop_and_flip(pixels, data.generator("test", 0))
    assert torch.equal(found, datamodule.crop_and_flip(pixels, data.generator("test", 0)))
    seen = set()
    for image, changed in zip(pixels, found, strict=True):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        crops = {(y, x): padded[:, y : y + 10, x : x + 10] for y in range(9) for x in range(9)}
        matches = [
            (place, flipped)
            for place, crop in crops.items()
            for flipped in (False, True)
            if torch.equal(crop.flip(2) if flipped else crop, changed)
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert len({place for place, _ in seen}) > 20
    assert {flipped for _, flipped in seen} == {False, True}


def said(capsys: Any, *arguments: Any) -> str:
    """The error that the recipe ends with."""
    assert lightning_image.main(list(map(str, arguments))) == 2
    return " ".join(capsys.readouterr().err.split())


def test_missing_and_wrong_data_name_the_fix(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(fashion_mnist.VARIABLE, str(tmp_path / "nowhere"))
    told = said(capsys)
    assert "nowhere; run: python -m recipes.image.fashion_mnist" in told
    assert fashion_mnist.VARIABLE in told
    told = said(capsys, "--data", tmp_path)
    assert "does not hold train-images-idx3-ubyte.gz" in told
    assert "cifar10 comes with no package: give --data the folder that holds cifar-10-batches-py" in said(
        capsys, "--dataset", "cifar10"
    )
    assert "does not hold train, test: give --data" in said(capsys, "--dataset", "cifar100", "--data", tmp_path)
    assert "there is no such folder" in said(capsys, "--dataset", "cifar10", "--data", tmp_path / "absent")


def test_files_of_another_kind_are_refused(tmp_path, capsys):
    folder = write_fashion(tmp_path / "swapped")
    images, classes = (folder / fashion_mnist.FILES[f"test {what}"] for what in ("images", "classes"))
    whole = images.read_bytes()
    images.write_bytes(classes.read_bytes())
    assert f"the test files in {folder} are not fashion-mnist's" in said(capsys, "--data", folder)
    for content in (whole[:2000], b"no archive at all", b""):
        images.write_bytes(content)
        told = said(capsys, "--data", folder)
        assert f"{images} is not in the IDX format with unsigned bytes, or cut off: get it anew" in told
    place = write_cifar(tmp_path / "cifar") / "cifar-10-batches-py"
    (place / "test_batch").write_bytes((place / "test_batch").read_bytes()[:1000])
    assert "test_batch is no batch of CIFAR" in said(capsys, "--dataset", "cifar10", "--data", place)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harmful"),))


def test_pickles_that_would_run_code_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = write_cifar(tmp_path) / "cifar-10-batches-py"
    (place / "test_batch").write_bytes(pickle.dumps({b"data": Harmful()}))
    assert "it names pathlib" in said(capsys, "--dataset", "cifar10", "--data", place)
    assert not (tmp_path / "harmful").exists()


CONTRADICTIONS = [
    (["--optimizer", "arturo,lion"], "--optimizer lion: choose of arturo, adamw, adam, sgd"),
    (["--optimizer", ","], "need at least one entry"),
    (["--lr-for", "sgd=1"], "--lr-for names sgd, not among --optimizer"),
    (["--lr-for", "adamw=-1"], "give a positive learning rate"),
    (["--full", "--epochs", "3"], "--full sets epochs and rows"),
    (["--full", "--train-rows", "all"], "--full sets epochs and rows"),
    (["--setting", "published", "--network", "resnet34"], "only for cnn and resnet18"),
    (["--setting", "published", "--lr-for", "arturo=1e-3"], "leave out --lr-for arturo=…"),
    (["--setting", "published", "--weight-decay", "0.1"], "--setting published has its own bound and weight decay"),
    (["--train-rows", "180"], "fashion-mnist has 200 rows for training and validation, fewer than 180 + 40"),
    (["--validation-rows", "200", "--train-rows", "all"], "lower --train-rows or --validation-rows"),
    (["--train-rows", "100"], "100 training rows are less than one batch of 255: lower --batch-size"),
    (["--train-rows", "100", "--batch-size", "20", "--resume"], "neither finished runs nor checkpoints; start without"),
]


@pytest.mark.parametrize(("arguments", "message"), CONTRADICTIONS)
def test_contradictions_end_at_the_start(arguments, message, tmp_path, fashion, capsys):
    given = ["--data", fashion, "--validation-rows", 40, "--output", tmp_path / "none", *arguments]
    assert message in said(capsys, *given)
    assert not (tmp_path / "none" / "metrics.json").exists()


def test_missing_packages_name_the_fix(tmp_path, fashion, monkeypatch, capsys):
    given = ["--data", fashion, "--output", tmp_path, "--train-rows", 50, "--validation-rows", 40, "--batch-size", 50]
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "run: pip install transformers, or choose --network cnn" in said(capsys, *given, "--network", "resnet18")
    monkeypatch.setitem(sys.modules, "lightning", None)
    assert "lightning is not installed; run: pip install -e '.[lightning,recipes]'" in said(capsys, *given)


def test_unknown_names_are_refused_by_the_command_line(capsys):
    for arguments in (["--dataset", "mnist"], ["--network", "vgg"], ["--setting", "best"], ["--short", "--full"]):
        with pytest.raises(SystemExit):
            lightning_image.main(arguments)
        told = capsys.readouterr().err
        assert any(hint in told for hint in ("invalid choice", "not allowed with"))


def test_protocols(tmp_path):
    from recipes.image.options import parse

    short = parse([])
    assert (short.epochs, short.train_rows, short.batch_size) == (5, 12_000, 255)
    assert short.optimizers == ["arturo", "adamw"]
    full = parse(["--full"])
    assert (full.epochs, full.train_rows, full.batch_size) == (120, None, 255)
    assert parse(["--full", "--dataset", "cifar10"]).epochs == 160
    assert parse(["--train-rows", "all", "--epochs", "3"]).train_rows is None
    assert parse(["--setting", "published"]).learning_rate("arturo") == 0.0856746
    assert parse(["--setting", "published"]).learning_rate("adamw") == 1e-3
    with pytest.raises(InputError):
        networks.build("cnn", Shape(1, 32, 10))
