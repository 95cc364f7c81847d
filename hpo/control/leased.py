"""A study under one controller's lease, as every part of the controller knows it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import optuna

from hpo.control.places import trial_folder
from hpo.search.population import Population
from hpo.study.config import StudyConfig
from hpo.study.functions import OwnFunction
from storage import Lease, Ledger, StudyRecord, Transaction


@dataclass(frozen=True)
class LeasedStudy:
    """One study, and the lease under which its controller writes."""

    ledger: Ledger
    record: StudyRecord
    config: StudyConfig
    lease: Lease
    study: optuna.Study
    folder: str  # of the study's run folders, or their URL
    population: Population | None  # of a study that learns a schedule

    @cached_property
    def uids(self) -> tuple[str, ...]:
        """The uid of the study, then of those that it is a copy of."""
        return self.ledger.uids(self.record)

    @cached_property
    def own_function(self) -> OwnFunction | None:
        """The user's own training function: the folder that it is in may go while it trains."""
        return self.config.own_function

    @property
    def metrics(self) -> list[str]:
        """The names of the objectives' metrics."""
        return [objective.metric for objective in self.config.objectives]

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Return a transaction of the ledger, which is refused once the lease is lost."""
        return self.ledger.transaction(self.lease)

    def trial(self, trial_id: int) -> optuna.Trial:
        """Return Optuna's object for a trial that runs."""
        return optuna.Trial(self.study, trial_id)

    def run_folder(self, number: int) -> str:
        """Return the run folder of trial `number`, or its URL."""
        return trial_folder(self.folder, number)
