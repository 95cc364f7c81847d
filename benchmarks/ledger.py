"""Big ledgers: the controller beside plain Optuna on the same trials, in SQLite and PostgreSQL.

    python -m benchmarks.ledger [sqlite] [postgresql] [trials=1000,10000,100000]

Each ledger has that many finished trials of ten reports, and plain Optuna a copy of it. Both are
resumed, from opening the database to the first suggestion. Then they take turns at asking,
reporting and telling, with and without a median pruner: a controller through `next` and `handle`,
Optuna through `ask`, `report`, `should_prune` and `tell`. "Our part" is what we take longer than
it. In the end 256 threads report at once to one controller: each report must be in the ledger once,
and be written before its worker has the next.

PostgreSQL is a server of our own that does not wait for its disk, which would favour us: we commit
a trial's end once, Optuna every value of it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna

from benchmarks.ledger_rows import LEVEL, copied
from benchmarks.ledger_sides import CONCURRENT, NAME, Apart, Ours, Plain, apart, fill, say
from benchmarks.postgres import PostgresServer
from benchmarks.report import Result, report
from hpo.control.attempts import TrialAttempt
from hpo.control.controller import Controller

SIZES = (1_000, 10_000, 100_000)
PRUNERS = ("none", "median")
PLAYED = 80  # trials that each side runs, in turn
WARMED = 5  # more, not counted
CROWDED = 10_000  # trials: the ledger that many workers report to
WORKERS_STEPS = (500, 1000)
INTERVAL = 8.0  # seconds between a worker's reports; one that waits longer holds its worker up
RESUMED_IN = 20.0  # seconds: the goal for every ledger
OUR_PART = 20.0  # milliseconds: the goal for an ask and tell, and for a report
FLAT = 5.0  # milliseconds more for the largest ledger than for the smallest count as none

Calls = list[dict[str, float]]  # of each trial, milliseconds by what was called


def main(arguments: Sequence[str]) -> None:
    """Measure the ledgers that were asked for, and report."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    given = [a.removeprefix("trials=") for a in arguments if a.startswith("trials=")]
    sizes = [int(size) for size in given[0].split(",")] if given else list(SIZES)
    kinds = [kind for kind in ("sqlite", "postgresql") if kind in arguments]
    results: list[Result] = []
    for kind in kinds or ("sqlite", "postgresql"):
        with databases(kind) as new:
            parts = [measure(next(new), size, kind, results) for size in sizes]
        results += [
            _goal(f"{kind}, pruner {pruner}: our part p95, {sizes[-1]:,} less {sizes[0]:,} trials",
                  parts[-1][pruner] - parts[0][pruner], "ms", FLAT)
            for pruner in PRUNERS if len(sizes) > 1
        ]  # fmt: skip
    report("ledger", results)


