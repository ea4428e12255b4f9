"""Text classification data, packaged or the user's own, as three disjoint and stratified parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes.arguments import nearest
from recipes.text.errors import InputError, reason
from recipes.text.files import TABLES, check_file, check_letters, read_table
from recipes.text.packaged import PACKAGED, Row, package_file, unique

PARTS = ("train", "validation", "test")
TEXT_COLUMNS = ("text", "sentence", "question", "content", "review")
LABEL_COLUMNS = ("label", "labels", "target", "class", "category")


@dataclass(frozen=True)
class TextData:
    """Rows of (text, label) for each of PARTS; a label is its position in `label_names`."""

    name: str
    citation: str
    label_names: list[str]
    parts: dict[str, list[tuple[str, int]]]
    duplicates_dropped: int

    def labels(self, part: str) -> list[int]:
        return [label for _, label in self.parts[part]]

    def summary(self) -> dict[str, Any]:
        """What metrics.json says about the data."""
        return {
            "name": self.name,
            "citation": self.citation,
            "label_names": self.label_names,
            "rows": {part: len(rows) for part, rows in self.parts.items()},
            "duplicates_dropped": self.duplicates_dropped,
        }


def load(
    name: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    split_seed: int = 0,
    validation_size: int = 500,
    test_size: int = 1000,
) -> TextData:
    """Read `name` and split it.

    `name` is a key of PACKAGED, the path of a CSV, TSV, JSON or JSONL file, a folder made by
    `datasets.save_to_disk`, or whatever `datasets.load_dataset` takes (with `config`). Data that come in one
    piece are stripped of copies and split with `split_seed`: at most a tenth (and `validation_size` rows)
    for validation, at most a fifth (and `test_size`) for testing. Data that come with a test or validation
    part keep it, cut down, stratified, to the given size. Rows whose text or label is missing or blank are left out.
    """
    if name in PACKAGED:
        source = PACKAGED[name]
        given = {"all": source.read(package_file(source.package, source.file))}
        citation = source.citation
    else:
        given = read_own(name, text_column, label_column, config)
        citation = "the user's own data"
    rows_read = sum(map(len, given.values()))
    labels_read = classes_of(given)
    if "all" in given:
        given = {"train": unique(given["all"])}
    dropped = rows_read - sum(map(len, given.values()))
    label_names = classes_of(given)
    check_classes(name, labels_read, rows_read, label_names, dropped)
    number = {label: index for index, label in enumerate(label_names)}
    rows = {part: [(text, number[label]) for text, label in given[part]] for part in given}
    total = len(rows["train"])
    sizes = {"test": (test_size, 5), "validation": (validation_size, 10)}
    for part, (size, share) in sizes.items():
        if part in rows:
            rows[part], _ = take(rows[part], min(size, len(rows[part])), split_seed)
        else:
            size = min(size, total // share)
            rows[part], rows["train"] = take(rows["train"], size, split_seed)
        if not rows[part]:
            raise InputError(
                f"{name} leaves no rows for the {part} part: it has {counted(total, dropped)} of {len(label_names)} "
                "classes; give data with more"
            )
    return TextData(name, citation, label_names, {part: rows[part] for part in PARTS}, dropped)


def classes_of(parts: Mapping[str, list[Row]]) -> list[str]:
    return sorted({label for rows in parts.values() for _, label in rows})


def check_classes(name: str, labels_read: list[str], rows_read: int, label_names: list[str], dropped: int) -> None:
    """Raise an InputError unless rows fall into classes that can be learned.

    Args:
        name: of the data.
        labels_read, rows_read: what was there, copies of a text included.
        label_names, dropped: the classes without copies, and the number of these.
    """
    rows = rows_read - dropped
    if not rows:
        raise InputError(
            f"{name} has no row with a text and a label, blank ones aside: choose their columns with --text-column and "
            "--label-column"
        )
    if len(labels_read) < 2:
        raise InputError(
            f"{name} has one class, {labels_read[0][:40]!r}, in all of its {rows_read} rows; classification needs at "
            "least two: choose the column of classes with --label-column, or give data that have more"
        )
    if len(label_names) < 2:
        raise InputError(
            f"{name} has {rows} different text(s) in {rows_read} rows, and each counts once, with its most frequent "
            "label: that leaves one class. Choose the column of texts with --text-column"
        )
    if 2 * len(label_names) > rows:
        examples = ", ".join(repr(label[:20]) for label in label_names[:3])
        raise InputError(
            f"{name} has {len(label_names)} classes ({examples}, …) in {counted(rows, dropped)}, fewer than two rows a "
            "class: choose a column of classes with --label-column"
        )


def counted(rows: int, dropped: int) -> str:
    return f"{rows} different texts (of {rows + dropped} rows)" if dropped else f"{rows} rows"


def take(rows: list[tuple[str, int]], size: int, seed: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Split `rows` into `size` of them, stratified by label, and the rest, both in random order.

    Every class gets its share rounded down, and the largest remainders fill up to `size`; unlike
    scikit-learn's stratified split this also serves classes with a single row, which stay in the rest.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    labels = np.array([label for _, label in rows], dtype=int)
    classes, counts = np.unique(labels, return_counts=True)
    share = size * counts / max(len(rows), 1)
    quota = np.floor(share).astype(int)
    most = np.maximum(counts - 1, 0) if size < len(rows) else counts
    for index in np.argsort(quota - share, kind="stable")[: size - int(quota.sum())]:
        quota[index] += 1
    left = {int(label): int(number) for label, number in zip(classes, np.minimum(quota, most), strict=True)}
    taken: list[tuple[str, int]] = []
    rest: list[tuple[str, int]] = []
    for index in order:
        label = int(labels[index])
        (taken if left[label] > 0 else rest).append(rows[index])
        left[label] -= 1
    return taken, rest


def majority(data: TextData, part: str) -> dict[str, float]:
    """Accuracy and macro-F1 on `part` of always answering the most frequent class of the training part."""
    from recipes.text.metrics import classification_scores

    answer = int(np.bincount(data.labels("train")).argmax())
    truth = data.labels(part)
    return classification_scores(truth, [answer] * len(truth))


def read_own(name: str, text_column: str | None, label_column: str | None, config: str | None) -> dict[str, list[Row]]:
    """The user's rows by part, or under "all" if they come in one piece."""
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix in TABLES:
        check_file(path)
        return {"all": to_rows(name, read_table(path), text_column, label_column)}
    tables = read_datasets(name, config)
    parts = {part: to_rows(name, table, text_column, label_column) for part, table in tables.items()}
    parts = {part: rows for part, rows in parts.items() if rows}
    if len(parts) == 1:
        return {"all": next(iter(parts.values()))}
    if "train" not in parts:
        raise InputError(f"{name} has no train part; its labelled parts are: {', '.join(parts) or 'none'}")
    return {part: parts[part] for part in PARTS if part in parts}


