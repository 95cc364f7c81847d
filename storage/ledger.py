"""The ledger: studies, leases, and the transactions in which a controller writes.

The contract:
- A study has one controller at a time. It holds a lease, which every one of its writes renews in
  the same transaction; a background heartbeat renews it between them.
- A lease that has run out by the database's clock may be taken over. Taking over marks the old
  controller lost, and from then on each of its writes raises LeaseLost and changes nothing.
- Everything inside `with ledger.transaction(lease)` commits together, Optuna's own writes
  through `ledger.storage` included.
- Readers need no lease. Workers never open the ledger.
Instances are safe to use from several threads; a transaction belongs to one.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.orm import Session

from storage.database import clock, open_storage, shown
from storage.errors import BudgetSpent, LeaseHeld, LeaseLost, LedgerError, StudyExists
from storage.models import (
    AttemptRow,
    ControllerRow,
    DepthPointRow,
    MetricsRow,
    ResultRow,
    StudyRow,
    TeacherRow,
)
from storage.names import check_study_name
from storage.points import Point, enqueue
from storage.reading import STUDIES, TRIALS, Reader
from storage.reasons import Reason
from storage.records import Attempt, StudyRecord, TeacherRecord
from storage.session import joined
from storage.teachers import TeacherWriter, close_teachers, teacher_row

LEASE_SECONDS = 15.0


@dataclass(frozen=True)
class Lease:
    """One controller's right to write one study's trials."""

    controller_id: int
    study_id: int
    seconds: float


class Ledger(Reader):
    """An open ledger. Reading is in `Reader`; this is opening, leases and writing."""

    def __init__(self, backend: RDBStorage, url: str) -> None:
        super().__init__(backend, url)
        self._writing = threading.Lock()

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Ledger:
        """Open `url`, migrating it; `create` makes what is missing. Raises LedgerError."""
        return cls(open_storage(url, create=create), shown(url))

    def create_study(
        self,
        name: str,
        directions: Sequence[StudyDirection],
        metric_names: Sequence[str],
        document: str,
        budget_trials: int,
        teachers: Sequence[TeacherRecord] = (),
        points: Sequence[Point] = (),
    ) -> StudyRecord:
        """Record a new study, Optuna's rows and ours, its teachers and the points to try first.

        Raises StudyExists.
        """
        check_study_name(name)
        try:
            with joined(self._sessions) as session:
                study = optuna.create_study(
                    study_name=name, storage=self.storage, directions=list(directions)
                )
                with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                    study.set_metric_names(list(metric_names))
                self._forget_deleted(session)
                session.add(
                    StudyRow(
                        study_id=study._study_id,
                        uid=uuid.uuid4().hex,
                        document=document,
                        document_sha256=hashlib.sha256(document.encode()).hexdigest(),
                        created_at=self._now(session),
                        budget_trials=budget_trials,
                        reserved_trials=0,
                    )
                )
                session.add_all(teacher_row(study._study_id, teacher) for teacher in teachers)
                enqueue(study, points)
        except optuna.exceptions.DuplicatedStudyError:
            raise StudyExists(f"study {name} is in the ledger already") from None
        return self.study(name)

    def enqueue(self, study: StudyRecord, points: Sequence[Point]) -> list[int]:
        """Have `points` tried before what the sampler proposes; the numbers of their trials.

        All of them or none. Needs no lease, whoever runs the study: a waiting trial is not the
        controller's yet. It becomes so in the transaction that reserves its budget, and nothing
        that a controller has written, or has read and relies on, is changed by one more.
        """
        with joined(self._sessions) as session:
            # Our row before Optuna's, as a controller that asks has it: no deadlock.
            session.execute(
                sa.update(StudyRow)
                .where(StudyRow.study_id == study.study_id)
                .values(budget_trials=StudyRow.budget_trials)
                .execution_options(**_UNSYNCED)
            )
            return enqueue(optuna.load_study(study_name=study.name, storage=self.storage), points)

    def acquire(
        self, study: StudyRecord, *, seconds: float = LEASE_SECONDS, trials: int | None = None
    ) -> Lease:
        """Become the study's controller, taking over from one whose lease has run out.

        Clears an earlier wish to stop; `trials` becomes the budget, if given. Raises LeaseHeld
        while another controller's lease runs.
        """
        with joined(self._sessions) as session:
            # Writing first takes SQLite's lock; controllers before studies, as every write does.
            active = (ControllerRow.study_id == study.study_id) & (ControllerRow.state == "active")
            session.execute(sa.update(ControllerRow).where(active).values(state="active"))
            now = self._now(session)
            for other in session.scalars(sa.select(ControllerRow).where(active).with_for_update()):
                _refuse_living(study, other, now)
                other.state = "lost"
                _close_attempts(session, other.id, other.seen_at)
                close_teachers(session, study.study_id, other.seen_at)
            budget = {} if trials is None else {"budget_trials": trials}
            session.execute(
                sa.update(StudyRow)
                .where(StudyRow.study_id == study.study_id)
                .values(stop_requested_at=None, **budget)
            )
            # The study's row lets in one after the other: here another may have come first.
            for first in session.scalars(sa.select(ControllerRow).where(active)):
                _refuse_living(study, first, now)
            row = ControllerRow(
                study_id=study.study_id,
                host=socket.gethostname(),
                pid=os.getpid(),
                state="active",
                started_at=now,
                seen_at=now,
                expires_at=now + seconds,
            )
            session.add(row)
            session.flush()
            return Lease(row.id, study.study_id, seconds)

    def release(self, lease: Lease) -> None:
        """Give the lease back: the study may be resumed at once. A lost lease is left alone."""
        with joined(self._sessions) as session:
            now = self._now(session)
            released = session.execute(
                sa.update(ControllerRow)
                .where(ControllerRow.id == lease.controller_id, ControllerRow.state == "active")
                .values(state="released", seen_at=now, expires_at=now)
            )
            if released.rowcount == 1:  # type: ignore[attr-defined]
                _close_attempts(session, lease.controller_id, now)
                close_teachers(session, lease.study_id, now)

    def request_stop(self, study: StudyRecord) -> None:
        """Ask the study's controller to checkpoint its trials and leave."""
        with joined(self._sessions) as session:
            session.execute(
                sa.update(StudyRow)
                .where(StudyRow.study_id == study.study_id)
                .values(stop_requested_at=self._now(session))
            )

    @contextmanager
    def transaction(self, lease: Lease) -> Iterator[Transaction]:
        """One atomic write under `lease`, which it renews. Raises LeaseLost, writing nothing."""
        # This process' writers, the heartbeat above all, wait here and not for the database, which
        # gives up on them: a sampler may take its time within.
        with self._writing, joined(self._sessions) as session:
            transaction = Transaction(self, session, lease)
            transaction.renew()
            began = time.monotonic()
            yield transaction
            if time.monotonic() - began > lease.seconds / 3:
                transaction.renew()

    @contextmanager
    def heartbeat(self, lease: Lease, on_error: Callable[[Exception], None]) -> Iterator[None]:
        """Renew `lease` from a thread while the block runs, every third of its length.

        `on_error` is called, once and from that thread, when the lease is lost, or could not be
        renewed for its whole length.
        """
        done = threading.Event()

        def beat() -> None:
            renewed_at = time.monotonic()
            while not done.wait(lease.seconds / 3):
                try:
                    with self.transaction(lease):
                        renewed_at = time.monotonic()
                except (LedgerError, sa.exc.SQLAlchemyError) as error:
                    lost = isinstance(error, LedgerError)
                    if lost or time.monotonic() - renewed_at > lease.seconds:
                        on_error(error)
                        return

        thread = threading.Thread(target=beat, name="lease-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _forget_deleted(self, session: Session) -> None:
        # A study deleted in the dashboard takes our rows along only where foreign keys are
        # enforced, and SQLite hands its ids out again.
        for model, parent in (
            (DepthPointRow, TRIALS.c.trial_id),
            (MetricsRow, TRIALS.c.trial_id),
            (ResultRow, TRIALS.c.trial_id),
            (AttemptRow, TRIALS.c.trial_id),
            (ControllerRow, STUDIES.c.study_id),
            (TeacherRow, STUDIES.c.study_id),
            (StudyRow, STUDIES.c.study_id),
        ):
            child = getattr(model, parent.name)
            session.execute(
                sa.delete(model)
                .where(~sa.exists().where(parent == child))
                .execution_options(**_UNSYNCED)
            )


def _refuse_living(study: StudyRecord, controller: ControllerRow, now: float) -> None:
    if controller.expires_at > now:
        raise LeaseHeld(
            f"study {study.name} is being run by process {controller.pid} on {controller.host}",
            controller.id,
            controller.expires_at - now,
        )


def _close_attempts(session: Session, controller_id: int, at: float) -> None:
    """End what a controller that is gone has left open."""
    session.execute(
        sa.update(AttemptRow)
        .where(AttemptRow.controller_id == controller_id, AttemptRow.ended_at.is_(None))
        .values(ended_at=at, reason=Reason.CONTROLLER_LOST.value)
    )


_UNSYNCED: dict[str, Any] = {"synchronize_session": False}


class Transaction:
    """What a controller writes beside Optuna's own rows, inside `Ledger.transaction`."""

    def __init__(self, ledger: Ledger, session: Session, lease: Lease) -> None:
        self._ledger = ledger
        self._session = session
        self._lease = lease
        self.teachers = TeacherWriter(session, lease.study_id, self._now)

    def renew(self) -> None:
        """Lengthen the lease. Raises LeaseLost if it has been taken over or released."""
        now = clock(self._session.get_bind().dialect.name)
        renewed = self._session.execute(
            sa.update(ControllerRow)
            .where(ControllerRow.id == self._lease.controller_id, ControllerRow.state == "active")
            .values(seen_at=now, expires_at=now + self._lease.seconds)
            .execution_options(**_UNSYNCED)
        )
        if renewed.rowcount != 1:  # type: ignore[attr-defined]
            raise LeaseLost("another controller has taken this study over")

    def reserve_trial(self) -> None:
        """Count one more trial against the budget. Raises BudgetSpent, writing nothing."""
        reserved = self._session.execute(
            sa.update(StudyRow)
            .where(
                StudyRow.study_id == self._lease.study_id,
                StudyRow.reserved_trials < StudyRow.budget_trials,
            )
            .values(reserved_trials=StudyRow.reserved_trials + 1)
            .execution_options(**_UNSYNCED)
        )
        if reserved.rowcount != 1:  # type: ignore[attr-defined]
            raise BudgetSpent("every trial of the budget has been created")

    def begin_attempt(self, trial_id: int, *, devices: int) -> Attempt:
        """Open the trial's next attempt. The first of two controllers to do so has it."""
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
        return self._ledger._attempt(row)

    def record_metrics(self, attempt: Attempt, step: int, metrics: dict[str, float]) -> None:
        """Keep all metrics of the attempt's trial at optimizer step `step`, once a step."""
        self._session.merge(
            MetricsRow(
                trial_id=attempt.trial_id,
                step=step,
                attempt_id=attempt.attempt_id,
                at=self._now(),
                metrics=metrics,
            )
        )
        self._update(attempt, last_step=step)

    def record_depth_front(
        self, attempt: Attempt, step: int, points: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the trial's depth front at optimizer step `step`; `points` by our columns' names."""
        for point in points:
            self._session.merge(DepthPointRow(trial_id=attempt.trial_id, step=step, **point))

    def record_result(self, attempt: Attempt, repeat: int, metrics: dict[str, float]) -> None:
        """Keep what the `repeat`-th training (from 0) of the attempt's trial came to."""
        self._session.merge(
            ResultRow(
                trial_id=attempt.trial_id,
                repeat=repeat,
                attempt_id=attempt.attempt_id,
                metrics=metrics,
            )
        )
        self._session.flush()

    def record_last_step(self, attempt: Attempt, step: int) -> None:
        """Keep the optimizer step that the attempt has come to."""
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

    def _now(self) -> float:
        return self._ledger._now(self._session)

    def _update(self, attempt: Attempt, **values: object) -> None:
        self._session.execute(
            sa.update(AttemptRow)
            .where(AttemptRow.id == attempt.attempt_id)
            .values(**values)
            .execution_options(**_UNSYNCED)
        )
