"""The controller: asks, dispatches and tells. It alone writes a study's trials.

It knows nothing of Ray: whoever runs attempts takes an `Assignment` from `next`, and answers with
`Message`s through `handle`. Each call is one transaction of the ledger, so that a controller
killed at any line leaves the trial as it was before the call, or as it is after it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import OptunaError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from hpo.messages import Job, Message
from hpo.samplers import make_sampler
from hpo.space import suggest
from hpo.study import StudyConfig
from hpo.teaching import TeacherAttempt, Teaching
from storage import (
    Attempt,
    BudgetSpent,
    Lease,
    Ledger,
    LedgerError,
    Reason,
    StudyRecord,
    TeacherRecord,
    Transaction,
)

logger = logging.getLogger("hpo.controller")

LEDGER_ERRORS = (LedgerError, OptunaError, SQLAlchemyError)


@dataclass
class Assignment:
    """One attempt to be run."""

    number: int  # of the trial
    trial: optuna.Trial
    attempt: Attempt
    config: dict[str, Any]  # the train config as a document
    params: dict[str, Any]
    reported_step: int  # last optimizer step the ledger has metrics of; 0 for none

    @property
    def job(self) -> int:
        """What its gang works at."""
        return self.number

    @property
    def attempt_number(self) -> int:
        """The attempt's number among its trial's."""
        return self.attempt.number


class Observer(Protocol):
    """Is told what happens, after it was written. Trackers and the live view are observers."""

    def begin(self, trial: int, attempt: int, config: dict[str, Any]) -> None:
        """An attempt at `trial` starts, with the resolved train `config`."""

    def report(self, trial: int, step: int, metrics: dict[str, float]) -> None:
        """`trial` has `metrics` at an optimizer step."""

    def end(self, trial: int, state: str, reason: str | None) -> None:
        """An attempt ended; the trial is now COMPLETE, PRUNED or FAIL, or RUNNING for another."""

    def teacher(self, teacher: TeacherRecord) -> None:
        """The study's teacher is now as the ledger has it."""


