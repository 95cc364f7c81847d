"""Makes attempts at trials: the first of a new trial, the next of a trial that waits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import optuna

from hpo.control.assignment import Assignment, make_assignment
from hpo.control.leased import LeasedStudy
from hpo.control.losses import losses
from hpo.control.messages import Message
from hpo.control.repeats import repeat_document
from hpo.search.points import fitted
from hpo.search.population import fork_of
from hpo.search.samplers.rebuilt import check_new
from hpo.search.space import suggest
from storage import Attempt, Reason, Transaction, Waiting
from storage.points import fix_params, fixed_params

logger = logging.getLogger("hpo.controller")


@dataclass
class TrialAttempt:
    """An attempt at a trial, as the controller that has begun it knows it."""

    assignment: Assignment
    trial: optuna.Trial
    attempt: Attempt  # its row in the ledger
    params: dict[str, Any]
    reported_step: int  # the last optimizer step that the ledger has metrics of
    repeat: int = 0  # which of the trial's trainings it is; the ledger has the metrics of the first
    until: int | None = None  # in a population: the step at which it waits for the others
    suspect: bool = False  # whether it may be what took controllers down
    is_fresh: bool = True  # whether it has said nothing yet

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def config(self) -> dict[str, Any]:
        """The train config as a document."""
        return self.assignment.document

    def is_new(self, step: int) -> bool:
        """Whether the ledger lacks this evaluation: it is not one that was trained again."""
        return self.repeat == 0 and step > self.reported_step

    def wrote(self, message: Message) -> None:
        """Know that `message` is in the ledger."""
        self.is_fresh = False
        if message.measured and self.is_new(message.step):
            self.reported_step = message.step

    def waits_at(self, step: int) -> bool:
        """Whether the attempt may not train past `step`, whatever its evaluation says."""
        return self.until is not None and max(step, self.reported_step) >= self.until


@dataclass
class Attempts:
    """Makes the attempts at one study's trials."""

    _leased: LeasedStudy

    def first(self, transaction: Transaction) -> TrialAttempt:
        """Ask for a new trial in the transaction that counts it. Raises SpaceExhausted."""
        leased = self._leased
        trial = self._fitting(leased.study.ask())
        params = suggest(leased.config.space, trial)
        if leased.config.sampler.finite:
            check_new(leased.study, trial)
        if leased.population is not None:
            leased.population.enter(trial)
        attempt = self._begin(transaction, trial)
        document = leased.config.trial_document(params, leased.run_folder(trial.number))
        return self._made(trial, attempt, document, params, reported_step=0)

    def _fitting(self, trial: optuna.Trial) -> optuna.Trial:
        """Leave out what another program has enqueued and the space has not: the sampler draws."""
        storage, trial_id = self._leased.ledger.storage, trial._trial_id
        inside, reasons = fitted(self._leased.config.space, fixed_params(storage, trial_id))
        for reason in reasons:
            logger.warning("trial %d was enqueued with a value left out: %s", trial.number, reason)
        if not reasons:
            return trial
        fix_params(storage, trial_id, inside)
        return self._leased.trial(trial_id)

    def losses(self, trial_id: int) -> int:
        """Count how often a trial that waits has been lost since it last got any further.

        0 if it was not its controller that was lost last.
        """
        attempts = self._leased.ledger.trial_attempts(trial_id)
        mine = bool(attempts) and attempts[-1].reason is Reason.CONTROLLER_LOST
        return losses(attempts) if mine else 0

    def next(self, waiting: Waiting, *, suspect: bool = False) -> TrialAttempt | None:
        """Begin again with a trial that waits: its number and parameters stay as they are.

        None if another controller has claimed it. A `suspect` may have taken controllers down.
        """
        leased, ledger, trial_id = self._leased, self._leased.ledger, waiting.trial_id
        with leased.transaction() as transaction:
            if not transaction.claim(waiting):
                return None
            trial = leased.trial(trial_id)
            attempt = self._begin(transaction, trial)
        frozen = ledger.storage.get_trial(trial_id)
        document = leased.config.trial_document(frozen.params, leased.run_folder(trial.number))
        document |= fork_of(frozen, leased.run_folder)
        repeat = len(ledger.results(trial_id))
        begins = frozen.user_attrs.get("parent_step", 0)
        reported = max(ledger.metrics(trial_id), default=begins)
        if repeat:  # only the first training's evaluations are in the ledger
            reported = document["steps"]
        document = repeat_document(document, repeat)
        made = self._made(trial, attempt, document, frozen.params, reported, repeat)
        made.suspect = suspect
        return made

    def _begin(self, transaction: Transaction, trial: optuna.Trial) -> Attempt:
        # The runs may have been moved since the last attempt.
        trial.set_user_attr("run_dir", self._leased.run_folder(trial.number))
        ranks = self._leased.config.resources.ranks
        return transaction.begin_attempt(trial._trial_id, devices=ranks)

    def _made(
        self,
        trial: optuna.Trial,
        attempt: Attempt,
        document: dict[str, Any],
        params: dict[str, Any],
        reported_step: int,
        repeat: int = 0,
    ) -> TrialAttempt:
        number, population = trial.number, self._leased.population
        assignment = make_assignment(
            self._leased.config,
            number,
            f"trial {number}",
            attempt.number,
            document,
            reported_step,
            self._leased.uids,
            self._leased.own_function,
        )
        until = None if population is None else population.barrier
        return TrialAttempt(assignment, trial, attempt, params, reported_step, repeat, until)
