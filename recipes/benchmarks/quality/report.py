"""Tables of the results: report.md for reading, results.csv and lr_curves.csv for computing."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from recipes.benchmarks.quality import records as store
from recipes.benchmarks.quality.analysis import BASELINE, Estimate, Results
from recipes.benchmarks.quality.bars import OURS, at_default, bars, compare, seed_sets, tuned
from recipes.benchmarks.quality.optimizers import FAMILIES, OPTIMIZERS
from recipes.benchmarks.quality.plan import BUDGET, EXTENSION, FRESH_SEEDS
from recipes.benchmarks.quality.records import failed
from recipes.benchmarks.quality.tasks import TASKS

NOTHING = "–"
FIGURES = {
    "differences": "Test loss relative to AdamW's (± 2 s.e.), tuned and at the default learning rates",
    "lr_curves": "Validation loss against the learning rate over its default (tuning, seed 0)",
    "curves": "Validation loss during training at the best learning rate (mean ± s.e. over the seeds)",
}


def number(value: float | None, form: str = ".3g") -> str:
    """A number as text: missing is a dash, infinite a failed run."""
    if value is None or math.isnan(value):
        return NOTHING
    return format(value, form) if math.isfinite(value) else "failed"


def with_error(value: Estimate, form: str = ".4f") -> str:
    """Mean ± standard error; how many seeds, if it is one only."""
    text = number(value.mean, form)
    if not math.isnan(value.error):
        return f"{text} ± {format(value.error, form)}"
    return f"{text} (one seed)" if value.seeds == 1 and math.isfinite(value.mean) else text


def steps_text(ratio: float | None) -> str:
    return "not reached" if ratio == math.inf else number(ratio, ".2f")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right."""
    return [
        "| " + " | ".join(titles) + " |",
        "|---|" + "---:|" * (len(titles) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def overview(results: Results, which: str, part: str = "test", score: str = "loss") -> list[str]:
    """Final scores, tasks down and optimizers across; the best of a task in bold."""
    best_of, form = (min, ".4f") if score == "loss" else (max, ".3f")
    rows = []
    for task in results.tasks:
        found = [results.final(task, name, which, score, part) for name in results.optimizers]
        best = best_of((value.mean for value in found if math.isfinite(value.mean)), default=math.nan)
        texts = [with_error(value, form) for value in found]
        rows.append(
            [task] + [f"**{text}**" if value.mean == best else text for text, value in zip(texts, found, strict=True)]
        )
    return table(["task", *results.optimizers], rows)


COLUMNS = (
    "best lr",
    "test loss",
    "accuracy",
    "ECE",
    "steps to AdamW's loss",
    "default lr",
    "test loss at default",
    "accuracy at default",
    "ECE at default",
    "steps to AdamW's loss at default",
    "wall time / AdamW's",
    "CPU time / AdamW's",
    "optimizer CPU ms a step",
    "state bytes a weight",
    "failed runs",
)


def row(results: Results, task: str, name: str) -> list[str]:
    """One optimizer on one task: `COLUMNS`."""
    runs = results.runs(task, name)
    steps, params = (runs[0]["steps"], runs[0]["params"]) if runs else (math.nan, math.nan)
    edge = " (edge)" if results.at_edge(task, name) else ""
    cells = [number(results.best_lr(task, name)) + edge, with_error(results.final(task, name, "best"))]
    cells += [with_error(results.final(task, name, "best", score), ".3f") for score in ("accuracy", "ece")]
    cells += [steps_text(results.steps_ratio(task, name, "best")), number(results.default_lr(task, name))]
    cells += [with_error(results.final(task, name, "default"))]
    cells += [with_error(results.final(task, name, "default", score), ".3f") for score in ("accuracy", "ece")]
    cells += [steps_text(results.steps_ratio(task, name, "default"))]
    # Other work on the machine lengthens wall times, and never shortens them.
    cells += [number(results.time_ratio(task, name, "wall_s", min), ".2f")]
    cells += [number(results.time_ratio(task, name, "cpu_s"), ".2f")]
    cells += [number(1e3 * results.mean_of(task, name, "optimizer_cpu_s") / steps, ".2f")]
    cells += [number(results.mean_of(task, name, "state_bytes") / params, ".1f")]
    return [*cells, f"{sum(map(failed, runs))} of {len(runs)}" if runs else NOTHING]


def lr_table(results: Results, task: str) -> list[str]:
    """Every tuning loss: multiples of the default down, optimizers across."""
    found: dict[str, dict[float, float]] = {}
    for name in results.optimizers:
        default = results.default_lr(task, name)
        if default:
            # √10 and 10 to a power, told apart to two digits.
            tuning = results.tuning(task, name)
            found[name] = {float(f"{lr / default:.2g}"): loss for lr, loss in tuning.items()}
    multiples = sorted({multiple for losses in found.values() for multiple in losses})
    rows = []
    for multiple in multiples:
        cells = []
        for name in results.optimizers:
            losses = found.get(name, {})
            text = number(losses.get(multiple), ".4f")
            best = multiple in losses and losses[multiple] == min(losses.values()) and math.isfinite(losses[multiple])
            cells.append(f"**{text}**" if best else text)
        rows.append([f"{multiple:g} x default", *cells])
    return table(["lr", *results.optimizers], rows)


def markdown(results: Results) -> str:
    """The whole report."""
    lines = ["# Quality benchmark", "", *heading(results), "## What arTuRO is held to", ""]
    lines += table(["bar", "verdict", "evidence"], [list(bar) for bar in bars(results)])
    lines += [
        "Standard errors of a difference are those of two independent means (root of the sum of squares); with three "
        "seeds each it has two to four degrees of freedom, with six five to ten: one difference of 2 s.e. is weak "
        "evidence. "
        "The default learning rate of LoRA is 5e-4, ten times that of fine-tuning in full, for both.",
        "",
    ]
    for name, title in FIGURES.items():
        lines += [f"![{title}]({name}.png)", "", f"*{title}.*", ""]
    lines += ["## Test loss, tuned", "", *overview(results, "best")]
    lines += ["## Test loss at the untouched default learning rate", "", *overview(results, "default")]
    lines += ["## Final validation loss, tuned", "", *overview(results, "best", "validation")]
    lines += ["## Final validation loss at the untouched default learning rate", ""]
    lines += overview(results, "default", "validation")
    lines += ["## Final validation accuracy, tuned", "", *overview(results, "best", "validation", "accuracy")]
    lines += ["## Final validation accuracy at the untouched default learning rate", ""]
    lines += [*overview(results, "default", "validation", "accuracy"), *confirmation(results)]
    lines += ["## Each task", ""]
    for task in results.tasks:
        names = [name for name in results.optimizers if results.runs(task, name)]
        lines += [f"### {task}", "", *describe(task)]
        if not names:
            lines += ["No runs yet.", ""]
            continue
        lines += table(["optimizer", *COLUMNS], [[name, *row(results, task, name)] for name in names])
        lines += ["Final validation loss in tuning (seed 0):", "", *lr_table(results, task)]
    lines += ["## Default learning rates", ""]
    lines += table(
        ["optimizer", *FAMILIES, "source"],
        [
            [name, *(number(entry.default[family]) for family in FAMILIES), entry.why]
            for name, entry in OPTIMIZERS.items()
        ],
    )
    return "\n".join([*lines, *failures(results), *environment(results)]).rstrip() + "\n"


def describe(task: str) -> list[str]:
    """What a task is and how long it trains; nothing for one that is no longer in the benchmark."""
    return [f"{TASKS[task].description}. {TASKS[task].setting}.", ""] if task in TASKS else []


def confirmation(results: Results) -> list[str]:
    """The bars' two optimizers on seeds that nothing was chosen by."""
    lines = ["## Fresh seeds", ""]
    rows = []
    for task in results.tasks:
        cells = []
        for which in ("default", "best"):
            base, ours = (results.final(task, name, which, seeds=FRESH_SEEDS) for name in (BASELINE, OURS))
            gap = compare(ours, base)
            cells += [with_error(base), with_error(ours), number(gap, "+.1f")]
        if any(cell != NOTHING for cell in cells):
            rows.append([task, *cells])
    if not rows:
        return [*lines, "Not run yet.", ""]
    titles = [f"{name}, {at}" for at in ("default", "tuned") for name in (BASELINE, OURS, "difference in s.e.")]
    seeds = ", ".join(map(str, FRESH_SEEDS))
    return [
        *lines,
        f"Test losses of seeds {seeds} alone: the default form was settled before any of them was run, while scores of "
        "seeds 1 to 3 had been seen on the way to it (lab notebook). The other tables and the bars use all seeds.",
        "",
        *table(["task", *titles], rows),
        *apart(results),
    ]


def apart(results: Results) -> list[str]:
    """Two bars on each set of seeds alone: what the verdict on all of them hides."""
    if not (sets := seed_sets(results)):
        return []
    rows = []
    for check in (at_default, tuned):
        for said, seeds in sets.items():
            bar = check(results, seeds)
            rows.append([bar.claim, said, bar.verdict, bar.evidence])
    return [
        "The bars that rest on these losses, on each set of seeds alone (when the second was added, and why: last part "
        "of the lab notebook).",
        "",
        *table(["bar", "seeds", "verdict", "evidence"], rows),
    ]


def heading(results: Results) -> list[str]:
    """How to read the numbers."""
    return [
        "Test scores, read once at the end of a run, as mean ± standard error over the seeds; the learning rate is "
        "tuned on the validation loss of seed 0, which is not among them, by the same rule for every optimizer: "
        f"{BUDGET} learning rates on a grid around its default, and up to {EXTENSION} more while the best is the "
        "outermost of them. (edge): it still is, and a better one may lie beyond. "
        "Losses are negative log-likelihoods in nats (language models: a token). "
        f"Steps to AdamW's loss: where the mean validation curve first reaches the final one of {BASELINE}, over the "
        "steps AdamW itself takes to it. A dash among tuning losses is a rate that the tuning did not come to, "
        "elsewhere a run not done yet. CPU times are fair to all: memory once "
        "used is kept by the process, without which IVON's steps on MiniLM take twice as long (AdamW's and arTuRO's "
        "as long as with it). Other work ran beside many runs: the ratio of wall times is of the shortest run of each, "
        "and the milliseconds are CPU time.",
        "",
    ]


def failures(results: Results) -> list[str]:
    """Runs without scores, and why."""
    bad = [record for record in results.records if failed(record)]
    lines = ["## Failed runs", ""]
    if not bad:
        return [*lines, f"None of {len(results.records)}.", ""]
    cells = [
        [one["optimizer"], one["task"], f"{one['lr']:.3g}", str(one["seed"]), one["diverged"] or one["failed"]]
        for one in sorted(bad, key=lambda one: (one["optimizer"], one["task"], one["lr"], one["seed"]))
    ]
    return [*lines, *table(["optimizer", "task", "lr", "seed", "reason"], cells)]


def environment(results: Results) -> list[str]:
    """Where the numbers come from; several versions or machines are said, not hidden."""

    def counted(values: Sequence[str]) -> str:
        found = Counter(values)
        return next(iter(found)) if len(found) == 1 else ", ".join(f"{name} ({n} runs)" for name, n in found.items())

    versions: dict[str, list[str]] = {}
    for record in results.records:
        for package, version in record.get("versions", {}).items():
            versions.setdefault(package, []).append(version)
    commits = [str(record.get("commit")) for record in results.records]
    changed = sum(commit.endswith("+") for commit in commits)
    return [
        "## Environment",
        "",
        f"- {len(results.records)} runs"
        + (f"; {results.left_out} of older task settings or code left out" if results.left_out else "")
        + ".",
        *(
            f"- Digest of what {name} does: {code}"
            + (
                f" (records also hold {', '.join(old)})"
                if (old := [c for c in results.codes[name] if c != code])
                else ""
            )
            + "."
            for name, code in results.code.items()
        ),
        *(f"- {package} {counted(found)}" for package, found in sorted(versions.items())),
        f"- commit {counted(commits)}"
        + (f"; {changed} runs (+) of code not committed yet, told apart by its digest" if changed else "")
        + ".",
        f"- {counted([str(record.get('cpu')) for record in results.records])}, one thread a run.",
    ]


def write_csv(results: Results, folder: Path) -> None:
    """results.csv: a task and an optimizer a row. lr_curves.csv: a tuning run a row."""
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        asked = [(which, part, score) for which in ("best", "default") for part in ("test", "validation")
                 for score in ("loss", "accuracy", "ece")]  # fmt: skip
        titles = [("validation_" if part == "validation" else "") + f"{score}_{which}_{what}"
                  for which, part, score in asked for what in ("mean", "error", "seeds")]  # fmt: skip
        measured = ["wall_s", "cpu_s", "optimizer_s", "optimizer_cpu_s", "state_bytes"]
        writer.writerow(
            ["task", "optimizer", "best_lr", "default_lr", *titles, "steps_best", "steps_default", *measured]
        )
        for task in results.tasks:
            for name in results.optimizers:
                scores = [results.final(task, name, which, score, part) for which, part, score in asked]
                steps = [results.steps_ratio(task, name, which) for which in ("best", "default")]
                writer.writerow(
                    [task, name, results.best_lr(task, name), results.default_lr(task, name)]
                    + [value for score in scores for value in score]
                    + steps
                    + [results.mean_of(task, name, key) for key in measured]
                )
    with (folder / "lr_curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "optimizer", "lr", "validation_loss"])
        for task in results.tasks:
            for name in results.optimizers:
                writer.writerows([task, name, lr, loss] for lr, loss in results.tuning(task, name).items())


def write(paths: Sequence[Path], folder: Path, tasks: Sequence[str] | None = None, code: str | None = None) -> Path:
    """Make the report of some files of records in `folder`; returns report.md."""
    from recipes.benchmarks.quality import figures

    results = Results(store.read(paths), list(TASKS) if tasks is None else tasks, code)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(results, folder)
    figures.draw_all(results, folder)
    path = folder / "report.md"
    path.write_text(markdown(results), encoding="utf-8")
    return path
