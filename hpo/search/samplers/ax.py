"""Ax as an Optuna sampler, rebuilt for every proposal from the study's trials.  (imports ax)

It keeps nothing between trials and reads no clock: a proposal follows from (seed, trial number)
and the trials that the study shows. What the trials become in Ax:

- COMPLETE: observed. Perplexities are modelled as their logarithms. Where some trials have a
  standard error, the others get that of a single training, pooled over those that have one.
- RUNNING: pending. PRUNED and FAIL: abandoned. Ax counts both as taken and learns no value.
- COMPLETE with a value that is not finite, a perplexity without a logarithm, or a missing
  constraint: abandoned too. With a parameter outside the space as it is now: left out.
- A conditional parameter is modelled for all trials: one that lacks it has the middle of its range.
  So Ax sees such trials as equal in it, and proposes a value that a trial may leave unused.
- Each constraint that differs between trials is an outcome constraint, a violation of at most 0.

The first model imports Ax itself, which takes some seconds, as every proposal does. So proposals
are made ahead of their trials: `hpo.search.samplers.ahead`.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.samplers.ax_encoding import (
    Space,
    contains,
    decoded,
    encoded,
    middle,
    points_in,
    quasi_random,
    range_of,
)


class AxSampler(BaseSampler):
    """Proposes quasi-random points until `startup_trials` are complete, then by Ax's models."""

    def __init__(self, seed: int = 0, startup_trials: int = 10) -> None:
        self._seed = seed
        self._startup_trials = startup_trials

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the union of all trials' spaces, each parameter with its latest bounds."""
        latest: dict[str, BaseDistribution] = {}
        for other in study.get_trials(deepcopy=False):
            latest.update(other.distributions)
        return {name: latest[name] for name in sorted(latest) if not latest[name].single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a value for every parameter of `search_space`. Raises what Ax raises."""
        space = {name: each for name, each in search_space.items() if not each.single()}
        if not space:
            return {}
        past = _read(study, trial.number, space)
        proposal = None
        known = sum(point.values is not None for point in past) >= self._startup_trials
        if known and not _all_tried(space, past):
            proposal = _propose(space, past, study.directions, self._seed_of(trial))
        return proposal or quasi_random(space, self._seed, trial.number)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, *distribution: Any
    ) -> Any:
        """Draw at random: for the first trial, or a parameter that no trial has had yet."""
        sampler = RandomSampler(seed=self._seed_of(trial, *param_name.encode()))
        return sampler.sample_independent(study, trial, param_name, *distribution)

    def _seed_of(self, trial: FrozenTrial, *more: int) -> int:
        sequence = np.random.SeedSequence([self._seed, trial.number, *more])
        return int(sequence.generate_state(1)[0] >> 1)


@dataclass(frozen=True)
class _Point:
    """A past trial as Ax sees it."""

    parameters: dict[str, Any]  # in Ax's terms
    pending: bool
    values: dict[str, float] | None  # outcomes by Ax's names; None: abandoned, or pending
    sems: dict[str, float]


def _read(study: Study, number: int, space: Space) -> list[_Point]:
    """Return the trials other than `number` that say something about `space`."""
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.number != number
        and trial.state is not TrialState.WAITING
        and any(name in space for name in trial.params)
        and all(contains(each, trial.params[n]) for n, each in space.items() if n in trial.params)
    ]
    names = study.metric_names or [""] * len(study.directions)
    logs = [name.startswith("valid_ppl") for name in names]
    constraints = _differing_constraints(trials)
    spread = _spread(trials, logs)
    return [
        _Point(
            {
                name: encoded(each, trial.params[name]) if name in trial.params else middle(each)
                for name, each in space.items()
            },
            trial.state is TrialState.RUNNING,
            _outcomes(trial, logs, constraints),
            _sems(trial, logs, spread),
        )
        for trial in trials
    ]


def _outcomes(
    trial: FrozenTrial, logs: Sequence[bool], constraints: Sequence[str]
) -> dict[str, float] | None:
    """Return a COMPLETE trial's outcomes by Ax's names; None if one cannot be modelled."""
    if trial.state is not TrialState.COMPLETE:
        return None
    outcomes: dict[str, float] = {}
    for position, (value, log) in enumerate(zip(trial.values, logs, strict=True)):
        if not math.isfinite(value) or (log and value <= 0):
            return None
        outcomes[f"objective{position}"] = math.log(value) if log else value
    violations = trial.constraints
    for position, name in enumerate(constraints):
        if not math.isfinite(violations.get(name, math.nan)):
            return None
        outcomes[f"constraint{position}"] = violations[name]
    return outcomes


def _differing_constraints(trials: Sequence[FrozenTrial]) -> list[str]:
    seen: dict[str, set[float]] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            for name, violation in trial.constraints.items():
                seen.setdefault(name, set()).add(violation)
    return sorted(name for name, violations in seen.items() if len(violations) > 1)


def _errors(trial: FrozenTrial, logs: Sequence[bool]) -> list[float] | None:
    """Return the trial's standard errors, if any, on the scale of the modelled objectives."""
    errors = trial.user_attrs.get("standard_errors")
    if errors is None or trial.state is not TrialState.COMPLETE:
        return None
    return [
        error / value if log else error
        for error, value, log in zip(errors, trial.values, logs, strict=True)
    ]


def _spread(trials: Sequence[FrozenTrial], logs: Sequence[bool]) -> list[float] | None:
    """Return each objective's standard deviation between trainings, or None if unknown."""
    known = [
        [error * math.sqrt(trial.user_attrs.get("repeats", 1)) for error in errors]
        for trial in trials
        if (errors := _errors(trial, logs)) is not None
    ]
    return [math.hypot(*each) / math.sqrt(len(known)) for each in zip(*known, strict=True)] or None


def _sems(
    trial: FrozenTrial, logs: Sequence[bool], spread: Sequence[float] | None
) -> dict[str, float]:
    errors = _errors(trial, logs) or spread or [math.nan] * len(logs)
    return {f"objective{position}": error for position, error in enumerate(errors)}


def _all_tried(space: Space, past: Sequence[_Point]) -> bool:
    """Return whether no point is left to try; Ax takes half a minute to find that out."""
    return len({tuple(point.parameters.values()) for point in past}) >= points_in(space)


def _propose(
    space: Space, past: Sequence[_Point], directions: Sequence[StudyDirection], seed: int
) -> dict[str, Any] | None:
    """Return the point that Ax would try next, or None if it finds none that is new."""
    with _silence():
        from ax.api.utils.generation_strategy_dispatch import choose_generation_strategy
        from ax.api.utils.structs import GenerationStrategyDispatchStruct
        from ax.exceptions.core import OptimizationComplete
        from ax.utils.common.random import with_rng_seed

        experiment = _experiment(space, past, directions)
        # Only the model: without an initialization budget Ax adds no first points of its own.
        strategy = choose_generation_strategy(
            GenerationStrategyDispatchStruct(
                method="fast",
                initialization_budget=0,
                initialization_random_seed=seed,
                initialize_with_center=False,
            )
        )
        try:
            with with_rng_seed(seed):
                (arm,) = strategy.gen_single_trial(experiment).arms
        except OptimizationComplete:
            return None
    return {name: decoded(each, arm.parameters[name]) for name, each in space.items()}


def _experiment(space: Space, past: Sequence[_Point], directions: Sequence[StudyDirection]) -> Any:
    """Return an Ax experiment with `past`, whose data is attached at once: one by one is slow."""
    import pandas as pd
    from ax.core.arm import Arm
    from ax.core.data import Data
    from ax.core.experiment import Experiment
    from ax.core.metric import Metric
    from ax.core.search_space import SearchSpace

    experiment = Experiment(search_space=SearchSpace(_parameters(space)))
    observed = [point for point in past if point.values is not None]
    for outcome in observed[0].values or {}:
        experiment.add_metric(Metric(outcome))
    experiment.optimization_config = _optimization(list(observed[0].values or {}), directions)
    rows = []
    for index, point in enumerate(past):
        trial = experiment.new_trial()
        trial.add_arm(Arm(point.parameters))
        arm = trial.arm.name  # an earlier one, if that has the same parameters
        trial.mark_running(no_runner_required=True)
        if point.values is not None:
            trial.mark_completed()
        elif not point.pending:
            trial.mark_abandoned()
        for outcome, value in (point.values or {}).items():
            rows.append((index, arm, outcome, outcome, value, point.sems.get(outcome)))
    columns = ["trial_index", "arm_name", "metric_name", "metric_signature", "mean", "sem"]
    experiment.attach_data(Data(df=pd.DataFrame(rows, columns=columns)))
    return experiment


def _optimization(outcomes: Sequence[str], directions: Sequence[StudyDirection]) -> Any:
    from ax.api.utils.instantiation.from_string import optimization_config_from_string

    objective = ", ".join(
        f"{'-' if direction is StudyDirection.MINIMIZE else ''}objective{position}"
        for position, direction in enumerate(directions)
    )
    limits = [f"{name} <= 0" for name in outcomes if name.startswith("constraint")]
    return optimization_config_from_string(objective, limits)


def _parameters(space: Space) -> list[Any]:
    """Return `space` in Ax's terms: steps of a range, and choices, stand as their indices."""
    from ax.core.parameter import ChoiceParameter, ParameterType, RangeParameter

    parameters: list[Any] = []
    for name, each in space.items():
        if isinstance(each, CategoricalDistribution):
            indices: list[Any] = [str(index) for index in range(len(each.choices))]
            parameters.append(
                ChoiceParameter(
                    name, ParameterType.STRING, indices, is_ordered=False, sort_values=False
                )
            )
            continue
        low, high, log = range_of(each)
        kind = ParameterType.INT if isinstance(low, int) else ParameterType.FLOAT
        parameters.append(RangeParameter(name, kind, low, high, log_scale=log))
    return parameters


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Ax's log, and its libraries' warnings, off the terminal while the block runs."""
    # This module logs its own import.
    logging.getLogger("ax.storage.sqa_store.with_db_settings_base").disabled = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ax.utils.common.logger  # noqa: F401 (it makes the handlers)

        # Only Ax's: `logging.disable` is global, and two threads may leave it set.
        for handler in logging.getLogger("ax").handlers:
            handler.setLevel(logging.CRITICAL)
        yield
