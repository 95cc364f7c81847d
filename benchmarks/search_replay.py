"""Regret over seconds: this service's searches and Tune's, replayed on a table of real trainings.

    python -m benchmarks.search_replay [--workers 1 4 16] [--methods tpe-asha ...] [--seeds 20]

Every search gets the same simulated seconds: those in which random search trains 40 configurations
of the table's mean cost, and 10 a worker where that is more. Proposals take none of them, on any
side: ours are made ahead, and Tune's blocking ones are given to it for nothing. `2x-random` is
random search with twice the workers.

Regret is ln(valid_ppl / the table's best), in nats a word, of the best training that ran to its
last step. A method's seconds are those to random search's median final value, held against those
that random search takes to it, and against its whole run. Runs are kept in
RESULTS as they end, so that a replay goes on where it was stopped; the tables are of all in it.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import optuna

from benchmarks.report import Result, report
from benchmarks.search_clock import Improvement, simulate
from benchmarks.search_methods import PRUNERS, SAMPLERS, TUNE, make_search
from benchmarks.search_table import Point, Row, append_record, load_table, points, read_records

RESULTS = Path("runs/search_replay.jsonl")
RANDOM, TWICE = "random-none", "2x-random-none"
OURS = [f"{sampler}-{pruner}" for sampler in SAMPLERS for pruner in PRUNERS]
OTHERS = [TWICE, f"{TUNE}-none", f"{TUNE}-asha"]
METHODS = [*OURS, *OTHERS]
GOAL = 5.0  # times fewer seconds than random search
SHOWN = (0.05, 0.1, 0.2, 0.5, 1.0)  # of the budget
RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class Case:
    """One search to be replayed."""

    method: str
    workers: int
    seed: int


Runs = dict[Case, list[Improvement]]


@dataclass(frozen=True)
class Comparison:
    """All methods with one number of workers: a list has an item for each seed."""

    workers: int
    budget_seconds: float
    target: float  # valid_ppl: random search's median final value
    regrets: dict[str, list[list[float]]]  # nats, by method, at each of SHOWN
    seconds: dict[str, list[float]]  # to the target, by method; inf where it was not reached


def main(cases: Sequence[Case], processes: int, results: Path) -> None:
    """Replay what is not in `results` yet, and print what all in it comes to."""
    table = load_table()
    if len(table) < len(points()):
        lacking = f"{len(points()) - len(table)} of {len(points())} trainings"
        raise SystemExit(f"the table lacks {lacking}: python -m benchmarks.search_table")
    runs = _kept(results)
    missing = [case for case in cases if case not in runs]
    results.parent.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # a model fit is too small to share
    with ProcessPoolExecutor(processes) as pool:
        for done in as_completed([pool.submit(_replay, case) for case in missing]):
            case, improvements = done.result()
            runs[case] = improvements
            append_record(results, {**asdict(case), "improvements": improvements})
    rows = []
    for workers in sorted({case.workers for case in runs}):
        comparison = _compare(workers, runs, table)
        _print_table(comparison)
        rows += _results(comparison)
    report("search_replay", rows)


def budget_seconds(table: Mapping[Point, Row], workers: int) -> float:
    """The simulated seconds that every search gets."""
    return max(40 / workers, 10.0) * statistics.mean(sum(row.seconds) for row in table.values())


def seconds_to(target: float, improvements: Sequence[Improvement]) -> float:
    """When a finished training first had a valid_ppl of `target` or less; inf if none had."""
    return next((seconds for seconds, value in improvements if value <= target), math.inf)


def value_at(seconds: float, improvements: Sequence[Improvement]) -> float:
    """The best valid_ppl of the trainings finished by then; inf if none is."""
    return min((value for at, value in improvements if at <= seconds), default=math.inf)


def _replay(case: Case) -> tuple[Case, list[Improvement]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # OptunaSearch's, of each NaN
    table = load_table()
    name, workers = case.method, case.workers
    if case.method == TWICE:
        name, workers = RANDOM, 2 * case.workers
    search = make_search(*name.split("-"), case.seed)
    return case, simulate(search, table, workers, budget_seconds(table, case.workers))


def _kept(results: Path) -> Runs:
    return {
        Case(run["method"], run["workers"], run["seed"]): run["improvements"]
        for run in read_records(results)
    }


def _compare(workers: int, runs: Runs, table: Mapping[Point, Row]) -> Comparison:
    found: dict[str, list[list[Improvement]]] = defaultdict(list)
    for case, improvements in runs.items():
        if case.workers == workers:
            found[case.method].append(improvements)
    if RANDOM not in found:
        raise SystemExit(f"{workers} workers: nothing to compare with; replay {RANDOM} too")
    best = min(row.valid_ppl[-1] for row in table.values() if not row.diverged)
    budget = budget_seconds(table, workers)
    # The worse of the two in the middle: at least half of random's runs reach it.
    target = statistics.median_high(value_at(budget, run) for run in found[RANDOM])
    by_method = {name: found[name] for name in METHODS if name in found}
    regrets = {
        name: [[math.log(value_at(s * budget, run) / best) for run in all_runs] for s in SHOWN]
        for name, all_runs in by_method.items()
    }
    seconds = {
        name: [seconds_to(target, run) for run in all_runs] for name, all_runs in by_method.items()
    }
    return Comparison(workers, budget, target, regrets, seconds)


def _print_table(comparison: Comparison) -> None:
    """As Markdown: medians over the seeds, with 95 % intervals of the median."""
    print(
        f"\n{comparison.workers} workers, {comparison.budget_seconds:,.0f} simulated seconds; "
        f"random search's final valid_ppl {comparison.target:.1f}\n"
    )
    shown = [f"regret at {share:.0%}" for share in SHOWN]
    header = ["method", "seeds", *shown, "interval", "seconds to random's final", "interval"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name, regrets in comparison.regrets.items():
        seconds = comparison.seconds[name]
        cells = [name, str(len(seconds)), *(_text(statistics.median(r), 3) for r in regrets)]
        cells.append(" to ".join(_text(end, 3) for end in _interval(regrets[-1])))
        cells.append(_text(statistics.median(seconds), 0))
        cells.append(" to ".join(_text(end, 0) for end in _interval(seconds)))
        print(f"| {' | '.join(cells)} |")


def _results(comparison: Comparison) -> list[Result]:
    of = f"{comparison.workers} workers"
    results = [
        Result(f"{of}, {name}: regret at the end", statistics.median(regrets[-1]), "nats")
        for name, regrets in comparison.regrets.items()
        if math.isfinite(statistics.median(regrets[-1]))
    ]
    seconds = {name: statistics.median(all_) for name, all_ in comparison.seconds.items()}
    sooner = {name: seconds[RANDOM] / median for name, median in seconds.items()}
    for name in OTHERS:
        if name in sooner:
            results.append(Result(f"{of}, {name}: times sooner than random", sooner[name], ""))
    ours = [name for name in OURS if name in sooner and name != RANDOM]
    if ours:
        best = max(ours, key=lambda name: sooner[name])
        for title, value in (
            ("times sooner than random", sooner[best]),
            ("random's whole run, times", comparison.budget_seconds / seconds[best]),
        ):
            name = f"{of}, best of ours, {best}: {title}"
            results.append(Result(name, value, "", f">= {GOAL:g}", value >= GOAL))
    return results


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def _text(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "never"


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.search_replay")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    asked = [
        Case(method, workers, seed)
        for method in given.methods
        for workers in given.workers
        for seed in range(given.seeds)
    ]
    main(asked, given.processes, given.results)
