"""What a gang is given to do: one attempt at a trial, or at a teacher; and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from storage import Attempt, Reason


@dataclass
class Assignment:
    """One attempt to be run."""

    number: int  # of the trial
    trial: optuna.Trial
    attempt: Attempt
    config: dict[str, Any]  # the train config as a document
    params: dict[str, Any]
    reported_step: int = 0  # last optimizer step the ledger has metrics of
    repeat: int = 0  # which of the trial's trainings it is
    until: int | None = None  # in a population: the optimizer step at which it waits for the others

    def waits_at(self, step: int) -> bool:
        """Whether the attempt may not train past `step`, whatever its evaluation says."""
        return self.until is not None and max(step, self.reported_step) >= self.until

    @property
    def job(self) -> int:
        """What its gang works at."""
        return self.number

    @property
    def attempt_number(self) -> int:
        """The attempt's number among its trial's."""
        return self.attempt.number


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended."""

    reason: Reason | None  # None: all its steps were done
    state: TrialState | None  # the trial's final one; None: it stays RUNNING, and waits
    again_in: float = 0.0  # seconds until the next attempt of one that does, at least
    means: dict[str, float] | None = None  # of a COMPLETE trial: over its trainings


@dataclass(frozen=True)
class TeacherAttempt:
    """One attempt at training a teacher, to be run as a trial's is."""

    job: str  # the teacher's key
    attempt_number: int
    config: dict[str, Any]  # the train config as a document
    reported_step: int  # its evaluations up to here need no report: all of them
