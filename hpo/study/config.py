"""Study files: their settings, and everything that can be checked before a row is written."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, model_validator

from hpo.constraints import Constraint
from hpo.functions import OwnFunction, function_name
from hpo.objectives import Objective
from hpo.our_trainer import OurTrainer
from hpo.own_trainer import OwnTrainer
from hpo.population import ScheduleConfig
from hpo.pruners import NoPruner, PrunerConfig, comparison
from hpo.samplers import TPE, SamplerConfig, check_sampler
from hpo.space import Dimension, Space, assignments, values_of
from hpo.tracking import TrackingConfig
from hpo.transfer import WarmStart
from storage import LedgerError, check_study_name
from trainer.sections import Count, Positive
from trainer.settings import (
    ConfigError,
    Section,
    parse_assignment,
    parse_document,
    read_document,
    set_path,
    validated,
)


def _study_name(name: str) -> str:
    try:
        check_study_name(name)
    except LedgerError as error:
        raise ValueError(str(error)) from None
    return name


class Budget(Section):
    """When the study is done: whichever is reached first."""

    trials: Annotated[int, Field(ge=1, le=10**9)] = 20  # in all, pruned and failed ones too
    hours: Positive | None = None  # the controllers' wall-clock time, over all resumes
    device_hours: Positive | None = None  # of all ranks of all attempts


class Resources(Section):
    """What one trial takes, and how many run at a time."""

    ranks: Count = 1  # processes that train one trial together
    cpus_per_rank: Count = 1  # cores, each rank's own
    gpus_per_rank: Annotated[int, Field(ge=0)] = 0  # 0: on the CPU
    concurrent_trials: Count = 1  # at a time, by each controller


class Failures(Section):
    """How much goes wrong before the service gives up."""

    max_retries: Annotated[int, Field(ge=0)] = 2  # attempts more, after a trial's worker was lost
    max_failures: Count = 3  # failed trials in a row that stop the study
    hang_seconds: Positive = 600.0  # without any progress, a gang is killed
    outage_seconds: Positive = 600.0  # the database or the disk away: after that the service leaves


class StudyConfig(Section):
    """One study."""

    # its name in the ledger: letters, digits, . _ -
    study: Annotated[str, AfterValidator(_study_name)]
    storage: str | None = None  # the ledger's URL, unless --storage or $HPO_STORAGE says another
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = (Objective(),)
    constraints: tuple[Constraint, ...] = ()
    sampler: SamplerConfig = TPE()  # what proposes the next trial's values
    pruner: PrunerConfig = NoPruner(name="none")  # what ends trials that are not worth their steps
    schedule: ScheduleConfig | None = None  # learned by population-based training; null: none
    repeats: Count = 1  # trainings, under other seeds, of a trial before it may be the best
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
        for key, metric in self._metrics():
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
        """The resolved study as YAML, to be kept in the ledger: no storage URL, nothing secret."""
        hidden: dict[str, Any] = {"storage": True, "warm_start": {"storage"}}
        return yaml.safe_dump(self.model_dump(mode="json", exclude=hidden), sort_keys=False)

    def trial_document(self, params: dict[str, Any], output_dir: str) -> dict[str, Any]:
        """The train config of a trial with `params`, as a document."""
        document = copy.deepcopy(self.train)
        for path, value in assignments(self.space, params).items():
            set_path(document, path, value)
        return self.placed(document, output_dir)

    def check_params(self, params: dict[str, Any]) -> None:
        """Raise ConfigError, in one line, unless a trial with `params` could be trained."""
        self.rules.check_trial(self.trial_document(params, "a trial"), self.resources)

    def placed(self, document: dict[str, Any], output_dir: str) -> dict[str, Any]:
        """The train `document` with what the service sets itself."""
        return self.rules.placed(document, output_dir, self.resources)

    @property
    def rules(self) -> OurTrainer | OwnTrainer:
        """What the study's trainer asks of it."""
        return _rules(self.trainer)

    @property
    def own_function(self) -> OwnFunction | None:
        """The user's own training function, if it has one, and what that must yield."""
        if self.trainer is None:
            return None
        return OwnFunction(self.trainer, tuple({name: None for _, name in self._metrics()}))

    def _metrics(self) -> Iterator[tuple[str, str]]:
        """Every metric that the study names, after its key."""
        for position, objective in enumerate(self.objectives):
            yield f"objectives.{position}.metric", objective.metric
        for position, constraint in enumerate(self.constraints):
            yield f"constraints.{position}.metric", constraint.metric
        compared = comparison(self.pruner)
        if compared is not None and compared.metric is not None:
            yield "pruner.metric", compared.metric


