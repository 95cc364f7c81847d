"""Asks Ray Tune's PopulationBasedTraining who exploits whom, and with which parameters.

Tune's scheduler is made anew for every comparison, and is told each member's value as the result of
a trial, all at one step. Its decisions are only noted: a Tune trial is one attempt here, and
checkpoints are in run folders. So nothing of the scheduler is needed after a restart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import pbt

from hpo.search.population import Exploit, Explore, Member, ScheduleConfig
from hpo.search.space import Dimension, FloatDimension


def make_explore(schedule: ScheduleConfig, space: Mapping[str, Dimension], seed: int) -> Explore:
    """Return a function that compares members at a step; its randomness is (`seed`, step)."""
    dimensions = {p: d for p, d in space.items() if isinstance(d, FloatDimension)}

    def explore(step: int, members: Sequence[Member]) -> list[Exploit]:
        rng = random.Random(f"{seed}-{step}")
        scheduler = _Scheduler(schedule, dimensions, step, rng)
        trials = [
            Trial("member", config=m.params, trial_id=str(m.number), stub=True) for m in members
        ]
        tune = _Tune(trials)
        for trial in trials:
            scheduler.on_trial_add(tune, trial)
        with _drawing_from(rng):
            for trial, member in zip(trials, members, strict=True):
                scheduler.on_trial_result(tune, trial, {"step": step, "value": member.value})
        alive = {member.number for member in members if member.value < math.inf}
        return [exploit for exploit in scheduler.exploits if exploit.parent in alive]

    return explore


class _Scheduler(pbt.PopulationBasedTraining):  # type: ignore[misc]
    """Tune's synchronous scheduler at one step, which notes exploits instead of doing them."""

    def __init__(
        self,
        schedule: ScheduleConfig,
        space: Mapping[str, FloatDimension],
        step: int,
        rng: random.Random,
    ) -> None:
        super().__init__(
            time_attr="step",
            metric="value",
            mode="min",
            perturbation_interval=step,
            hyperparam_mutations={path: _drawn_from(d, rng) for path, d in space.items()},
            quantile_fraction=schedule.quantile_fraction,
            resample_probability=schedule.resample_probability,
            custom_explore_fn=lambda params: _within(params, space),
            synch=True,
        )
        self.exploits: list[Exploit] = []

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        params, _ = self._get_new_config(trial, trial_to_clone)
        self.exploits.append(Exploit(int(trial.trial_id), int(trial_to_clone.trial_id), params))


class _Tune:
    """The part of Tune's controller that the scheduler asks at a comparison."""

    search_alg = None

    def __init__(self, trials: list[Trial]) -> None:
        self._trials = trials

    def get_trials(self) -> list[Trial]:
        return self._trials

    def get_live_trials(self) -> list[Trial]:
        """Return all members: a member whose trial ended early takes part as the worst."""
        return self._trials

    def _schedule_trial_save(self, trial: Trial, result: dict[str, Any]) -> str:
        return "in its run folder already"


def _drawn_from(dimension: FloatDimension, rng: random.Random) -> Callable[[], float]:
    if dimension.log:
        low, high = math.log(dimension.low), math.log(dimension.high)
        return lambda: math.exp(rng.uniform(low, high))
    return lambda: rng.uniform(dimension.low, dimension.high)


def _within(params: dict[str, Any], space: Mapping[str, FloatDimension]) -> dict[str, Any]:
    return {path: min(max(params[path], d.low), d.high) for path, d in space.items()}


@contextmanager
def _drawing_from(rng: random.Random) -> Iterator[None]:
    # Tune's module draws from the global generator, which is everybody's.
    pbt.random = rng
    try:
        yield
    finally:
        pbt.random = random
