"""A study's teachers in the ledger: recorded with the study, trained before its first trial.

Their rows are written under the controller's lease, like all others. This module never looks into
a run's folder: a caller who says that a teacher is trained has looked there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.orm import Session

from storage.models import TeacherRow
from storage.reasons import Reason, TeacherState
from storage.records import TeacherRecord


class TeacherWriter:
    """What a transaction writes about its study's teachers; each write returns the new record."""

    def __init__(
        self, session: Session, study_id: int, controller_id: int, now: Callable[[], float]
    ) -> None:
        self._session = session
        self._study_id = study_id
        self._controller_id = controller_id
        self._now = now  # the database's clock

    def begin(self, key: str) -> TeacherRecord | None:
        """Open the teacher's next attempt; return None while another controller has one open."""
        row = self._teacher(key)
        if row.began_at is not None and row.controller_id != self._controller_id:
            return None
        row.controller_id = self._controller_id
        if row.state in (TeacherState.TRAINED, TeacherState.REUSED):
            row.step = 0  # its run is gone
        row.state, row.reason, row.detail = TeacherState.TRAINING.value, None, None
        row.attempts += 1
        row.began_at = self._now()
        return teacher_record(row)

    def is_open(self, key: str, attempt: int) -> bool:
        """Return whether this controller's attempt number `attempt` is the teacher's open one."""
        row = self._teacher(key)
        mine = row.controller_id == self._controller_id and row.attempts == attempt
        return mine and row.began_at is not None

    def record_step(self, key: str, step: int) -> TeacherRecord:
        """Keep the optimizer step that the teacher has reached."""
        row = self._teacher(key)
        row.step = step
        return teacher_record(row)

    def end(
        self, key: str, state: TeacherState, reason: Reason | None = None, detail: str | None = None
    ) -> TeacherRecord:
        """Close the teacher's attempt, if one is open, and keep the teacher's new state."""
        row = self._teacher(key)
        _close(row, self._now(), state, reason)
        row.detail = detail
        if state in (TeacherState.TRAINED, TeacherState.REUSED):
            row.step = row.steps
        return teacher_record(row)

    def _teacher(self, key: str) -> TeacherRow:
        key_of = (self._study_id, key)
        return self._session.get_one(TeacherRow, key_of, with_for_update=True)


def teacher_row(study_id: int, teacher: TeacherRecord) -> TeacherRow:
    """Return the row of a new study's teacher."""
    return TeacherRow(study_id=study_id, **asdict(teacher))


def teacher_record(row: TeacherRow) -> TeacherRecord:
    """Return what readers get of a teacher's row."""
    return TeacherRecord(
        row.key,
        row.folder,
        row.config,
        row.steps,
        TeacherState(row.state),
        row.step,
        row.attempts,
        row.seconds,
        Reason(row.reason) if row.reason else None,
        row.detail,
    )


def close_teachers(session: Session, study_id: int, controller_id: int, at: float) -> None:
    """End the attempts that a controller of the study, gone since `at`, has left open."""
    left = sa.select(TeacherRow).where(
        TeacherRow.study_id == study_id,
        TeacherRow.controller_id == controller_id,
        TeacherRow.began_at.is_not(None),
    )
    for row in session.scalars(left):
        _close(row, at, TeacherState.WAITING, Reason.CONTROLLER_LOST)


def _close(row: TeacherRow, at: float, state: TeacherState, reason: Reason | None) -> None:
    if row.began_at is not None:
        row.seconds += at - row.began_at
    row.began_at = None
    row.state = state.value
    row.reason = reason.value if reason else None
