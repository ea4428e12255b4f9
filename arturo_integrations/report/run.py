"""A training run as the report sees it: numbers against steps, sorted into what they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from arturo_integrations.metrics import PREFIX
from arturo_integrations.report.errors import NothingLogged, ReportError
from arturo_integrations.report.names import one_line, some

#: What the readers deliver: for every key, its values by step.
Columns = Mapping[str, Mapping[int, float]]

LAYER = "layer/"  # after PREFIX

#: Names of the training loss; the first that was logged is drawn. Trainer's own ``train_loss``, the mean of a whole
#: run, stands beside ``loss`` and so gives way to it.
TRAIN_LOSS = (
    "loss",
    "train/loss",
    "train_loss",
    "train_loss_step",
    "train/loss_step",
    "train_loss_epoch",
    "train/loss_epoch",
    "training_loss",
)
_VALIDATION_LOSS = re.compile(r"(eval|val|valid|validation)[_/](.+[_/])?loss(_epoch)?(/dataloader_idx_\d+)?")
_LEARNING_RATE = re.compile(r"(train/)?(learning_rate|lr)|lr[-/].+(?<!-momentum)(?<!-weight_decay)")
# Loggers put prefixes of their own before ours; where there are several optimizers, their index follows it.
_ARTURO = re.compile(rf"(?:^|.*?[/_.-]){PREFIX}(?:(\d{{1,9}})/)?")


@dataclass(frozen=True)
class Series:
    """One number against steps. ``steps`` and ``values``: float64 of one length, at least 1; steps increase."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, column: Mapping[int, float]) -> Series:
        steps = sorted(column)
        return cls(np.array(steps, dtype=np.float64), np.array([column[step] for step in steps], dtype=np.float64))

    @property
    def last(self) -> float:
        return float(self.values[-1])

    def finite(self) -> Series:
        """Without values that are not finite; may be empty."""
        keep = np.isfinite(self.values)
        return Series(self.steps[keep], self.values[keep])


@dataclass(frozen=True)
class Run:
    """What is drawn and tabled.

    Attributes:
        name: of the run, as ``--run`` takes it.
        origin: the file or folder that was read.
        kind: the logger that wrote it, in words.
        loss, validation, learning_rate: by key of the log; ``loss`` has one entry at most.
        numbers: diagnostics, by name without the prefix.
        layers: by layer name, its numbers by name; layers in the order of the model where the log keeps it.
        notes: what a reader should know: lines left out, other runs in the folder.
        unread: further logs of the same run, as path and logger.
    """

    name: str
    origin: str
    kind: str
    loss: dict[str, Series]
    validation: dict[str, Series]
    learning_rate: dict[str, Series]
    numbers: dict[str, Series]
    layers: dict[str, dict[str, Series]]
    notes: list[str] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)

    def all_series(self) -> list[Series]:
        shown = (self.loss, self.validation, self.learning_rate, self.numbers, *self.layers.values())
        return [series for group in shown for series in group.values()]

    @property
    def steps(self) -> tuple[int, int]:
        """First and last logged step."""
        found = self.all_series()
        return int(min(series.steps[0] for series in found)), int(max(series.steps[-1] for series in found))


def sort(
    name: str,
    origin: str,
    kind: str,
    columns: Columns,
    notes: list[str],
    optimizer: int | None = None,
    unusable: Collection[str] = (),
) -> Run:
    """A run from the columns of its log.

    Args:
        name, origin, kind, notes: of the run, see :class:`Run`.
        columns: what was logged.
        optimizer: where several were logged (``arturo/<index>/<name>``), the one to show; by default the first.
        unusable: keys with values that are no numbers; the notes say why.

    Raises:
        NothingLogged: none of the columns is one that the report shows.
        ReportError: there is no optimizer with this index.
    """
    run = Run(one_line(name), one_line(origin), kind, {}, {}, {}, {}, {}, [one_line(note) for note in notes])
    ours = {key: prefix for key in columns if (prefix := _ARTURO.match(key)) is not None}
    shown = _choose_optimizer(run, [prefix[1] for prefix in ours.values()], optimizer)
    nameless: list[str] = []
    for key, column in columns.items():
        if key in ours:
            if ours[key][1] == shown and not _sort_ours(run, key[ours[key].end() :], column):
                nameless.append(key)
        elif _VALIDATION_LOSS.fullmatch(key):
            run.validation[key] = Series.of(column)
        elif _LEARNING_RATE.fullmatch(key):
            run.learning_rate[key] = Series.of(column)
    loss = next((key for key in TRAIN_LOSS if key in columns), None)
    if loss is not None:
        run.loss[loss] = Series.of(columns[loss])
    if not run.all_series():
        held = some(sorted(columns)) or "no numbers at all"
        left_out = f" {' '.join(run.notes[:3])}" if run.notes else ""
        raise NothingLogged(
            f"{origin}: nothing to show. Looked for keys that begin with {PREFIX!r}, a loss "
            f"({', '.join(TRAIN_LOSS[:3])}; eval_loss, val_loss, eval/loss) and a learning rate (learning_rate, lr, "
            f"lr-...); found: {held}.{left_out}"
        )
    if nameless:
        run.notes.append(f"Left out, since the name of a number is missing: {some(nameless)}.")
    lost = [key for key in unusable if key not in ours and _ARTURO.match(key)]
    if lost and not run.numbers and not run.layers:
        run.notes.append(
            f"No value of {some(lost)} is a number that can be shown: there are losses and learning rate only."
        )
    elif not ours:
        run.notes.append(
            f"No key of this log begins with {PREFIX!r}: it shows losses and learning rate only. Log "
            "arturo_integrations.metrics.arturo_metrics(optimizer) beside the loss to see what the optimizer did."
        )
    ordered = _model_order(run.layers)
    run.layers.clear()
    run.layers.update(ordered)
    return run


def _choose_optimizer(run: Run, indices: list[str | None], wanted: int | None) -> str | None:
    """The index of the optimizer to show, as it is written in the keys; None where keys have no index."""
    found = sorted({index for index in indices if index is not None}, key=int)
    if wanted is None:
        shown = None if None in indices or not found else found[0]
    elif str(wanted) in found:
        shown = str(wanted)
    else:
        raise ReportError(
            f"{run.origin}: no optimizer {wanted} was logged; found: {some(found) or 'one, without index'}."
        )
    others = [index for index in found if index != shown]
    if others:
        run.notes.append(
            f"Shown is optimizer {shown or 'without index'}; --optimizer shows another: {', '.join(others)}."
        )
    return shown


def _sort_ours(run: Run, name: str, column: Mapping[int, float]) -> bool:
    """Put a diagnostic in its place; False if its name is missing."""
    if name.startswith(LAYER):
        layer, _, number = name.removeprefix(LAYER).rpartition("/")  # names of layers may have slashes of their own
        if not (layer and number):
            return False
        run.layers.setdefault(layer, {})[number] = Series.of(column)
    elif name:
        run.numbers[name] = Series.of(column)
    return bool(name)


def _model_order(layers: dict[str, dict[str, Series]]) -> dict[str, dict[str, Series]]:
    """Loggers that sort their columns put layer 10 before layer 2; others keep the order of the model."""
    names = list(layers)
    if names == sorted(names):
        names.sort(key=natural)
    return {name: layers[name] for name in names}


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts ``layers.2`` before ``layers.10``."""
    return [_number_key(part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _number_key(digits: str) -> tuple[int, int, str]:
    """Orders whole numbers as they are written, of any length: more digits, the larger number."""
    digits = digits.lstrip("0")
    return (0, len(digits), digits)
