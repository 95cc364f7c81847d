"""Constraints: bounds on reported metrics that a trial must keep to count as feasible.

A violation is how far a metric is past its bound as a share of the bound, so that bytes and tokens
per second weigh alike where samplers add them up; 0 or less keeps it. Nothing here reads a ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial
from pydantic import FiniteFloat, model_validator

from hpo.search.objectives import check_measured
from trainer.config.sections import EvaluationConfig
from trainer.config.settings import Section

OUT_OF_MEMORY = "out_of_memory"


class Constraint(Section):
    """The largest or the smallest value of a metric that is feasible, at a trial's end."""

    metric: str  # a reported one, as in objectives
    max: FiniteFloat | None = None  # the largest feasible value; give this or min
    min: FiniteFloat | None = None  # the smallest feasible value

    @model_validator(mode="after")
    def _one_bound(self) -> Constraint:
        if (self.max is None) == (self.min is None):
            raise ValueError(f"{self.metric}: give either max or min; a range is two constraints")
        return self

    def violation(self, value: float) -> float:
        """How far `value` is past the bound, as a share of it; of a bound of 0, as it is."""
        past = value - self.max if self.max is not None else (self.min or 0.0) - value
        return past / self.unit

    @property
    def unit(self) -> float:
        """What a violation of 1 is, in the metric's own unit."""
        return abs(self.max or self.min or 0.0) or 1.0

    def __str__(self) -> str:
        if self.max is not None:
            return f"{self.metric} <= {self.max:.6g}"
        return f"{self.metric} >= {self.min:.6g}"


def check_constraints(
    constraints: Sequence[Constraint], evaluation: EvaluationConfig, source: str
) -> None:
    """Raise ConfigError unless `evaluation` measures every constraint's metric."""
    for position, constraint in enumerate(constraints):
        check_measured(constraint.metric, evaluation, f"{source}: constraints.{position}.metric")


def violations(
    constraints: Sequence[Constraint], metrics: Mapping[str, float], *, out_of_memory: bool
) -> list[float]:
    """What a trial that ended with these last known `metrics` keeps or breaks, in Optuna's order.

    One number a constraint, 0 where its metric is not known, and in the end 1 for out of memory.
    Empty for a trial of a study without constraints: with them Optuna models every one of it.
    """
    if not constraints and not out_of_memory:
        return []
    known = [c.violation(metrics[c.metric]) if c.metric in metrics else 0.0 for c in constraints]
    return [*known, 1.0 if out_of_memory else 0.0]


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether the trial has broken no constraint, as Optuna sees it."""
    return all(violation <= 0 for violation in trial.constraints.values())


def broken(constraints: Sequence[Constraint], trial: FrozenTrial) -> dict[str, float] | None:
    """Which constraints an ended trial breaks, by how much in the metric's own unit.

    None where there is nothing to keep, or it is not known yet.
    """
    if not constraints or not trial.constraints:
        return None
    units = {str(constraint): constraint.unit for constraint in constraints} | {OUT_OF_MEMORY: 1.0}
    found = zip(units.items(), trial.constraints.values(), strict=True)
    return {name: violation * unit for (name, unit), violation in found if violation > 0}
