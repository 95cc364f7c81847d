"""The evaluation phase: what `hpo evaluate` and `hpo compare` have in common.

Each makes a study of its own, in the ledger of the study that it tests. Each trial of that study is
a given point: what to train, and a seed. Its train config alone says `phase: evaluation`, with
which a run reads the test split at its end. Everything that runs, resumes and shows studies works
for these studies too. This module trains nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.reading.views import View
from hpo.search.pruners import NoPruner
from hpo.search.samplers.config import Random
from hpo.search.space import Dimension, IntDimension
from hpo.service.identities import check_free, check_identities
from hpo.service.launch import Launch, create_study
from hpo.service.opening import Place
from hpo.service.preflight import check_place, check_run_folders, runs_of
from hpo.study.config import StudyConfig
from hpo.study.hints import command
from hpo.study.load import config_of
from hpo.study.sections import Budget
from storage import Ledger, Point, StudyNotFound, StudyRecord, TeacherRecord
from storage.points import known_params
from trainer.config.settings import ConfigError

SEEDS = 2**32  # every seed is less than this


@dataclass(frozen=True)
class Plan:
    """What is to be trained to test the study `name`."""

    name: str
    config: StudyConfig  # of the study that trains the points
    seeds: list[int]
    points: list[Point]  # one for each training; their origins tell them apart, with the seed
    teachers: list[TeacherRecord]

    def of(self, origin: Mapping[str, Any], trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of `trials` that trained what `origin` says, under a seed of the plan."""
        keys = {_key(origin, {"seed": seed}) for seed in self.seeds}
        return [trial for trial in trials if _key_of(trial) in keys]


def tuned_study(ledger: Ledger, name: str) -> tuple[StudyRecord, StudyConfig]:
    """Return the study `name`. Raises ConfigError, in one line, if it may not be tested (yet)."""
    record = ledger.study(name)
    config = config_of(record)
    if config.is_evaluation:
        raise ConfigError(f"study {name}: is an evaluation itself; give the study that it is of")
    if config.trainer is not None:
        raise ConfigError(
            f"study {name}: is trained by {config.trainer}, which has no test split that the "
            "service knows of; test its best yourself: hpo show NAME NUMBER --config"
        )
    if config.schedule is not None:
        raise ConfigError(
            f"study {name}: learns a schedule, which `hpo schedule {name}` writes as a train "
            "config; start a study with that as its `train`, and evaluate it"
        )
    running = [str(c) for c in ledger.controllers(record) if c.alive]
    if running:
        # Its best may still change, and a person who sees the test early is led to tune on it.
        raise ConfigError(
            f"study {name}: is still run by {', '.join(running)}, and is tested when its tuning is "
            f"over; wait for it, or stop it: {command(f'hpo stop {name}', ledger.url)}"
        )
    return record, config


def teachers_again(ledger: Ledger, record: StudyRecord) -> list[TeacherRecord]:
    """Return the study's teachers for another study, which has trained none of them yet."""
    found = ledger.teachers(record)
    return [TeacherRecord(each.key, each.folder, each.config, each.steps) for each in found]


def phase_config(
    config: StudyConfig, study: str, space: Mapping[str, Dimension], trials: int
) -> StudyConfig:
    """Return the study `study` of `trials` given points in `space` and a seed, made of `config`."""
    seed = IntDimension(type="int", low=0, high=SEEDS - 1)
    return config.model_copy(
        update={
            "study": study,
            "constraints": (),  # the choice has been made
            "sampler": Random(name="random"),  # which has nothing to sample
            "pruner": NoPruner(name="none"),
            "repeats": 1,
            "budget": Budget(trials=trials),
            "warm_start": None,
            "train": {**config.train, "phase": "evaluation"},
            "space": {**space, "seed": seed},
        }
    )


def begun_trials(ledger: Ledger, study: str) -> list[FrozenTrial]:
    """Return the trials of a study of this phase, or none if it has not been begun."""
    try:
        return ledger.trials(ledger.study(study), *TrialState)
    except StudyNotFound:
        return []


