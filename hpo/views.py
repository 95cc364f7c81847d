"""What the reading commands say, as plain data: the same for people and for `--json`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from hpo.study import StudyConfig, restore_study
from storage import Attempt, Ledger, StudyRecord
from trainer.settings import ConfigError

View = dict[str, Any]


def study_list(ledger: Ledger) -> list[View]:
    """A line for each study."""
    return [_summary(ledger, record) for record in ledger.studies()]


def study_status(ledger: Ledger, name: str) -> View:
    """How far the study is, who runs it, its best trial, and its trials that run."""
    record = ledger.study(name)
    trials = _trials(ledger, record)
    attempts = ledger.attempts(record)
    running = [t for t in trials if t.state is TrialState.RUNNING]
    return {
        **_summary(ledger, record),
        "best": _best(record, trials, attempts),
        "running": [_trial(record, trial, attempts.get(trial._trial_id, [])) for trial in running],
        "device_seconds": round(
            sum(a.device_seconds for trial in attempts.values() for a in trial), 3
        ),
    }


def trial_list(ledger: Ledger, name: str) -> list[View]:
    """A line for each trial of the study."""
    record = ledger.study(name)
    attempts = ledger.attempts(record)
    return [
        _trial(record, trial, attempts.get(trial._trial_id, []))
        for trial in _trials(ledger, record)
    ]


def trial_details(ledger: Ledger, name: str, number: int) -> View:
    """Everything about one trial. Raises ConfigError if the study has none of that number."""
    record = ledger.study(name)
    trials = _trials(ledger, record)
    if not 0 <= number < len(trials):
        have = f"it has trials 0 to {len(trials) - 1}" if trials else "it has none yet"
        raise ConfigError(f"study {name}: no trial {number}; {have}")
    trial = trials[number]
    attempts = ledger.trial_attempts(trial._trial_id)
    return {
        **_trial(record, trial, attempts),
        "run_dir": trial.user_attrs.get("run_dir"),
        "attempts": [
            {
                "number": attempt.number,
                "reason": attempt.reason,
                "first_step": attempt.first_step,
                "last_step": attempt.last_step,
                "device_seconds": round(attempt.device_seconds, 3),
                "detail": attempt.detail,
            }
            for attempt in attempts
        ],
        "metrics": ledger.metrics(trial._trial_id),
    }


def best_trials(ledger: Ledger, name: str) -> list[View]:
    """The best trial, or the Pareto front when there are several objectives."""
    record = ledger.study(name)
    attempts = ledger.attempts(record)
    study = optuna.load_study(study_name=name, storage=ledger.storage)
    if len(study.directions) > 1:
        return [_trial(record, t, attempts.get(t._trial_id, [])) for t in study.best_trials]
    best = _best(record, study.get_trials(deepcopy=False), attempts)
    return [best] if best else []


def config_of(record: StudyRecord) -> StudyConfig:
    """The study's settings, as the ledger keeps them."""
    return restore_study(record.document, record.name)


def _summary(ledger: Ledger, record: StudyRecord) -> View:
    states = Counter(trial.state.name for trial in _trials(ledger, record))
    alive = [c for c in ledger.controllers(record) if c.alive]
    return {
        "study": record.name,
        "trials": sum(states.values()),
        "budget": record.budget_trials,
        "states": dict(states),
        "controller": f"process {alive[0].pid} on {alive[0].host}" if alive else None,
    }


def _trials(ledger: Ledger, record: StudyRecord) -> list[FrozenTrial]:
    return ledger.storage.get_all_trials(record.study_id, deepcopy=False)


def _objectives(record: StudyRecord) -> list[View]:
    objectives: list[View] = yaml.safe_load(record.document)["objectives"]
    return objectives


def _best(
    record: StudyRecord, trials: list[FrozenTrial], attempts: dict[int, list[Attempt]]
) -> View | None:
    objectives = _objectives(record)
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    if not complete or len(objectives) > 1:
        return None
    sign = 1 if objectives[0]["direction"] == "minimize" else -1
    best = min(complete, key=lambda trial: sign * (trial.values or [float("inf")])[0])
    return _trial(record, best, attempts.get(best._trial_id, []))


def _trial(record: StudyRecord, trial: FrozenTrial, attempts: list[Attempt]) -> View:
    names = [objective["metric"] for objective in _objectives(record)]
    last_step = max((a.last_step for a in attempts if a.last_step is not None), default=None)
    values = trial.values
    if values is None and trial.intermediate_values and len(names) == 1:
        values = [trial.intermediate_values[max(trial.intermediate_values)]]
    return {
        "trial": trial.number,
        "state": trial.state.name,
        "reason": trial.user_attrs.get("reason"),
        "step": last_step,
        "values": dict(zip(names, values, strict=True)) if values else {},
        "attempts": len(attempts),
        "device_seconds": round(sum(a.device_seconds for a in attempts), 3),
        "params": trial.params,
    }
