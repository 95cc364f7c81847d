"""The controller's part of training a study's teachers, before the first trial begins.

A teacher is a run of its own, on a gang as a trial is, but it is no trial: it has no number, no
cost and no place in the budget. One teacher is trained at a time. If another controller, perhaps of
another ledger, trains it already, which the lock of its run folder tells, this one waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from hpo.control.assignment import Assignment, make_assignment
from hpo.control.leased import LeasedStudy
from hpo.control.messages import Job, Message, last_line
from hpo.control.telling import Observers
from storage import Reason, TeacherRecord, TeacherState
from trainer.config.settings import is_url, kept_document
from trainer.runs.lock import in_use
from trainer.teaching.teacher import is_trained


@dataclass(frozen=True)
class TeacherAttempt:
    """An attempt at training a teacher, as the controller that has begun it knows it."""

    key: str  # the teacher's
    assignment: Assignment


class Teaching:
    """The teachers that a study still waits for. Called under the controller's lock."""

    def __init__(self, leased: LeasedStudy, observers: Observers) -> None:
        self.attempt: TeacherAttempt | None = None  # in progress
        self.failure: str | None = None  # why the study cannot go on, in one line
        self._leased = leased
        self._observers = observers
        self._waiting = deque(leased.ledger.teachers(leased.record))
        self._waits_for_another = False  # and has said so
        self._lost = 0  # attempts at the teacher in progress that lost a worker

    @property
    def done(self) -> bool:
        return not self._waiting and self.attempt is None

    def next(self) -> TeacherAttempt | None:
        """Begin the next attempt; None if there is none at the moment, or none any more."""
        while self._waiting and self.attempt is None and self.failure is None:
            teacher = self._waiting[0]
            if is_trained(teacher.folder, teacher.steps):
                self._found(teacher)
                self._waiting.popleft()
            elif self._took_controllers_down(teacher):
                why = f"lost with its controller {teacher.attempts} times before any evaluation"
                failed = TeacherState.FAILED, Reason.CONTROLLER_LOST, why
                with self._leased.transaction() as transaction:
                    written = transaction.teachers.end(teacher.key, *failed)
                self._follow(written)
            elif _is_in_use(teacher.folder) or (attempt := self._begin(teacher)) is None:
                self._wait(teacher)
                return None
            else:
                self.attempt = attempt
                return attempt
        return None

    def executes(self, job: Job, attempt: int) -> bool:
        """Whether this attempt at the teacher `job` is in progress."""
        now = self.attempt
        return now is not None and (now.key, now.assignment.attempt) == (job, attempt)

    def handle(self, message: Message) -> bool:
        """Write what the attempt in progress said; whether it may go on."""
        assert self.attempt is not None
        key, attempt = self.attempt.key, self.attempt.assignment.attempt
        ended = message.kind != "evaluated"
        with self._leased.transaction() as transaction:
            if not transaction.teachers.is_open(key, attempt):
                self.attempt = None  # its end was written, or another controller has taken over
                return False
            if message.step:
                written = transaction.teachers.record_step(key, message.step)
            if ended:
                state, reason = self._verdict(message)
                written = transaction.teachers.end(key, state, reason, message.detail)
        if ended:
            self.attempt = None
            self._follow(written)
        self._observers.teacher(written)
        return not ended

    def _took_controllers_down(self, teacher: TeacherRecord) -> bool:
        lost = teacher.state is TeacherState.WAITING and teacher.reason is Reason.CONTROLLER_LOST
        often = teacher.attempts > self._leased.config.failures.max_retries + 1
        return lost and teacher.step == 0 and often

    def _found(self, teacher: TeacherRecord) -> None:
        if teacher.state not in (TeacherState.TRAINED, TeacherState.REUSED):
            # One that was trained here just before a kill has had an attempt.
            state = TeacherState.TRAINED if teacher.attempts else TeacherState.REUSED
            with self._leased.transaction() as transaction:
                written = transaction.teachers.end(teacher.key, state)
            self._observers.teacher(written)

    def _wait(self, teacher: TeacherRecord) -> None:
        if not self._waits_for_another:
            self._waits_for_another = True
            waiting = replace(teacher, state=TeacherState.WAITING, reason=None, detail=None)
            self._observers.teacher(waiting)

    def _begin(self, teacher: TeacherRecord) -> TeacherAttempt | None:
        with self._leased.transaction() as transaction:
            begun = transaction.teachers.begin(teacher.key)
        if begun is None:
            return None
        self._waits_for_another = False
        self._observers.teacher(begun)
        config = kept_document(teacher.config, f"teacher {teacher.key}")
        document = self._leased.config.placed(config, teacher.folder)
        # None of its evaluations needs a report.
        key = teacher.key
        assignment = make_assignment(
            self._leased.config, key, f"teacher {key}", begun.attempts, document, teacher.steps
        )
        return TeacherAttempt(key, assignment)

    def _verdict(self, message: Message) -> tuple[TeacherState, Reason | None]:
        match message.kind:
            case "finished":
                return TeacherState.TRAINED, None
            case "busy":  # the other was a moment faster
                return TeacherState.WAITING, None
            case "stopped" | "disk":
                return TeacherState.WAITING, Reason(message.kind)
            case "worker_lost":
                used_up = self._lost >= self._leased.config.failures.max_retries
                return TeacherState.FAILED if used_up else TeacherState.WAITING, Reason.WORKER_LOST
            case kind:
                return TeacherState.FAILED, Reason(kind)

    def _follow(self, teacher: TeacherRecord) -> None:
        if teacher.state is TeacherState.TRAINED:
            self._waiting.popleft()
            self._lost = 0
        elif teacher.state is TeacherState.WAITING and teacher.reason is not None:
            self._waiting[0] = teacher
            self._lost += teacher.reason is Reason.WORKER_LOST
        elif teacher.state is TeacherState.FAILED:
            said = last_line(teacher.detail)
            why = f"({teacher.reason}): {said}" if said else f"({teacher.reason})"
            self.failure = f"its teacher {teacher.key} failed {why}"


def _is_in_use(folder: str) -> bool:
    # At a URL there is no lock: the ledger says who trains it.
    return not is_url(folder) and in_use(Path(folder))