def fresh_seeds(
    config: StudyConfig, trials: Sequence[FrozenTrial], begun: Sequence[FrozenTrial], wanted: int
) -> list[int]:
    """Return the seeds that were begun, then the next ones that no training of `trials` had.

    The next ones count up from the train config's seed. All come from the ledger alone, so that a
    plan that goes on has the same seeds again.
    """
    kept = [seed for trial in begun if (seed := known_params(trial).get("seed")) is not None]
    first = config.train.get("seed", 0)
    given = {first, *(trial.params.get("seed", first) for trial in trials)}
    used = {(seed + repeat) % SEEDS for seed in given for repeat in range(config.repeats)}
    candidates = ((first + distance) % SEEDS for distance in count(1))
    unused = (seed for seed in candidates if seed not in used)
    return list(islice(dict.fromkeys([*kept, *islice(unused, wanted)]), wanted))


def prepare_launch(ledger: Ledger, plan: Plan, place: Place) -> Launch | None:
    """Return what trains the rest of the plan, or None if everything has been trained.

    Raises ConfigError, in one line, if it cannot run.
    """
    if _is_done(ledger, plan):
        return None
    runs = phase_runs(ledger, plan.name, plan.config.study, place.runs)
    check_place(plan.config, place, runs)
    if plan.config.study not in [study.name for study in ledger.studies()]:
        check_free(runs, plan.config.study)
    record, trials = enter(ledger, plan, runs)
    check_run_folders(ledger, record, runs)
    check_identities(ledger, record, config_of(record), runs, changed_code=False)
    return Launch(ledger, record, place, runs, trials)


def phase_runs(ledger: Ledger, name: str, study: str, given: str | None) -> str:
    """Return where the run folders of `study` go, which tests `name`: beside those of `name`.

    Raises ConfigError.
    """
    try:
        record = ledger.study(study)
    except StudyNotFound:
        record = ledger.study(name)
    return runs_of(ledger, record, given)


def enter(ledger: Ledger, plan: Plan, runs: str) -> tuple[StudyRecord, int]:
    """Make or find the plan's study, enter its points, and return it with the budget it needs.

    A point that has been trained, or waits, is not entered again; one that failed is.
    """
    try:
        record = ledger.study(plan.config.study)
    except StudyNotFound:
        record = create_study(ledger, plan.config, plan.teachers, plan.points, runs)
    found = config_of(record)
    if not found.is_evaluation or found.space.keys() != plan.config.space.keys():
        raise ConfigError(
            f"study {record.name}: is there already, and is no evaluation; evaluate a copy under "
            f"another name: hpo copy {plan.name} --as NAME --to URL"
        )
    if missing := _missing(ledger, plan, record):
        ledger.enqueue(record, missing)
    counts = ledger.trial_counts(record)
    return ledger.study(record.name), counts.total()


def _missing(ledger: Ledger, plan: Plan, record: StudyRecord) -> list[Point]:
    """Return the points of the plan that its study neither has trained nor has waiting."""
    there = {
        _key_of(trial)
        for trial in ledger.trials(record, *TrialState)
        if trial.state is not TrialState.FAIL
    }
    return [point for point in plan.points if _key(point.origin, point.params) not in there]


def _is_done(ledger: Ledger, plan: Plan) -> bool:
    try:
        record = ledger.study(plan.config.study)
    except StudyNotFound:
        return False
    return not _missing(ledger, plan, record) and is_trained(ledger, record)


def is_trained(ledger: Ledger, record: StudyRecord) -> bool:
    """Return whether every trial of the study has ended."""
    return not ledger.trials(record, TrialState.WAITING, TrialState.RUNNING)


def keep_result(
    ledger: Ledger, record: StudyRecord, attribute: str, found: View | list[View]
) -> None:
    """Keep the result of a study of this phase as its user attribute `attribute`."""
    study = optuna.load_study(study_name=record.name, storage=ledger.storage)
    if study.user_attrs.get(attribute) != found:
        study.set_user_attr(attribute, found)


def last_metrics(ledger: Ledger, trial: FrozenTrial) -> dict[str, Any]:
    """Return what the trial's last evaluation measured."""
    found = ledger.metrics(trial._trial_id)
    return found[max(found)] if found else {}


def spread(values: Sequence[float]) -> View:
    """Return mean and sample standard deviation, each None if there are too few values for it."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def _key_of(trial: FrozenTrial) -> tuple[Any, Any]:
    return _key(trial.user_attrs.get("origin", {}), known_params(trial))


def _key(origin: Mapping[str, Any], params: Mapping[str, Any]) -> tuple[Any, Any]:
    return origin.get("recipe", origin.get("trial")), params.get("seed")
