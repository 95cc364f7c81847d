"""The searches that are replayed: this service's, and Ray Tune with `OptunaSearch`.

Ours are the sampler factory, the pruners and the parked halving, put together as in
hpo/control/controller.py but without a ledger. Tune's are its own objects, called as its
`TuneController` calls them. These searches know no clock.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from pydantic import TypeAdapter

from benchmarks.search_clock import Search, Training
from benchmarks.search_table import EVAL_EVERY, GRID, STEPS
from hpo.search.halving import Halving
from hpo.search.pruners import Asha, NoPruner, ParkedHalving
from hpo.search.samplers.at_rungs import at_rungs, rungs_of
from hpo.search.samplers.config import SamplerConfig, make_sampler
from hpo.search.space import IntDimension
from storage import Reason

MIN_STEPS, FACTOR = EVAL_EVERY, 3
PRUNERS = {
    "none": NoPruner(name="none"),
    "asha": Asha(name="asha", min_steps=MIN_STEPS, reduction_factor=FACTOR),
    "parked": ParkedHalving(name="parked_halving", min_steps=MIN_STEPS, reduction_factor=FACTOR),
}
SAMPLERS = ("random", "tpe", "gp", "ax")
TUNE = "tune"
# Model fits cost this machine seconds that the simulated clock does not count: after so many
# proposals these go on at random.
MODELLED = {"gp": 40, "ax": 40}
# Every dimension of the grid is ordered, and all suggestions are points of it.
DIMENSIONS = {
    name: IntDimension(type="int", low=0, high=len(values) - 1) for name, values in GRID.items()
}
_SAMPLER: TypeAdapter[SamplerConfig] = TypeAdapter(SamplerConfig)


def make_search(sampler: str, pruner: str, seed: int) -> Search:
    """A search by its names: one of SAMPLERS with one of PRUNERS, or TUNE with none or asha."""
    return Tune(pruner, seed) if sampler == TUNE else Ours(sampler, pruner, seed)


class Ours:
    """A study of this service on one objective."""

    def __init__(self, sampler: str, pruner: str, seed: int) -> None:
        config: SamplerConfig = _SAMPLER.validate_python({"name": sampler, "seed": seed})
        self._study = optuna.create_study(
            sampler=at_rungs(make_sampler(config, DIMENSIONS), rungs_of(PRUNERS[pruner])),
            pruner=PRUNERS[pruner].make(STEPS),
        )
        self._halving = Halving(MIN_STEPS, FACTOR) if pruner == "parked" else None
        self._modelled = MODELLED.get(sampler, math.inf)
        self._seed = seed
        self._trials: list[optuna.Trial] = []
        self._curves: dict[int, dict[int, float]] = {}
        self._parked: dict[int, Training] = {}

    def next(self) -> Training:
        """A parked trial that is promoted now, else a new one."""
        if self._halving and self._parked:
            promoted = self._halving.promotable(self._parked, self._curves)
            if promoted is not None:
                return self._parked.pop(promoted)
        if len(self._trials) == self._modelled:
            self._study.sampler = RandomSampler(seed=self._seed)
        trial = self._study.ask()
        self._trials.append(trial)
        self._curves[trial.number] = {}
        return Training(trial.number, tuple(d.suggest(trial, p) for p, d in DIMENSIONS.items()))

    def evaluated(self, training: Training, valid_ppl: float) -> bool:
        """Prunes or parks."""
        number, trial = training.number, self._trials[training.number]
        trial.report(valid_ppl, training.step)
        self._curves[number][training.step] = valid_ppl
        if self._halving and not self._halving.goes_on(number, training.step, self._curves):
            self._parked[number] = training
            return False
        if trial.should_prune():
            self._study.tell(trial, state=TrialState.PRUNED)
            return False
        return True

    def finished(self, training: Training, valid_ppl: float) -> None:
        """Tells the last value."""
        trial = self._trials[training.number]
        trial.report(valid_ppl, training.step)
        self._curves[training.number][training.step] = valid_ppl
        self._study.tell(trial, valid_ppl)

    def diverged(self, training: Training) -> None:
        """Tells the end: its last finite value stays reported."""
        trial = self._trials[training.number]
        trial.set_user_attr("reason", Reason.DIVERGED.value)
        self._study.tell(trial, state=TrialState.PRUNED)


class Tune:
    """Tune as people run it: `OptunaSearch` with its defaults, alone or under `ASHAScheduler`.

    `OptunaSearch` stores a stopped trial as COMPLETE with its last value. A training that diverges
    reports NaN, which leaves its trial RUNNING for ever.
    """

    def __init__(self, pruner: str, seed: int) -> None:
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
        from ray.tune.search.optuna import OptunaSearch

        space = {p: IntDistribution(d.low, d.high) for p, d in DIMENSIONS.items()}
        self._searcher = OptunaSearch(space=space, metric="valid_ppl", mode="min", seed=seed)
        self._scheduler: Any = FIFOScheduler()
        if pruner == "asha":
            self._scheduler = ASHAScheduler(
                metric="valid_ppl",
                mode="min",
                max_t=STEPS // EVAL_EVERY,
                grace_period=MIN_STEPS // EVAL_EVERY,
                reduction_factor=FACTOR,
            )
        self._asked = 0

    def next(self) -> Training:
        """Always a new trial."""
        number = self._asked
        self._asked += 1
        params = self._searcher.suggest(str(number))
        self._scheduler.on_trial_add(None, _tune_trial(number))
        return Training(number, tuple(params[name] for name in GRID))

    def evaluated(self, training: Training, valid_ppl: float) -> bool:
        """As the scheduler says."""
        result = _tune_result(training, valid_ppl)
        decision = self._scheduler.on_trial_result(None, _tune_trial(training.number), result)
        if decision == self._scheduler.STOP:
            self._end(training, result)
            return False
        self._searcher.on_trial_result(str(training.number), result)
        return True

    def finished(self, training: Training, valid_ppl: float) -> None:
        """The trainable returns."""
        self._end(training, _tune_result(training, valid_ppl))

    def diverged(self, training: Training) -> None:
        """The trainable has reported NaN and returns."""
        self._end(training, _tune_result(training, math.nan))

    def _end(self, training: Training, result: dict[str, float]) -> None:
        self._scheduler.on_trial_complete(None, _tune_trial(training.number), result)
        self._searcher.on_trial_complete(str(training.number), result)


def _tune_trial(number: int) -> SimpleNamespace:
    return SimpleNamespace(trial_id=str(number))  # all that its schedulers look at


def _tune_result(training: Training, valid_ppl: float) -> dict[str, float]:
    return {"valid_ppl": valid_ppl, "training_iteration": training.evaluations}
