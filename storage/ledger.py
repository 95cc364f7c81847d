"""The ledger: studies, and the transactions in which their controllers write.

The contract:
- A study has controllers, each with a lease (storage/leases.py). Every write of a controller renews
  its lease in the same transaction, and a background heartbeat renews it between writes.
- A RUNNING trial has an open attempt under one controller's lease, or it waits for its next
  attempt. Any controller may claim a waiting trial; the first one gets it.
- An expired lease may be taken over. From then on each write under it raises LeaseLost and
  changes nothing.
- Everything inside `with ledger.transaction(lease)` commits together, including Optuna's own
  writes through `ledger.storage`.
- Readers need no lease. Workers never open the ledger.
Several threads may use one instance; a transaction belongs to one thread.
"""

from __future__ import annotations

import hashlib
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from hpo.clock import monotonic
from storage.belonging import belonging, study_tables
from storage.database import is_read_only, open_storage, shown, time_of
from storage.errors import BudgetSpent, LeaseHeld, LeaseLost, LedgerError, StudyExists
from storage.leases import LEASE_SECONDS, Lease, give_back, has_others, take
from storage.models import StudyRow
from storage.names import check_study_name
from storage.points import Point, enqueue
from storage.reading import STUDIES, Reader
from storage.reasons import Reason
from storage.records import StudyRecord, TeacherRecord
from storage.session import UNSYNCED, joined
from storage.teachers import teacher_row
from storage.writing import Transaction, trial_state


