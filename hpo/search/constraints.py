"""Constraints: bounds on reported metrics that a trial must keep to count as feasible.

A violation is how far a metric is past its bound, as a share of the bound; 0 or less keeps the
bound. As shares, bytes and tokens per second weigh alike where samplers add violations up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial
from pydantic import FiniteFloat, model_validator

from trainer.config.settings import Section

OUT_OF_MEMORY = "out_of_memory"


class Constraint(Section):
    """A bound on a metric at a trial's end: the largest or the smallest feasible value."""

    metric: str  # a reported one, as in objectives
    max: FiniteFloat | None = None  # the largest feasible value; give this or min
    min: FiniteFloat | None = None  # the smallest feasible value

    @model_validator(mode="after")
    def _one_bound(self) -> Constraint:
        if (self.max is None) == (self.min is None):
            raise ValueError(f"{self.metric}: give either max or min; a range is two constraints")
        return self

    def violation(self, value: float) -> float:
        """Return how far `value` is past the bound, as a share of the bound if that is not 0."""
        past = value - self.max if self.max is not None else (self.min or 0.0) - value
        return past / self.unit

    @property
    def unit(self) -> float:
        """The excess, in the metric's own unit, that is a violation of 1."""
        return abs(self.max or self.min or 0.0) or 1.0

    def __str__(self) -> str:
        if self.max is not None:
            return f"{self.metric} <= {self.max:.6g}"
        return f"{self.metric} >= {self.min:.6g}"


def violations(
    constraints: Sequence[Constraint], metrics: Mapping[str, float], *, out_of_memory: bool
) -> list[float]:
    """Return the violations of a trial that ended with these last known `metrics`, for Optuna.

    There is one number for each constraint, 0 if its metric is not known, and a last one, which is
    1 if the trial ran out of memory. In a study without constraints only such a trial has a
    violation, because samplers would model one that every trial has.
    """
    if not constraints and not out_of_memory:
        return []
    known = [c.violation(metrics[c.metric]) if c.metric in metrics else 0.0 for c in constraints]
    return [*known, 1.0 if out_of_memory else 0.0]


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether the trial has broken no constraint, as Optuna sees it."""
    return all(violation <= 0 for violation in trial.constraints.values())


def broken(constraints: Sequence[Constraint], trial: FrozenTrial) -> dict[str, float] | None:
    """Return the constraints that an ended trial breaks, each with the excess in its metric's unit.

    Return None if there are no constraints, or if the violations are not known yet.
    """
    if not constraints or not trial.constraints:
        return None
    units = {str(constraint): constraint.unit for constraint in constraints} | {OUT_OF_MEMORY: 1.0}
    found = zip(units.items(), trial.constraints.values(), strict=True)
    return {name: violation * unit for (name, unit), violation in found if violation > 0}
