"""A study's complete trials, each read once: a pruner holds a trial against all of them.

Optuna's storage goes through every trial of the study whenever it is asked for some, and reads all
that run again. Here an evaluation costs one look at what has ended since the last one, whoever
ended it. Never writes.
"""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState

from storage import Ledger


class CompleteTrials:
    """The complete trials of one study."""

    def __init__(self, ledger: Ledger, study_id: int) -> None:
        self._ledger = ledger
        self._study_id = study_id
        self._unfinished: set[int] = set()
        self._newest = 0  # trial looked at

    def new(self) -> list[FrozenTrial]:
        """Those that were not complete, or not there, when this was called before."""
        storage = self._ledger.storage
        if not self._newest:  # one after the other would take minutes in a big study
            storage.get_all_trials(self._study_id, deepcopy=False)
        states = self._ledger.states(self._study_id, self._unfinished, self._newest)
        complete = [t for t, state in states.items() if state is TrialState.COMPLETE]
        found = [storage.get_trial(trial_id) for trial_id in complete]
        # Only now: where reading fails, they are still new the next time.
        self._newest = max(states, default=self._newest)
        self._unfinished = {t for t, state in states.items() if not state.is_finished()}
        return found
