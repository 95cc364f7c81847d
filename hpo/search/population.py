"""Population-based training (Jaderberg et al. 2017, arXiv 1711.09846), in rounds.

A study's trials are a population. Every `interval_steps` optimizer steps its members are parked
until all of them have come that far. Then the worst end, and a new trial takes the place of each:
it begins at the checkpoint of one of the best, with changed parameters. This is an exploit. Ray
Tune decides who exploits whom (hpo/workers/pbt.py). All that must last is in the ledger: each
trial's place in the population and its parent, and the step of the last comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import Field

from hpo.search.objectives import comes_late
from hpo.search.ranking import sign
from hpo.search.space import Dimension, FloatDimension
from storage import BudgetSpent, Transaction
from trainer.config.sections import Count, Fraction
from trainer.config.settings import ConfigError, Section
from trainer.config.train import TrainConfig

# What may change while a run trains; each with the setting that keeps it level, and its value.
LEVEL = {
    "optim.lr": ("optim.schedule", "constant"),
    "layerdrop.p_init": ("layerdrop.policy", "static"),
}


class ScheduleConfig(Section):
    """How a population learns a schedule of the searched settings while it trains."""

    population: Annotated[int, Field(ge=2)] = 4  # trainings; they need not all run at a time
    interval_steps: Count = 100  # optimizer steps between two comparisons
    # share of the members: so many of the worst are replaced, from as many of the best
    quantile_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    # probability that a parameter is drawn anew then, and not multiplied by 0.8 or 1.2
    resample_probability: Fraction = 0.25


@dataclass(frozen=True)
class Member:
    """A member of the population at a comparison."""

    number: int  # of its trial
    params: dict[str, Any]
    value: float  # a smaller one is better; inf if its trial has ended early


@dataclass(frozen=True)
class Exploit:
    """A trial ends, and a new one takes its place and goes on from another trial's checkpoint."""

    number: int  # of the trial that ends
    parent: int  # the number of the trial that the new one goes on from
    params: dict[str, Any]  # the new trial's


Explore = Callable[[int, Sequence[Member]], list[Exploit]]  # it gets the step of a comparison


class Population:
    """The population of a study, as its ledger has it."""

    def __init__(self, study: optuna.Study, schedule: ScheduleConfig, explore: Explore) -> None:
        self._study = study
        self._schedule = schedule
        self._explore = explore

    @property
    def full(self) -> bool:
        """Whether every place has been taken at least once."""
        return self._entered() >= self._schedule.population

    @property
    def barrier(self) -> int:
        """The optimizer step of the next comparison."""
        compared_at: int = self._study.user_attrs.get("compared_at", 0)
        return compared_at + self._schedule.interval_steps

    def enter(self, trial: optuna.Trial) -> None:
        """Give a new trial, which begins at step 0, the next place."""
        trial.set_user_attr("member", self._entered())

    def due(self, parked: Iterable[int]) -> int | None:
        """Return the first of the `parked` trials that was compared and goes on, or None."""
        trials, barrier = self._trials(), self.barrier
        return min((n for n in parked if _step(trials[n]) < barrier), default=None)

    def compare(self, transaction: Transaction, may_begin: bool) -> list[tuple[int, FrozenTrial]]:
        """Close the round, once all living members are parked at the barrier.

        Return the trials that begin, each after the number of the trial whose place it takes. They
        are RUNNING and have no attempt yet. None begins unless `may_begin`, or past the budget.
        """
        step = self.barrier
        begun = []
        for exploit in self._explore(step, self._members(step)) if may_begin else []:
            try:
                transaction.reserve_trial()
            except BudgetSpent:
                break
            begun.append((exploit.number, self._begin(exploit, step)))
        self._study.set_user_attr("compared_at", step)
        return begun

    def _begin(self, exploit: Exploit, step: int) -> FrozenTrial:
        trials, storage = self._trials(), self._study._storage
        child = create_trial(
            state=TrialState.RUNNING,
            params=exploit.params,
            distributions=trials[exploit.parent].distributions,
            user_attrs={
                "member": trials[exploit.number].user_attrs["member"],
                "parent": exploit.parent,
                "parent_step": step,
            },
        )
        return storage.get_trial(storage.create_new_trial(self._study._study_id, child))

    def _members(self, step: int) -> list[Member]:
        # For each place, the last trial that took it.
        newest = {t.user_attrs["member"]: t for t in self._trials() if "member" in t.user_attrs}
        return [
            Member(
                trial.number,
                trial.params,
                sign(self._study.direction) * trial.intermediate_values[step]
                if trial.state is TrialState.RUNNING
                else math.inf,
            )
            for _, trial in sorted(newest.items())
        ]

    def _entered(self) -> int:
        return sum("member" in trial.user_attrs for trial in self._trials())

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def _step(trial: FrozenTrial) -> int:
    return max(trial.intermediate_values, default=0)


def check_schedule(
    schedule: ScheduleConfig,
    metric: str,
    space: Mapping[str, Dimension],
    train: TrainConfig,
    source: str,
) -> None:
    """Raise ConfigError unless a population can train `train` over `space`, judged by `metric`."""
    if comes_late(metric, train.evaluation):
        raise ConfigError(
            f"{source}: objectives.0.metric: with `schedule` {metric} is compared while trials "
            "run; set evaluation.depths_at: each in the train config"
        )
    if train.fork is not None:
        raise ConfigError(
            f"{source}: train.fork: with `schedule` trials begin at step 0; remove it"
        )
    for path, dimension in space.items():
        what = f"{source}: space.{path}"
        if path not in LEVEL:
            raise ConfigError(
                f"{what}: may not change while a run trains; with `schedule`, search "
                f"{' and '.join(LEVEL)}, and set the rest in `train`"
            )
        if not isinstance(dimension, FloatDimension) or dimension.step or dimension.when:
            raise ConfigError(f"{what}: with `schedule` it is type: float, without step or when")
        key, level = LEVEL[path]
        section, _, name = key.partition(".")
        given = getattr(getattr(train, section), name)
        if given != level:
            raise ConfigError(
                f"{what}: with `schedule` it stays level between two comparisons, and {key} of "
                f"the train config is {given}; use {level}"
            )
    _check_interval(schedule, train, f"{source}: schedule.interval_steps")


def _check_interval(schedule: ScheduleConfig, train: TrainConfig, what: str) -> None:
    interval, every = schedule.interval_steps, train.eval_every
    if interval % every or interval >= train.steps:
        raise ConfigError(
            f"{what}: must be a multiple of eval_every {every}, and less than steps {train.steps}, "
            f"not {interval}"
        )
    kept = interval // every + 2  # a stop may have written one of them
    if train.keep_checkpoints < kept:
        raise ConfigError(
            f"{what}: a new trial may begin at a checkpoint that its parent left {interval} steps "
            f"ago; set keep_checkpoints to {kept} or more in the train config"
        )


def fork_of(trial: FrozenTrial, folder: Callable[[int], str]) -> dict[str, Any]:
    """Return the train setting to begin at the parent's checkpoint; empty, to begin at step 0.

    `folder` returns the folder of a trial's run, by the trial's number.
    """
    parent = trial.user_attrs.get("parent")
    if parent is None:
        return {}
    return {"fork": {"run": folder(parent), "step": trial.user_attrs["parent_step"]}}
