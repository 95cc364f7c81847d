"""A study's complete trials, each read once: a pruner holds a trial against all of them.

Optuna's storage goes through every trial of the study whenever it is asked for some, and reads all
that run again. Here an evaluation costs one look at what has ended since the last one, whoever
ended it. Never writes.
"""

from __future__ import annotations

from collections.abc import Iterator

from optuna.trial import FrozenTrial, TrialState

from storage import Ledger


class CompleteTrials:
    """The complete trials of one study."""

    def __init__(self, ledger: Ledger, study_id: int) -> None:
        self._ledger = ledger
        self._study_id = study_id
        self._unfinished: set[int] = set()
        self._newest = 0  # trial looked at

    def new(self) -> Iterator[FrozenTrial]:
        """Those that were not complete, or not there, when this was called before."""
        storage = self._ledger.storage
        if not self._newest:  # one after the other would take minutes in a big study
            storage.get_all_trials(self._study_id, deepcopy=False)
        states = self._ledger.states(self._study_id, sorted(self._unfinished), self._newest)
        for trial_id, state in states.items():
            self._newest = max(self._newest, trial_id)
            if not state.is_finished():
                self._unfinished.add(trial_id)
                continue
            self._unfinished.discard(trial_id)
            if state is TrialState.COMPLETE:
                yield storage.get_trial(trial_id)
