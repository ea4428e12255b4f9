"""The data of the quality benchmark: split cleanly, found, fetched, and refused with the fix where it is wrong."""

from __future__ import annotations

import gzip
import re
import sysconfig
from pathlib import Path

import pytest
import torch
from quality_fashion import SMALL, write_fashion

from recipes.benchmarks.quality.tasks import TASKS, fashion, language, tabular, text
from recipes.benchmarks.quality.tasks.common import shuffled
from recipes.image import fashion_mnist as files
from recipes.text.errors import InputError


def test_shuffled_passes_over_every_row_once_an_epoch():
    batches = list(shuffled(rows=10, batch=3, steps=6, seed=1))
    for epoch in (torch.cat(batches[:3]), torch.cat(batches[3:])):
        assert len(set(epoch.tolist())) == 9
        assert set(epoch.tolist()) < set(range(10))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:]))


def test_parts_of_the_table_are_disjoint_and_standardised():
    parts = dict(tabular.diamonds().parts)
    rows = {part: {(*x.tolist(), y.item()) for x, y in zip(*parts[part], strict=True)} for part in parts}
    assert {part: len(y) for part, (_, y) in parts.items()} == {"validation": 2000, "test": 8000, "train": 43794}
    assert not rows["train"] & rows["validation"]
    assert not rows["train"] & rows["test"]
    assert not rows["validation"] & rows["test"]
    features = parts["train"][0]
    assert features.abs().max() <= tabular.LARGEST
    assert features[:, : len(tabular.NUMBERS)].mean(0).abs().max() < 0.01
    assert features.shape[1] == len(tabular.NUMBERS) + 7 + 8  # colours and clarities; the cut is not among them


def test_parts_of_the_texts_are_disjoint():
    for name in ("trec6", "movie", "sms"):
        data = text.load(name, validation_size=text.VALIDATION, test_size=text.TEST)
        texts = {part: {row for row, _ in rows} for part, rows in data.parts.items()}
        assert sum(map(len, texts.values())) == len(set().union(*texts.values()))
        parts = text.tokenized(name).parts
        assert len(parts["validation"]) == 400
        assert len(parts["test"]) == (904 if name == "sms" else 1000)
        tokens = {part: {tuple(numbers) for numbers, _ in rows} for part, rows in parts.items()}
        assert not tokens["train"] & (tokens["validation"] | tokens["test"])
        assert not tokens["validation"] & tokens["test"]


def test_python_sources_are_split_by_file(monkeypatch, tmp_path):
    for number in range(100):
        (tmp_path / f"module{number}.py").write_text(f"<{number}>\té\n" * 10, encoding="utf-8")
    (tmp_path / "_sysconfigdata_made_by_a_distribution.py").write_text("<1000>")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    corpus = language.python_sources.__wrapped__()
    texts = {part: "".join(language.ALPHABET[index] for index in numbers) for part, numbers in corpus.parts.items()}
    files = {part: set(re.findall(r"<(\d+)>", found)) for part, found in texts.items()}
    assert set().union(*files.values()) == {str(number) for number in range(100)}
    assert sum(map(len, files.values())) == 100
    assert 4 <= len(files["validation"]) <= 7
    assert 4 <= len(files["test"]) <= 7
    assert re.fullmatch(
        r"(<\d+> +\n+)+", texts["train"] + "\n"
    )  # tabs became spaces, the letter with an accent is gone
    (tmp_path / "module0.py").write_text("changed")
    assert language.python_sources.__wrapped__().sha256 != corpus.sha256


def test_a_python_without_sources_names_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="run a Python that carries"):
        language.python_sources.__wrapped__()


def test_dialogues_are_split_by_block(monkeypatch, tmp_path):
    path = tmp_path / "dialogue.txt"
    path.write_text("".join(f"ask {number}? \tsay {number}.\n" for number in range(400)), encoding="utf-8")
    monkeypatch.setattr(language, "package_file", lambda package, file: path)
    corpus = language.dialogues.__wrapped__()
    texts = {part: "".join(language.ALPHABET[index] for index in numbers) for part, numbers in corpus.parts.items()}
    asked = {part: list(map(int, re.findall(r"ask (\d+)\?\nsay \1\.", found))) for part, found in texts.items()}
    assert asked["validation"] == [*range(90, 100), *range(290, 300)]
    assert asked["test"] == [*range(190, 200), *range(390, 400)]
    assert sorted(asked["train"] + asked["validation"] + asked["test"]) == list(range(400))
    assert "\t" not in texts["train"]


