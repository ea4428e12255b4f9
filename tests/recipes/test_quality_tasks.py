"""The quality benchmark's tasks: reproducible, split cleanly, scored right, and undisturbed by being scored."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from quality_fashion import SMALL
from torch.nn import functional

from recipes.benchmarks.quality.tasks import TASKS, fashion, language, tabular, text
from recipes.benchmarks.quality.tasks.base import Task
from recipes.text.errors import InputError

NAMES = ("diamonds-mlp", "lm-python", "lm-dialogue", "fashion-cnn", "fashion-vit", "trec", "trec-lora")


@pytest.fixture
def make(small_fashion, monkeypatch):
    """Makes a problem whose held out parts are small."""
    monkeypatch.setattr(language, "WINDOWS", {"validation": SMALL, "test": SMALL})

    def make_small(name, seed=0):
        problem = TASKS[name].make(seed)
        if isinstance(problem, text.TextClassification):
            cut = {part: rows if part == "train" else rows[:SMALL] for part, rows in problem.data.parts.items()}
            problem.data = replace(problem.data, parts=cut)
        if isinstance(problem, tabular.Diamonds):
            cut = {part: (x, y) if part == "train" else (x[:SMALL], y[:SMALL]) for part, (x, y) in table_parts()}
            problem.table = replace(problem.table, parts=cut)
        return problem

    return make_small


def table_parts():
    return tabular.diamonds().parts.items()


def tensors(batch) -> list[torch.Tensor]:
    return [batch] if isinstance(batch, torch.Tensor) else list(batch)


def first(problem, count=3) -> list[torch.Tensor]:
    return [tensor for _, batch in zip(range(count), problem.batches(), strict=False) for tensor in tensors(batch)]


def same(left, right) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def test_the_eleven_tasks():
    families = {
        family: [name for name, task in TASKS.items() if task.family == family]
        for family in ("fine-tuning", "lora", "from scratch")
    }
    assert families["fine-tuning"] == ["trec", "movie", "sms"]
    assert families["lora"] == ["trec-lora", "movie-lora", "sms-lora"]
    assert set(families["from scratch"]) == {"lm-python", "lm-dialogue", "fashion-cnn", "fashion-vit", "diamonds-mlp"}
    assert all("\n" not in task.description and task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
def test_learning_rate_rises_to_one_and_falls_to_zero(name):
    task = TASKS[name]
    factors = [task.factor(step) for step in range(task.steps + 1)]
    assert factors[0] == pytest.approx(1 / task.warmup)
    assert factors[task.warmup - 1] == 1.0
    assert all(a < b for a, b in pairwise(factors[: task.warmup]))
    assert all(a > b for a, b in pairwise(factors[task.warmup :]))
    assert factors[-2] > 0
    assert factors[-1] == pytest.approx(0)
    assert task.factor(10 * task.steps) == pytest.approx(0)


def test_linear_and_cosine_decay():
    task = Task("t", "from scratch", 110, 10, "linear", None, lambda seed: None, "")
    assert [task.factor(step) for step in (10, 35, 60, 85)] == pytest.approx([1, 0.75, 0.5, 0.25])
    task = replace(task, decay="cosine")
    assert [task.factor(step) for step in (10, 35, 60, 85)] == pytest.approx([1, 0.853553, 0.5, 0.146447], rel=1e-5)
    assert replace(task, warmup=0).factor(0) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_weights_and_batches(make, name):
    one, again, other = make(name, 3), make(name, 3), make(name, 4)
    assert same(list(one.model.state_dict().values()), list(again.model.state_dict().values()))
    assert same(first(one), first(again))
    assert same(first(one), first(one))  # a second pass over the batches is the first one
    trained = [(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True) if a.requires_grad]
    assert any(not torch.equal(a, b) for a, b in trained)
    assert not same(first(one), first(other))
    assert one.data_sha256 == other.data_sha256
    assert re.fullmatch("[0-9a-f]{64}", one.data_sha256)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("fashion")])
def test_passes_over_the_data_are_what_the_report_says(make, name):
    problem = make(name)
    seen = TASKS[name].steps * problem.logits(next(iter(problem.batches())))[1].numel()
    # The standard library that lm-python reads grows with Python's versions.
    assert TASKS[name].passes == pytest.approx(seen / problem.examples, rel=0.2 if name == "lm-python" else 0.01)


@pytest.mark.parametrize("name", NAMES)
def test_number_of_batches_and_the_start(make, name):
    problem = make(name)
    assert sum(1 for _ in problem.batches()) == TASKS[name].steps
    assert problem.model.training
    assert any(parameter.requires_grad for parameter in problem.model.parameters())
    loss = problem.loss(next(iter(problem.batches())))
    assert loss.ndim == 0
    assert loss.requires_grad
    logits, classes = problem.logits(next(iter(problem.batches())))
    assert classes.dtype == torch.int64
    assert loss.item() == pytest.approx(np.log(logits.shape[1]), rel=0.25)  # untrained: near a uniform guess


@pytest.mark.parametrize("name", ["diamonds-mlp", "trec", "movie", "sms"])
def test_the_description_states_the_training_rows(name):
    task = TASKS[name]
    rows = (
        len(tabular.diamonds().parts["train"][1])
        if name == "diamonds-mlp"
        else len(text.tokenized("trec6" if name == "trec" else name).parts["train"])
    )
    assert f"{rows:,} rows" in task.description


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_disturbs_nothing(make, name):
    problem = make(name)
    modules = list(problem.model.modules())
    modules[len(modules) // 2].training = False  # as of somebody who froze a layer's dropout or statistics
    modes = [module.training for module in modules]
    torch.manual_seed(11)
    random = torch.get_rng_state()
    scores = problem.evaluate("validation")
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in modules] == modes
    assert scores == problem.evaluate("validation")  # no dropout in it
    assert 0 <= scores.accuracy <= 1
    assert 0 <= scores.ece <= 1
    assert all(parameter.grad is None for parameter in problem.model.parameters())


def test_training_goes_on_the_same_after_an_evaluation(make):
    plain, evaluated = (make("fashion-cnn") for _ in range(2))
    batch = next(iter(plain.batches()))
    torch.manual_seed(5)
    expected = [plain.loss(batch).item() for _ in range(2)]
    assert expected[0] != expected[1]  # dropout is on
    torch.manual_seed(5)
    before = evaluated.loss(batch).item()
    evaluated.evaluate("test")
    assert [before, evaluated.loss(batch).item()] == expected


def test_scores_are_restored_even_when_evaluation_fails(make):
    problem = make("diamonds-mlp")
    problem.held_out = lambda part: iter([None])
    with pytest.raises(TypeError):
        problem.evaluate("test")
    assert all(module.training for module in problem.model.modules())
    with pytest.raises(ValueError, match="validation, test"):
        problem.evaluate("train")


def test_a_diverged_model_has_scores(make):
    problem = make("diamonds-mlp")
    with torch.no_grad():
        problem.model[0].weight.fill_(float("nan"))
    scores = problem.evaluate("validation")
    assert np.isnan([scores.loss, scores.ece]).all()


def test_scores_of_the_table_by_hand():
    problem = TASKS["diamonds-mlp"].make(0)
    features, classes = problem.table.parts["validation"]
    with torch.no_grad():
        logits = problem.model.eval()(features).double().numpy()
    truth = classes.numpy()
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    right = logits.argmax(1) == truth
    confidence = probability.max(1)
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    ece = sum(
        abs(right[bins == number].mean() - confidence[bins == number].mean()) * (bins == number).mean()
        for number in set(bins.tolist())
    )
    scores = problem.evaluate("validation")
    assert scores.loss == pytest.approx(-np.log(probability[np.arange(len(truth)), truth]).mean(), rel=1e-5)
    assert scores.accuracy == pytest.approx(right.mean())
    assert scores.ece == pytest.approx(ece, abs=1e-4)


@pytest.mark.parametrize("name", ["trec", "trec-lora"])
def test_scores_of_texts_one_by_one(make, name):
    """Row by row there is no padding, so padding must not count in batches either."""
    problem = make(name)
    rows = problem.data.parts["test"]
    scores = problem.evaluate("test")
    problem.model.eval()
    losses, right = [], []
    with torch.no_grad():
        for tokens, label in rows:
            logits = problem.model(input_ids=torch.tensor([tokens])).logits[0]
            losses.append(-functional.log_softmax(logits, 0)[label].item())
            right.append(logits.argmax().item() == label)
    assert scores.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert scores.accuracy == pytest.approx(np.mean(right))


def test_scores_of_images_one_by_one(make, small_fashion):
    problem = make("fashion-cnn")
    paths = [small_fashion / fashion.FILES[f"train {what}"] for what in ("images", "classes")]
    images, classes = (fashion.read_idx(path.read_bytes(), path) for path in paths)
    scores = problem.evaluate("validation")
    problem.model.eval()
    losses = []
    with torch.no_grad():
        for image, label in zip(images[-SMALL:], classes[-SMALL:], strict=True):
            pixels = (image[None, None].float() / 255 - 0.2860) / 0.3530
            losses.append(functional.cross_entropy(problem.model(pixels), label[None].long()).item())
    assert scores.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_scores_of_a_language_model_window_by_window(make):
    problem = make("lm-dialogue")
    part = problem.corpus.parts["test"].long()
    starts = [index * (len(part) - 65) // (SMALL - 1) for index in range(SMALL)]
    scores = problem.evaluate("test")
    problem.model.eval()
    losses = []
    with torch.no_grad():
        for start in starts:
            logits = problem.model(part[None, start : start + 64])[0]
            losses.append(functional.cross_entropy(logits, part[start + 1 : start + 65]).item())
    assert starts[-1] + 65 == len(part)
    assert scores.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_transformer_does_not_look_ahead(make):
    model = make("lm-python").model.eval()
    characters = torch.randint(96, (2, 64), generator=torch.Generator().manual_seed(0))
    changed = characters.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 96
    with torch.no_grad():
        before, after = model(characters), model(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40:], after[:, 40:])


def test_lora_trains_adapters_and_the_last_layer_only(make):
    problem = make("trec-lora")
    start = {name: parameter.detach().clone() for name, parameter in problem.model.named_parameters()}
    trained = [parameter for parameter in problem.model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == 6 * 2 * 8 * (384 + 384) + 384 * 6 + 6
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _, batch in zip(range(2), problem.batches(), strict=False):  # the adapters' first halves move second
        optimizer.zero_grad()
        problem.loss(batch).backward()
        optimizer.step()
    moved = {name for name, parameter in problem.model.named_parameters() if not torch.equal(parameter, start[name])}
    expected = {name for name in start if ".lora_" in name or ".modules_to_save." in name}
    assert moved == expected
    assert sum("query.lora_" in name or "value.lora_" in name for name in moved) == 24


def test_lora_without_peft_names_the_fix(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match="pip install peft"):
        text.with_adapters(torch.nn.Linear(1, 1))


def test_full_fine_tuning_trains_everything(make):
    assert all(parameter.requires_grad for parameter in make("trec").model.parameters())


def test_making_a_text_problem_says_nothing(make, capfd):
    make("trec")
    assert capfd.readouterr() == ("", "")


def test_batches_of_texts_are_of_similar_length(make):
    problem = make("trec")
    batches = list(problem.batches())
    assert all(len(batch.classes) == text.BATCH for batch in batches)
    assert all((batch.mask == (batch.tokens != problem.data.padding)).all() for batch in batches)

    def padding(some):
        return 1 - sum(batch.mask.sum().item() for batch in some) / sum(batch.mask.numel() for batch in some)

    mixed = [problem.data.batch("train", list(range(at, at + text.BATCH))) for at in range(0, 1600, text.BATCH)]
    assert padding(batches) < 0.6 * padding(mixed)
    lengths = [batch.mask.shape[1] for batch in batches[: text.GROUP]]
    assert lengths != sorted(lengths)  # but short and long batches alternate
    rows = [tuple(row.tolist()) for batch in batches for row in batch.tokens]
    assert len(set(rows)) > 0.95 * len(rows)  # less than an epoch: (nearly) no text twice


def test_a_task_can_be_learned(make):
    problem = make("diamonds-mlp")
    before = problem.evaluate("validation").loss
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=3e-3)
    for _, batch in zip(range(100), problem.batches(), strict=False):
        optimizer.zero_grad()
        problem.loss(batch).backward()
        optimizer.step()
    assert problem.evaluate("validation").loss < before - 0.4
