"""Successive halving that pauses: a trial waits at each rung until it is among the best there.

Optuna's `asha` decides once, when a trial reaches a rung, and stops the trial for good. Here the
trial is parked: its checkpoint is kept, and its gang is free. It goes on as soon as it is among the
best 1/`reduction_factor` of all trials that reached its rung (asynchronous successive halving as
published, Li et al. 2018, arXiv 1810.05934). Callers give the curves; no ledger is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

Curve = Mapping[int, float]  # value by resource, steps or tokens; a smaller value is better


@dataclass(frozen=True)
class Halving:
    """Rungs at `first` (steps or tokens) times the powers of `reduction_factor`."""

    first: int
    reduction_factor: int

    def reached_at(self, curve: Curve) -> list[int]:
        """Return where the curve reached each rung: the first resource at or past the rung."""
        reached: list[int] = []
        rung = self.first
        for resource in sorted(curve):
            while resource >= rung:
                reached.append(resource)
                rung *= self.reduction_factor
        return reached

    def rung_values(self, curve: Curve) -> list[float]:
        """Return the value at each rung that the curve reached."""
        return [curve[resource] for resource in self.reached_at(curve)]

    def goes_on(self, trial: int, resource: int, curves: Mapping[int, Curve]) -> bool:
        """Return whether a trial that just reported at `resource` goes on; else it is parked."""
        before = {at: value for at, value in curves[trial].items() if at < resource}
        rung = len(self.rung_values(curves[trial]))
        if rung == len(self.rung_values(before)):
            return True
        return trial in self._best(rung, self._reached(curves))

    def promotable(self, parked: Collection[int], curves: Mapping[int, Curve]) -> int | None:
        """Return the best parked trial that may go on from the highest possible rung, or None."""
        reached = self._reached(curves)
        for rung in sorted({len(reached[trial]) for trial in parked}, reverse=True):
            for trial in self._best(rung, reached):
                if trial in parked and len(reached[trial]) == rung:
                    return trial
        return None

    def furthest(self, parked: Collection[int], curves: Mapping[int, Curve]) -> int | None:
        """Return the best trial parked at the highest rung, to go on if no trial is complete."""
        reached = self._reached(curves)
        return min(
            parked,
            key=lambda trial: (-len(reached[trial]), reached[trial][-1:], trial),
            default=None,
        )

    def _reached(self, curves: Mapping[int, Curve]) -> dict[int, list[float]]:
        return {trial: self.rung_values(curve) for trial, curve in curves.items()}

    def _best(self, rung: int, reached: Mapping[int, list[float]]) -> list[int]:
        # The trials that may go on from the `rung`-th rung (from 1), best first.
        there = sorted((v[rung - 1], trial) for trial, v in reached.items() if len(v) >= rung > 0)
        return [trial for _, trial in there[: len(there) // self.reduction_factor]]
