"""Observers are told what happens, after it was written: trackers, the log, the live view."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from optuna.trial import TrialState

from hpo.control.attempts import TrialAttempt
from hpo.control.endings import Verdict
from hpo.control.messages import Message
from storage import Reason, TeacherRecord

logger = logging.getLogger("hpo.controller")


class Observer(Protocol):
    """What an observer is told."""

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
    """Tells every observer of a controller."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begin(self, attempt: TrialAttempt) -> None:
        """Tell that an attempt starts."""
        for observer in self._observers:
            observer.begin(attempt.number, attempt.attempt.number, attempt.config, attempt.params)

    def wrote(self, attempt: TrialAttempt, message: Message, verdict: Verdict | None) -> None:
        """Tell what an attempt said, once it is written, and the verdict if it has ended."""
        number = attempt.number
        ended = verdict is not None and verdict.state is not None
        outside = verdict is not None and verdict.reason is Reason.OUTSIDE
        for observer in self._observers:
            # Of several trainings the first is followed; then comes what all of them come to.
            if message.measured and not outside and (attempt.repeat == 0 or ended):
                metrics = (verdict and verdict.means) or message.metrics
                observer.report(number, message.step, metrics)
            if verdict is not None:
                state = verdict.state or TrialState.RUNNING
                observer.end(number, state.name, verdict.reason and verdict.reason.value)
        if verdict is not None and verdict.reason in (Reason.ERROR, Reason.WORKER_LOST):
            about = {"trial": number, "attempt": attempt.attempt.number}
            logger.warning("trial %d: %s: %s", number, verdict.reason, message.detail, extra=about)

        if outside:
            logger.warning("trial %d was ended by another program", number, extra={"trial": number})

    def retired(self, number: int, reason: Reason, state: TrialState = TrialState.PRUNED) -> None:
        """Tell that a trial that waited was ended where it stands."""
        for observer in self._observers:
            observer.end(number, state.name, reason.value)

    def teacher(self, teacher: TeacherRecord) -> None:
        """Tell that the study's teacher is now as the ledger has it."""
        for observer in self._observers:
            observer.teacher(teacher)
        if teacher.detail:
            about = {"teacher": teacher.key, "attempt": teacher.attempts}
            logger.warning(
                "teacher %s: %s: %s", teacher.key, teacher.reason, teacher.detail, extra=about
            )
