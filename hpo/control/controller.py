"""The controller: asks, dispatches and tells. It alone writes the trials that it has claimed.

It knows nothing of Ray: whoever runs attempts takes one from `next`, and answers with `Message`s
through `handle`. Each call is one transaction of the ledger, so that a controller killed at any
line leaves the trial as it was before the call, or as it is after it. What waits to be run is in
the ledger alone, where other controllers of the study find it too.

While the database is away trainings go on: what they say is kept, in order, until it is back.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from hpo.clock import monotonic
from hpo.control.assignment import Assigned
from hpo.control.attempts import Attempts, TrialAttempt
from hpo.control.endings import Endings, Verdict
from hpo.control.judge import Judge
from hpo.control.leased import LeasedStudy
from hpo.control.limits import Limits
from hpo.control.messages import Job, Message
from hpo.control.outage import LEDGER_ERRORS, Disk, DiskAway, Lifeline
from hpo.control.parking import Parked, Parking
from hpo.control.places import study_folder
from hpo.control.pruning import Pruning, make_pruner
from hpo.control.suggestions import Suggestions
from hpo.control.teaching import Teaching
from hpo.control.telling import Observer, Observers
from hpo.search.population import Explore, Population
from hpo.search.samplers.rebuilt import SpaceExhausted
from hpo.study.config import StudyConfig
from storage import (
    BudgetSpent,
    Lease,
    Ledger,
    Reason,
    StudyRecord,
    Waiting,
    in_one_line,
    is_away,
    is_unwritable,
)
from trainer.runs.store import StoreError

logger = logging.getLogger("hpo.controller")

LOOK_SECONDS = 1.0  # between two looks at what other controllers may have left


class Controller:
    """Runs one study under one lease. Methods may be called from any thread."""

    def __init__(
        self,
        ledger: Ledger,
        record: StudyRecord,
        config: StudyConfig,
        lease: Lease,
        runs: str,
        observers: Sequence[Observer] = (),
        explore: Explore | None = None,
    ) -> None:
        """`runs`, a folder or a URL, is where trial folders go.

        `explore` says who exploits whom, in a study that learns a schedule.
        """
        study = optuna.load_study(
            study_name=record.name, storage=ledger.storage, pruner=make_pruner(config)
        )
        population: Population | None = None
        if config.schedule is not None:
            assert explore is not None, "a population needs it"
            population = Population(study, config.schedule, explore)
        folder, limit_seconds = study_folder(runs, config.study), config.failures.outage_seconds
        leased = LeasedStudy(ledger, record, config, lease, study, folder, population)
        self.config = config
        self.study = study
        self.running: dict[Job, TrialAttempt] = {}  # by the trial's number
        self.stopping = False  # by a person: nothing new is asked, running attempts are left
        self.broken: Exception | None = None  # why this controller can go on no more
        self._ledger, self._record, self.leased = ledger, record, leased
        self._observers = Observers(observers)
        self._suggestions = Suggestions(leased)
        pruning, endings = Pruning(leased), Endings(leased)
        self._endings = endings
        self._parking = Parking(leased, pruning, endings, self._observers)
        self._judge = Judge(leased, self._suggestions, pruning, self._parking, endings)
        self._attempts = Attempts(leased)
        self._limits = Limits(leased)
        self._teaching = Teaching(leased, self._observers)
        self._database = Lifeline(limit_seconds)
        self._kept: deque[tuple[Job, int, Message]] = deque()  # to be written when it is back
        self._disk = Disk(folder, limit_seconds)
        self._next_look = 0.0
        self._lock = threading.RLock()
        self._suggestions.inform()

    @property
    def gave_up(self) -> str | None:
        """Why no more trials are begun, if not for the budget of trials."""
        exhausted = "every point of the space was tried" if self._limits.space_exhausted else None
        return self._limits.gave_up or exhausted

    @property
    def failing(self) -> bool:
        """Whether that is because trials fail, or a teacher does."""
        return self._limits.failing

    @property
    def waits_for_database(self) -> bool:
        return self._database.away

    def look_for_end(self) -> bool:
        """Look in the ledger whether `next` has nothing more to give, now or later.

        If the database cannot answer, the outage begins, and the answer is no.
        """
        with self._lock:
            if self.broken:
                return True
            if self.running or self._teaching.attempt:
                return False
            if self._teaching.failure or self.stopping:
                return True
            if self._database.away or self._disk.away:
                return False
            try:
                if self._may_begin() and not self._full:
                    return False
                if self.failing:
                    return True
                # What another controller executes may come to be ours.
                return not self._ledger.has_unfinished(self._record)
            except LEDGER_ERRORS as error:
                self.report_error(error)
                return False

    def next(self) -> Assigned | None:
        """Begin the next attempt: at a teacher, at a trial that waits for one, at a new trial.

        None if there is nothing to run at the moment; `look_for_end` tells whether to ask again.
        """
        with self._lock:
            if not self._may_execute():
                return None
            try:
                attempt = self._next_attempt()
            except LEDGER_ERRORS as error:
                self.report_error(error)
                return None
            except StoreError as error:  # where a teacher is
                self._leave_if(self._disk.refused(str(error)))
                return None
            if attempt is not None:
                self._database.kept()
            return attempt

    def _may_execute(self) -> bool:
        if not self._database.away:
            self._leave_if(self._disk.look())
        full = len(self.running) >= self.config.resources.concurrent_trials
        full = full or any(one.suspect and one.is_fresh for one in self.running.values())
        away = self._database.away or self._disk.away
        return not (self.stopping or self._teaching.failure or full or away)

    def _next_attempt(self) -> Assigned | None:
        asks = self._may_begin() and not self._full
        if self.failing or (not asks and monotonic() < self._next_look):
            return None
        waiting = self._ledger.waiting(self._record)
        if not self._teaching.done and (asks or waiting):
            teaching = self._teaching.next()
            if self._teaching.failure:
                self._limits.give_up(self._teaching.failure)
            if teaching or not self._teaching.done:
                return teaching
        attempt = self._next_trial(waiting, asks=asks)
        if attempt is not None:
            self.running[attempt.number] = attempt
            self._observers.begin(attempt)
        elif not asks:
            self._next_look = monotonic() + LOOK_SECONDS
            self._read_budget()
        return attempt

    def _next_trial(self, waiting: list[Waiting], *, asks: bool) -> TrialAttempt | None:
        again = [trial for trial in waiting if not trial.parked and trial.due_in <= 0]
        # Children first: they begin at a checkpoint that their parent does not keep for ever.
        for trial in reversed(again) if self.leased.population else again:
            lost = self._attempts.losses(trial.trial_id)
            if lost > self.config.failures.max_retries + 1:
                self._fail(trial, lost)
                continue
            suspect = lost > self.config.failures.max_retries
            if suspect and any(one.is_fresh for one in self.running.values()):
                return None  # one of them at a time: so the one that is lost again is known
            attempt = self._attempts.next(trial, suspect=suspect)
            if attempt is not None:
                return attempt
        if self._keeps_places(waiting):
            return None
        parked = {trial.number: trial for trial in waiting if trial.parked}
        promoted = self._parking.promoted(parked, over=self._limits.over())
        if promoted is not None:
            return self._attempts.next(parked[promoted])
        if self.stopping or (asks and not self._suggestions.ready):
            return None  # for now
        attempt = self._ask() if asks else None
        if attempt is None and len(parked) == len(waiting):
            return self._with_all_parked(parked)
        return attempt

    def _fail(self, waiting: Waiting, lost: int) -> None:
        """End a trial that has taken its controller down again, when it began alone."""
        trial = self.leased.trial(waiting.trial_id)
        why = f"lost {lost} times without getting any further, the last time when it began alone"
        with self.leased.transaction() as transaction:
            if not transaction.claim(waiting):
                return  # another controller has it
            trial.set_user_attr("detail", why)
            self._endings.tell(trial, Reason.CONTROLLER_LOST, TrialState.FAIL)
        self._limits.count(TrialState.FAIL)
        self._observers.retired(trial.number, Reason.CONTROLLER_LOST, TrialState.FAIL)
        logger.warning("trial %d: %s: %s", trial.number, Reason.CONTROLLER_LOST, why)

    def _keeps_places(self, waiting: list[Waiting]) -> bool:
        """Whether the free places are kept for trials that are due again soon.

        So a study with one worker repeats itself, whatever it lost. With several controllers each
        keeps its own places.
        """
        due = sum(not trial.parked for trial in waiting)
        if not due or len(self.running) + due < self.config.resources.concurrent_trials:
            return False
        return sum(one.alive for one in self._ledger.controllers(self._record)) == 1

    def _with_all_parked(self, parked: Parked) -> TrialAttempt | None:
        if not parked or self.running or self._ledger.open_attempts(self._record):
            return None
        if {trial.number for trial in self._ledger.waiting(self._record)} != parked.keys():
            return None  # another controller has just parked one more, or taken one
        if self.leased.population is None:
            furthest = self._parking.end_of_halving(parked, over=self._limits.over())
            return None if furthest is None else self._attempts.next(parked[furthest])
        if self._parking.next_round(parked, may_begin=self._may_begin()):
            return self._next_trial(self._ledger.waiting(self._record), asks=False)
        return None

    def _ask(self) -> TrialAttempt | None:
        try:
            with self.leased.transaction() as transaction:
                transaction.reserve_trial()
                attempt = self._attempts.first(transaction)
        except BudgetSpent:
            self._limits.trials_spent = True
        except SpaceExhausted:
            self._limits.space_exhausted = True
        else:
            self._suggestions.inform()
            return attempt
        return None

    def handle(self, job: Job, attempt: int, message: Message) -> bool:
        """Write what an attempt at `job` said; whether it may go on.

        What an attempt says after its end is left alone. While the database is away it goes on.
        """
        with self._lock:
            self._next_look = 0.0
            if self.broken:
                return False
            if not self._database.away:
                try:
                    return self._write_or_refuse(job, attempt, message)
                except LEDGER_ERRORS as error:
                    self.report_error(error)
            if not self._database.away:
                return False
            self._kept.append((job, attempt, message))
            running = self.running.get(job)
            waits = running is not None and running.waits_at(message.step)
            return message.kind == "evaluated" and not waits

    def _write_or_refuse(
        self, job: Job, number: int, message: Message, *, kept: bool = False
    ) -> bool:
        # What no database takes ends this one attempt.
        try:
            return self._write(job, number, message, kept=kept)
        except (*LEDGER_ERRORS, UnicodeError, OverflowError) as error:
            if not is_unwritable(error):
                raise
            why = f"the ledger does not take what it reported: {in_one_line(error)}"
            return self._write(job, number, Message("error", detail=why), kept=kept)

    def _write(self, job: Job, number: int, message: Message, *, kept: bool = False) -> bool:
        attempt = self.running.get(job)
        if attempt is not None and attempt.attempt.number == number:
            goes_on = self._write_trial(attempt, message, kept=kept)
        elif self._teaching.executes(job, number):
            goes_on = self._teaching.handle(message)
            if self._teaching.failure:
                self._limits.give_up(self._teaching.failure)
        else:
            return False
        if message.kind == "disk":
            self._leave_if(self._disk.refused(message.detail))
        elif message.measured and attempt is not None:
            self._disk.kept()  # what a trial reports has a checkpoint
        return goes_on

    def _write_trial(self, attempt: TrialAttempt, message: Message, *, kept: bool) -> bool:
        trial_id = attempt.attempt.trial_id
        with self.leased.transaction() as transaction:
            verdict: Verdict | None
            if kept and not transaction.is_open(attempt.attempt):
                verdict = self._judge.written(attempt)  # by a commit whose answer was lost
            elif (state := transaction.trial_state(trial_id)) is not TrialState.RUNNING:
                verdict = self._judge.leave(transaction, attempt, state)
            else:
                if kept:  # Optuna's object remembers a report whose commit was refused as made
                    attempt.trial = self.leased.trial(trial_id)
                decide = not kept or attempt.waits_at(message.step)
                verdict = self._judge.write(transaction, attempt, message, decide=decide)
        self._database.kept()
        attempt.wrote(message)
        if verdict is not None:
            del self.running[attempt.number]
            if verdict.state is not None and verdict.reason is not Reason.OUTSIDE:
                self._limits.count(verdict.state)
        self._observers.wrote(attempt, message, verdict)
        return verdict is None

    def ended_outside(self) -> list[Job]:
        """Return the running trials that another program has ended: their gangs are to stop."""
        with self._lock:
            ids = {attempt.attempt.trial_id: job for job, attempt in self.running.items()}
            try:
                states = self._ledger.states_of(ids)
            except LEDGER_ERRORS as error:
                self.report_error(error)
                return []
            return [job for i, job in ids.items() if states.get(i) is not TrialState.RUNNING]

    def report_error(self, error: Exception) -> None:
        """The ledger raised `error`: wait until it is back, or leave."""
        with self._lock:
            if not is_away(error):
                self.abandon(error)
                return
            if not self._database.away:
                logger.warning("the database is away, trainings go on: %s", in_one_line(error))
            if self._database.lost():
                self.abandon(error)

    def mend(self) -> None:
        """With the database away, and if it is time: try it, and write what was kept."""
        with self._lock:
            if self.broken or not self._database.due:
                return
            kept = len(self._kept)
            try:
                with self.leased.transaction():
                    pass
                while self._kept:
                    self._write_or_refuse(*self._kept[0], kept=True)
                    self._kept.popleft()
                self._let_go_of_unknown()
            except LEDGER_ERRORS as error:
                self.report_error(error)
                return
            seconds = self._database.seconds
            logger.warning("the database is back after %.0f s, %d messages kept", seconds, kept)
            self._database.answered()

    def _let_go_of_unknown(self) -> None:
        # A commit whose answer was lost may have begun an attempt that nobody executes.
        known = {attempt.attempt.attempt_id for attempt in self.running.values()}
        with self.leased.transaction() as transaction:
            for attempt in self._ledger.open_attempts(self._record):
                mine = attempt.controller_id == self.leased.lease.controller_id
                if mine and attempt.attempt_id not in known:
                    transaction.end_attempt(attempt, Reason.CONTROLLER_LOST, None)
                    transaction.wait(attempt.trial_id)

    def abandon(self, error: Exception) -> None:
        """Leave everything as the ledger has it, because `error` keeps this from going on."""
        self.broken = self.broken or error
        self.stopping = True

    def _leave_if(self, away: DiskAway | None) -> None:
        if away is not None:
            self.abandon(away)

    @property
    def _full(self) -> bool:
        population = self.leased.population
        return population is not None and population.full

    def _may_begin(self) -> bool:
        return not self.stopping and self._limits.may_begin()

    def _read_budget(self) -> None:
        if self._limits.read_budget():
            self._suggestions.plan(self._limits.budget)
