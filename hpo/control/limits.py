"""Decides when no more trials begin: budget or search space are used up, or too many fail."""

from __future__ import annotations

from optuna.trial import TrialState

from hpo.control.leased import LeasedStudy
from hpo.study.sections import raised


class Limits:
    """The limits of one study, as one controller sees them."""

    def __init__(self, leased: LeasedStudy) -> None:
        record = leased.record
        self.budget = record.budget_trials
        self.trials_spent = record.reserved_trials >= record.budget_trials
        self.space_exhausted = False  # every point of it was proposed
        self.gave_up: str | None = None  # why not, if not for one of these
        self.failing = False  # whether that is because trials fail, or a teacher does
        self._ledger = leased.ledger
        self._record = record
        self._config = leased.config
        self._time = raised(leased.config.budget, leased.ledger.attributes(record))
        self._failures = 0  # trials in a row; a resume counts anew, what was wrong may be mended

    def may_begin(self) -> bool:
        """Whether a new trial may begin."""
        return not (self.over() or self.trials_spent or self.space_exhausted)

    def over(self) -> bool:
        """Whether no trial is begun or promoted any more, whatever the budget of trials."""
        if self.gave_up is None and self._failures >= self._config.failures.max_failures:
            self.give_up(f"the last {self._failures} trials failed (failures.max_failures)")
        if self.gave_up is None:
            self.gave_up = self._time_spent()
        return self.gave_up is not None

    def give_up(self, why: str) -> None:
        """Begin nothing more, because something fails and would fail again."""
        self.gave_up, self.failing = why, True

    def count(self, state: TrialState) -> None:
        """Count a trial that has ended in `state`."""
        self._failures = self._failures + 1 if state is TrialState.FAIL else 0

    def read_budget(self) -> bool:
        """Read the budget of trials again; whether `hpo resume --trials` has changed it."""
        record = self._ledger.study(self._record.name)
        before, self.budget = self.budget, record.budget_trials
        self.trials_spent = record.reserved_trials >= record.budget_trials
        return self.budget != before

    def _time_spent(self) -> str | None:
        if self._spent() is None:
            return None
        # Somebody may have raised it meanwhile.
        self._time = raised(self._config.budget, self._ledger.attributes(self._record))
        return self._spent()

    def _spent(self) -> str | None:
        hours, device_hours = self._time.hours, self._time.device_hours
        if hours is not None and self._ledger.seconds(self._record) >= hours * 3600:
            return f"the budget of {hours:g} hours is spent (`hpo resume --hours` raises it)"
        if device_hours is None:
            return None
        spent = self._ledger.device_seconds(self._record) >= device_hours * 3600
        more = "(`hpo resume --device-hours` raises it)"
        return f"the budget of {device_hours:g} device-hours is spent {more}" if spent else None