def _rules(trainer: str | None) -> OurTrainer | OwnTrainer:
    return OurTrainer() if trainer is None else OwnTrainer(trainer)


def shipped(kind: str) -> Path:
    """The folder of the YAML files that ship with the program: `studies` or `train`."""
    installed = Path(__file__).parent / "configs"
    root = installed if installed.is_dir() else Path(__file__).parents[1] / "configs"
    return root / kind


def find_study_file(given: str | None) -> Path:
    """A study file by path, or by the name of one that ships. Raises ConfigError."""
    given = given or "quickstart"
    path = Path(given)
    if path.is_file():
        return path
    named = shipped("studies") / f"{given}.yaml"
    if "/" not in given and named.is_file():
        return named
    names = ", ".join(sorted(file.stem for file in shipped("studies").glob("*.yaml")))
    raise ConfigError(f"{given}: no such file, nor a study that ships ({names})")


def load_study(
    path: Path, *, settings: Sequence[str] = (), name: str | None = None, trials: int | None = None
) -> StudyConfig:
    """The study in the file `path`, with `path=value` train settings over it, checked whole.

    Raises ConfigError, one line, for anything wrong: the study, its train config, a searched path,
    a bound, missing data, ranks that cannot share the batch. Writes nothing.
    """
    return study_of(read_document(path), path, settings=settings, name=name, trials=trials)


def study_of(
    document: dict[str, Any],
    path: Path,
    *,
    settings: Sequence[str] = (),
    name: str | None = None,
    trials: int | None = None,
) -> StudyConfig:
    """The study that a file at `path` has, were this in it. Raises as `load_study` does."""
    train = document.get("train")
    if isinstance(train, str):
        source = path.parent / train
        document["train"] = read_document(source)
    else:
        source = path
    if isinstance(document.get("train"), dict):
        _rules(document.get("trainer")).override(document["train"], settings, source.parent)
    if name is not None:
        document["study"] = name
    if trials is not None:
        budget = document.get("budget")
        document["budget"] = {**(budget if isinstance(budget, dict) else {}), "trials": trials}
    study = validated(StudyConfig, document, str(path))
    _check_seen(study.space, settings, str(path))
    study = study.rules.checked(study, path, source)
    sampler, constrained = study.sampler, bool(study.constraints)
    check_sampler(sampler, study.space, len(study.objectives), constrained, str(path))
    return study


def restore_study(document: str, name: str) -> StudyConfig:
    """The study as the ledger keeps it. Raises ConfigError if this version cannot run it."""
    source = f"study {name}"
    return validated(StudyConfig, parse_document(document, source), source)


def check_machine(study: StudyConfig, cpus: float, gpus: float, where: str) -> None:
    """Raise ConfigError unless one trial's gang fits on `where`, with `cpus` and `gpus`."""
    wanted = study.resources
    for kind, given, each in (
        ("cpus", cpus, wanted.cpus_per_rank),
        ("gpus", gpus, wanted.gpus_per_rank),
    ):
        if wanted.ranks * each > given:
            raise ConfigError(
                f"study {study.study}: resources.ranks: {wanted.ranks} ranks x {each} "
                f"{kind}_per_rank need {wanted.ranks * each} {kind.upper()}, and {where} has "
                f"{given:g}"
            )


def local_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_seen(space: Space, settings: Sequence[str], source: str) -> None:
    """Raise ConfigError for a setting that every trial would have another value of."""
    for path, _ in map(parse_assignment, settings):
        fixed, train = object(), dict[str, Any]()
        set_path(train, path, fixed)
        if not any(value is fixed for value in values_of(space, train, path)):
            raise ConfigError(
                f"--set {path}: {source} searches it in every trial; remove it from `space`, or "
                "start the study and give it a point with `hpo enqueue`"
            )
