"""The quality benchmark's statistics, bars and report, on records made by hand."""

from __future__ import annotations

import csv
import math
import signal

import pytest

from recipes.benchmarks.quality import __main__ as cli
from recipes.benchmarks.quality import readme
from recipes.benchmarks.quality import records as store
from recipes.benchmarks.quality.analysis import Estimate, Results, estimate, mean_curve, steps_to_loss
from recipes.benchmarks.quality.bars import bars, compare, seed_sets, tuned
from recipes.benchmarks.quality.report import markdown, write

LR = 1e-3  # the default of adamw and arturo from scratch
UP, DOWN = 3.16228e-3, 3.16228e-4
SPREAD = {1: -0.01, 2: 0.0, 3: 0.01}


def record(optimizer, lr, seed, loss, task="one", curve=None, **more):
    content = {
        "task": task,
        "optimizer": optimizer,
        "lr": lr,
        "seed": seed,
        "purpose": "seed",
        "digest": "t1-c1" if optimizer == "arturo" else "t1-published",
        "family": "from scratch",
        "steps": 100,
        "params": 10,
        "diverged": None,
        "failed": None,
        "curve": curve or [[50, 2 * loss, 0.5], [100, loss, 0.6]],
        "validation": {"loss": loss, "accuracy": 0.6, "ece": 0.02},
        "test": {"loss": loss, "accuracy": 0.6, "ece": 0.02},
        "wall_s": 1.0 if optimizer == "adamw" else 1.5,
        "cpu_s": 1.0,
        "optimizer_s": 0.1,
        "optimizer_cpu_s": 0.1,
        "state_bytes": 80 if optimizer == "adamw" else 160,
        "date": "2026-01-01",
        "versions": {"torch": "2.13.0"},
        "commit": "abc",
        "cpu": "some processor",
    }
    return content | more


def failure(*arguments, **more):
    return record(*arguments, loss=1.0, diverged="training loss nan at step 9", validation=None, test=None, **more)


def complete(task="one", ours=0.8, base=1.0, at_default=0.8, high=0.85, low=0.9):
    """All runs of one task: AdamW best at its default, arturo too; s.e. of every mean is 0.01/sqrt(3)."""
    found = [record("adamw", lr, 0, loss, task) for lr, loss in ((LR, base), (UP, 2 * base), (DOWN, 2 * base))]
    found += [record("arturo", lr, 0, loss, task) for lr, loss in ((LR, ours + 0.1), (UP, ours), (DOWN, 2.0))]
    for seed, shift in SPREAD.items():
        found.append(record("adamw", LR, seed, base + shift, task))
        found.append(record("arturo", UP, seed, ours + shift, task))
        found.append(record("arturo", LR, seed, (low if seed == 1 else at_default) + shift, task))
    return [*found, record("arturo", 1e-2, 1, high, task)]


def verdicts(records, tasks=("one",)):
    return [bar.verdict for bar in bars(Results(records, tasks))]


def test_steps_to_a_loss_by_hand():
    curve = [[10, 3.0, 0.1], [20, 2.0, 0.2], [40, 1.0, 0.3], [50, 1.5, 0.3]]
    assert steps_to_loss(curve, 2.5) == 15
    assert steps_to_loss(curve, 1.25) == 35
    assert steps_to_loss(curve, 1.0) == 40
    assert steps_to_loss(curve, 5.0) == 10
    assert steps_to_loss(curve, 0.9) is None
    assert steps_to_loss([], 1.0) is None


def test_estimates_by_hand():
    assert estimate([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / math.sqrt(3), 3))
    assert estimate([1.0, math.inf]).mean == math.inf
    assert math.isnan(estimate([1.0]).error)
    assert estimate([]).seeds == 0


def test_mean_curve_is_over_seeds_and_missing_if_one_failed():
    runs = [record("adamw", LR, seed, loss) for seed, loss in ((1, 1.0), (2, 2.0))]
    assert [point[:2] for point in mean_curve(runs)] == [[50, 3.0], [100, 1.5]]
    assert mean_curve([*runs, failure("adamw", LR, 3)]) == []


