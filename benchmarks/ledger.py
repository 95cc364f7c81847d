"""Big ledgers: the controller beside plain Optuna on the same trials, in SQLite and PostgreSQL.

    python -m benchmarks.ledger [sqlite] [postgresql] [trials=1000,10000,100000]

Each ledger has that many finished trials of ten reports, and plain Optuna a copy of it. Both are
resumed in processes of their own, from opening the database to the first suggestion. Then both ask,
report and tell in turn in one process, with and without a median pruner: a controller through
`next` and `handle`, Optuna through `ask`, `report`, `should_prune` and `tell`. "Our part" is what
we take longer than it. At last 256 threads report at once to one controller. Nobody trains: all the
time is the ledger's.
"""

from __future__ import annotations

import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import optuna

from benchmarks.ledger_rows import LEVEL, copied, grow
from benchmarks.postgres import PostgresServer
from benchmarks.report import Result, report
from hpo.controller import Controller
from hpo.judge import Assignment
from hpo.messages import Kind, Message
from hpo.space import suggest
from hpo.study import StudyConfig
from storage import Ledger
from trainer.config import TrainConfig

NAME = "big"
STEPS = range(100, 1001, 100)  # where each trial of a ledger has reported
PLAYED_STEPS = (500, 1000)  # where those do that are run here
WORKERS_STEPS = (300, 600, 1000)
SIZES = (1_000, 10_000, 100_000)
LARGE = 50_000  # trials; what takes minutes is measured once there

Calls = list[dict[str, float]]  # of each trial, milliseconds by what was called
PRUNERS = ("none", "median")
PLAYED = 100  # trials that each side runs, in turn
WARMED = 5  # more, not counted
WORKERS = 256
INTERVAL = 5.0  # seconds between a worker's reports; one that waits longer holds its worker up
RESUMED_IN = 20.0  # seconds: the goal for the largest ledger
OUR_PART = 20.0  # milliseconds: the goal for an ask and a tell


