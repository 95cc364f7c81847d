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
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import OptunaError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from hpo.ahead import inform, make_ahead, ready
from hpo.judge import Assignment, Judge, Verdict
from hpo.messages import Job, Message
from hpo.places import trial_folder
from hpo.population import Explore, Population
from hpo.pruning import make_pruner
from hpo.rebuilt import SpaceExhausted, check_new
from hpo.repeats import repeat_document
from hpo.space import suggest
from hpo.study import StudyConfig
from hpo.teaching import TeacherAttempt, Teaching
from storage import (
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
        explore: Explore | None = None,
    ) -> None:
        """`explore` says who exploits whom, in a study that learns a schedule."""
        self.config = config
        self.study = optuna.load_study(
            study_name=record.name,
            storage=ledger.storage,
            sampler=make_ahead(config, record.budget_trials),
            pruner=make_pruner(config),
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
        self._population: Population | None = None
        if config.schedule is not None:
            assert explore is not None, "a population needs it"
            self._population = Population(self.study, config.schedule, explore)
        self._judge = Judge(ledger, self.study, config, self._population)
        self._parked: dict[int, int] = {}  # trial ids by number
        self._again: deque[int] = deque()
        # Children first: they begin at a checkpoint that their parent does not keep for ever.
        orphans = ledger.orphans(record)
        for trial_id in reversed(orphans) if self._population else orphans:
            self._sort_in(trial_id)
        self._budget_spent = record.reserved_trials >= record.budget_trials
        self._teaching = Teaching(ledger, record, config, lease, self._tell_of_teacher)
        self._failures = 0  # trials in a row; a resume counts anew, what was wrong may be mended
        self._lock = threading.RLock()
        inform(self.study)

    @property
    def exhausted(self) -> bool:
        """Whether `next` has nothing more to give, now or later."""
        with self._lock:
            if self.broken:
                return True
            if self.running or self._teaching.attempt:
                return False
            if self._teaching.failure or self.stopping:
                return True
            return not (self._again or self._parked or self._may_ask())

    def next(self) -> Assignment | TeacherAttempt | None:
        """The next attempt: of a teacher, of an orphaned, lost or promoted trial, of a new one.

        None when there is none at the moment; `exhausted` tells whether to ask again.
        """
        with self._lock:
            if self.stopping or len(self.running) >= self.config.resources.concurrent_trials:
                return None
            try:
                if self._teaching.failure:
                    return None
                waiting = self._again or self._parked or self._may_ask()
                if not self._teaching.done and waiting:
                    teaching = self._teaching.next()
                    if teaching or not self._teaching.done:
                        return teaching
                assignment = self._next_trial()
            except LEDGER_ERRORS as error:
                self.abandon(error)
                return None
            if assignment is None:
                return None
            self.running[assignment.number] = assignment
        for observer in self._observers:
            observer.begin(assignment.number, assignment.attempt.number, assignment.config)
        return assignment

    def _next_trial(self) -> Assignment | None:
        if self._again:
            return self._readopt(self._again.popleft())
        promoted = self._promoted()
        if promoted is not None:
            return self._readopt(promoted)
        if self._may_ask() and not ready(self.study):
            return None  # for now
        assignment = self._ask()
        if assignment is None and not self.running and not self.stopping:
            return self._next_round() if self._population else self._end_of_halving()
        return assignment

    def _promoted(self) -> int | None:
        """The id of a parked trial that may go on now."""
        if self._population is not None:
            compared = None if self.failing else self._population.due(self._parked)
            return None if compared is None else self._parked.pop(compared)
        if not self._parked or self._judge.halving is None or self._over():
            return None
        number = self._judge.halving.promotable(self._parked, self._judge.curves())
        return None if number is None else self._parked.pop(number)

    def _next_round(self) -> Assignment | None:
        """With every living member of the population parked: compare them, and go on."""
        assert self._population is not None
        may_begin = self._may_begin()
        if self.stopping:
            return None  # which is not for want of a budget
        self._over()  # says whether trials are failing, with the budget spent too
        if not self._parked or self.failing:
            self._parked.clear()
            return None
        ended = []
        with self._ledger.transaction(self._lease) as transaction:
            begun = self._population.compare(transaction, may_begin)
            for loser, child in begun:
                folder = str(self._folder(child.number))
                self._ledger.storage.set_trial_user_attr(child._trial_id, "run_dir", folder)
                if loser in self._parked:  # and not one that had ended early
                    trial = optuna.Trial(self.study, self._parked[loser])
                    self._judge.retire(trial, Reason.EXPLOITED)
                    ended.append(loser)
        self._again.extend(child._trial_id for _, child in begun)
        for number in ended:
            del self._parked[number]
            for observer in self._observers:
                observer.end(number, TrialState.PRUNED.name, Reason.EXPLOITED.value)
        return self._next_trial()

    def _end_of_halving(self) -> Assignment | None:
        """With nothing left to wait for: carry one trial through if none was, retire the others."""
        halving, complete = self._judge.halving, (TrialState.COMPLETE,)
        over = self._over()
        if halving is None or not self._parked or self.failing:
            self._parked.clear()
            return None
        if not over and not self.study.get_trials(deepcopy=False, states=complete):
            number = halving.furthest(self._parked, self._judge.curves())
            assert number is not None
            return self._readopt(self._parked.pop(number))
        with self._ledger.transaction(self._lease):
            for trial_id in self._parked.values():
                self._judge.retire(optuna.Trial(self.study, trial_id))
        for number in self._parked:
            for observer in self._observers:
                observer.end(number, TrialState.PRUNED.name, Reason.PRUNED.value)
        self._parked.clear()
        return None

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
                    verdict = self._judge.write(transaction, assignment, message)
            except LEDGER_ERRORS as error:
                self.abandon(error)
                return False
            if verdict is not None:
                self._follow(assignment, verdict)
        self._tell_observers(assignment, message, verdict)
        return verdict is None

    def _follow(self, assignment: Assignment, verdict: Verdict) -> None:
        del self.running[assignment.number]
        if verdict.state is not None:
            self._failures = self._failures + 1 if verdict.state is TrialState.FAIL else 0
        elif verdict.again:
            self._again.append(assignment.attempt.trial_id)
        elif verdict.reason is Reason.PARKED:
            self._parked[assignment.number] = assignment.attempt.trial_id

    def abandon(self, error: Exception) -> None:
        """Leave everything as the ledger has it, because `error` keeps this from writing there."""
        self.broken = self.broken or error
        self.stopping = True

    def _ask(self) -> Assignment | None:
        if self._may_ask():
            try:
                with self._ledger.transaction(self._lease) as transaction:
                    transaction.reserve_trial()
                    assignment = self._new_trial(transaction)
                inform(self.study)
                return assignment
            except (BudgetSpent, SpaceExhausted):
                self._budget_spent = True
        return None

    def _new_trial(self, transaction: Transaction) -> Assignment:
        trial = self.study.ask()
        params = suggest(self.config.space, trial)
        if self.config.sampler.finite:
            check_new(self.study, trial)
        if self._population is not None:
            self._population.enter(trial)
        folder = self._folder(trial.number)
        trial.set_user_attr("run_dir", str(folder))
        attempt = transaction.begin_attempt(trial._trial_id, devices=self.config.resources.ranks)
        document = self.config.trial_document(params, str(folder))
        return Assignment(trial.number, trial, attempt, document, params)

    def _folder(self, number: int) -> Path:
        return trial_folder(self._runs, self._record.name, number)

    def _sort_in(self, trial_id: int) -> None:
        """Take over a RUNNING trial that no controller executes: parked, or to go on at once."""
        attempts = self._ledger.trial_attempts(trial_id)
        waits = self._judge.halving or self._population
        if attempts and attempts[-1].reason is Reason.PARKED and waits:
            self._parked[self._ledger.storage.get_trial(trial_id).number] = trial_id
        else:
            self._again.append(trial_id)

    def _readopt(self, trial_id: int) -> Assignment:
        """The next attempt of a RUNNING trial: its number and parameters stay as they are."""
        trial = optuna.Trial(self.study, trial_id)
        frozen = self._ledger.storage.get_trial(trial_id)
        document = self.config.trial_document(frozen.params, str(self._folder(frozen.number)))
        if self._population is not None:
            document |= self._population.fork_of(frozen)
        repeat = len(self._ledger.results(trial_id))
        with self._ledger.transaction(self._lease) as transaction:
            attempt = transaction.begin_attempt(trial_id, devices=self.config.resources.ranks)
        # Only the first training's evaluations are in the ledger.
        begins = frozen.user_attrs.get("parent_step", 0)
        reported = max(self._ledger.metrics(trial_id), default=begins)
        if repeat:
            reported = document["steps"]
        document = repeat_document(document, repeat)
        return Assignment(trial.number, trial, attempt, document, frozen.params, reported, repeat)

    def _may_ask(self) -> bool:
        return self._may_begin() and not (self._population and self._population.full)

    def _may_begin(self) -> bool:
        return not (self.stopping or self._budget_spent or self._over())

    def _over(self) -> bool:
        """Whether no trial is begun or promoted any more, whatever the budget of trials."""
        if self.gave_up is None and self._failures >= self.config.failures.max_failures:
            self.failing = True
            self.gave_up = f"the last {self._failures} trials failed (failures.max_failures)"
        if self.gave_up is None:
            self.gave_up = self._time_spent()
        return self.gave_up is not None

    def _time_spent(self) -> str | None:
        hours, device_hours = self.config.budget.hours, self.config.budget.device_hours
        controllers = self._ledger.controllers(self._record) if hours is not None else []
        if hours and sum(c.seen_at - c.started_at for c in controllers) >= hours * 3600:
            return f"the budget of {hours:g} hours is spent"
        if device_hours is None:
            return None
        spent = self._ledger.device_seconds(self._record) >= device_hours * 3600
        return f"the budget of {device_hours:g} device-hours is spent" if spent else None

    def _tell_of_teacher(self, teacher: TeacherRecord) -> None:
        for observer in self._observers:
            observer.teacher(teacher)
        if teacher.detail:
            logger.warning("teacher %s: %s: %s", teacher.key, teacher.reason, teacher.detail)

    def _tell_observers(
        self, assignment: Assignment, message: Message, verdict: Verdict | None
    ) -> None:
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
            logger.warning("trial %d: %s: %s", number, verdict.reason, message.detail)
