"""How attempts end, and ending a trial: what Optuna is told, and what its dashboard shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from hpo.control.leased import LeasedStudy
from hpo.search.constraints import violations
from storage import Reason


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended."""

    reason: Reason | None  # None: all its steps were done
    state: TrialState | None  # the trial's final one; None: it stays RUNNING, and waits
    again_in: float = 0.0  # seconds until the next attempt of one that does, at least
    means: dict[str, float] | None = None  # of a COMPLETE trial: over its trainings


@dataclass
class Endings:
    """Ends the trials of one study, inside the transaction of whoever decided it."""

    _leased: LeasedStudy

    def tell(
        self,
        trial: optuna.Trial,
        reason: Reason | None,
        state: TrialState,
        means: Mapping[str, float] | None = None,
    ) -> None:
        """End `trial` in `state`; `means` has the metrics of one that is COMPLETE."""
        trial_id = trial._trial_id
        ledger = self._leased.ledger
        attempts = ledger.trial_attempts(trial_id)
        trial.set_user_attr("attempts", len(attempts))
        trial.set_user_attr("device_seconds", round(sum(a.device_seconds for a in attempts), 3))
        if reason is not None:
            trial.set_user_attr("reason", reason.value)
        found = self.violations(trial_id, means, reason)
        if found and state is not TrialState.FAIL:
            # `Trial.set_constraint` writes what the dashboard does not read; all read this.
            ledger.storage.set_trial_system_attr(trial_id, "constraints", found)
        values = [means[metric] for metric in self._leased.metrics] if means else None
        self._leased.study.tell(trial, values, state=state)

    def violations(
        self, trial_id: int, means: Mapping[str, float] | None, reason: Reason | None = None
    ) -> list[float]:
        """Return a trial's violations by `means`, or else by the last metrics in the ledger."""
        constraints, known = self._leased.config.constraints, dict[str, float]()
        for metrics in self._leased.ledger.metrics(trial_id).values() if constraints else ():
            known |= metrics
        return violations(
            constraints, {**known, **(means or {})}, out_of_memory=reason is Reason.OUT_OF_MEMORY
        )
