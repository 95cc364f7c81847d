"""What must be true of a study when all faults are over. Reads its ledger and its processes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from benchmarks.chaos_scene import STUDY, Scene

LEFT_SECONDS = 90.0  # two of Ray's agents linger for a minute

_REPORTS = """
    SELECT t.number, m.step FROM hpo_metrics m JOIN trials t ON t.trial_id = m.trial_id
"""
_OPEN = "SELECT count(*) FROM hpo_attempts WHERE ended_at IS NULL"
_RESERVED = "SELECT reserved_trials FROM hpo_studies"


@dataclass(frozen=True)
class Check:
    """One promise: how often it was broken, which shall be never."""

    promise: str
    broken: list[str]  # a line each


def trials_of(scene: Scene) -> list[FrozenTrial]:
    """The study's trials, read with plain Optuna."""
    url = scene.url.replace("postgresql:", "postgresql+psycopg:")
    return optuna.load_study(study_name=STUDY, storage=url).trials


def check(
    scene: Scene, config: dict[str, Any], undisturbed: list[FrozenTrial] | None = None
) -> list[Check]:
    """Every promise to the study of `config`; to be the run without faults where that is given."""
    found, trials = trials_of(scene), config["budget"]["trials"]
    checks = [
        Check("trials finished", _unfinished(found, trials, scene.clicked)),
        Check("no duplicate trial", _duplicates(scene, found, trials)),
        Check("no report lost or doubled", _reports(scene, found, config["train"])),
        Check("no attempt left open", ["an attempt"] * scene.rows(_OPEN)[0][0]),
    ]
    if undisturbed is not None:
        checks += [
            Check("parameters of the run without faults", _different_params(found, undisturbed)),
            Check("reports of the run without faults", _different_reports(found, undisturbed)),
        ]
    scene.wait_for(lambda: not scene.processes(), LEFT_SECONDS)
    left = [f"{process.name()} {process.pid}" for process in scene.processes()]
    return [*checks, Check("no process left", left)]


def _unfinished(found: list[FrozenTrial], trials: int, clicked: set[int]) -> list[str]:
    good = (TrialState.COMPLETE, TrialState.PRUNED)
    missing = [f"trial {number} is missing" for number in range(len(found), trials)]
    bad = [t for t in found if t.state not in good and t.number not in clicked]
    return missing + [
        f"trial {t.number} is {t.state.name}: {t.user_attrs.get('detail')}" for t in bad
    ]


def _duplicates(scene: Scene, found: list[FrozenTrial], trials: int) -> list[str]:
    numbers = Counter(trial.number for trial in found)
    folders = Counter(trial.user_attrs["run_dir"] for trial in found)
    twice = [f"{what} twice" for what, count in [*numbers.items(), *folders.items()] if count > 1]
    over = [f"trial {number} is one too many" for number in range(trials, len(found))]
    reserved = scene.rows(_RESERVED)[0][0]
    return twice + over + ([f"{reserved} trials reserved"] if reserved != trials else [])


def _reports(scene: Scene, found: list[FrozenTrial], train: dict[str, Any]) -> list[str]:
    steps: dict[int, list[int]] = defaultdict(list)
    for number, step in scene.rows(_REPORTS):
        steps[number].append(step)
    every, broken = train["eval_every"], []
    for trial in found:
        kept = sorted(steps[trial.number])
        first = 0 if trial.number in scene.clicked else every  # a click may come before a report
        last = train["steps"] if trial.state is TrialState.COMPLETE else max(kept, default=first)
        if kept != list(range(every, last + 1, every)):
            broken.append(f"trial {trial.number} has reports at {kept}")
        if sorted(trial.intermediate_values) != kept:
            broken.append(f"trial {trial.number} has Optuna's at {[*trial.intermediate_values]}")
    return broken


def _different_params(found: list[FrozenTrial], undisturbed: list[FrozenTrial]) -> list[str]:
    return [f"trial {a.number}: {a.params}, undisturbed {b.params}"
            for a, b in zip(found, undisturbed, strict=False) if a.params != b.params]  # fmt: skip


def _different_reports(found: list[FrozenTrial], undisturbed: list[FrozenTrial]) -> list[str]:
    # On steps that both came to: with the database away, or beside others, pruners know less.
    return [f"trial {a.number} at step {step}: {value}, undisturbed {b.intermediate_values[step]}"
            for a, b in zip(found, undisturbed, strict=False) if a.params == b.params
            for step, value in a.intermediate_values.items()
            if b.intermediate_values.get(step, value) != value]  # fmt: skip
