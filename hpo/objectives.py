"""Objectives: the metrics a study may optimize, and what its trainings must measure for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from optuna.study import StudyDirection
from pydantic import AfterValidator, model_validator

from hpo.pruners import PrunerConfig
from trainer.config import EvaluationConfig
from trainer.settings import ConfigError, Section, nearest

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


def _known(metric: str) -> str:
    if metric not in METRICS and not _AT_DEPTH.fullmatch(metric):
        names = [*METRICS, *(f"{prefix}N" for prefix in AT_DEPTH)]
        raise ValueError(f"there is no {metric!r}{nearest(metric, names)}")
    return metric


Metric = Annotated[str, AfterValidator(_known)]  # one that every finished trial has reported


class Objective(Section):
    """A reported metric to make small or large."""

    metric: Metric = "valid_ppl"
    direction: Literal["minimize", "maximize"] = "minimize"

    @model_validator(mode="after")
    def _large_is_good(self) -> Objective:
        if self.metric == HYPERVOLUME and self.direction == "minimize":
            raise ValueError(f"direction: a larger {HYPERVOLUME} is better; use maximize")
        return self

    @property
    def optuna_direction(self) -> StudyDirection:
        """Optuna's own."""
        return StudyDirection[self.direction.upper()]


def check_objectives(
    objectives: Sequence[Objective], pruner: PrunerConfig, evaluation: EvaluationConfig, source: str
) -> None:
    """Raise ConfigError unless `evaluation` measures the objectives, and when the pruner asks."""
    for position, objective in enumerate(objectives):
        metric = objective.metric
        check_measured(metric, evaluation, f"{source}: objectives.{position}.metric")
        late = (_AT_DEPTH.fullmatch(metric) or metric == HYPERVOLUME) and (
            evaluation.depths_at == "end"
        )
        if late and pruner.name != "none":
            raise ConfigError(
                f"{source}: pruner.name: {pruner.name} compares {metric} while trials run; set "
                "evaluation.depths_at: each in the train config, or use none"
            )


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