def test_differences_in_standard_errors():
    assert compare(Estimate(1.0, 0.3, 3), Estimate(2.0, 0.4, 3)) == pytest.approx(-2.0)
    assert compare(Estimate(1.0, math.nan, 1), Estimate(2.0, 0.4, 3)) is None
    assert compare(Estimate(math.inf, math.nan, 3), Estimate(2.0, 0.4, 3)) == math.inf
    assert compare(Estimate(2.0, 0.4, 3), Estimate(math.inf, math.nan, 3)) == -math.inf


def test_ratio_of_steps_is_to_the_step_where_adamw_first_has_its_final_loss():
    dipping = [[50, 1.0, 0.5], [75, 0.5, 0.5], [100, 0.8, 0.6]]  # reaches 0.8 after 60 steps already
    steep = [[50, 0.8, 0.5], [100, 0.4, 0.6]]
    never = [[50, 2.0, 0.5], [100, 0.9, 0.6]]
    results = Results(
        [
            *(record("adamw", LR, seed, 0.8, curve=dipping) for seed in (0, 1)),
            *(record("arturo", LR, seed, 0.4, curve=steep) for seed in (0, 1)),
            *(record("sgd", 0.1, seed, 0.9, curve=never) for seed in (0, 1)),
        ],
        ["one"],
    )
    assert results.steps_ratio("one", "adamw", "best") == 1
    assert results.steps_ratio("one", "arturo", "best") == pytest.approx(50 / 60)
    assert results.steps_ratio("one", "sgd", "best") == math.inf
    assert results.steps_ratio("one", "ivon", "best") is None


def test_all_bars_pass():
    assert verdicts(complete()) == ["pass", "pass", "fail", "pass", "pass"]  # 0.8 is reached late on this curve
    quick = [[50, 1.0, 0.5], [100, 0.8, 0.6]]
    fast = [one | ({"curve": quick} if one["optimizer"] == "arturo" else {}) for one in complete()]
    assert verdicts(fast) == ["pass"] * 5


def test_worse_at_the_default_fails_the_first_bar_only_beyond_two_errors():
    error = 0.01 / math.sqrt(3) * math.sqrt(2)
    assert verdicts(complete(at_default=1 + 1.9 * error, low=1 + 1.9 * error))[0] == "pass"
    assert verdicts(complete(at_default=1 + 2.1 * error, low=1 + 2.1 * error))[0] == "fail"


def test_tuned_must_be_better_on_half_and_worse_on_none():
    better, equal, worse = (complete(name, ours) for name, ours in (("a", 0.8), ("b", 1.0), ("c", 1.1)))
    assert verdicts(better + equal, ["a", "b"])[1] == "pass"
    assert verdicts(equal, ["b"])[1] == "fail"
    assert verdicts(better + better + worse, ["a", "c"])[1] == "fail"


def test_missing_tasks_make_bars_incomplete_but_a_violation_stands():
    assert verdicts(complete("a"), ["a", "b"]) == ["incomplete (1 of 2)"] * 5
    assert verdicts(complete("a", ours=1.1), ["a", "b"])[1] == "fail (1 of 2 known)"
    assert verdicts([], ["a", "b"]) == ["incomplete (0 of 2)"] * 5


def test_one_seed_is_not_enough():
    alone = [one for one in complete() if one["seed"] < 2]
    assert verdicts(alone)[:2] == ["incomplete (0 of 1)"] * 2


def test_large_rate_worse_than_small_one_fails():
    assert verdicts(complete(high=0.95, low=0.9))[3] == "fail"
    without = [one for one in complete() if one["lr"] != 1e-2]
    assert verdicts(without)[3] == "incomplete (0 of 1)"


def test_divergence_fails_the_last_bar_and_is_named():
    broken = [*complete(), failure("arturo", 3.16228e-2, 0)]
    bar = bars(Results(broken, ["one"]))[4]
    assert bar.verdict == "fail"
    assert "one lr 0.0316 seed 0" in bar.evidence
    assert verdicts([*complete(), failure("sgd", 1.0, 0)])[4] == "pass"  # another's divergence


def test_failed_seed_of_arturo_fails_the_comparisons():
    broken = [one for one in complete() if (one["lr"], one["seed"]) != (UP, 3)] + [failure("arturo", UP, 3)]
    assert verdicts(broken)[1:3] == ["fail", "fail"]


