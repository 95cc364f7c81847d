"""Numbers of a study that the database counts itself, as cheap for 100,000 trials as for ten."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from storage.database import time_of
from storage.models import AttemptRow, MetricsRow
from storage.reading import TRIALS, Reader
from storage.records import StudyRecord


@dataclass(frozen=True)
class Tally:
    """How many trials and attempts a study has, and how long it has reported nothing."""

    trials: dict[str, int]  # by state
    ended_attempts: dict[str | None, int]  # by reason; None if all steps were done
    open_attempts: int
    silent_seconds: float | None  # since any open attempt reported; None if none is open


def tally(ledger: Reader, study: StudyRecord) -> Tally:
    """Return the numbers of `study`."""
    of_study = TRIALS.c.study_id == study.study_id
    attempts = sa.select(AttemptRow).join(TRIALS, TRIALS.c.trial_id == AttemptRow.trial_id)
    attempts = attempts.where(of_study)
    is_open = AttemptRow.ended_at.is_(None)
    reported = (
        sa.select(sa.func.max(MetricsRow.at))
        .where(MetricsRow.trial_id == AttemptRow.trial_id)
        .correlate(AttemptRow)
        .scalar_subquery()
    )
    with ledger.sessions() as session:
        counted = session.execute(
            attempts.with_only_columns(AttemptRow.reason, is_open, sa.func.count()).group_by(
                AttemptRow.reason, is_open
            )
        ).all()
        heard = session.execute(
            attempts.with_only_columns(AttemptRow.started_at, reported).where(is_open)
        ).all()
        now = time_of(session)
    last = max((max(start, at or start) for start, at in heard), default=None)
    return Tally(
        dict(ledger.trial_counts(study)),
        {reason: count for reason, still_open, count in counted if not still_open},
        len(heard),
        None if last is None else max(0.0, now - last),
    )
