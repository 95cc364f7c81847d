"""Observers are told what happens, after it was written: trackers and the live view."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from optuna.trial import TrialState

from hpo.control.assignment import Assignment, Verdict
from hpo.control.messages import Message
from storage import Reason, TeacherRecord

logger = logging.getLogger("hpo.controller")


class Observer(Protocol):
    """What one of them is told."""

    def begin(
        self, trial: int, attempt: int, config: dict[str, Any], params: dict[str, Any]
    ) -> None:
        """An attempt at `trial` starts, with the train `config` that its `params` resolve to."""

    def report(self, trial: int, step: int, metrics: dict[str, float]) -> None:
        """`trial` has `metrics` at an optimizer step."""

    def end(self, trial: int, state: str, reason: str | None) -> None:
        """An attempt ended; the trial is now COMPLETE, PRUNED or FAIL, or RUNNING for another."""

    def teacher(self, teacher: TeacherRecord) -> None:
        """The study's teacher is now as the ledger has it."""


class Observers:
    """All of a controller's."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begin(self, assignment: Assignment) -> None:
        """An attempt starts."""
        for observer in self._observers:
            observer.begin(
                assignment.number,
                assignment.attempt.number,
                assignment.config,
                assignment.params,
            )

    def wrote(self, assignment: Assignment, message: Message, verdict: Verdict | None) -> None:
        """What an attempt said was written, and the verdict if it was its end."""
        number = assignment.number
        ended = verdict is not None and verdict.state is not None
        measured = message.kind in ("evaluated", "finished")
        for observer in self._observers:
            # Of several trainings the first is followed; then comes what all of them come to.
            if measured and (assignment.repeat == 0 or ended):
                metrics = (verdict and verdict.means) or message.metrics
                observer.report(number, message.step, metrics)
            if verdict is not None:
                state = verdict.state or TrialState.RUNNING
                observer.end(number, state.name, verdict.reason and verdict.reason.value)
        if verdict is not None and verdict.reason in (Reason.ERROR, Reason.WORKER_LOST):
            about = {"trial": number, "attempt": assignment.attempt.number}
            logger.warning("trial %d: %s: %s", number, verdict.reason, message.detail, extra=about)

    def pruned(self, number: int, reason: Reason) -> None:
        """A parked trial goes on no more."""
        for observer in self._observers:
            observer.end(number, TrialState.PRUNED.name, reason.value)

    def teacher(self, teacher: TeacherRecord) -> None:
        """The study's teacher is now as the ledger has it."""
        for observer in self._observers:
            observer.teacher(teacher)
        if teacher.detail:
            about = {"teacher": teacher.key, "attempt": teacher.attempts}
            logger.warning(
                "teacher %s: %s: %s", teacher.key, teacher.reason, teacher.detail, extra=about
            )
