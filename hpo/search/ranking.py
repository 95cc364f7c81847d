"""Ranking: what a direction means for a value, and which trials of a study are the best.

Only a feasible trial can be the best: one that is COMPLETE and has broken no constraint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.study._multi_objective import _fast_non_domination_rank
from optuna.trial import FrozenTrial, TrialState

from hpo.search.constraints import is_feasible
from hpo.search.objectives import Direction
from storage import Ledger, StudyRecord


def sign(direction: StudyDirection | Direction) -> int:
    """Return 1 to minimize and -1 to maximize: multiplied by it, a smaller value is better."""
    return -1 if direction in (StudyDirection.MAXIMIZE, "maximize") else 1


def feasible(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return those of `trials` that are COMPLETE and have broken no constraint, in their order."""
    return [t for t in trials if t.state is TrialState.COMPLETE and is_feasible(t)]


def best_of(trials: Iterable[FrozenTrial], direction: Direction) -> FrozenTrial | None:
    """Return the feasible trial with the best first value, the first of equal ones, or None."""
    return min(feasible(trials), key=lambda t: sign(direction) * t.values[0], default=None)


def best_in_ledger(
    ledger: Ledger, record: StudyRecord, directions: Sequence[Direction], *, constrained: bool
) -> FrozenTrial | None:
    """Return a study's best feasible trial; None if there is none, or several objectives."""
    if len(directions) > 1:
        return None
    if constrained:
        return best_of(ledger.trials(record, TrialState.COMPLETE), directions[0])
    try:
        # Every COMPLETE trial is feasible, so that the database can choose: no other is read.
        return ledger.storage.get_best_trial(record.study_id)
    except ValueError:
        return None


def pareto_front(ledger: Ledger, name: str) -> list[FrozenTrial]:
    """Return the feasible trials that no other feasible one dominates, by number."""
    return optuna.load_study(study_name=name, storage=ledger.storage).best_trials


def best_trials(study: optuna.Study, top: int) -> list[FrozenTrial]:
    """Return the `top` best feasible trials; of several objectives, one Pareto front after another.

    On one front, and of equal values, trials are in the order of their numbers.
    """
    trials = feasible(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if not trials:
        return []
    losses = np.array([trial.values for trial in trials]) * [*map(sign, study.directions)]
    ranks = _fast_non_domination_rank(losses, n_below=top)  # losses: (trials, objectives)
    return [trials[i] for i in np.argsort(ranks, kind="stable")[:top]]
