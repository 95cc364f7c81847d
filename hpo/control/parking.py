"""Parked trials: which of them goes on, and what becomes of them when nothing else is left to do.

Under parked halving a trial waits at a rung until it is among the best there; in a population, for
the end of its round. Both stand in the ledger. Called under the controller's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import optuna
from optuna.trial import TrialState

from hpo.control.judge import Judge
from hpo.search.population import Population
from storage import Lease, Ledger, Reason

Parked = Mapping[int, int]  # trial ids by number


class Parking:
    """Decides over a study's parked trials, and ends those that will not go on."""

    def __init__(
        self,
        ledger: Ledger,
        lease: Lease,
        study: optuna.Study,
        judge: Judge,
        population: Population | None,
        pruned: Callable[[int, Reason], None],
    ) -> None:
        self._ledger = ledger
        self._lease = lease
        self._study = study
        self._judge = judge
        self._population = population
        self._pruned = pruned  # is told, by the trial's number

    def promoted(self, parked: Parked, *, over: bool) -> int | None:
        """The number of a parked trial that may go on now; `over`: no rung is passed any more."""
        if self._population is not None:
            return self._population.due(parked)
        if not parked or self._judge.halving is None or over:
            return None
        return self._judge.halving.promotable(parked, self._judge.curves())

    def next_round(self, parked: Parked, folder: Callable[[int], str], *, may_begin: bool) -> bool:
        """With all living members of the population parked: compare them; whether any goes on."""
        if not parked:
            return False
        assert self._population is not None
        losers = []
        with self._ledger.transaction(self._lease) as transaction:
            for loser, child in self._population.compare(transaction, may_begin):
                run_dir = folder(child.number)
                self._ledger.storage.set_trial_user_attr(child._trial_id, "run_dir", run_dir)
                transaction.wait(child._trial_id)
                if loser in parked:  # and not one that had ended early
                    transaction.claim(parked[loser])
                    trial = optuna.Trial(self._study, parked[loser])
                    self._judge.retire(trial, Reason.EXPLOITED)
                    losers.append(loser)
        for number in losers:
            self._pruned(number, Reason.EXPLOITED)
        return True

    def end_of_halving(self, parked: Parked, *, over: bool) -> int | None:
        """With nothing left to wait for: the one to carry through if none was, else none goes on.

        None of them remains parked then.
        """
        halving = self._judge.halving
        if halving is None or not parked:
            return None
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not over and not complete:
            return halving.furthest(parked, self._judge.curves())
        retired = []
        with self._ledger.transaction(self._lease) as transaction:
            for number, trial_id in parked.items():
                if transaction.claim(trial_id):
                    self._judge.retire(optuna.Trial(self._study, trial_id))
                    retired.append(number)
        for number in retired:
            self._pruned(number, Reason.PRUNED)
        return None
