"""Our sampler factory against Optuna's samplers called directly, on the COCO suite.

    python -m benchmarks.search_bbob

The direct side is seeded anew for every trial, by the same rule, and keeps nothing else apart: what
both find must be equal to the last bit. The seconds of every ask and tell are taken in turn, so
that a busy machine shows on both. What the factory adds is the building of a sampler for each
trial, a fixed time: the goal is in milliseconds, beside the tens that a trial's rows take.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import cocoex
import optuna
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from pydantic import TypeAdapter

from benchmarks.report import Result, report
from hpo.search.samplers.config import SamplerConfig, make_sampler
from hpo.search.samplers.rebuilt import trial_seed

FUNCTIONS, DIMENSION = "1,8,15,21", 5  # sphere, Rosenbrock, Rastrigin, Gallagher's peaks
SEEDS = (0, 1)
STARTUP = 10  # trials that are drawn, before a model: not timed
OVERHEAD = 1.0  # milliseconds
DIRECT: dict[str, tuple[int, Callable[[int, int], BaseSampler]]] = {  # trials; sampler by seeds
    "random": (100, lambda seed, own: RandomSampler(seed=own)),
    "tpe": (60, lambda seed, own: TPESampler(seed=own, multivariate=True, constant_liar=True)),
    "gp": (15, lambda seed, own: GPSampler(seed=own)),
    "cmaes": (100, lambda seed, own: CmaEsSampler(
        seed=seed, independent_sampler=RandomSampler(seed=own))),
    "qmc": (100, lambda seed, own: QMCSampler(
        seed=seed, scramble=True, independent_sampler=RandomSampler(seed=own))),
}  # fmt: skip


class Search:
    """One study of one COCO problem."""

    def __init__(self, problem: Any, sampler: BaseSampler) -> None:
        self.study = optuna.create_study(sampler=sampler)
        self.seconds: list[float] = []
        self._problem = problem

    @property
    def values(self) -> list[float | None]:
        """Of every trial."""
        return [trial.value for trial in self.study.get_trials(deepcopy=False)]

    def step(self) -> None:
        """Ask, evaluate, tell; the seconds are those of asking and telling."""
        started = time.perf_counter()
        trial = self.study.ask()
        point = [trial.suggest_float(f"x{i}", -5, 5) for i in range(DIMENSION)]
        asked = time.perf_counter()
        value = self._problem(point)
        evaluated = time.perf_counter()
        self.study.tell(trial, value)
        self.seconds.append(asked - started + time.perf_counter() - evaluated)


def main() -> None:
    """Search every problem with every sampler on both sides, and report."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    results = []
    for name in DIRECT:
        ours, theirs, equal = compare(name)
        mine, other = statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3
        results += [
            Result(f"{name}: searches with equal values", equal, "share", "= 1", equal == 1),
            Result(f"{name}: an ask and tell, directly", other, "ms"),
            Result(f"{name}: the same through the factory", mine / other, "x"),
            Result(f"{name}: added by the factory", mine - other, "ms", f"<= {OVERHEAD:g}",
                   mine - other <= OVERHEAD),
        ]  # fmt: skip
    report("search_bbob", results)


def compare(name: str) -> tuple[list[float], list[float], float]:
    """Seconds of each ask and tell, ours and direct, and the share of searches that are equal."""
    trials, direct = DIRECT[name]
    ours: list[float] = []
    theirs: list[float] = []
    equal = []
    suite = cocoex.Suite(
        "bbob", "instances: 1", f"dimensions: {DIMENSION} function_indices: {FUNCTIONS}"
    )
    for problem in suite:
        for seed in SEEDS:
            config = TypeAdapter(SamplerConfig).validate_python({"name": name, "seed": seed})
            mine, other = (
                Search(problem, make_sampler(config, {})),
                Search(problem, RandomSampler()),
            )
            for number in range(trials):
                other.study.sampler = direct(seed, trial_seed(seed, number))
                for search in (mine, other) if number % 2 else (other, mine):
                    search.step()
            ours, theirs = ours + mine.seconds[STARTUP:], theirs + other.seconds[STARTUP:]
            equal.append(mine.values == other.values)
    return ours, theirs, sum(equal) / len(equal)


if __name__ == "__main__":
    main()
