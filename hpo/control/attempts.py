"""Makes attempts: the first of a new trial, the next of one that waits. Decides nothing."""

from __future__ import annotations

import optuna

from hpo.control.assignment import Assignment
from hpo.control.places import trial_folder
from hpo.control.repeats import repeat_document
from hpo.search.population import Population, fork_of
from hpo.search.samplers.rebuilt import check_new
from hpo.search.space import suggest
from hpo.study.config import StudyConfig
from storage import Lease, Ledger, Transaction


class Attempts:
    """Makes the attempts of one study under one lease."""

    def __init__(
        self,
        ledger: Ledger,
        lease: Lease,
        study: optuna.Study,
        config: StudyConfig,
        folder: str,
        population: Population | None,
    ) -> None:
        self._ledger = ledger
        self._lease = lease
        self._study = study
        self._config = config
        self._folder = folder  # of the study's runs, or their URL
        self._population = population

    def folder(self, number: int) -> str:
        """Where trial `number` keeps its run."""
        return trial_folder(self._folder, number)

    def first(self, transaction: Transaction) -> Assignment:
        """Of a new trial, in the transaction that counts it. Raises SpaceExhausted."""
        trial = self._study.ask()
        params = suggest(self._config.space, trial)
        if self._config.sampler.finite:
            check_new(self._study, trial)
        if self._population is not None:
            self._population.enter(trial)
        folder = self.folder(trial.number)
        trial.set_user_attr("run_dir", folder)
        attempt = transaction.begin_attempt(trial._trial_id, devices=self._config.resources.ranks)
        document = self._config.trial_document(params, folder)
        return Assignment(trial.number, trial, attempt, document, params, until=self._until)

    def next(self, trial_id: int) -> Assignment | None:
        """Of a trial that waits: its number and parameters stay as they are.

        None if another controller has claimed it.
        """
        with self._ledger.transaction(self._lease) as transaction:
            if not transaction.claim(trial_id):
                return None
            attempt = transaction.begin_attempt(trial_id, devices=self._config.resources.ranks)
            trial = optuna.Trial(self._study, trial_id)
            folder = self.folder(trial.number)
            trial.set_user_attr("run_dir", folder)  # the runs may have been moved
        frozen = self._ledger.storage.get_trial(trial_id)
        document = self._config.trial_document(frozen.params, folder)
        document |= fork_of(frozen, self.folder)
        repeat = len(self._ledger.results(trial_id))
        # Only the first training's evaluations are in the ledger.
        begins = frozen.user_attrs.get("parent_step", 0)
        reported = max(self._ledger.metrics(trial_id), default=begins)
        if repeat:
            reported = document["steps"]
        document = repeat_document(document, repeat)
        return Assignment(
            trial.number, trial, attempt, document, frozen.params, reported, repeat, self._until
        )

    @property
    def _until(self) -> int | None:
        return None if self._population is None else self._population.barrier
