"""Leases: which controllers may write a study's trials, and who gets those of a dead controller.

A lease is a controller's row, with the time at which it expires by the database's clock. Each write
of the controller renews it in the same transaction. An expired lease may be reaped: the controller
is marked lost, the attempts that it left open end, and their trials wait to be claimed.
All code locks rows in one order: controllers, then studies, then everything else.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import psutil
import sqlalchemy as sa
from optuna.storages._rdb.models import TrialModel
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from storage.database import clock, time_of
from storage.errors import LeaseHeld, LeaseLost, StudyNotFound
from storage.models import AttemptRow, ControllerRow, StudyRow, WaitingRow
from storage.reasons import Reason
from storage.records import StudyRecord
from storage.session import UNSYNCED, changed
from storage.teachers import close_teachers

LEASE_SECONDS = 15.0


@dataclass(frozen=True)
class Lease:
    """One controller's right to write those trials of a study that it has claimed."""

    controller_id: int
    study_id: int
    seconds: float
    started_at: float  # by the database's clock
    token: str  # tells it from the lease of another study that got the same ids


def _held(lease: Lease) -> sa.ColumnElement[bool]:
    row = ControllerRow
    return (row.id == lease.controller_id) & (row.token == lease.token) & (row.state == "active")


def take(
    session: Session,
    study: StudyRecord,
    seconds: float,
    watched: Mapping[int, float],
    *,
    join: bool,
) -> Lease:
    """Return a new lease on the study. Raises LeaseHeld if there is one already, unless `join`.

    `watched` has controllers by id, with the ends of their leases, that the caller has watched for
    a full lease: those that have renewed nothing since are dead. So is a process of this machine
    that is not there any more. Others whose leases have run out may be alive, if the database was
    away meanwhile.
    Raises StudyNotFound if the study was deleted, even if another study has its name or its id.
    """
    # This changes nothing: a write takes SQLite's lock before anything is read.
    active = (ControllerRow.study_id == study.study_id) & (ControllerRow.state == "active")
    session.execute(sa.update(ControllerRow).where(active).values(state="active"))
    now = time_of(session)
    reap(
        session, study.study_id, now, lambda row: watched.get(row.id) == row.expires_at or gone(row)
    )
    # Behind the lock of the study's row, one controller at a time looks for live leases.
    there = session.execute(
        sa.update(StudyRow)
        .where(StudyRow.study_id == study.study_id, StudyRow.uid == study.uid)
        .values(study_id=StudyRow.study_id)
    )
    if changed(there) != 1:
        raise StudyNotFound(f"study {study.name} has been deleted; `hpo list` shows what there is")
    if not join:
        others = session.scalars(sa.select(ControllerRow).where(active)).all()
        if others:
            raise LeaseHeld(
                f"study {study.name} is being run by process {others[0].pid} on {others[0].host}",
                {other.id: other.expires_at for other in others},
                max(other.expires_at for other in others) - now,
            )
    row = ControllerRow(
        study_id=study.study_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        state="active",
        started_at=now,
        seen_at=now,
        expires_at=now + seconds,
        steady_since=now,
        token=secrets.token_hex(16),
    )
    session.add(row)
    session.flush()
    return Lease(row.id, study.study_id, seconds, now, str(row.token))


def has_others(session: Session, lease: Lease) -> bool:
    """Return whether the study has controllers beside the lease's own."""
    row = ControllerRow
    active = (row.study_id == lease.study_id) & (row.state == "active")
    other = sa.select(row.id).where(active, row.id != lease.controller_id)
    return session.scalar(other.limit(1)) is not None


def renew(session: Session, lease: Lease) -> None:
    """Extend the lease. Raises LeaseLost if it has been taken over or given back.

    A gap since the last renewal, or a clock that was set back, begins a new time of steadiness.
    """
    row, now = ControllerRow, clock(session.get_bind().dialect.name)
    without_gap = row.seen_at.between(now - lease.seconds / 2, now) & row.steady_since.is_not(None)
    renewed = session.execute(
        sa.update(row)
        .where(_held(lease))
        .values(
            seen_at=now,
            expires_at=now + lease.seconds,
            steady_since=sa.case((without_gap, row.steady_since), else_=now),
        )
        .execution_options(**UNSYNCED)
    )
    if changed(renewed) != 1:
        raise LeaseLost("another controller has taken this one's trials over")


def is_steady(session: Session, lease: Lease, now: float) -> bool:
    """Return whether the controller has renewed its lease for a full lease without a gap.

    Only then it can tell that others, which did not renew theirs meanwhile, are dead: after an
    outage of the database, or a jump of its clock, the leases of the living have run out too.
    """
    since = session.scalar(sa.select(ControllerRow.steady_since).where(_held(lease)))
    return since is not None and now - since >= lease.seconds


def gone(controller: ControllerRow) -> bool:
    """Return whether it was a process of this machine that is there no more."""
    return controller.host == socket.gethostname() and not psutil.pid_exists(controller.pid)


def give_back(session: Session, lease: Lease, now: float) -> None:
    """End the lease, so that others may claim its trials at once. Leave a lost lease alone."""
    released = session.execute(
        sa.update(ControllerRow)
        .where(_held(lease))
        .values(state="released", seen_at=now, expires_at=now)
    )
    if changed(released) == 1:
        _let_go(session, lease.study_id, lease.controller_id, now)


def reap(
    session: Session, study_id: int, now: float, is_dead: Callable[[ControllerRow], bool]
) -> None:
    """Mark the study's controllers with expired leases as lost, and let their trials wait.

    A lease has also expired if its last renewal is a full lease ahead of `now`: the clock was set
    back after it.
    """
    row = ControllerRow
    expired = (
        sa.select(row)
        .where(
            row.study_id == study_id,
            row.state == "active",
            (row.expires_at <= now) | (row.seen_at > now + (row.expires_at - row.seen_at)),
        )
        # Skip locked rows: their controllers renew their leases, or others reap them.
        .with_for_update(skip_locked=True)
    )
    for controller in session.scalars(expired):
        if is_dead(controller):
            controller.state = "lost"
            _let_go(session, study_id, controller.id, controller.seen_at)
    # What another program has ended waits for nothing any more.
    ended = (TrialModel.study_id == study_id) & (TrialModel.state != TrialState.RUNNING)
    session.flush()
    session.execute(
        sa.delete(WaitingRow)
        .where(WaitingRow.trial_id.in_(sa.select(TrialModel.trial_id).where(ended)))
        .execution_options(**UNSYNCED)
    )


def _let_go(session: Session, study_id: int, controller_id: int, at: float) -> None:
    """End what a controller that is gone since `at` left open, and let its trials wait."""
    for attempt in _open_attempts(session, controller_id):
        attempt.ended_at, attempt.reason = at, Reason.CONTROLLER_LOST.value
        session.merge(WaitingRow(trial_id=attempt.trial_id, due_at=at, parked=False))
    close_teachers(session, study_id, controller_id, at)


def _open_attempts(session: Session, controller_id: int) -> Iterator[AttemptRow]:
    left = (AttemptRow.controller_id == controller_id) & AttemptRow.ended_at.is_(None)
    return iter(session.scalars(sa.select(AttemptRow).where(left).order_by(AttemptRow.id)).all())
