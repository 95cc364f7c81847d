"""Counting how often a trial was lost without having got any further.

A trial that takes down its worker, or its whole controller, does so again each time it is tried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from storage import Attempt, Reason

LOST = (Reason.WORKER_LOST, Reason.CONTROLLER_LOST)


def losses(attempts: Iterable[Attempt], reasons: Collection[Reason] = LOST) -> int:
    """Count the attempts of one trial, in order, that were lost since it last got any further.

    These are the attempts that ended for one of the `reasons`.
    It gets further when an evaluation is written that no earlier attempt had, and when one of its
    trainings is complete.
    """
    lost, furthest = 0, 0
    for attempt in attempts:
        if (attempt.last_step or 0) > furthest:
            lost, furthest = 0, attempt.last_step or 0
        if attempt.reason in reasons:
            lost += 1
        elif attempt.ended_at is not None and attempt.reason is None:
            lost, furthest = 0, 0  # the next training begins at its first step
    return lost