def test_newest_code_counts_and_old_code_can_be_asked_for():
    old = [one | {"digest": one["digest"].replace("c1", "c0"), "date": "2025-01-01"} for one in complete(ours=0.5)]
    records = [*complete(), *old]
    assert Results(records, ["one"]).final("one", "arturo", "best").mean == pytest.approx(0.8)
    assert Results(records, ["one"], code="c0").final("one", "arturo", "best").mean == pytest.approx(0.5)
    assert Results(records, ["one"]).codes == {"arturo": ["c0", "c1"]}
    assert "records also hold c0" in markdown(Results(records, ["one"]))


def test_two_optimizers_of_ours_have_a_code_each():
    paper = [
        one | {"optimizer": "arturo-paper", "digest": "t1-p1"} for one in complete() if one["optimizer"] == "arturo"
    ]
    results = Results([*complete(), *paper], ["one"])
    assert results.optimizers == ["adamw", "arturo", "arturo-paper"]
    assert results.left_out == 0


def test_code_that_was_run_last_counts_also_if_it_is_an_old_one():
    first = [one | {"date": "2025-01-01"} for one in complete(ours=0.5)]
    between = [one | {"digest": one["digest"].replace("c1", "c0"), "date": "2025-06-01"} for one in complete()]
    again = [one | {"seed": 4} for one in complete(ours=0.5) if one["seed"] == 3]
    assert Results([*first, *between, *again], ["one"]).code == {"arturo": "c1"}
    assert Results([*first, *between], ["one"]).code == {"arturo": "c0"}


def test_best_rate_is_that_of_a_finished_tuning():
    """Before it, the best of what was tried is an accident, and runs at the default would be taken for tuned ones."""
    base = [record("adamw", LR * 10 ** (k / 2), 0, 1.0 + abs(k)) for k in range(-2, 3)]
    begun = [record("muon", LR * 10 ** (k / 2), 0, 1.0) for k in range(4)] + [record("muon", LR, 1, 1.0)]
    results = Results([*base, *begun], ["one"])
    assert (results.best_lr("one", "adamw"), results.best_lr("one", "muon")) == (LR, None)
    assert results.final("one", "muon", "best").seeds == 0
    assert results.final("one", "muon", "default").seeds == 1
    done = Results([*base, *begun, record("muon", LR / 10**0.5, 0, 0.9)], ["one"])
    assert done.best_lr("one", "muon") == pytest.approx(LR / 10**0.5, rel=1e-5)
    assert done.at_edge("one", "muon")
    assert not done.at_edge("one", "adamw")


def test_fresh_seeds_have_a_table_of_their_own_and_count_in_the_others():
    fresh = [one | {"seed": one["seed"] + 3} for one in complete(ours=0.9) if one["seed"] in (1, 2, 3)]
    results = Results([*complete(), *fresh], ["one"])
    assert results.final("one", "arturo", "best").mean == pytest.approx(0.85)
    text = markdown(results).split("## Fresh seeds")[1].split("## Each task")[0]
    # (0.9 - 1.0) / (0.01 sqrt(2/3))
    assert "| 1.0000 ± 0.0058 | 0.9000 ± 0.0058 | -12.2 |" in text
    assert "Not run yet" in markdown(Results(complete(), ["one"]))


def test_a_set_of_seeds_that_fails_alone_is_not_hidden_by_the_others():
    worse = [one | {"seed": one["seed"] + 3} for one in complete(ours=1.05) if one["seed"] in (1, 2, 3)]
    results = Results([*complete(ours=0.7), *worse], ["one"])
    assert [tuned(results, seeds).verdict for seeds in seed_sets(results).values()] == ["pass", "fail"]
    rows = [line for line in markdown(results).splitlines() if line.startswith("| Both tuned, test loss")]
    assert [line.split(" | ")[1:3] for line in rows[1:]] == [["1, 2, 3", "pass"], ["4, 5, 6", "fail"]]
    assert seed_sets(Results(complete(), ["one"])) == {}


def test_readme_says_by_how_much_a_bar_is_missed():
    text = readme.summary(Results(complete(high=0.95, low=0.9), ["one"]))
    assert "(seed 1); difference of the losses: one +0.0600." in text


def test_wall_times_are_compared_at_their_shortest():
    slow = [one | {"wall_s": 9.0} for one in complete() if one["seed"] == 2]
    results = Results([*complete(), *slow], ["one"])
    assert results.time_ratio("one", "arturo", "wall_s", min) == 1.5


