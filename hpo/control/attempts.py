"""Makes attempts at trials: the first of a new trial, the next of a trial that waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna

from hpo.control.assignment import Assignment, make_assignment
from hpo.control.messages import Message
from hpo.control.places import trial_folder
from hpo.control.repeats import repeat_document
from hpo.search.population import Population, fork_of
from hpo.search.samplers.rebuilt import check_new
from hpo.search.space import suggest
from hpo.study.config import StudyConfig
from storage import Attempt, Lease, Ledger, Transaction


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

    @property
    def number(self) -> int:
        """The trial's number."""
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
        if message.measured and self.is_new(message.step):
            self.reported_step = message.step

    def waits_at(self, step: int) -> bool:
        """Whether the attempt may not train past `step`, whatever its evaluation says."""
        return self.until is not None and max(step, self.reported_step) >= self.until


class Attempts:
    """Makes the attempts at one study's trials under one lease."""

    def __init__(
        self,
        ledger: Ledger,
        lease: Lease,
        study: optuna.Study,
        config: StudyConfig,
        folder: str,
        population: Population | None,
    ) -> None:
        """`folder` is the study's: a folder, or a URL."""
        self._ledger = ledger
        self._lease = lease
        self._study = study
        self._config = config
        self._folder = folder
        self._population = population

    def first(self, transaction: Transaction) -> TrialAttempt:
        """Ask for a new trial in the transaction that counts it. Raises SpaceExhausted."""
        trial = self._study.ask()
        params = suggest(self._config.space, trial)
        if self._config.sampler.finite:
            check_new(self._study, trial)
        if self._population is not None:
            self._population.enter(trial)
        folder = self._place(trial)
        attempt = transaction.begin_attempt(trial._trial_id, devices=self._config.resources.ranks)
        document = self._config.trial_document(params, folder)
        return self._made(trial, attempt, document, params, reported_step=0)

    def next(self, trial_id: int) -> TrialAttempt | None:
        """Begin again with a trial that waits: its number and parameters stay as they are.

        None if another controller has claimed it.
        """
        with self._ledger.transaction(self._lease) as transaction:
            if not transaction.claim(trial_id):
                return None
            attempt = transaction.begin_attempt(trial_id, devices=self._config.resources.ranks)
            trial = optuna.Trial(self._study, trial_id)
            folder = self._place(trial)  # the runs may have been moved
        frozen = self._ledger.storage.get_trial(trial_id)
        document = self._config.trial_document(frozen.params, folder)
        document |= fork_of(frozen, lambda parent: trial_folder(self._folder, parent))
        repeat = len(self._ledger.results(trial_id))
        begins = frozen.user_attrs.get("parent_step", 0)
        reported = max(self._ledger.metrics(trial_id), default=begins)
        if repeat:  # only the first training's evaluations are in the ledger
            reported = document["steps"]
        document = repeat_document(document, repeat)
        return self._made(trial, attempt, document, frozen.params, reported, repeat)

    def _place(self, trial: optuna.Trial) -> str:
        folder = trial_folder(self._folder, trial.number)
        trial.set_user_attr("run_dir", folder)
        return folder

    def _made(
        self,
        trial: optuna.Trial,
        attempt: Attempt,
        document: dict[str, Any],
        params: dict[str, Any],
        reported_step: int,
        repeat: int = 0,
    ) -> TrialAttempt:
        number = trial.number
        assignment = make_assignment(
            self._config, number, f"trial {number}", attempt.number, document, reported_step
        )
        until = None if self._population is None else self._population.barrier
        return TrialAttempt(assignment, trial, attempt, params, reported_step, repeat, until)
