"""The evaluation phase: what `hpo evaluate` and `hpo compare` have in common.

Either is a study of its own in the ledger of the study that it is of. Every one of its trials is a
given point, what to train and a seed, and its train config alone says `phase: evaluation`, with
which a run reads the test split at its end. Whatever runs, resumes and shows studies so does it for
these too. Nothing here trains.
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
from hpo.service.launch import Launch, create_study
from hpo.service.preflight import check_place, check_places
from hpo.study.config import StudyConfig
from hpo.study.load import config_of
from hpo.study.sections import Budget
from storage import Ledger, Point, StudyNotFound, StudyRecord, TeacherRecord
from storage.points import known_params
from trainer.config.settings import ConfigError

SEEDS = 2**32  # a seed is less


@dataclass(frozen=True)
class Plan:
    """What is to be trained of the study `name`."""

    name: str
    config: StudyConfig  # of the study that trains it
    seeds: list[int]
    points: list[Point]  # one for each training; their origins tell them apart, with the seed
    teachers: list[TeacherRecord]

    def of(self, origin: Mapping[str, Any], trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Those of `trials` that trained what `origin` says, under one of the plan's seeds."""
        keys = {_key(origin, {"seed": seed}) for seed in self.seeds}
        return [trial for trial in trials if _key_of(trial) in keys]


def tuned(ledger: Ledger, name: str) -> tuple[StudyRecord, StudyConfig]:
    """The study `name`. Raises ConfigError, in one line, if it is not to be tested, or not yet."""
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
        # A best that may still change; and who sees the test early is led to tune on it.
        raise ConfigError(
            f"study {name}: is still run by {', '.join(running)}, and is tested when its tuning is "
            f"over; wait for it, or stop it: hpo stop {name}"
        )
    return record, config


def teachers_again(ledger: Ledger, record: StudyRecord) -> list[TeacherRecord]:
    """The study's teachers as another study has them that has trained none yet."""
    found = ledger.teachers(record)
    return [TeacherRecord(each.key, each.folder, each.config, each.steps) for each in found]


def in_phase(
    config: StudyConfig, study: str, space: Mapping[str, Dimension], trials: int
) -> StudyConfig:
    """The study `study` of `trials` given points in `space`, and a seed, after `config`."""
    seed = IntDimension(type="int", low=0, high=SEEDS - 1)
    return config.model_copy(
        update={
            "study": study,
            "constraints": (),  # they were for the choice
            "sampler": Random(name="random"),  # of which nothing is asked
            "pruner": NoPruner(name="none"),
            "repeats": 1,
            "budget": Budget(trials=trials),
            "warm_start": None,
            "train": {**config.train, "phase": "evaluation"},
            "space": {**space, "seed": seed},
        }
    )


def begun_trials(ledger: Ledger, study: str) -> list[FrozenTrial]:
    """The trials of a study of this phase; none if it has not been begun."""
    try:
        return ledger.trials(ledger.study(study), *TrialState)
    except StudyNotFound:
        return []


def fresh_seeds(
    config: StudyConfig,
    trials: Sequence[FrozenTrial],
    begun: Sequence[FrozenTrial],
    wanted: int,
) -> list[int]:
    """The seeds of what was begun, and the next after the train config's that none of `trials` had.

    They come from the ledger alone, so that what goes on has the same again.
    """
    kept = [seed for trial in begun if (seed := known_params(trial).get("seed")) is not None]
    first = config.train.get("seed", 0)
    given = {first, *(trial.params.get("seed", first) for trial in trials)}
    used = {(seed + repeat) % SEEDS for seed in given for repeat in range(config.repeats)}
    candidates = ((first + distance) % SEEDS for distance in count(1))
    unused = (seed for seed in candidates if seed not in used)
    return list(islice(dict.fromkeys([*kept, *islice(unused, wanted)]), wanted))


def launched(ledger: Ledger, plan: Plan, runs: str, ray_address: str | None) -> Launch | None:
    """What trains of the plan what has not been trained; None if there is no such thing.

    Raises ConfigError, in one line, where it cannot run.
    """
    check_place(plan.config, runs, ray_address)
    record, trials = enter(ledger, plan)
    if is_trained(ledger, record):
        return None
    check_places(ledger, record, runs)
    return Launch(ledger, record, runs, ray_address, trials=trials)


def enter(ledger: Ledger, plan: Plan) -> tuple[StudyRecord, int]:
    """The plan's study, made or found, with all its points; the budget that it needs.

    What has been trained, or waits, is not entered again; what failed is.
    """
    try:
        record = ledger.study(plan.config.study)
    except StudyNotFound:
        record = create_study(ledger, plan.config, plan.teachers, plan.points)
    found = config_of(record)
    if not found.is_evaluation or found.space.keys() != plan.config.space.keys():
        raise ConfigError(
            f"study {record.name}: is there already, and is no evaluation; evaluate a copy under "
            f"another name: hpo copy {plan.name} --as NAME --to URL"
        )
    there = {
        _key_of(trial)
        for trial in ledger.trials(record, *TrialState)
        if trial.state is not TrialState.FAIL
    }
    missing = [point for point in plan.points if _key(point.origin, point.params) not in there]
    if missing:
        ledger.enqueue(record, missing)
    counts = ledger.trial_counts(record)
    return ledger.study(record.name), counts.total()


def is_trained(ledger: Ledger, record: StudyRecord) -> bool:
    """Whether every trial of it has ended."""
    return not ledger.trials(record, TrialState.WAITING, TrialState.RUNNING)


def keep(ledger: Ledger, record: StudyRecord, attribute: str, found: View | list[View]) -> None:
    """Keep what came of it as a user attribute of its study."""
    study = optuna.load_study(study_name=record.name, storage=ledger.storage)
    if study.user_attrs.get(attribute) != found:
        study.set_user_attr(attribute, found)


def last_metrics(ledger: Ledger, trial: FrozenTrial) -> dict[str, Any]:
    """What the trial's last evaluation measured."""
    found = ledger.metrics(trial._trial_id)
    return found[max(found)] if found else {}


def spread(values: Sequence[float]) -> View:
    """Mean and sample standard deviation, as far as there are values for them."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def _key_of(trial: FrozenTrial) -> tuple[Any, Any]:
    return _key(trial.user_attrs.get("origin", {}), known_params(trial))


def _key(origin: Mapping[str, Any], params: Mapping[str, Any]) -> tuple[Any, Any]:
    return origin.get("recipe", origin.get("trial")), params.get("seed")