def test_older_settings_of_a_task_do_not_count():
    stale = [
        one | {"digest": "t0-published", "date": "2025-01-01"} for one in complete() if one["optimizer"] == "adamw"
    ]
    only_stale = [*stale, *(one for one in complete() if one["optimizer"] == "arturo")]
    assert verdicts(only_stale)[0] == "incomplete (0 of 1)"


def test_report_has_every_number_and_the_figures(tmp_path):
    path = tmp_path / "records.jsonl"
    for one in [*complete(), failure("sgd", 0.1, 0), failure("sgd", 0.1, 1)]:
        store.append(path, one)
    text = write([path], tmp_path / "out", tasks=["one", "two"]).read_text()
    for said in ("0.8000 ± 0.0058", "1.0000 ± 0.0058", "| incomplete (1 of 2) |", "training loss nan", "No runs yet"):
        assert said in text
    assert "nan ±" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| arturo | 0.00316 (edge) |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[11] == "1.50"  # wall time over AdamW's
    assert "| one | 1.0000 ± 0.0058 | **0.8000 ± 0.0058** |" in text.split("## Final validation loss, tuned")[1]
    accuracies = text.split("## Final validation accuracy, tuned")[1].split("##")[0]
    assert "| one | **0.600 ± 0.000** | **0.600 ± 0.000** |" in accuracies  # equal: both the best
    assert cells[14:] == ["16.0", "0 of 10"]  # bytes a weight, failures
    for name in ("differences", "lr_curves", "curves"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / "out" / f"{name}.svg").exists()
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert {row["optimizer"]: row["loss_best_mean"][:3] for row in rows if row["task"] == "one"} == {
        "adamw": "1.0",
        "arturo": "0.8",
        "sgd": "nan",
    }


def test_report_of_nothing_is_a_report(tmp_path):
    assert "incomplete (0 of 1)" in write([tmp_path / "missing.jsonl"], tmp_path, tasks=["one"]).read_text()


@pytest.mark.parametrize("given", [["--tasks", "nope"], ["--optimizers", "nope"], ["--seeds", "0"], ["--budget", "0"]])
def test_command_line_names_what_is_wrong(given, capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", *given])
    assert given[0].strip("-").rstrip("s") in capsys.readouterr().err


def test_dry_run_of_the_short_form_shows_its_runs(tmp_path, capsys):
    assert cli.main(["run", "--short", "--dry-run", "--results", str(tmp_path / "none.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 32  # 3 + 1 points and seeds of each, no extension, no fresh seeds
    assert {line.split()[2] for line in lines} == {"adamw", "arturo"}


def test_what_was_asked_for_and_left_out_is_not_success(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("recipes.benchmarks.quality.environment.installed", lambda entry: False)
    path = tmp_path / "none.jsonl"
    assert cli.main(["run", "--optimizers", "ivon", "--results", str(path)]) == 1
    assert "Not run: ivon (install ivon-opt" in " ".join(capsys.readouterr().out.split())
    assert not path.exists()


def test_listing_names_every_task_and_optimizer(capsys):
    cli.main(["list"])
    said = capsys.readouterr().out
    for name in (*cli.TASKS, *cli.OPTIMIZERS):
        assert name in said


def test_readme_summary_replaces_what_stands_between_the_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("\n".join(["before", readme.WHOLE[0], "old", readme.WHOLE[1], "after\n"]), encoding="utf-8")
    readme.insert(page, Results(complete(), ["one"]))
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{readme.WHOLE[0]}\n")
    assert text.endswith(f"{readme.WHOLE[1]}\nafter\n")
    assert "old" not in text
    # Tuned: AdamW 1.0, arTuRO 0.8; s.e. 0.01/sqrt(3). No others.
    assert "| – | 1.000 ± 0.006 | 0.800 ± 0.006 | – |" in text
    # 1.0 lies between 1.6 at step 50 and 0.8 at step 100, so it is reached at 87.5: too late for the third bar.
    assert "| 0.88 |" in text
    assert (text.count("* pass: "), text.count("* fail: Both tuned, median over tasks of steps")) == (4, 1)


def test_readme_without_markers_is_left_alone(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="quality: begin"):
        readme.insert(page, Results(complete(), ["one"]))
    assert page.read_text(encoding="utf-8") == "no markers"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_grid_like_ctrl_c(number):
    before = signal.getsignal(number)
    with cli.interruptible(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