def test_parts_of_the_images(small_fashion):
    images = fashion.fashion_mnist(small_fashion)
    sizes = {part: tuple(pixels.shape) for part, (pixels, _) in images.parts.items()}
    assert sizes == {"train": (280, 28, 28), "validation": (SMALL, 28, 28), "test": (50, 28, 28)}
    everything = torch.cat([pixels.flatten(1) for pixels, _ in images.parts.values()])
    assert len(everything.unique(dim=0)) == len(everything)
    assert all(classes.dtype == torch.int64 for _, classes in images.parts.values())


@pytest.mark.parametrize("name", ["fashion-cnn", "fashion-vit"])
def test_missing_images_name_the_fix(monkeypatch, tmp_path, name):
    monkeypatch.setenv(files.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"nowhere.*python -m recipes\.image\.fashion_mnist"):
        TASKS[name].make(0)


def test_images_are_found_in_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.delenv(files.VARIABLE, raising=False)
    monkeypatch.setattr(files, "SYSTEM_FOLDER", tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="ARTURO_FASHION_MNIST"):
        files.folder()
    (tmp_path / files.OWN_FOLDER).mkdir(parents=True)
    write_fashion(tmp_path / files.OWN_FOLDER, 3, 3)
    assert files.folder() == files.OWN_FOLDER


def test_incomplete_and_foreign_images_are_refused(monkeypatch, tmp_path):
    write_fashion(tmp_path, 30, 30)
    with pytest.raises(InputError, match="not complete"):
        fashion.fashion_mnist(tmp_path)
    with pytest.raises(InputError, match=r"^t10k is not in the IDX format"):
        files.read_idx(gzip.compress(b"no images"), Path("t10k"))


def test_fetching_unpacks_the_package(monkeypatch, tmp_path):
    commands = []

    def run(command, where, fix):
        commands.append(command)
        if command[0] == "apt-get":
            (tmp_path.__class__(where) / f"{files.PACKAGE}_1_all.deb").touch()
        else:
            inside = tmp_path.__class__(where) / "unpacked/usr/share/datasets/fashion-mnist"
            inside.mkdir(parents=True)
            write_fashion(inside, 3, 3)

    monkeypatch.setattr(files, "run", run)
    monkeypatch.setattr(files.shutil, "which", lambda tool: tool)
    target = files.fetch(tmp_path / "new" / "folder")
    assert commands == [
        ["apt-get", "download", "dataset-fashion-mnist"],
        ["dpkg", "-x", "dataset-fashion-mnist_1_all.deb", "unpacked"],
    ]
    assert sorted(path.name for path in target.iterdir()) == sorted(files.FILES.values())


def test_fetching_without_apt_or_with_a_failing_one_names_the_fix(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"ls.*failed.*do this"):
        files.run(["ls", "no-such-file"], str(tmp_path), "do this")
    monkeypatch.setattr(files.shutil, "which", lambda tool: None)
    with pytest.raises(InputError, match=r"no apt-get here.*ARTURO_FASHION_MNIST"):
        files.fetch(tmp_path)


def test_real_images():
    try:
        images = fashion.fashion_mnist(files.folder().resolve())
    except InputError as error:
        pytest.skip(f"needs the data: {error}")
    assert len(images.parts["train"][0]) == 50_000
    assert len(images.parts["validation"][0]) == 1000
    assert len(images.parts["test"][0]) == 4000
    pixels = fashion.standardised(images.parts["train"][0])
    assert pixels.mean().abs() < 0.01
    assert pixels.std() == pytest.approx(1, abs=0.01)
    assert images.parts["train"][1].unique().tolist() == list(range(10))
