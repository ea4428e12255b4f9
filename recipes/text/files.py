"""The user's own files: text in whatever Unicode encoding it is marked with, and tables of it, checked to be whole."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import warnings
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from recipes.text.errors import InputError, reason

TABLES = (".csv", ".tsv", ".json", ".jsonl")
#: Files that are one text as they are.
TEXTS = (".txt", ".md", ".py")
#: By the mark that a file begins with; UTF-32's little-endian one begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_FIXES = {
    ".csv": "put double quotes around a field with commas, quotes or line breaks, and close them",
    ".tsv": "put double quotes around a field with tabs, quotes or line breaks, and close them",
    ".json": 'write one list of records, [{"text": "...", "label": "..."}, ...]',
    ".jsonl": 'write one record a line, {"text": "...", "label": "..."}',
}


def check_columns(given: Mapping[str, Any], packaged: Container[str]) -> None:
    """Raise an InputError if options of a command line name what the chosen data cannot have."""
    data = given["data"]
    suffix = Path(data).suffix.lower()
    no_columns = data in packaged or suffix in TEXTS
    for option, idle in {
        "text_column": no_columns,
        "label_column": no_columns,
        "data_config": no_columns or suffix in TABLES,
    }.items():
        if idle and given.get(option) is not None:
            written = f"--{option.replace('_', '-')} {given[option]}"
            raise InputError(f"{written} says nothing about --data {data}: leave it out, or give other data")


def check_file(path: Path) -> None:
    """Raise an InputError unless there is a file, which a pipe or a device is not."""
    if not os.path.isfile(path):
        raise InputError(f"no such file: {path}" if not os.path.lexists(path) else f"{path} is no file to read")


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in what its byte-order mark says. Of others only some letters would be left.

    Raises:
        InputError: it cannot be read, or is in another encoding.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise InputError(
                f"{path} begins with the mark of {encoding.upper()} and is not ({error.reason} at byte {error.start}): "
                "it may be cut off; save it anew, as UTF-8"
            ) from error
        raise InputError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8, from Latin-1 by "
            "iconv -f latin1 -t utf-8"
        ) from error
    if "\0" in text:
        raise InputError(
            f"{path} holds bytes of 0, which no text does: save it as UTF-8, from UTF-16 without a mark by "
            "iconv -f utf-16le -t utf-8"
        )
    return text


def read_table(path: Path) -> Mapping[str, Iterable[Any]]:
    """The columns of a CSV, TSV, JSON (a list of records) or JSONL file.

    Raises:
        InputError: it is none, or a row has more or fewer cells than the first line has names.
    """
    suffix = path.suffix.lower()
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path} is empty: {_EMPTY.get(suffix, _FIXES[suffix])}")
    try:
        if suffix in _SEPARATORS:
            import pandas

            with warnings.catch_warnings():  # of rows that are all too long, which the check below names
                warnings.simplefilter("ignore", pandas.errors.ParserWarning)
                frame = pandas.read_csv(io.StringIO(text), sep=_SEPARATORS[suffix], index_col=False)
            columns = {str(column): frame[column].tolist() for column in frame.columns}
        else:
            columns = _columns(_records(text) if suffix == ".jsonl" else json.loads(text))
    except Exception as error:  # of any type: pandas raises what the wrong content leads it to
        said = reason(error).removeprefix("Error tokenizing data. C error: ")
        raise InputError(f"{path} cannot be read as {suffix[1:]} ({said}): {_FIXES[suffix]}") from error
    if suffix in _SEPARATORS:
        _check_widths(path, text, _SEPARATORS[suffix])
    elif not columns:
        raise InputError(f"{path} has no record with a name in it: {_FIXES[suffix]}")
    return columns


def _records(text: str) -> list[Any]:
    """The values of JSON lines; blank lines are none."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return found


def _columns(found: Any) -> dict[str, list[Any]]:
    """Columns from a list of records, or from an object of whole columns."""
    if isinstance(found, dict):
        columns = {name: list(cells.values()) if isinstance(cells, dict) else cells for name, cells in found.items()}
        if not all(isinstance(cells, list) for cells in columns.values()) or len({*map(len, columns.values())}) > 1:
            raise ValueError("an object, and not one of columns of one length")
        return columns
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise ValueError("something that is no record")
    names = dict.fromkeys(name for record in found for name in record)
    return {name: [record.get(name) for record in found] for name in names}


_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_EMPTY = dict.fromkeys(_SEPARATORS, "its first line has to name the columns")


def _check_widths(path: Path, text: str, separator: str) -> None:
    """Raise an InputError at the first row whose cells cannot be told apart: pandas fills short ones up."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    width = 0
    for row in filter(None, rows):
        width = width or len(row)
        if len(row) != width:
            raise InputError(
                f"{path}, line {rows.line_num}: {len(row)} cell(s) where the first line names {width}: "
                f"{_FIXES[path.suffix.lower()]}"
            )


def check_letters(name: str, texts: Iterable[str]) -> None:
    """Raise an InputError at the first text with half of a surrogate pair, which no tokenizer takes."""
    for number, text in enumerate(texts, 1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{name}, record {number}: half of a surrogate pair ({text[error.start]!a}) in {text[:20]!a}: put "
                "U+FFFD or the whole letter in its place"
            ) from error
