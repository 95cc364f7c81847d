"""Objectives: the metrics a study may optimize, and what its trainings must measure for them."""

from __future__ import annotations

import re
from typing import Literal

from optuna.study import StudyDirection
from pydantic import model_validator

from trainer.config.sections import EvaluationConfig
from trainer.config.settings import ConfigError, Section, nearest

Direction = Literal["minimize", "maximize"]

HYPERVOLUME = "depth_front_hypervolume"
METRICS = (
    "valid_ppl",
    "train_loss",
    "tokens_per_second",
    "step_seconds",
    "train_seconds",
    "peak_memory_bytes",
    "parameters",
    HYPERVOLUME,
)
AT_DEPTH = ("valid_ppl_depth_", "parameters_depth_", "seconds_per_token_depth_")
_AT_DEPTH = re.compile(f"(?:{'|'.join(AT_DEPTH)})([1-9]\\d*)")


def check_known(metric: str) -> None:
    """Raise ValueError unless our trainer can report `metric`."""
    if metric not in METRICS and not _AT_DEPTH.fullmatch(metric):
        names = [*METRICS, *(f"{prefix}N" for prefix in AT_DEPTH)]
        raise ValueError(f"there is no {metric!r}{nearest(metric, names)}")


class Objective(Section):
    """A reported metric to make small or large."""

    metric: str = "valid_ppl"  # a reported one: docs/searching.md has all
    direction: Direction = "minimize"  # what is better: small or large

    @model_validator(mode="after")
    def _large_is_good(self) -> Objective:
        if self.metric == HYPERVOLUME and self.direction == "minimize":
            raise ValueError(f"direction: a larger {HYPERVOLUME} is better; use maximize")
        return self

    @property
    def optuna_direction(self) -> StudyDirection:
        """The direction as Optuna has it."""
        return StudyDirection[self.direction.upper()]


def comes_late(metric: str, evaluation: EvaluationConfig) -> bool:
    """Return whether `metric` is measured only at the end of a training."""
    of_depths = metric == HYPERVOLUME or _AT_DEPTH.fullmatch(metric) is not None
    return of_depths and evaluation.depths_at == "end"


def check_measured(metric: str, evaluation: EvaluationConfig, what: str) -> None:
    """Raise ConfigError, beginning with `what`, unless `evaluation` measures `metric`."""
    at_depth = _AT_DEPTH.fullmatch(metric)
    if at_depth and int(at_depth[1]) not in evaluation.depths:
        raise ConfigError(
            f"{what}: {metric} needs {at_depth[1]} in evaluation.depths of the train config, "
            f"which is {list(evaluation.depths)}"
        )
    if metric == HYPERVOLUME and not (evaluation.depths and evaluation.reference):
        raise ConfigError(
            f"{what}: {metric} needs evaluation.depths and evaluation.reference in the train config"
        )