class Controller:
    """Runs one study under one lease. Methods may be called from any thread."""

    def __init__(
        self,
        ledger: Ledger,
        record: StudyRecord,
        config: StudyConfig,
        lease: Lease,
        runs: Path,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.config = config
        self.study = optuna.load_study(
            study_name=record.name,
            storage=ledger.storage,
            sampler=make_sampler(config.sampler),
            pruner=config.pruner.make(),
        )
        self.running: dict[int, Assignment] = {}
        self.stopping = False  # by a person: nothing new is asked, running attempts are left
        self.gave_up: str | None = None  # why no more trials are asked, beside the budget
        self.failing = False  # whether that is because trials fail
        self.broken: Exception | None = None  # why the ledger cannot be written any more
        self._ledger = ledger
        self._record = record
        self._lease = lease
        self._runs = runs
        self._observers = observers
        self._again = deque(ledger.orphans(record))
        self._budget_spent = record.reserved_trials >= record.budget_trials
        self._teaching = Teaching(ledger, record, config, lease, self._tell_of_teacher)
        self._failures = 0  # trials in a row; a resume counts anew, what was wrong may be mended
        self._lock = threading.RLock()

    @property
    def exhausted(self) -> bool:
        """Whether `next` has nothing more to give, now or later."""
        with self._lock:
            if self.broken:
                return True
            if self.running or self._teaching.attempt:
                return False
            if self._teaching.failure:
                return True
            return self.stopping or (not self._again and not self._may_ask())

    def next(self) -> Assignment | TeacherAttempt | None:
        """The next attempt to run: of a teacher, then of an orphaned or lost trial, then a new one.

        None when there is none at the moment; `exhausted` tells whether to ask again.
        """
        with self._lock:
            if self.stopping or len(self.running) >= self.config.resources.concurrent_trials:
                return None
            try:
                if not self._teaching.done and (self._again or self._may_ask()):
                    teaching = self._teaching.next()
                    if teaching or not self._teaching.done:
                        return teaching
                assignment = self._readopt(self._again.popleft()) if self._again else self._ask()
            except LEDGER_ERRORS as error:
                self.abandon(error)
                return None
            if assignment is None:
                return None
            self.running[assignment.number] = assignment
        for observer in self._observers:
            observer.begin(assignment.number, assignment.attempt.number, assignment.config)
        return assignment

    def handle(self, job: Job, attempt: int, message: Message) -> bool:
        """Write what an attempt at `job` said; whether it may go on.

        What an attempt says after its end is left alone.
        """
        return (
            self._handle_trial(job, attempt, message)
            if isinstance(job, int)
            else self._handle_teacher(job, attempt, message)
        )

    def _handle_teacher(self, key: str, attempt: int, message: Message) -> bool:
        with self._lock:
            if self.broken:
                return False
            try:
                goes_on = self._teaching.handle(key, attempt, message)
            except LEDGER_ERRORS as error:
                self.abandon(error)
                return False
            if self._teaching.failure:
                self.gave_up, self.failing = self._teaching.failure, True
            return goes_on

    def _handle_trial(self, number: int, attempt: int, message: Message) -> bool:
        with self._lock:
            assignment = self.running.get(number)
            if self.broken or assignment is None or assignment.attempt.number != attempt:
                return False
            try:
                with self._ledger.transaction(self._lease) as transaction:
                    reason, state = self._write(transaction, assignment, message)
            except LEDGER_ERRORS as error:
                self.abandon(error)
                return False
            ended = message.kind != "evaluated" or state is not None
            if ended:
                del self.running[number]
            if state is not None:
                self._failures = self._failures + 1 if state is TrialState.FAIL else 0
            if ended and state is None and reason is Reason.WORKER_LOST:
                self._again.append(assignment.attempt.trial_id)
        self._tell_observers(number, message, ended, state, reason)
        return not ended

    def abandon(self, error: Exception) -> None:
        """Leave everything as the ledger has it, because `error` keeps this from writing there."""
        self.broken = self.broken or error
        self.stopping = True

    def _ask(self) -> Assignment | None:
        if self._may_ask():
            try:
                with self._ledger.transaction(self._lease) as transaction:
                    transaction.reserve_trial()
                    return self._new_trial(transaction)
            except BudgetSpent:
                self._budget_spent = True
        return None

    def _new_trial(self, transaction: Transaction) -> Assignment:
        trial = self.study.ask()
        params = suggest(self.config.space, trial)
        folder = self._runs / self._record.name / f"trial-{trial.number:04d}"
        trial.set_user_attr("run_dir", str(folder))
        attempt = transaction.begin_attempt(trial._trial_id, devices=self.config.resources.ranks)
        document = self.config.trial_document(params, str(folder))
        return Assignment(trial.number, trial, attempt, document, params, 0)

    def _readopt(self, trial_id: int) -> Assignment:
        """The next attempt of a RUNNING trial: its number and parameters stay as they are."""
        trial = optuna.Trial(self.study, trial_id)
        frozen = self._ledger.storage.get_trial(trial_id)
        document = self.config.trial_document(frozen.params, frozen.user_attrs["run_dir"])
        with self._ledger.transaction(self._lease) as transaction:
            attempt = transaction.begin_attempt(trial_id, devices=self.config.resources.ranks)
        reported = max(self._ledger.metrics(trial_id), default=0)
        return Assignment(trial.number, trial, attempt, document, frozen.params, reported)

    def _may_ask(self) -> bool:
        if self.stopping or self._budget_spent or self.gave_up:
            return False
        if self._failures >= self.config.failures.max_failures:
            self.failing = True
            self.gave_up = f"the last {self._failures} trials failed (failures.max_failures)"
        elif self._hours_spent():
            self.gave_up = f"the budget of {self.config.budget.hours:g} hours is spent"
        return self.gave_up is None

    def _hours_spent(self) -> bool:
        hours = self.config.budget.hours
        if hours is None:
            return False
        controllers = self._ledger.controllers(self._record)
        return sum(c.seen_at - c.started_at for c in controllers) >= hours * 3600

    def _write(
        self, transaction: Transaction, assignment: Assignment, message: Message
    ) -> tuple[Reason | None, TrialState | None]:
        """Write `message`; why the attempt ended and the trial's final state, where they did."""
        if message.first_step is not None:
            transaction.record_first_step(assignment.attempt, message.first_step)
        if message.kind in ("evaluated", "finished"):
            self._record_metrics(transaction, assignment, message)
        reason, state = self._verdict(assignment, message)
        if message.kind == "evaluated" and state is None:
            return None, None
        transaction.end_attempt(assignment.attempt, reason, message.detail, step=message.step)
        if state is not None:
            self._finish(assignment, message, reason, state)
        return reason, state

    def _record_metrics(
        self, transaction: Transaction, assignment: Assignment, message: Message
    ) -> None:
        transaction.record_metrics(assignment.attempt, message.step, message.metrics)
        transaction.record_depth_front(assignment.attempt, message.step, message.depth_front)
        value = message.metrics.get(self.config.objectives[0].metric)  # some come only at the end
        single = len(self.config.objectives) == 1
        if single and value is not None and message.step > assignment.reported_step:
            # A re-adopted trial's late lines may be in the ledger already.
            assignment.trial.report(value, message.step)
        assignment.reported_step = max(assignment.reported_step, message.step)

    def _verdict(
        self, assignment: Assignment, message: Message
    ) -> tuple[Reason | None, TrialState | None]:
        """design.md's table of endings: the reason, and the final state unless it runs again."""
        match message.kind:
            case "evaluated":
                if len(self.config.objectives) == 1 and assignment.trial.should_prune():
                    return Reason.PRUNED, TrialState.PRUNED
                return None, None
            case "finished":
                return None, TrialState.COMPLETE
            case "diverged":
                return Reason.DIVERGED, TrialState.PRUNED
            case "out_of_memory":
                return Reason.OUT_OF_MEMORY, TrialState.PRUNED
            case "error":
                return Reason.ERROR, TrialState.FAIL
            case "stopped":
                return Reason.STOPPED, None
            case "worker_lost" | "busy":
                attempts = self._ledger.trial_attempts(assignment.attempt.trial_id)
                lost = 1 + sum(a.reason is Reason.WORKER_LOST for a in attempts)
                used_up = lost > self.config.failures.max_retries
                return Reason.WORKER_LOST, TrialState.FAIL if used_up else None

    def _finish(
        self, assignment: Assignment, message: Message, reason: Reason | None, state: TrialState
    ) -> None:
        """Tell Optuna, and leave on the trial what its dashboard shows."""
        trial = assignment.trial
        attempts = self._ledger.trial_attempts(assignment.attempt.trial_id)
        trial.set_user_attr("attempts", len(attempts))
        trial.set_user_attr("device_seconds", round(sum(a.device_seconds for a in attempts), 3))
        if reason is not None:
            trial.set_user_attr("reason", reason.value)
        if message.detail:
            trial.set_user_attr("detail", message.detail.strip().splitlines()[-1][:500])
        if reason is Reason.OUT_OF_MEMORY:
            # A broken constraint, in the form that samplers and the dashboard both read.
            self._ledger.storage.set_trial_system_attr(trial._trial_id, "constraints", [1.0])
        values = None
        if state is TrialState.COMPLETE:
            values = [message.metrics[o.metric] for o in self.config.objectives]
        self.study.tell(trial, values, state=state)

    def _tell_of_teacher(self, teacher: TeacherRecord) -> None:
        for observer in self._observers:
            observer.teacher(teacher)
        if teacher.detail:
            logger.warning("teacher %s: %s: %s", teacher.key, teacher.reason, teacher.detail)

    def _tell_observers(
        self,
        number: int,
        message: Message,
        ended: bool,
        state: TrialState | None,
        reason: Reason | None,
    ) -> None:
        for observer in self._observers:
            if message.kind in ("evaluated", "finished"):
                observer.report(number, message.step, message.metrics)
            if ended:
                observer.end(
                    number, (state or TrialState.RUNNING).name, reason.value if reason else None
                )
        if ended and reason in (Reason.ERROR, Reason.WORKER_LOST):
            logger.warning("trial %d: %s: %s", number, reason, message.detail)
