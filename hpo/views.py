"""What the reading commands say, as plain data: the same for people and for `--json`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from hpo.constraints import Constraint, broken, is_feasible
from hpo.study import StudyConfig, restore_study
from storage import Ledger, StudyRecord, TeacherRecord
from storage.points import known_params
from trainer.settings import ConfigError

View = dict[str, Any]


def study_list(ledger: Ledger) -> list[View]:
    """A line for each study."""
    return [_Study(ledger, record).summary() for record in ledger.studies()]


def study_status(ledger: Ledger, name: str) -> View:
    """How far the study is, who runs it, its best trial, and its trials that run."""
    study = _Study(ledger, ledger.study(name))
    running = [trial for trial in study.trials if trial.state is TrialState.RUNNING]
    cost = sum(a.device_seconds for attempts in study.attempts.values() for a in attempts)
    return {
        **study.summary(),
        "best": study.best(),
        "running": [study.view(trial) for trial in running],
        "teachers": [_teacher(teacher) for teacher in ledger.teachers(study.record)],
        "device_seconds": round(cost, 3),
    }


def trial_list(ledger: Ledger, name: str) -> list[View]:
    """A line for each trial of the study."""
    study = _Study(ledger, ledger.study(name))
    return [study.view(trial) for trial in study.trials]


def trial_details(ledger: Ledger, name: str, number: int) -> View:
    """Everything about one trial. Raises ConfigError if the study has none of that number."""
    study = _Study(ledger, ledger.study(name))
    if not 0 <= number < len(study.trials):
        last = len(study.trials) - 1
        have = f"it has trials 0 to {last}" if study.trials else "it has none yet"
        raise ConfigError(f"study {name}: no trial {number}; {have}")
    trial = study.trials[number]
    return {
        **study.view(trial),
        "run_dir": trial.user_attrs.get("run_dir"),
        "parent": trial.user_attrs.get("parent"),
        "parent_step": trial.user_attrs.get("parent_step"),
        "attempts": [
            {
                "number": attempt.number,
                "reason": attempt.reason,
                "first_step": attempt.first_step,
                "last_step": attempt.last_step,
                "device_seconds": round(attempt.device_seconds, 3),
                "detail": attempt.detail,
            }
            for attempt in study.attempts.get(trial._trial_id, [])
        ],
        "repeats": ledger.results(trial._trial_id),
        "metrics": ledger.metrics(trial._trial_id),
        "depth_front": ledger.depth_front(trial._trial_id),
    }


def best_trials(ledger: Ledger, name: str) -> list[View]:
    """The best trial, or the Pareto front when there are several objectives."""
    study = _Study(ledger, ledger.study(name))
    if len(study.objectives) > 1:
        front = optuna.load_study(study_name=name, storage=ledger.storage).best_trials
        return [study.view(trial) for trial in front]
    best = study.best()
    return [best] if best else []


def config_of(record: StudyRecord) -> StudyConfig:
    """The study's settings, as the ledger keeps them."""
    return restore_study(record.document, record.name)


def _teacher(teacher: TeacherRecord) -> View:
    return {
        "teacher": teacher.key,
        "state": teacher.state,
        "reason": teacher.reason,
        "step": teacher.step,
        "steps": teacher.steps,
        "attempts": teacher.attempts,
        "seconds": round(teacher.seconds, 3),
        "folder": teacher.folder,
        "detail": teacher.detail,
    }


class _Study:
    """One study, read once."""

    def __init__(self, ledger: Ledger, record: StudyRecord) -> None:
        self.record = record
        self.trials = ledger.storage.get_all_trials(record.study_id, deepcopy=False)
        self.attempts = ledger.attempts(record)
        self.controllers = ledger.controllers(record)
        document = yaml.safe_load(record.document)
        self.objectives: list[View] = document["objectives"]
        # An older version's document has none.
        self.constraints = [Constraint(**each) for each in document.get("constraints", [])]

    def summary(self) -> View:
        states = Counter(trial.state.name for trial in self.trials)
        alive = [c for c in self.controllers if c.alive]
        return {
            "study": self.record.name,
            "trials": len(self.trials) - states["WAITING"],
            "budget": self.record.budget_trials,
            "states": dict(states),
            "controller": ", ".join(f"process {c.pid} on {c.host}" for c in alive) or None,
        }

    def best(self) -> View | None:
        complete = [t for t in self.trials if t.state is TrialState.COMPLETE and is_feasible(t)]
        if not complete or len(self.objectives) > 1:
            return None
        sign = 1 if self.objectives[0]["direction"] == "minimize" else -1
        return self.view(min(complete, key=lambda t: sign * (t.values or [math.inf])[0]))

    def view(self, trial: FrozenTrial) -> View:
        names = [objective["metric"] for objective in self.objectives]
        attempts = self.attempts.get(trial._trial_id, [])
        values = trial.values
        if values is None and trial.intermediate_values and len(names) == 1:
            values = [trial.intermediate_values[max(trial.intermediate_values)]]
        missed = broken(self.constraints, trial)
        return {
            "trial": trial.number,
            "state": trial.state.name,
            "reason": trial.user_attrs.get("reason") or (attempts[-1].reason if attempts else None),
            "step": max((a.last_step for a in attempts if a.last_step is not None), default=None),
            "values": dict(zip(names, values, strict=True)) if values else {},
            "feasible": None if missed is None else not missed,
            "violations": missed or {},  # in the metric's own unit
            "attempts": len(attempts),
            "device_seconds": round(sum(a.device_seconds for a in attempts), 3),
            "params": known_params(trial),
            "origin": trial.user_attrs.get("origin"),
        }
