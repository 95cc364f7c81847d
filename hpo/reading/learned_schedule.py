"""A learned schedule: what a trial and its ancestors trained with, as one config from step 0.

It is read from the ledger alone. A training with that config, on one process or a gang, has at
each step the learning rate and the drop probability that the path's trials had at that step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hpo.reading.views import best_trials
from hpo.search.population import LEVEL
from hpo.study.load import config_of
from storage import Ledger
from trainer.config.settings import ConfigError, set_path
from trainer.config.train import resolve


@dataclass(frozen=True)
class Segment:
    """The part of a path that one trial trained, up to the first step of the next segment."""

    first_step: int  # 0-based
    trial: int
    params: dict[str, Any]


def path_to(trials: Sequence[FrozenTrial], number: int) -> list[Segment]:
    """Return the segments that lead to the end of trial `number`, in the order of training."""
    trial = trials[number]
    segment = Segment(trial.user_attrs.get("parent_step", 0), number, trial.params)
    parent = trial.user_attrs.get("parent")
    return [segment] if parent is None else [*path_to(trials, parent), segment]


def points(path: Sequence[Segment], setting: str, steps: int) -> list[list[float]]:
    """Return `setting` along `path`, as points [fraction of the run's `steps`, value].

    Straight lines through the points have exactly the segment's value at each of its steps,
    because every change lies between two successive steps.
    """
    found = []
    ends = [segment.first_step for segment in path[1:]] + [steps]
    for segment, end in zip(path, ends, strict=True):
        for step in sorted({segment.first_step, end - 1}):
            found.append([step / steps, segment.params[setting]])
    return found


def learned_schedule(ledger: Ledger, name: str) -> str:
    """Return the train config of the best trial's path, YAML. Raises ConfigError without one."""
    record = ledger.study(name)
    config = config_of(record)
    if config.schedule is None:
        raise ConfigError(f"study {name}: learns no schedule; one with `schedule` in its file does")
    best = best_trials(ledger, name)
    if not best:
        raise ConfigError(f"study {name}: no trial is complete and feasible, as `hpo trials` shows")
    trials = ledger.storage.get_all_trials(record.study_id, deepcopy=False)
    path = path_to(trials, best[0]["trial"])
    document = config.trial_document(path[-1].params, f"runs/{name}-schedule")
    for setting in path[-1].params:
        key, _ = LEVEL[setting]
        set_path(document, key, "piecewise")
        section = key.partition(".")[0]
        set_path(document, f"{section}.points", points(path, setting, document["steps"]))
    steps = ", ".join(f"trial {segment.trial} from step {segment.first_step}" for segment in path)
    return f"# Learned by study {name}: {steps}.\n{resolve(document, name).to_yaml()}"
