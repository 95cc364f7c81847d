"""Evaluations: a study's best configurations trained again under fresh seeds, and then tested.

An evaluation is a study of its own in the same ledger, `NAME.evaluation`: every one of its trials
is a given point, a configuration and a seed, and its train config alone says `phase: evaluation`,
with which a run reads the test split at its end. Whatever runs, resumes and shows studies so does
it for evaluations too. Nothing here trains; what is chosen and concluded comes from the ledger.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.pruners import NoPruner
from hpo.repeats import mean_metrics
from hpo.samplers import Random
from hpo.space import IntDimension
from hpo.study import Budget, StudyConfig
from hpo.transfer import best_trials
from hpo.views import View, config_of
from storage import Ledger, Point, StudyNotFound, StudyRecord, TeacherRecord
from storage.points import known_params
from trainer.config import resolve
from trainer.data import check_data
from trainer.settings import ConfigError

SUFFIX = ".evaluation"
SEEDS = 2**32  # a seed is less
RESULT = "evaluation"  # user attribute of an evaluation's study: what `conclude` found


@dataclass(frozen=True)
class Plan:
    """What is to be trained: each of the `chosen` trials of `name` under each of the seeds."""

    name: str
    config: StudyConfig  # of the evaluation
    chosen: list[FrozenTrial]
    seeds: list[int]

    @property
    def points(self) -> list[Point]:
        """One for each training."""
        return [
            Point({**trial.params, "seed": seed}, {"study": self.name, "trial": trial.number})
            for trial in self.chosen
            for seed in self.seeds
        ]


def is_evaluation(config: StudyConfig) -> bool:
    """Whether the study is an evaluation of another."""
    return config.trainer is None and config.train.get("phase") == "evaluation"


def plan(ledger: Ledger, name: str, top: int, seeds: int) -> Plan:
    """An evaluation of the `top` best trials of study `name`; of several objectives, of its front.

    Raises ConfigError, in one line, where there is none to be made, or not yet. Writes nothing.
    """
    record = ledger.study(name)
    config = config_of(record)
    if is_evaluation(config):
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
    study = optuna.load_study(study_name=name, storage=ledger.storage)
    chosen = best_trials(study, top)
    if len(chosen) < top:
        raise ConfigError(
            f"--top {top}: study {name} has {len(chosen)} trials that are complete and feasible; "
            f"see: hpo trials {name}"
        )
    fresh = fresh_seeds(config, ledger.trials(record, *TrialState), seeds)
    made = Plan(name, _config(config, name, len(chosen) * seeds), chosen, fresh)
    for point in made.points[::seeds]:
        document = made.config.trial_document(dict(point.params), "an evaluation")
        check_data(resolve(document, f"study {name}").data, test=True)
    return made


def fresh_seeds(config: StudyConfig, trials: Sequence[FrozenTrial], wanted: int) -> list[int]:
    """The next seeds after the train config's that no training of the study's was given.

    They come from the ledger alone, so that an evaluation that goes on has the same again.
    """
    first = config.train.get("seed", 0)
    given = {first, *(trial.params.get("seed", first) for trial in trials)}
    used = {(seed + repeat) % SEEDS for seed in given for repeat in range(config.repeats)}
    candidates = ((first + distance) % SEEDS for distance in count(1))
    return list(islice((seed for seed in candidates if seed not in used), wanted))


def enter(ledger: Ledger, plan: Plan) -> tuple[StudyRecord, int]:
    """The evaluation's study, made or found, with all points of the plan; the budget it needs.

    What has been trained, or waits, is not entered again; what failed is.
    """
    objectives = plan.config.objectives
    try:
        record = ledger.study(plan.config.study)
    except StudyNotFound:
        record = ledger.create_study(
            plan.config.study,
            [objective.optuna_direction for objective in objectives],
            [objective.metric for objective in objectives],
            plan.config.to_document(),
            plan.config.budget.trials,
            [
                TeacherRecord(teacher.key, teacher.folder, teacher.config, teacher.steps)
                for teacher in ledger.teachers(ledger.study(plan.name))
            ],
            plan.points,
        )
    if not is_evaluation(config_of(record)):
        raise ConfigError(
            f"study {record.name}: is there already, and is no evaluation; evaluate a copy under "
            f"another name: hpo copy {plan.name} --as NAME --to URL"
        )
    there = {
        _key(known_params(trial), trial.user_attrs.get("origin", {}))
        for trial in ledger.trials(record, *TrialState)
        if trial.state is not TrialState.FAIL
    }
    missing = [point for point in plan.points if _key(point.params, point.origin) not in there]
    if missing:
        ledger.enqueue(record, missing)
    counts = ledger.trial_counts(record)
    return ledger.study(record.name), counts.total()


def is_trained(ledger: Ledger, record: StudyRecord) -> bool:
    """Whether every trial of the evaluation has ended."""
    return not ledger.trials(record, TrialState.WAITING, TrialState.RUNNING)


def conclude(ledger: Ledger, plan: Plan, record: StudyRecord) -> list[View]:
    """What the plan's trainings came to, by configuration; kept on the evaluation's study.

    The optimism gap is what tuning's own valid perplexity promised too much: the mean under fresh
    seeds less that by which the configuration was chosen.
    """
    complete = ledger.trials(record, TrialState.COMPLETE)
    rows = [_row(ledger, plan, trial, complete) for trial in plan.chosen]
    study = optuna.load_study(study_name=record.name, storage=ledger.storage)
    if study.user_attrs.get(RESULT) != rows:
        study.set_user_attr(RESULT, rows)
    return rows


def _config(config: StudyConfig, name: str, trials: int) -> StudyConfig:
    seeds = IntDimension(type="int", low=0, high=SEEDS - 1)
    return config.model_copy(
        update={
            "study": f"{name}{SUFFIX}",
            "constraints": (),  # they were for the choice
            "sampler": Random(name="random"),  # of which nothing is asked
            "pruner": NoPruner(name="none"),
            "repeats": 1,
            "budget": Budget(trials=trials),
            "warm_start": None,
            "train": {**config.train, "phase": "evaluation"},
            "space": {**config.space, "seed": seeds},
        }
    )


def _key(params: Any, origin: Any) -> tuple[Any, Any]:
    return origin.get("trial"), params.get("seed")


def _row(ledger: Ledger, plan: Plan, trial: FrozenTrial, complete: list[FrozenTrial]) -> View:
    keys = {(trial.number, seed) for seed in plan.seeds}
    runs = [t for t in complete if _key(t.params, t.user_attrs.get("origin", {})) in keys]
    metrics = [_last(ledger, run) for run in runs]
    tuned = mean_metrics(ledger.results(trial._trial_id) or [_last(ledger, trial)])
    valid, test = (_spread([each[name] for each in metrics]) for name in ("valid_ppl", "test_ppl"))
    return {
        "trial": trial.number,
        "params": trial.params,
        "trained": [run.number for run in runs],  # trials of the evaluation
        "seeds": [run.params["seed"] for run in runs],
        "tuned_valid_ppl": tuned.get("valid_ppl"),
        "valid_ppl": valid,
        "test_ppl": test,
        "optimism_gap": _less(valid["mean"], tuned.get("valid_ppl")),
        "test_minus_valid": _less(test["mean"], valid["mean"]),
    }


def _last(ledger: Ledger, trial: FrozenTrial) -> dict[str, Any]:
    found = ledger.metrics(trial._trial_id)
    return found[max(found)] if found else {}


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation, as far as there are values for them."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }
