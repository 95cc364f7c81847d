"""Parked trials: which trials wait, which of them go on, and which never will.

Under parked halving a trial waits at a rung until it is among the best there; in a population, for
the end of its round. Both stand in the ledger. Called under the controller's lock.
"""

from __future__ import annotations

from collections.abc import Mapping

from optuna.trial import TrialState

from hpo.control.attempts import TrialAttempt
from hpo.control.endings import Endings
from hpo.control.leased import LeasedStudy
from hpo.control.pruning import Pruning
from hpo.control.telling import Observers
from hpo.search.halving import Halving
from hpo.search.pruners import ParkedHalving
from storage import Reason, Waiting

Parked = Mapping[int, Waiting]  # by number


class Parking:
    """Decides which of a study's trials are parked, and ends those that will not go on."""

    def __init__(
        self, leased: LeasedStudy, pruning: Pruning, endings: Endings, observers: Observers
    ) -> None:
        self._leased = leased
        self._pruning = pruning
        self._endings = endings
        self._observers = observers
        self._population = leased.population
        self._halving: Halving | None = None
        pruner = leased.config.pruner
        if isinstance(pruner, ParkedHalving):
            self._halving = Halving(pruner.minimum, pruner.reduction_factor)

    def parks(self, attempt: TrialAttempt, step: int) -> bool:
        """Whether the trial waits from its evaluation at optimizer step `step` on."""
        if self._population is not None:
            return attempt.waits_at(step)
        if self._halving is None or not attempt.is_new(step):
            return False
        curves = self._pruning.curves()
        resource = max(curves[attempt.number], default=0)
        return not self._halving.goes_on(attempt.number, resource, curves)

    def promoted(self, parked: Parked, *, over: bool) -> int | None:
        """Return the number of a parked trial that may go on now, if any.

        `over` says that no trial passes a rung any more.
        """
        if self._population is not None:
            return self._population.due(parked)
        if not parked or self._halving is None or over:
            return None
        return self._halving.promotable(parked, self._pruning.curves())

    def next_round(self, parked: Parked, *, may_begin: bool) -> bool:
        """Compare the population, all of whose living members are parked; whether any goes on."""
        if not parked:
            return False
        assert self._population is not None
        losers = []
        with self._leased.transaction() as transaction:
            for loser, child in self._population.compare(transaction, may_begin):
                run_dir = self._leased.run_folder(child.number)
                self._leased.ledger.storage.set_trial_user_attr(child._trial_id, "run_dir", run_dir)
                transaction.wait(child._trial_id)
                # One that had ended early is not parked.
                if loser in parked and transaction.claim(parked[loser]):
                    self._retire(parked[loser].trial_id, Reason.EXPLOITED)
                    losers.append(loser)
        for number in losers:
            self._observers.retired(number, Reason.EXPLOITED)
        return True

    def end_of_halving(self, parked: Parked, *, over: bool) -> int | None:
        """Return the trial to carry through, if none is complete yet; else end all of `parked`.

        Called when there is nothing left to wait for.
        """
        if self._halving is None or not parked:
            return None
        complete = self._leased.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not over and not complete:
            return self._halving.furthest(parked, self._pruning.curves())
        retired = []
        with self._leased.transaction() as transaction:
            for number, waiting in parked.items():
                if transaction.claim(waiting):
                    self._retire(waiting.trial_id, Reason.PRUNED)
                    retired.append(number)
        for number in retired:
            self._observers.retired(number, Reason.PRUNED)
        return None

    def _retire(self, trial_id: int, reason: Reason) -> None:
        """End a parked trial where it stands."""
        self._endings.tell(self._leased.trial(trial_id), reason, TrialState.PRUNED)