def read_datasets(
    name: str, config: str | None, packaged: Iterable[str] = tuple(PACKAGED)
) -> dict[str, Mapping[str, Iterable[Any]]]:
    """The parts of a `datasets` folder or hub data set, class numbers replaced by their names.

    `packaged`: names that would have needed none of this, for the error.
    """
    import datasets

    try:
        folder = Path(name)
        if any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config)
    except Exception as error:  # of any type: what foreign files are taken for decides
        raise InputError(
            f"--data {name}: not one of {', '.join(packaged)}, not a CSV, TSV, JSON or JSONL file, and `datasets` "
            f"could not load it ({reason(error)}){nearest(name, packaged)}"
        ) from error
    parts = loaded if isinstance(loaded, dict) else {"all": loaded}
    return {str(part): named_columns(table) for part, table in parts.items()}


def named_columns(table: Any) -> dict[str, list[Any]]:
    """The columns of a `datasets.Dataset`; -1, which marks a hidden label, becomes None."""
    from datasets import ClassLabel

    columns = {}
    for column, feature in table.features.items():
        values = table[column][:]
        if isinstance(feature, ClassLabel):
            values = [None if value is None or value < 0 else feature.names[value] for value in values]
        columns[column] = values
    return columns


def to_rows(
    name: str, columns: Mapping[str, Iterable[Any]], text_column: str | None, label_column: str | None
) -> list[Row]:
    """(text, label) of every row of the data `name` that has both."""
    of_texts = find_column(columns, text_column, TEXT_COLUMNS, "--text-column")
    of_labels = find_column(columns, label_column, LABEL_COLUMNS, "--label-column")
    if of_texts == of_labels:
        raise InputError(f"--text-column and --label-column are both {of_texts!r}: choose two columns")
    texts, labels = columns[of_texts], columns[of_labels]
    for column in (texts, labels):
        check_letters(name, map(str, column))
    return [
        (str(text), str(label))
        for text, label in zip(texts, labels, strict=True)
        if not missing(text) and not missing(label)
    ]


def missing(value: Any) -> bool:
    """None, NaN (how pandas reads an empty field) or nothing but blanks."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def find_column(columns: Mapping[str, Any], wanted: str | None, usual: tuple[str, ...], option: str) -> str:
    """`wanted`, or the first of the usual names that is there; else an InputError that lists the columns."""
    for name in (wanted,) if wanted else usual:
        if name in columns:
            return name
    said = f"there is no column {wanted!r}" if wanted else f"none of {', '.join(usual)} is a column"
    hint = nearest(wanted, columns) if wanted else ""
    raise InputError(f"{said}; choose one of these with {option}: {', '.join(map(str, columns))}{hint}")
