"""What a controller writes beside Optuna's own rows, inside `Ledger.transaction`.

What the methods write is part of that transaction, which commits as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb.models import TrialModel
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from storage.database import time_of
from storage.errors import BudgetSpent
from storage.leases import Lease, gone, is_steady, reap, renew
from storage.models import (
    AttemptRow,
    Base,
    DepthPointRow,
    MetricsRow,
    ResultRow,
    StudyRow,
    WaitingRow,
)
from storage.reading import attempt_record
from storage.reasons import Reason
from storage.records import Attempt, Waiting
from storage.session import UNSYNCED, changed
from storage.teachers import TeacherWriter


class Transaction:
    """What a controller writes in one transaction of the ledger, under its lease."""

    def __init__(self, session: Session, lease: Lease) -> None:
        self._session = session
        self._lease = lease
        self.teachers = TeacherWriter(session, lease.study_id, lease.controller_id, self._now)

    def renew(self) -> None:
        """Extend the lease. Raises LeaseLost if it has been taken over or released."""
        renew(self._session, self._lease)

    def reap(self) -> None:
        """Mark the study's controllers with expired leases as lost, and let their trials wait.

        This writes nothing until the lease has been renewed for its full length without a gap.
        """
        now = self._now()
        steady = is_steady(self._session, self._lease, now)
        reap(self._session, self._lease.study_id, now, lambda row: steady or gone(row))

    def reserve_trial(self) -> None:
        """Count one more trial against the budget. Raises BudgetSpent, writing nothing."""
        reserved = self._session.execute(
            sa.update(StudyRow)
            .where(
                StudyRow.study_id == self._lease.study_id,
                StudyRow.reserved_trials < StudyRow.budget_trials,
            )
            .values(reserved_trials=StudyRow.reserved_trials + 1)
            .execution_options(**UNSYNCED)
        )
        if changed(reserved) != 1:
            raise BudgetSpent("every trial of the budget has been created")

    def begin_attempt(self, trial_id: int, *, devices: int) -> Attempt:
        """Open the trial's next attempt. If two controllers try, only the first can commit."""
        last = self._session.scalar(
            sa.select(sa.func.max(AttemptRow.number)).where(AttemptRow.trial_id == trial_id)
        )
        row = AttemptRow(
            trial_id=trial_id,
            number=(last or 0) + 1,
            controller_id=self._lease.controller_id,
            devices=devices,
            started_at=self._now(),
        )
        self._session.add(row)
        self._session.flush()
        return attempt_record(row)

    def wait(self, trial_id: int, *, seconds: float = 0.0, parked: bool = False) -> None:
        """Let the RUNNING trial wait for its next attempt, for at least `seconds`.

        Any controller of the study may claim it. A `parked` trial waits until it is promoted.
        """
        self._session.merge(
            WaitingRow(trial_id=trial_id, due_at=self._now() + seconds, parked=parked)
        )
        self._session.flush()

    def claim(self, seen: Waiting) -> bool:
        """Take a trial that was `seen` waiting, to begin its next attempt or end it.

        False if it does not wait so any more: another took it, even if it waits again since then.
        """
        row = WaitingRow
        claimed = self._session.execute(
            sa.delete(row)
            .where(row.trial_id == seen.trial_id)
            .where(row.due_at == seen.due_at, row.parked == seen.parked)
            .execution_options(**UNSYNCED)
        )
        return changed(claimed) == 1

    def trial_state(self, trial_id: int) -> TrialState | None:
        """Return the trial's state and keep it until this commits; None if it was deleted."""
        return trial_state(self._session, trial_id)

    def is_open(self, attempt: Attempt) -> bool:
        """Return whether the attempt's end has not been written yet."""
        ended_at = sa.select(AttemptRow.ended_at).where(AttemptRow.id == attempt.attempt_id)
        return self._session.scalar(ended_at) is None

    def record_metrics(self, attempt: Attempt, step: int, metrics: dict[str, float]) -> None:
        """Keep all metrics of the attempt's trial at optimizer step `step`, if none are there."""
        self._add_new(
            MetricsRow(
                trial_id=attempt.trial_id,
                step=step,
                attempt_id=attempt.attempt_id,
                at=self._now(),
                metrics=metrics,
            )
        )
        self.record_last_step(attempt, step)

    def record_depth_front(
        self, attempt: Attempt, step: int, points: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the trial's depth front at optimizer step `step`, if none is there.

        The points' keys are our columns' names.
        """
        for point in points:
            self._add_new(DepthPointRow(trial_id=attempt.trial_id, step=step, **point))

    def record_result(self, attempt: Attempt, repeat: int, metrics: dict[str, float]) -> None:
        """Keep the last metrics of the trial's training number `repeat`, counted from 0."""
        self._add_new(
            ResultRow(
                trial_id=attempt.trial_id,
                repeat=repeat,
                attempt_id=attempt.attempt_id,
                metrics=metrics,
            )
        )

    def record_last_step(self, attempt: Attempt, step: int) -> None:
        """Keep the optimizer step that the attempt has reached."""
        self._update(attempt, last_step=step)

    def record_first_step(self, attempt: Attempt, step: int) -> None:
        """Keep the optimizer step that the attempt started or resumed from."""
        self._update(attempt, first_step=step)

    def end_attempt(
        self, attempt: Attempt, reason: Reason | None, detail: str | None, *, step: int = 0
    ) -> None:
        """Close the attempt at optimizer step `step`, 0 if that is not known.

        `reason` is None when all its steps were done.
        """
        reached = {"last_step": step} if step else {}
        self._update(
            attempt,
            **reached,
            ended_at=self._now(),
            reason=reason.value if reason else None,
            detail=detail,
        )

    def _add_new(self, row: Base) -> None:
        """Write `row` unless its key is taken: what was written first stays."""
        key = sa.inspect(type(row)).primary_key_from_instance(row)
        if self._session.get(type(row), tuple(key)) is None:
            self._session.add(row)
            self._session.flush()

    def _now(self) -> float:
        return time_of(self._session)

    def _update(self, attempt: Attempt, **values: object) -> None:
        self._session.execute(
            sa.update(AttemptRow)
            .where(AttemptRow.id == attempt.attempt_id)
            .values(**values)
            .execution_options(**UNSYNCED)
        )


def trial_state(session: Session, trial_id: int) -> TrialState | None:
    """Return the trial's state and keep it until this commits; None if it was deleted."""
    state = sa.select(TrialModel.state).where(TrialModel.trial_id == trial_id)
    return session.scalar(state.with_for_update())
