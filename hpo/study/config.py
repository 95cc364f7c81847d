"""The settings of a study file, and the rules for them that need nothing but the file."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from hpo.search.constraints import Constraint
from hpo.search.objectives import Direction, Objective
from hpo.search.points import WarmStart
from hpo.search.population import ScheduleConfig
from hpo.search.pruners import NoPruner, PrunerConfig, comparison
from hpo.search.samplers.config import TPE, SamplerConfig
from hpo.search.space import Dimension, assignments
from hpo.study.functions import OwnFunction, function_name
from hpo.study.our_trainer import OurTrainer
from hpo.study.own_trainer import OwnTrainer
from hpo.study.sections import Budget, Failures, Resources
from hpo.study.tracking import TrackingConfig
from storage import LedgerError, check_study_name
from trainer.config.plain import dumped
from trainer.config.sections import Count
from trainer.config.settings import Section, set_path


def _study_name(name: str) -> str:
    try:
        check_study_name(name)
    except LedgerError as error:
        raise ValueError(str(error)) from None
    return name


class StudyConfig(Section):
    """All settings of one study."""

    # its name in the ledger: letters, digits, . _ -
    study: Annotated[str, AfterValidator(_study_name)]
    storage: str | None = None  # the ledger's URL, unless --storage or $HPO_STORAGE says another
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = (Objective(),)
    constraints: tuple[Constraint, ...] = ()
    sampler: SamplerConfig = TPE()  # what proposes the next trial's values
    pruner: PrunerConfig = NoPruner(name="none")  # what ends trials that are not worth their steps
    schedule: ScheduleConfig | None = None  # learned by population-based training; null: none
    repeats: Count = 1  # trainings of a trial, under other seeds, before it may be the best
    budget: Budget = Budget()
    resources: Resources = Resources()
    failures: Failures = Failures()
    tracking: TrackingConfig = TrackingConfig()
    warm_start: WarmStart | None = None
    # a training function of your own, package.module:function; null: our trainer
    trainer: Annotated[str, AfterValidator(function_name)] | None = None
    # a train config; in a file, the path of one will do; with `trainer`, what it takes, and steps
    train: dict[str, Any]
    # what is searched: a train key's dotted path, and its values
    space: Annotated[dict[str, Dimension], Field(min_length=1)]

    @model_validator(mode="after")
    def _metrics_are_the_trainer_s(self) -> StudyConfig:
        for key, metric in self.metrics():
            try:
                self.rules.check_metric(metric)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        return self

    @model_validator(mode="after")
    def _nothing_is_said_twice(self) -> StudyConfig:
        metrics = [objective.metric for objective in self.objectives]
        bounds = [str(constraint) for constraint in self.constraints]
        for key, said in (("objectives", metrics), ("constraints", bounds)):
            twice = next((one for one in said if said.count(one) > 1), None)
            if twice is not None:
                raise ValueError(f"{key}: {twice} is there twice; remove one")
        return self

    @model_validator(mode="after")
    def _several_objectives_prune_by_a_named_metric(self) -> StudyConfig:
        compared = comparison(self.pruner)
        named = self.pruner.name == "none" or (compared is not None and compared.metric)
        if len(self.objectives) > 1 and not named:
            use = "name a pruner.metric" if compared else "use none"
            raise ValueError(
                f"pruner.name: {self.pruner.name} needs one objective, and there are "
                f"{len(self.objectives)}; {use}"
            )
        return self

    @model_validator(mode="after")
    def _a_population_is_compared_by_one_value(self) -> StudyConfig:
        if self.schedule is None:
            return self
        for key, given, wanted in (
            ("pruner.name", self.pruner.name, "none"),
            ("objectives", len(self.objectives), 1),
            ("repeats", self.repeats, 1),
        ):
            if given != wanted:
                raise ValueError(f"{key}: with `schedule` it must be {wanted}, not {given}")
        if self.budget.trials < self.schedule.population:
            raise ValueError(
                f"budget.trials: {self.budget.trials} is less than schedule.population "
                f"{self.schedule.population}, and each exploit takes one more"
            )
        return self

    def to_document(self) -> str:
        """Return the resolved study as YAML for the ledger: no storage URL, nothing secret."""
        hidden: dict[str, Any] = {"storage": True, "warm_start": {"storage"}}
        return dumped(self.document(exclude=hidden))

    def trial_document(self, params: dict[str, Any], output_dir: str) -> dict[str, Any]:
        """Return the train config of a trial with `params`, as a document."""
        document = copy.deepcopy(self.train)
        for path, value in assignments(self.space, params).items():
            set_path(document, path, value)
        return self.placed(document, output_dir)

    def check_params(self, params: dict[str, Any]) -> None:
        """Raise ConfigError, in one line, unless a trial with `params` could be trained."""
        self.rules.check_trial(self.trial_document(params, "a trial"), self.resources)

    def placed(self, document: dict[str, Any], output_dir: str) -> dict[str, Any]:
        """Return the train `document` with what the service sets itself."""
        return self.rules.placed(document, output_dir, self.resources)

    @property
    def rules(self) -> OurTrainer | OwnTrainer:
        """The rules of the study's trainer."""
        return rules_of(self.trainer)

    @property
    def compared_by_pruner(self) -> tuple[str, Direction]:
        """The metric that the pruner compares, and its direction: minimize or maximize."""
        compared = comparison(self.pruner)
        metric = (compared and compared.metric) or self.objectives[0].metric
        directions = {objective.metric: objective.direction for objective in self.objectives}
        return metric, (compared and compared.direction) or directions.get(metric, "minimize")

    @property
    def is_evaluation(self) -> bool:
        """Whether the study is an evaluation of another study, or a comparison."""
        return self.trainer is None and self.train.get("phase") == "evaluation"

    @property
    def own_function(self) -> OwnFunction | None:
        """The user's own training function, as the command that is typed here finds it, if any."""
        if self.trainer is None:
            return None
        metrics = tuple({name: None for _, name in self.metrics()})
        return OwnFunction(self.trainer, metrics, os.getcwd())

    def metrics(self) -> Iterator[tuple[str, str]]:
        """Yield every metric that the study names, after its key."""
        for position, objective in enumerate(self.objectives):
            yield f"objectives.{position}.metric", objective.metric
        for position, constraint in enumerate(self.constraints):
            yield f"constraints.{position}.metric", constraint.metric
        compared = comparison(self.pruner)
        if compared is not None and compared.metric is not None:
            yield "pruner.metric", compared.metric


def rules_of(trainer: str | None) -> OurTrainer | OwnTrainer:
    """Return the rules of the training function called `trainer`, or of our trainer."""
    return OurTrainer() if trainer is None else OwnTrainer(trainer)