@contextmanager
def databases(kind: str) -> Iterator[Iterator[str]]:
    """URLs of new databases, as many as are wanted."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "sqlite":
            yield (f"sqlite:///{folder}/{number}.db" for number in range(99))
            return
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield iter(server.new_database, None)
        finally:
            server.stop()


def measure(url: str, size: int, kind: str, results: list[Result]) -> dict[str, float]:
    """Measure one ledger of `size` trials; our part of an ask and tell, p95, by pruner."""
    name, began, parts = f"{kind}, {size:,} trials", time.monotonic(), {}
    fill(url, size)
    with apart() as plain:
        measured = plain.resume(Plain, copied(url), "none")
        results += resumed(f"{name}: resume, plain", *measured)
        for pruner in PRUNERS:
            plain.prune_by(pruner)
            with apart() as ours:
                named = f"{name}, pruner {pruner}"
                results += resumed(f"{named}: resume", *ours.resume(Ours, url, pruner), RESUMED_IN)
                judged = compared(*turns(ours, plain))
            results += [replace(result, name=f"{named}: {result.name}") for result in judged]
            parts[pruner] = next(r.value for r in judged if r.name == OURS)
    results.append(Result(f"{name}: hpo status", status_seconds(url), "s"))
    if size == CROWDED:
        results += [replace(result, name=f"{name}: {result.name}") for result in crowd(url)]
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return parts


def resumed(name: str, seconds: float, memory: float, goal: float | None = None) -> list[Result]:
    """What a resume took."""
    first = Result(name, seconds, "s") if goal is None else _goal(name, seconds, "s", goal)
    return [first, Result(f"{name}, peak memory", memory, "MiB")]


def status_seconds(url: str) -> float:
    """Seconds of `hpo status`: the median of three."""
    hpo = [str(Path(sys.executable).parent / "hpo"), "status", NAME, "--storage", url]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(hpo, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def turns(ours: Apart, plain: Apart) -> tuple[Calls, Calls]:
    """The calls of PLAYED trials of both."""
    calls: tuple[Calls, Calls] = [], []
    for number in range(WARMED + PLAYED):
        for turn in (0, 1) if number % 2 else (1, 0):
            side = (ours, plain)[turn]
            calls[turn].append(side.play(LEVEL + number))  # better than the median
    return calls[0][WARMED:], calls[1][WARMED:]


OURS = "our part of an ask and tell p95"


def compared(ours: Calls, plain: Calls) -> list[Result]:
    """Percentiles of each call of both sides, and of our part of them."""
    results = []
    for what in ("ask", "report", "tell"):
        for side, calls in (("", ours), (", plain", plain)):
            p50, p95 = np.percentile([call[what] for call in calls], (50, 95))
            results += [Result(f"{what}{side} p50", float(p50), "ms"),
                        Result(f"{what}{side} p95", float(p95), "ms")]  # fmt: skip
    for name, whats in ((OURS, ("ask", "tell")), ("our part of a report p95", ("report",))):
        more = [
            sum(mine[what] - other[what] for what in whats)
            for mine, other in zip(ours, plain, strict=True)
        ]
        results.append(_goal(name, float(np.percentile(more, 95)), "ms", OUR_PART))
    return results


def crowd(url: str) -> list[Result]:
    """Many threads that report at once: what became of their reports."""
    side = Ours(url, "median")
    began = time.monotonic() + INTERVAL
    with ThreadPoolExecutor(CONCURRENT) as threads:
        starts = [began + number * INTERVAL / CONCURRENT for number in range(CONCURRENT)]
        works = list(threads.map(lambda at: worker(side.controller, at), starts))
    lost = 0
    for trial_id, sent, _ in works:
        kept = {step: each["valid_ppl"] for step, each in side.ledger.metrics(trial_id).items()}
        told = side.ledger.storage.get_trial(trial_id).intermediate_values
        lost += sum(kept.get(step) != value or told.get(step) != value
                    for step, value in sent.items())  # fmt: skip
        assert kept.keys() == told.keys() <= sent.keys(), "a report that nobody sent"
    side.close()
    waits = [wait for _, _, waited in works for wait in waited]
    late = sum(wait > INTERVAL for wait in waits)
    who = f"{CONCURRENT} workers, a report every {INTERVAL:g} s"
    return [
        Result(f"{who}: reports", len(waits), "reports"),
        Result(f"{who}: lost", lost, "reports", "= 0", lost == 0),
        Result(f"{who}: written after the next was due", late, "reports", "= 0", late == 0),
        Result(f"{who}: p99 from due to written", float(np.percentile(waits, 99)), "s"),
    ]


def worker(controller: Controller, at: float) -> tuple[int, dict[int, float], list[float]]:
    """Run one trial from `at` on: its id, its values by step, and how long each report waited."""
    _sleep_until(at)
    assignment = controller.next()
    assert isinstance(assignment, TrialAttempt)
    sent: dict[int, float] = {}
    waits = []
    for step in WORKERS_STEPS:
        at += INTERVAL
        _sleep_until(at)
        sent[step] = LEVEL - step
        last = step == WORKERS_STEPS[-1]
        say(controller, assignment, "finished" if last else "evaluated", step, sent[step])
        waits.append(time.monotonic() - at)
    return assignment.attempt.trial_id, sent, waits


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def _goal(name: str, value: float, unit: str, goal: float) -> Result:
    return Result(name, value, unit, f"< {goal:g}", value < goal)


if __name__ == "__main__":
    main(sys.argv[1:])
