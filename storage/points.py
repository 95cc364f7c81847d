"""Points of a study's search space that are tried before any that the sampler proposes.

A point is an ordinary WAITING trial of Optuna, and the next `ask` takes the oldest one. It belongs
to no controller and counts in no budget until a controller has asked for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

_FIXED = "fixed_params"  # Optuna's system attribute of an enqueued trial


@dataclass(frozen=True)
class Point:
    """Values for some or all of the searched paths; the sampler draws those that are missing."""

    params: Mapping[str, Any]
    origin: Mapping[str, Any]  # its `study` and `trial` or `recipe`, or whom it is `by`


def enqueue(study: optuna.Study, points: Sequence[Point]) -> list[int]:
    """Add `points` in order, and return the numbers of their trials; the caller commits."""
    for point in points:
        study.enqueue_trial(dict(point.params), user_attrs={"origin": dict(point.origin)})
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return [trial.number for trial in waiting[len(waiting) - len(points) :]]


def known_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the trial's parameters; if it is WAITING, those that its point fixes."""
    if trial.state is TrialState.WAITING:
        return dict(trial.system_attrs.get(_FIXED, {}))
    return trial.params


def fixed_params(storage: BaseStorage, trial_id: int) -> dict[str, Any]:
    """Return what the point of a trial fixes that has just been asked for; nothing without one."""
    return dict(storage.get_trial_system_attrs(trial_id).get(_FIXED, {}))


def fix_params(storage: BaseStorage, trial_id: int, params: Mapping[str, Any]) -> None:
    """Have the trial's point fix `params` instead."""
    storage.set_trial_system_attr(trial_id, _FIXED, dict(params))