def main(arguments: Sequence[str]) -> None:
    """Measure the ledgers that were asked for, and report."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    given = [a.removeprefix("trials=") for a in arguments if a.startswith("trials=")]
    sizes = [int(size) for size in given[0].split(",")] if given else list(SIZES)
    kinds = [kind for kind in ("sqlite", "postgresql") if kind in arguments]
    results: list[Result] = []
    for kind in kinds or ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory() as folder:
            server = PostgresServer(Path(folder)) if kind == "postgresql" else None
            if server:
                server.start()
            try:
                for size in sizes:
                    url = server.new_database() if server else f"sqlite:///{folder}/{size}.db"
                    results += measure(url, size, kind)
            finally:
                if server:
                    server.stop()
    report("ledger", results)


def measure(url: str, size: int, kind: str) -> list[Result]:
    """All that is measured on one ledger of `size` trials."""
    name, began = f"{kind}, {size:,} trials", time.monotonic()
    fill(url, size)
    plain_url = copied(url)
    _say(f"{name}: filled", began)
    results = named(name, resumes(url, plain_url, size))
    _say(f"{name}: resumed", began)
    results += named(name, statuses(url))
    for pruner in PRUNERS:
        calls = played(url, plain_url, pruner)
        results += named(f"{name}, pruner {pruner}", judged(*calls))
        _say(f"{name}: played with pruner {pruner}", began)
    results += named(name, crowd(url))
    _say(f"{name}: {WORKERS} workers", began)
    return results


def named(name: str, results: Sequence[Result]) -> list[Result]:
    """`results` with `name` before their own."""
    return [replace(result, name=f"{name}: {result.name}") for result in results]


class Side(Protocol):
    """What is compared."""

    def ask(self) -> None:
        """Have a trial with parameters."""

    def report(self, step: int, value: float) -> bool:
        """Report; whether the trial goes on."""

    def tell(self, value: float) -> None:
        """Report the last value, and end the trial."""

    def close(self) -> None:
        """Leave."""


class Ours:
    """The controller."""

    def __init__(self, url: str, pruner: str) -> None:
        self.ledger = Ledger.open(url)
        self.record = self.ledger.study(NAME)
        self._lease = self.ledger.acquire(self.record)
        self.controller = Controller(
            self.ledger, self.record, config(pruner), self._lease, Path("/runs")
        )

    def ask(self) -> None:
        """Have a trial with parameters."""
        assignment = self.controller.next()
        assert isinstance(assignment, Assignment)
        self.assignment = assignment

    def report(self, step: int, value: float) -> bool:
        """Report; whether the trial goes on."""
        return self._handle(Message("evaluated", step, _metrics(value)))

    def tell(self, value: float) -> None:
        """Report the last value, and end the trial."""
        self._handle(Message("finished", STEPS[-1], _metrics(value)))

    def close(self) -> None:
        """Leave."""
        self.ledger.release(self._lease)

    def _handle(self, message: Message) -> bool:
        job = self.assignment
        return self.controller.handle(job.number, job.attempt.number, message)


class Plain:
    """Optuna alone."""

    def __init__(self, url: str, pruner: str) -> None:
        storage = optuna.storages.RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
        median = optuna.pruners.MedianPruner()
        self._space = config(pruner).space
        self.study = optuna.load_study(
            study_name=NAME,
            storage=storage,
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=median if pruner == "median" else optuna.pruners.NopPruner(),
        )

    def ask(self) -> None:
        """Have a trial with parameters."""
        self._trial = self.study.ask()
        suggest(self._space, self._trial)

    def report(self, step: int, value: float) -> bool:
        """Report; whether the trial goes on."""
        self._trial.report(value, step)
        pruned = self._trial.should_prune()
        if pruned:
            self.study.tell(self._trial, state=optuna.trial.TrialState.PRUNED)
        return not pruned

    def tell(self, value: float) -> None:
        """Report the last value, and end the trial."""
        self._trial.report(value, STEPS[-1])
        self.study.tell(self._trial, value)

    def close(self) -> None:
        """Leave."""


def config(pruner: str) -> StudyConfig:
    """The study."""
    return StudyConfig.model_validate(
        {
            "study": NAME,
            "sampler": {"name": "random", "seed": 0},
            "pruner": {"name": pruner},
            "budget": {"trials": 10**9},
            "resources": {"concurrent_trials": WORKERS},
            "train": TrainConfig(steps=STEPS[-1]).model_dump(mode="json"),
            "space": {
                "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2},
                "layerdrop.policy": {"type": "categorical", "choices": ["static", "linear"]},
                "layerdrop.p_init": {"type": "float", "low": 0.0, "high": 0.5},
            },
        }
    )


def fill(url: str, size: int) -> None:
    """Make a ledger at `url` with `size` finished trials."""
    study = config("none")
    ledger = Ledger.open(url, create=True)
    directions = [objective.optuna_direction for objective in study.objectives]
    ledger.create_study(NAME, directions, ["valid_ppl"], study.to_document(), study.budget.trials)
    first = Ours(url, "none")
    play(first, LEVEL, STEPS)
    first.close()
    for opened in (ledger, first.ledger):
        opened.storage._backend.engine.dispose()  # type: ignore[attr-defined]
    grow(url, size)


def play(side: Side, level: float, steps: Sequence[int] = PLAYED_STEPS) -> dict[str, float]:
    """Run one trial, whose values are `level` less its steps; the milliseconds of each call."""
    taken = {}

    def timed(what: str, call: Callable[[], object]) -> None:
        began = time.perf_counter()
        call()
        taken[what] = (time.perf_counter() - began) * 1e3

    timed("ask", side.ask)
    for step in steps[:-1]:
        timed("report", lambda step=step: side.report(step, level - step))  # type: ignore[misc]
    timed("tell", lambda: side.tell(level - steps[-1]))
    return taken


def resumes(url: str, plain_url: str, size: int) -> list[Result]:
    """Seconds and memory to the first suggestion, each time in a process of its own."""
    sides: dict[str, tuple[type[Ours] | type[Plain], str, str]] = {
        "resume": (Ours, url, "none"),
        "resume, pruner median": (Ours, url, "median"),
        "resume, plain": (Plain, plain_url, "none"),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(3 if size < LARGE else 1):
        for name, side in sides.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                found[name].append(process.submit(resumed, *side).result())
    results = []
    for name, measured in found.items():
        seconds, memory = (statistics.median(each) for each in zip(*measured, strict=True))
        goal = name != "resume, plain"
        results += [
            Result(name, seconds, "s", f"< {RESUMED_IN:g}" if goal else None,
                   seconds < RESUMED_IN if goal else None),
            Result(f"{name}: peak memory", memory, "MiB"),
        ]  # fmt: skip
    return results


def resumed(kind: type[Ours] | type[Plain], url: str, pruner: str) -> tuple[float, float]:
    """Seconds from opening the database to the first suggestion, and peak memory in MiB."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began = time.perf_counter()
    side = kind(url, pruner)
    side.ask()
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    side.tell(LEVEL)
    side.close()
    return seconds, memory


