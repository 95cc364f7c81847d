"""What the reading commands found, as plain data, for the tables and for `--json` alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.search.constraints import Constraint, broken
from hpo.search.population import fork_of
from hpo.search.ranking import best_in_ledger, pareto_front
from hpo.study.load import config_of
from storage import Attempt, Ledger, StudyRecord, TeacherRecord
from storage.points import known_params
from trainer.config.settings import ConfigError, kept_document

View = dict[str, Any]  # what a command found, as `--json` prints it


def study_list(ledger: Ledger) -> list[View]:
    """Return the summary of each study."""
    return [_StudyViews(ledger, record).summary() for record in ledger.studies()]


def study_status(ledger: Ledger, name: str) -> View:
    """Return how far the study is, who runs it, its best trial, and the trials that run now."""
    study = _StudyViews(ledger, ledger.study(name))
    running = ledger.trials(study.record, TrialState.RUNNING)
    return {
        **study.summary(),
        "best": study.best(),
        "running": [study.view(trial) for trial in running],
        "teachers": [_teacher(teacher) for teacher in ledger.teachers(study.record)],
        "device_seconds": round(ledger.device_seconds(study.record), 3),
    }


def trial_list(ledger: Ledger, name: str) -> list[View]:
    """Return the view of each trial of the study."""
    study = _StudyViews(ledger, ledger.study(name))
    attempts = ledger.attempts(study.record)
    return [
        study.view(trial, attempts.get(trial._trial_id, []))
        for trial in ledger.trials(study.record, *TrialState)
    ]


def trial_details(ledger: Ledger, name: str, number: int) -> View:
    """Return everything about one trial. Raises ConfigError if the study has no such trial."""
    study = _StudyViews(ledger, ledger.study(name))
    trial = _trial(ledger, study.record, number)
    trial_id = trial._trial_id
    attempts = ledger.trial_attempts(trial_id)
    return {
        **study.view(trial, attempts),
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
            for attempt in attempts
        ],
        "repeats": ledger.results(trial_id),
        "metrics": ledger.metrics(trial_id),
        "depth_front": ledger.depth_front(trial_id),
    }


def trial_config(ledger: Ledger, name: str, number: int) -> str:
    """Return a trial's train config as YAML, with which `python -m trainer` trains it again.

    That training gets a folder of its own. Raises ConfigError if the study has no such trial, or
    the trial has no parameters yet.
    """
    record = ledger.study(name)
    trial = _trial(ledger, record, number)
    if trial.state is TrialState.WAITING:
        raise ConfigError(f"study {name}: trial {number} waits to be tried, and has no config yet")
    config = config_of(record)
    document = config.trial_document(trial.params, f"runs/{name}-trial-{number}")
    if config.trainer is None:
        document.pop("phase", None)  # an evaluation's trial is trained again without the test
    document |= fork_of(trial, lambda parent: _trial(ledger, record, parent).user_attrs["run_dir"])
    return f"# Trial {number} of study {name}.\n{config.rules.printed(document, name)}"


def best_trials(ledger: Ledger, name: str) -> list[View]:
    """Return the best trial, or the Pareto front when there are several objectives."""
    study = _StudyViews(ledger, ledger.study(name))
    if len(study.objectives) > 1:
        return [study.view(trial) for trial in pareto_front(ledger, name)]
    best = study.best()
    return [best] if best else []


def _trial(ledger: Ledger, record: StudyRecord, number: int) -> FrozenTrial:
    trials = sum(ledger.trial_counts(record).values())
    if not 0 <= number < trials:
        have = f"it has trials 0 to {trials - 1}" if trials else "it has none yet"
        raise ConfigError(f"study {record.name}: no trial {number}; {have}")
    trial_id = ledger.storage.get_trial_id_from_study_id_trial_number(record.study_id, number)
    return ledger.storage.get_trial(trial_id)


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


class _StudyViews:
    """Makes the views of one study, which may be big: it reads only the rows that a view shows."""

    def __init__(self, ledger: Ledger, record: StudyRecord) -> None:
        self.record = record
        self._ledger = ledger
        document = kept_document(record.document, f"study {record.name}")
        self.objectives: list[View] = document["objectives"]
        # A document of an older version has no constraints.
        self.constraints = [Constraint(**each) for each in document.get("constraints", [])]

    def summary(self) -> View:
        states = self._ledger.trial_counts(self.record)
        alive = [c for c in self._ledger.controllers(self.record) if c.alive]
        return {
            "study": self.record.name,
            "trials": sum(states.values()) - states["WAITING"],
            "budget": self.record.budget_trials,
            "states": dict(states),
            "controller": ", ".join(map(str, alive)) or None,
        }

    def best(self) -> View | None:
        directions = [objective["direction"] for objective in self.objectives]
        constrained = bool(self.constraints)
        trial = best_in_ledger(self._ledger, self.record, directions, constrained=constrained)
        return None if trial is None else self.view(trial)

    def view(self, trial: FrozenTrial, attempts: Sequence[Attempt] | None = None) -> View:
        if attempts is None:
            attempts = self._ledger.trial_attempts(trial._trial_id)
        names = [objective["metric"] for objective in self.objectives]
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
