"""What the last watched step says of every layer: rows for the tables, groups by module, and the answers in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from arturo_integrations.report.run import Run

#: More layers than this are also shown by module.
MOST_ROWS = 40
#: Groups that say too little: one level deeper is shown, up to ``MOST_GROUPS`` of them.
LEAST_GROUPS, MOST_GROUPS = 6, 120

#: A layer has learned curvature, or has curvature at its floor, if more than this share of its weights has.
NOTABLE = 0.1


@dataclass(frozen=True)
class Row:
    """A layer, or the layers of a module: numbers as in :data:`meanings.LAYER_MEANINGS`; missing ones are NaN."""

    name: str
    numbers: Mapping[str, float]
    members: int = 1

    def __getitem__(self, number: str) -> float:
        return self.numbers.get(number, math.nan)


def last_step(run: Run) -> int:
    """The last step with numbers of layers; the run has some."""
    return int(max(series.steps[-1] for numbers in run.layers.values() for series in numbers.values()))


def rows(run: Run, step: int) -> list[Row]:
    """The layers that have numbers at a step, largest share of the KL divergence first."""
    found = []
    for name, numbers in run.layers.items():
        at = {
            key: float(series.values[series.steps == step][0])
            for key, series in numbers.items()
            if step in series.steps
        }
        if at:
            found.append(Row(name, at))
    return by_share(found)


def by_share(found: Iterable[Row]) -> list[Row]:
    return sorted(found, key=lambda row: -row["kl_share"] if math.isfinite(row["kl_share"]) else math.inf)


def by_module(found: Sequence[Row], groups: Mapping[str, str]) -> list[Row]:
    """One row a group: KL divergence and share are sums, all else plain means over the layers that have the number."""
    members: dict[str, list[Row]] = {}
    for row in found:
        members.setdefault(groups[row.name], []).append(row)
    merged = []
    for name, inside in members.items():
        numbers: dict[str, float] = {}
        for key in dict.fromkeys(key for row in inside for key in row.numbers):
            values = [row[key] for row in inside if math.isfinite(row[key])]
            total = math.fsum(values) if values else math.nan
            numbers[key] = total if key in ("kl", "kl_share") else total / max(1, len(values))
        merged.append(Row(name, numbers, len(inside)))
    return by_share(merged)


def modules(names: Sequence[str]) -> dict[str, str]:
    """A module for every layer: the first components of its name, as many as leave at most ``MOST_ROWS`` modules.

    Where these are too few to say anything (a model of 80 blocks, cut above the blocks), one component more.
    """
    separator = "." if any("." in name for name in names) else "/"
    depth = max(name.count(separator) for name in names) + 1
    cut = {name: name for name in names}
    for parts in range(depth, 0, -1):
        finer, cut = cut, {name: separator.join(name.split(separator)[:parts]) for name in names}
        count = len(set(cut.values()))
        if count <= MOST_ROWS:
            return finer if count < LEAST_GROUPS and len(set(finer.values())) <= MOST_GROUPS else cut
    return cut


def summary(found: Sequence[Row]) -> list[tuple[str, str]]:
    """Three questions on the layers and their answers, from rows with the largest share first."""
    return [
        ("Who spends the KL budget?", _spenders(found)),
        ("Whose curvature was learned?", _notable(found, "curvature_learned", "more than a tenth away from its prior")),
        ("Whose curvature is at its floor?", _notable(found, "curvature_floored", "at its floor or not positive")),
    ]


def _spenders(found: Sequence[Row]) -> str:
    shares = [(row.name, row["kl_share"]) for row in found if math.isfinite(row["kl_share"])]
    if not shares:
        return "No share was logged."
    spent, half = 0.0, 0
    while half < len(shares) and spent < 0.5:
        spent += shares[half][1]
        half += 1
    named = ", ".join(f"{name} ({percent(share)})" for name, share in shares[: min(half, 3)])
    of = f"{half} of {len(shares)} layers spend" if half > 1 else f"1 of {len(shares)} layers spends"
    return f"{of} {percent(spent)}: {named}{_and_more(half - 3)}."


def _notable(found: Sequence[Row], number: str, what: str) -> str:
    logged = [row for row in found if math.isfinite(row[number])]
    if not logged:
        return "Not logged."
    those = sorted((row for row in logged if row[number] > NOTABLE), key=lambda row: -row[number])
    if not those:
        return f"In no layer is the curvature of more than {percent(NOTABLE)} of the weights {what}."
    if len(those) == len(logged) > 1:
        most, least = (f"{percent(row[number])} in {row.name}" for row in (those[0], those[-1]))
        return f"In all {len(logged)} layers curvature is {what}: of {most} at most, of {least} at least."
    listed, without = those, ""
    if 2 * len(those) > len(logged):
        listed, without = sorted((row for row in logged if row not in those), key=lambda row: row[number]), "not "
    named = ", ".join(f"{row.name} ({percent(row[number])} of its weights)" for row in listed[:3])
    are = "layer" if len(logged) == 1 else "layers"
    more = _and_more(len(listed) - 3)
    return f"In {len(those)} of {len(logged)} {are} curvature is {what}: {without}{named}{more}."


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def percent(share: float) -> str:
    """``34 %``, ``0.42 %``; 100 % and 0 % only if it is all or nothing; the number itself if it is not finite."""
    if not math.isfinite(share):
        return str(share)
    if 0.99 < share < 1.0:
        return f"{min(100 * share, 99.99):.4g} %"
    return f"{100 * share:.2g} %" if abs(share) < 0.0995 else f"{100 * share:.0f} %"