def statuses(url: str) -> list[Result]:
    """Seconds of `hpo status`, a process each time."""
    hpo = [str(Path(sys.executable).parent / "hpo"), "status", NAME, "--storage", url]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(hpo, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return [Result("hpo status", statistics.median(seconds), "s")]


def played(url: str, plain_url: str, pruner: str) -> tuple[Calls, Calls]:
    """The calls of PLAYED trials, ours and plain Optuna's, which took turns."""
    sides: tuple[Side, Side] = Ours(url, pruner), Plain(plain_url, pruner)
    calls: tuple[Calls, Calls] = [], []
    for number in range(WARMED + PLAYED):
        for turn in (0, 1) if number % 2 else (1, 0):
            calls[turn].append(play(sides[turn], LEVEL + number))  # better than the median
    for side in sides:
        side.close()
    gc.collect()
    return calls[0][WARMED:], calls[1][WARMED:]


def judged(ours: Calls, plain: Calls) -> list[Result]:
    """Percentiles of each call of both sides, and of our part of them."""
    results = []
    for what in ("ask", "report", "tell"):
        for side, calls in (("", ours), (", plain", plain)):
            p50, p95 = np.percentile([call[what] for call in calls], (50, 95))
            results += [Result(f"{what} p50{side}", float(p50), "ms"),
                        Result(f"{what} p95{side}", float(p95), "ms")]  # fmt: skip
    for name, parts in (("an ask and tell", ("ask", "tell")), ("a report", ("report",))):
        more = [
            sum(mine[part] - other[part] for part in parts)
            for mine, other in zip(ours, plain, strict=True)
        ]
        p50, p95 = np.percentile(more, (50, 95))
        results += [
            Result(f"our part of {name} p50", float(p50), "ms"),
            Result(f"our part of {name} p95", float(p95), "ms", f"< {OUR_PART:g}",
                   bool(p95 < OUR_PART)),
        ]  # fmt: skip
    return results


def crowd(url: str) -> list[Result]:
    """WORKERS threads that train at once: what became of their reports."""
    side = Ours(url, "median")
    began = time.monotonic() + 1.0
    with ThreadPoolExecutor(WORKERS) as threads:
        works = [
            threads.submit(worker, side.controller, began + n * INTERVAL / WORKERS)
            for n in range(WORKERS)
        ]
    waits: list[float] = []
    lost = 0
    for work in works:
        trial_id, sent, waited = work.result()
        kept = side.ledger.metrics(trial_id)
        told = side.ledger.storage.get_trial(trial_id).intermediate_values
        lost += len(sent) - sum(
            kept.get(step, {}).get("valid_ppl") == value == told.get(step)
            for step, value in sent.items()
        )
        assert len(kept) == len(told) == len(sent), "a report that nobody sent"
        waits += waited
    side.close()
    late = sum(wait > INTERVAL for wait in waits)
    who = f"{WORKERS} workers that report every {INTERVAL:g} s"
    return [
        Result(f"{who}: reports", len(waits), "reports"),
        Result(f"{who}: lost", lost, "reports", "= 0", lost == 0),
        Result(f"{who}: waited longer than that", late, "reports", "= 0", late == 0),
        Result(f"{who}: wait p99", float(np.percentile(waits, 99)), "s"),
    ]


def worker(controller: Controller, at: float) -> tuple[int, dict[int, float], list[float]]:
    """Train one trial from `at` on: its id, its values by step, and how long each report waited."""
    time.sleep(max(0.0, at - time.monotonic()))
    assignment = controller.next()
    assert isinstance(assignment, Assignment)
    sent: dict[int, float] = {}
    waits = []
    for step in WORKERS_STEPS:
        at += INTERVAL
        time.sleep(max(0.0, at - time.monotonic()))
        sent[step] = LEVEL - step
        kind: Kind = "finished" if step == STEPS[-1] else "evaluated"
        message = Message(kind, step, _metrics(sent[step]))
        controller.handle(assignment.number, assignment.attempt.number, message)
        waits.append(time.monotonic() - at)
    return assignment.attempt.trial_id, sent, waits


def _metrics(value: float) -> dict[str, float]:
    return {"valid_ppl": value, "step_seconds": 0.1}


def _say(line: str, began: float) -> None:
    print(f"{line} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