class Ledger(Reader):
    """An open ledger: what opens and writes it. What reads it is in `Reader`."""

    def __init__(self, backend: RDBStorage, url: str) -> None:
        super().__init__(backend, url)
        self._writing = threading.Lock()
        # who kept a study from being renamed or deleted, and since when: leases by controller
        self._refused: dict[str, tuple[float, dict[int, float]]] = {}

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Ledger:
        """Open and migrate the ledger at `url`, made if `create`. Raises LedgerError."""
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
        runs: str | None = None,
    ) -> StudyRecord:
        """Record a new study: Optuna's rows and ours, its teachers, and the points to try first.

        `runs` is where its run folders are: an absolute folder, or a URL. Raises StudyExists.
        """
        check_study_name(name)
        try:
            with self._changes() as session:
                study = optuna.create_study(
                    study_name=name, storage=self.storage, directions=list(directions)
                )
                with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                    study.set_metric_names(list(metric_names))
                study_id = self.storage.get_study_id_from_name(name)
                session.add(
                    StudyRow(
                        study_id=study_id,
                        uid=uuid.uuid4().hex,
                        document=document,
                        document_sha256=hashlib.sha256(document.encode()).hexdigest(),
                        created_at=time_of(session),
                        budget_trials=budget_trials,
                        reserved_trials=0,
                        runs=runs,
                    )
                )
                session.add_all(teacher_row(study_id, teacher) for teacher in teachers)
                enqueue(study, points)
        except optuna.exceptions.DuplicatedStudyError:
            raise StudyExists(f"study {name} is in the ledger already") from None
        return self.study(name)

    def enqueue(self, study: StudyRecord, points: Sequence[Point]) -> list[int]:
        """Have `points` tried before what the sampler proposes; return their trials' numbers.

        Adds all of them or none. Needs no lease, even while a controller runs the study: a WAITING
        trial belongs to no controller until a transaction reserves its budget, and one more of them
        changes nothing that a controller has written, or has read and relies on.
        """
        with self._changes() as session:
            # Lock our row before Optuna's, in the order of a controller that asks: no deadlock.
            self._set(session, study, budget_trials=StudyRow.budget_trials)
            return enqueue(optuna.load_study(study_name=study.name, storage=self.storage), points)

    def acquire(
        self,
        study: StudyRecord,
        *,
        seconds: float = LEASE_SECONDS,
        trials: int | None = None,
        attributes: Mapping[str, Any] | None = None,
        runs: str | None = None,
        join: bool = False,
        watched: Mapping[int, float] = MappingProxyType({}),
    ) -> Lease:
        """Become a controller of the study; `trials`, if given, becomes the study's budget.

        The study gets the user `attributes`, too.

        `runs`, if given, becomes the place of its run folders, unless another controller runs it:
        the same folder may have another name on that machine.

        Takes over the trials of controllers that are dead: their leases have run out, and their
        processes have ended on this machine, or `watched` has the ends of the leases that the
        caller has seen unchanged for a full lease, by id. Raises LeaseHeld while there is another
        controller, unless `join`.
        """
        with self._changes() as session:
            lease = take(session, study, seconds, watched, join=join)
            if trials is not None:
                self._set(session, study, budget_trials=trials)
            for name, value in (attributes or {}).items():
                self.storage.set_study_user_attr(study.study_id, name, value)
            if runs is not None and not has_others(session, lease):
                self._set(session, study, runs=runs)
        return lease

    def release(self, lease: Lease) -> None:
        """End the lease, so that its trials may be claimed at once. Leave a lost lease alone."""
        with joined(self.sessions) as session:
            give_back(session, lease, time_of(session))

    def withdraw(self, study: StudyRecord, lease: Lease) -> bool:
        """Delete the study, unless something was begun in it or another controller runs it.

        Return whether it was deleted. Raises LeaseLost.
        """
        with self.transaction(lease):
            begun = self.study(study.name).reserved_trials or any(
                teacher.attempts for teacher in self.teachers(study)
            )
            alive = [one.controller_id for one in self.controllers(study) if one.alive]
            if begun or alive != [lease.controller_id]:
                return False
            self.storage.delete_study(study.study_id)
        self._forget_cached()
        return True

    def rename_study(self, study: StudyRecord, name: str) -> None:
        """Call the study `name` from now on. Its run folders stay where they are.

        Raises StudyExists, and LeaseHeld while a controller runs the study.
        """
        check_study_name(name)
        with self._alone(study) as session:
            if session.scalar(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)):
                raise StudyExists(f"study {name} is in the ledger already")
            of_study = sa.update(STUDIES).where(STUDIES.c.study_id == study.study_id)
            session.execute(of_study.values(study_name=name))

    def delete_study(self, study: StudyRecord) -> None:
        """Delete the study, Optuna's rows and ours. Its run folders stay where they are.

        Raises LeaseHeld while a controller runs the study.
        """
        with self._alone(study) as session:
            for table in reversed(study_tables(session.connection())):
                session.execute(sa.delete(table).where(belonging(table, study.study_id)))

    def fail_trial(self, study: StudyRecord, trial_id: int) -> None:
        """End a trial as FAIL, from outside: whoever executes it stops. Raises LedgerError.

        Needs no lease. A controller looks at the trial's state before it writes about the trial.
        """
        with self._changes() as session:
            self._set(session, study, budget_trials=StudyRow.budget_trials)  # a lock, as above
            state = trial_state(session, trial_id)
            if state is None or state.is_finished():
                ended = "deleted" if state is None else f"already {state.name}"
                raise LedgerError(f"study {study.name}: the trial is {ended}")
            self.storage.set_trial_user_attr(trial_id, "reason", Reason.OUTSIDE.value)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def request_stop(self, study: StudyRecord) -> None:
        """Ask the study's present controllers to checkpoint its trials and leave."""
        with self._changes() as session:
            self._set(session, study, stop_requested_at=time_of(session))

    @contextmanager
    def transaction(self, lease: Lease) -> Iterator[Transaction]:
        """Write atomically under `lease`, and renew it. Raises LeaseLost, writing nothing."""
        try:
            with self._writing_under(lease) as transaction:
                yield transaction
        except BudgetSpent:
            raise  # Optuna has not been asked for anything yet
        except BaseException:
            self._forget_cached()
            raise

    @contextmanager
    def _writing_under(self, lease: Lease) -> Iterator[Transaction]:
        # A sampler may take long in here. Meanwhile this process' other writers, such as the
        # heartbeat, wait for our own lock; if they waited for the database's, they would time out.
        with self._writing, joined(self.sessions) as session:
            transaction = Transaction(session, lease)
            transaction.renew()
            began = monotonic()
            yield transaction
            if monotonic() - began > lease.seconds / 3:
                transaction.renew()

    @contextmanager
    def heartbeat(self, lease: Lease, on_error: Callable[[Exception], None]) -> Iterator[None]:
        """Renew `lease` from a thread while the block runs, at every third of its length.

        The thread also reaps the study's expired leases. It calls `on_error` with each error that
        it meets, tries again soon after, and ends once the lease is lost.
        """
        done = threading.Event()

        def beats() -> None:
            pause: float | None = lease.seconds / 3
            while pause is not None and not done.wait(pause):
                pause = self.beat(lease, on_error)

        thread = threading.Thread(target=beats, name="lease-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def beat(self, lease: Lease, on_error: Callable[[Exception], None]) -> float | None:
        """Renew `lease` once, and reap dead ones. Return the seconds to the next beat, if any."""
        try:
            with self._writing_under(lease) as transaction:
                transaction.reap()
        except (LedgerError, sa.exc.SQLAlchemyError) as error:
            on_error(error)
            soon = lease.seconds / 15  # after an outage, the sooner the better
            return None if isinstance(error, LeaseLost) else soon
        return lease.seconds / 3

    @contextmanager
    def _alone(self, study: StudyRecord) -> Iterator[Session]:
        """Write while no controller runs the study: as one, until this commits.

        Who asks again a lease later has watched the controllers that were in the way.
        """
        since, leases = self._refused.get(study.uid, (monotonic(), {}))
        watched = leases if monotonic() - since >= LEASE_SECONDS else {}
        try:
            with self._changes() as session:
                lease = take(session, study, LEASE_SECONDS, watched, join=False)
                yield session
                give_back(session, lease, time_of(session))
        except LeaseHeld as held:
            if held.leases != leases:
                self._refused[study.uid] = monotonic(), held.leases
            raise
        self._forget_cached()

    def _forget_cached(self) -> None:
        """Have Optuna read everything anew, since it may remember trials that were not written."""
        storage: Any = self.storage
        with storage._lock:
            storage._studies.clear()
            storage._trial_id_to_study_id_and_number.clear()
            storage._study_id_and_number_to_trial_id.clear()

    @contextmanager
    def _changes(self) -> Iterator[Session]:
        """Yield a session for one transaction. Raises LedgerError if nothing may be written."""
        if is_read_only(self.engine.url):
            raise LedgerError(f"{self.url}: you may read it, and not write it")
        with joined(self.sessions) as session:
            yield session

    def _set(self, session: Session, study: StudyRecord, **values: Any) -> None:
        of_study = sa.update(StudyRow).where(StudyRow.study_id == study.study_id)
        session.execute(of_study.values(**values).execution_options(**UNSYNCED))
